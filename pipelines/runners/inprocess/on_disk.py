"""Groups of batches, on disk as far as they are large."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa

from pipelines.spill import Spill

HELD_BYTES = 32 << 20  # of the groups of a step that are kept in memory


class _Place(NamedTuple):
    start: int
    stop: int


class OnDisk:
    """Batches of a step's groups: the first stay in memory, the others go to disk. Lanes put in side by side."""

    def __init__(self) -> None:
        self._spill = Spill()
        self._lock = threading.Lock()
        self._held = 0

    def put(self, batch: pa.RecordBatch) -> pa.RecordBatch | _Place:
        """What to keep of a batch."""
        with self._lock:
            if self._held + batch.nbytes <= HELD_BYTES:
                self._held += batch.nbytes
                return batch
        return _Place(*self._spill.append([batch]))

    def take(self, kept: Sequence[pa.RecordBatch | _Place]) -> Iterable[pa.RecordBatch]:
        """The batches of a group, which can be gone through more than once; they count no longer as held."""
        held = sum(value.nbytes for value in kept if not isinstance(value, _Place))
        with self._lock:
            self._held -= held
        return _Values(self._spill, kept)


class _Values:
    """Batches that are read when their turn comes."""

    def __init__(self, spill: Spill, kept: Sequence[pa.RecordBatch | _Place]) -> None:
        self._spill, self._kept = spill, kept

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        for value in self._kept:
            if isinstance(value, _Place):
                yield from self._spill.read(*value)
            else:
                yield value
