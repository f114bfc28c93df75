"""One reader in a process, behind all copies of a DoFn.

An engine may give a bundle to another copy of a DoFn than the one before: Beam's Python worker keeps a copy until its
bundle is finalized, and Prism and Flink start the next bundle before that. So what a source has open and has
received can't be the copy's own.
"""

from __future__ import annotations

import dataclasses
import threading
import uuid
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass
class _Shared:
    copies: int = 0
    reader: Any = None
    next_round: int = 0


_LOCK = threading.Lock()
_SHARED: dict[str, _Shared] = {}


class SharedReader:
    """A handle that is pickled with a DoFn; `open_reader` gives something with a `close`."""

    def __init__(self, open_reader: Callable[[], Any]) -> None:
        self._open = open_reader
        self._key = uuid.uuid4().hex

    def join(self) -> None:
        """One more copy of the DoFn is there."""
        with _LOCK:
            _SHARED.setdefault(self._key, _Shared()).copies += 1

    def leave(self) -> None:
        """A copy is gone; the last one closes the reader."""
        with _LOCK:
            shared = _SHARED[self._key]
            shared.copies -= 1
            if shared.copies:
                return
            del _SHARED[self._key]
            if shared.reader is not None:
                shared.reader.close()

    def at(self, number: int) -> Any:
        """The reader that did the round before `number`.

        If an engine goes back to an earlier round, as after a failure, what was read since is lost there: then it
        is a new one, and the broker sends again what was not acknowledged.
        """
        with _LOCK:
            shared = _SHARED[self._key]
            if shared.reader is not None and shared.next_round != number:
                shared.reader.close()
                shared.reader = None
            if shared.reader is None:
                shared.reader = self._open()
            shared.next_round = number + 1
            return shared.reader
