"""An endpoint's store, whose failures are told apart from others, and from damage of a tile."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from models.store.kinds import Kind, Place
from models.store.tiles import Rows, TileError
from pipelines.serve.line import ServiceDown
from pipelines.store import Store, StoreError

_LOG = logging.getLogger("headrace")


class Watched:
    """The store; what it fails with is told apart from what else may fail."""

    def __init__(self, store: Store, failed: Callable[[str], None]) -> None:
        self._store, self._failed = store, failed
        self.watermark_us: int | None = None  # as of what was read last
        self.dropped: Mapping[str, int] = {}
        self.is_full = False  # its log, which is to be put into tiles

    def read(self, places: Sequence[Place]) -> tuple[Mapping[Place, bytes], Mapping[Place, bytes]]:
        """As the store."""
        with self.told():
            found = self._store.look(places)
        self.watermark_us, self.dropped = found.progress.watermark_us, found.dropped
        return found.tiles, found.more

    def append(self, kind: Kind, rows: Rows, keys: pa.Array) -> None:
        """As the store, without settling, for which a request does not wait."""
        with self.told():
            self.is_full |= self._store.enter(kind, rows, keys)

    @contextlib.contextmanager
    def told(self) -> Any:
        """ServiceDown for a store that does not answer."""
        try:
            yield
        except StoreError as error:
            self._failed(str(error))
            raise ServiceDown("the store does not answer") from None


@contextlib.contextmanager
def whole_tiles() -> Any:
    """ServiceDown for a tile that is damaged: other entities are answered as ever."""
    try:
        yield
    except TileError as error:
        _LOG.error("the store holds a damaged tile: %s; `headrace store check --mend` puts it right", error)
        raise ServiceDown("the store holds a damaged tile of this entity") from None
