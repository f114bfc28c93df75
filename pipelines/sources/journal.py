"""The journal: every message of a stream as it came, on disk before it is acknowledged.

A journal is a folder of segments, each an Arrow IPC stream of raw batches. A segment that a crash cut off is
read up to its last whole batch.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator

import pyarrow as pa

ENDING = ".journal"
SEGMENT_BYTES = 64 << 20


class JournalWriter:
    """Appends raw batches to a folder of segments; each append is on disk when it returns."""

    def __init__(self, directory: pathlib.Path, segment_bytes: int = SEGMENT_BYTES) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._segment_bytes = segment_bytes
        numbers = [int(path.stem) for path in segments(directory)]
        self._next = max(numbers, default=-1) + 1
        self._file: pa.OSFile | None = None
        self._writer: pa.ipc.RecordBatchStreamWriter | None = None
        self._schema: pa.Schema | None = None

    def append(self, batch: pa.RecordBatch) -> None:
        """Write a batch and wait until it is on disk; OSError if it can't be."""
        if self._file is None or self._file.tell() > self._segment_bytes or not batch.schema.equals(self._schema, True):
            self._roll(batch.schema)
        assert self._writer is not None
        assert self._file is not None
        self._writer.write_batch(batch)
        self._raw.flush()
        os.fsync(self._raw.fileno())

    def _roll(self, schema: pa.Schema) -> None:
        self.close()
        path = self._directory / f"{self._next:012d}{ENDING}"
        self._next += 1
        self._raw = path.open("xb")
        self._file = pa.PythonFile(self._raw, "w")
        self._schema = schema
        self._writer = pa.ipc.new_stream(self._file, schema)
        folder = os.open(self._directory, os.O_RDONLY)
        try:
            os.fsync(folder)  # the segment's name is on disk too
        finally:
            os.close(folder)

    def close(self) -> None:
        """End the open segment."""
        if self._writer is not None and self._file is not None:
            self._writer.close()
            self._file.close()
            self._raw.close()
            self._writer = self._file = None


def segments(directory: pathlib.Path) -> list[pathlib.Path]:
    """A journal's segments, oldest first."""
    return sorted(directory.glob(f"*{ENDING}"))


def read_segment(data: pa.Buffer | bytes) -> Iterator[pa.RecordBatch]:
    """The whole batches of a segment; what a crash cut off after them was never acknowledged."""
    try:
        reader = pa.ipc.open_stream(data)
    except (pa.ArrowInvalid, EOFError, OSError):
        return
    while True:
        try:
            yield reader.read_next_batch()
        except (StopIteration, pa.ArrowInvalid, EOFError, OSError):
            return
