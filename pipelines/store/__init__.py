"""The online store: tiles of each entity's past by feature set, which the graph writes and an endpoint reads.

A store is `redis://[USER:$NAME@]HOST[:PORT][/DATABASE]`, the same with TLS as `rediss://`, or embedded: the path of an
SQLite file, also written sqlite:///PATH. A password is the name of an environment variable. Several processes may read
and write one store; a store may have tiles of several feature sets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import pyarrow as pa

from models.errors import HeadraceError
from models.redact import redact
from models.store.kinds import Kind, Place
from models.store.tiles import Rows

_SQLITE, _REDIS = "sqlite:///", ("redis://", "rediss://")
WAIT_SECONDS = 10.0  # that another process's write, or a server's answer, may take


class StoreError(HeadraceError, RuntimeError):
    """An online store that can't be used; the message shows no secret."""


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a feature set's tiles go, in microseconds since 1970 UTC; None of a store that has none.

    All valid events before `watermark_us` are in the store, but for those that came later than that. `newest_us` is the
    time of the latest event there; what has passed all windows by then is dropped.
    """

    watermark_us: int | None = None
    newest_us: int | None = None

    def later(self, other: Progress) -> Progress:
        """The later of both."""
        return Progress(_later(self.watermark_us, other.watermark_us), _later(self.newest_us, other.newest_us))


class Look(NamedTuple):
    """Tiles, rows that may stand in no tile yet, as tiles of the same places, and how far all go at least.

    `dropped` is by kind the time that tiles started before which were removed, microseconds since 1970 UTC.
    """

    tiles: dict[Place, bytes]
    more: dict[Place, bytes]
    progress: Progress
    dropped: dict[str, int]


class Store(Protocol):
    """The tiles of one feature set. Methods raise StoreError if the store does not answer or is none.

    One thread uses it at a time.
    """

    def read(self, places: Sequence[Place]) -> dict[Place, bytes]:
        """The tiles that are there of those named, in one round trip."""

    def look(self, places: Sequence[Place]) -> Look:
        """As `read`, with what stands in no tile yet apart from those that are there."""

    def add(self, kind: Kind, tiles: Mapping[Place, bytes]) -> None:
        """Unite tiles of one kind with those that are there; again, it changes nothing.

        Others may add at the same time. TileError if a tile that is there is damaged.
        """

    def append(self, kind: Kind, rows: Rows, keys: pa.Array) -> None:
        """As `add`, of rows by the key of each, a text: cheap for few rows of many keys, a little less so to read."""

    def enter(self, kind: Kind, rows: Rows, keys: pa.Array) -> bool:
        """As `append`, but does not settle when there is much; whether that should be done."""

    def settle(self, leave_damaged: bool = False, whole: bool = False) -> None:
        """Put what was appended into tiles, and if it is to be the `whole`, few rows of large tiles, too.

        TileError if something is damaged, unless that is to be left as it is.
        """

    def replace(self, tiles: Mapping[Place, tuple[bytes | None, bytes | None]]) -> list[Place]:
        """Put the second tile, or none, where the first, or none, is still there; the places where it is not."""

    def progress(self) -> Progress:
        """How far the tiles go."""

    def probe(self) -> None:
        """StoreError if nothing can be written now."""

    def advance(self, progress: Progress) -> None:
        """Go on as far as that; never back."""

    def drop(self, kind: str, before_us: int) -> int:
        """Remove the tiles of a kind that start before a time, microseconds since 1970 UTC; how many there were."""

    def scan(self, kind: str) -> Iterator[tuple[Place, bytes]]:
        """All tiles of a kind, by start and then by key as bytes of UTF-8."""

    def close(self) -> None:
        """Let go of it."""


def check_store(uri: str) -> None:
    """StoreError for a place that can't be one, before anything is opened."""
    if uri.startswith(_REDIS):
        from pipelines.store.redis import check_redis

        check_redis(uri)
    elif not path_of(uri):
        raise StoreError(f"{redact(uri)}: is no store: name an SQLite file, or redis://HOST[:PORT]")


def is_embedded(uri: str) -> bool:
    """Whether a store is a file of this machine."""
    return not uri.startswith(_REDIS)


def path_of(uri: str) -> str:
    """The path of an embedded store; "" of what can't be one."""
    path = uri.removeprefix(_SQLITE)
    return "" if "://" in path else path


def open_store(uri: str, feature_set: str, *, create: bool = False, wait_seconds: float = WAIT_SECONDS) -> Store:
    """Open a store for one feature set; an embedded one that is not there is made with `create`.

    An operation fails with StoreError after `wait_seconds`.
    """
    from pipelines.store.log import LoggedStore

    check_store(uri)
    if is_embedded(uri):
        from pipelines.store.sqlite import SqliteBackend

        return LoggedStore(SqliteBackend(path_of(uri), feature_set, create, wait_seconds), create)
    from pipelines.store.redis import RedisBackend

    return LoggedStore(RedisBackend(uri, feature_set, wait_seconds), create)


def go_on(store: Store, kinds: Iterable[Kind], progress: Progress, lateness_us: int) -> None:
    """Have a store go on as far as that, and drop the tiles that no event `lateness_us` older than the newest needs."""
    store.advance(progress)
    if (newest_us := store.progress().newest_us) is not None:
        for kind in kinds:
            store.drop(kind.name, kind.passed_us(newest_us, lateness_us))


def _later(one: int | None, other: int | None) -> int | None:
    return other if one is None else one if other is None else max(one, other)
