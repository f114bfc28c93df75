"""Records sorted by slices of event time on disk, for files that hold times in no order.

Each part of a file is read and decoded once, and what it has of each slice is appended to one file without a name, so
that its space is free again whatever ends the process.
"""

from __future__ import annotations

import collections
import os
import tempfile
import threading
import uuid
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any

import numpy as np
import pyarrow as pa

from models.batches import partition
from models.decode import decode_early
from models.record import RecordType
from pipelines.sources.listing import SourceError
from pipelines.sources.records import NO_TIME_US, times_of
from pipelines.sources.split import Split
from transforms.batches import RecordBatchCoder

RUN = "run"  # the format of a part that was sorted
# So many records of a part are held until they are written.
_GATHERED_ROWS = 1 << 19
_CODER = RecordBatchCoder()


class Runs:
    """A file for the sorted records of one run of a graph in this process; a pickle of it is itself."""

    def __init__(self) -> None:
        self.token = uuid.uuid4().hex
        self._lock = threading.Lock()
        self._file: IO[bytes] | None = None
        self._size = 0
        _OPEN[self.token] = self

    def __reduce__(self) -> Any:
        return _find, (self.token,)

    def append(self, batches: Iterable[pa.RecordBatch]) -> tuple[int, int]:
        """Where batches begin and end in the file; SourceError if there is no room for them."""
        encoded = [_CODER.encode(batch) for batch in batches]
        with self._lock:
            start = self._size
            try:
                if self._file is None:
                    self._file = tempfile.TemporaryFile(prefix="headrace-", buffering=0)  # noqa: SIM115
                    weakref.finalize(self, self._file.close)
                for data in encoded:
                    view = memoryview(data)
                    while view:
                        view = view[self._file.write(view) :]
                    self._size += len(data)
            except OSError as error:
                where = f"{tempfile.gettempdir()}: there is no room to sort events of no order: {error.strerror}"
                raise SourceError(f"{where}; name another folder by TMPDIR") from None
            return start, self._size

    def read(self, start: int, stop: int) -> Iterator[pa.RecordBatch]:
        """What stands between two places."""
        assert self._file is not None
        source = pa.BufferReader(os.pread(self._file.fileno(), stop - start, start))
        while source.tell() < stop - start:
            with pa.ipc.open_stream(source) as reader:
                yield from reader


_OPEN: weakref.WeakValueDictionary[str, Runs] = weakref.WeakValueDictionary()


def _find(token: str) -> Runs:
    return _OPEN[token]


def sort_records(batches: Iterable[pa.RecordBatch], records: RecordType, slice_us: int, runs: Runs) -> Iterator[Split]:
    """Raw batches with their origin, decoded and appended to `runs`, as a part for each slice."""
    gathered: dict[int, list[pa.RecordBatch]] = collections.defaultdict(list)
    rows = 0
    for batch in batches:
        decoded = decode_early(batch, records)
        times = times_of(decoded, records)
        starts = np.where(times == NO_TIME_US, NO_TIME_US, times // slice_us * slice_us)
        for start, part in partition(decoded, starts):
            gathered[start].append(part)
        rows += decoded.num_rows
        if rows >= _GATHERED_ROWS:
            yield from _written(gathered, runs)
            gathered.clear()
            rows = 0
    yield from _written(gathered, runs)


def _written(gathered: dict[int, Sequence[pa.RecordBatch]] | Any, runs: Runs) -> Iterator[Split]:
    for start_us in sorted(gathered):
        start, stop = runs.append(gathered[start_us])
        yield Split("", RUN, start, stop, first_us=None if start_us == NO_TIME_US else start_us)
