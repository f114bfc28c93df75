"""Batches kept on disk for a while, as they do not fit into memory."""

from __future__ import annotations

import os
import tempfile
import threading
import uuid
import weakref
from collections.abc import Iterable, Iterator
from typing import IO, Any

import pyarrow as pa

from models.errors import HeadraceError
from transforms.batches import RecordBatchCoder

_CODER = RecordBatchCoder()


class SpillError(HeadraceError, RuntimeError):
    """There is no room in the folder for temporary files."""


class Spill:
    """A file without a name in TMPDIR, whose space is free again whatever ends the process.

    A pickle of it is itself, in this process. Several threads may append and read.
    """

    def __init__(self) -> None:
        self.token = uuid.uuid4().hex
        self._lock = threading.Lock()
        self._file: IO[bytes] | None = None
        self._size = 0
        _OPEN[self.token] = self

    def __reduce__(self) -> Any:
        return _find, (self.token,)

    def append(self, batches: Iterable[pa.RecordBatch]) -> tuple[int, int]:
        """Where batches begin and end in the file; SpillError if there is no room for them."""
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
                where = f"{tempfile.gettempdir()}: there is no room for rows that do not fit into memory"
                raise SpillError(f"{where}: {error.strerror}; name another folder by TMPDIR") from None
            return start, self._size

    def read(self, start: int, stop: int) -> Iterator[pa.RecordBatch]:
        """What stands between two places."""
        assert self._file is not None
        source = pa.BufferReader(os.pread(self._file.fileno(), stop - start, start))
        while source.tell() < stop - start:
            with pa.ipc.open_stream(source) as reader:
                yield from reader


_OPEN: weakref.WeakValueDictionary[str, Spill] = weakref.WeakValueDictionary()


def _find(token: str) -> Spill:
    return _OPEN[token]
