"""Parquet files, a row group at a time, read in a child process, so that no file can end a run.

Footers and pages of foreign files are parsed by C++, which damage can crash, and a few bytes can claim any number of
rows. So the child has bounds of memory and time, pages are checked against their checksums where a file has them, and
what can't be read is one unreadable record a row group.
"""

from __future__ import annotations

import atexit
import json
import select
import signal
import struct
import subprocess
import threading
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from pipelines.sources import parquet_child as child
from pipelines.sources.children import end_child, start_child
from pipelines.sources.raw import BrokenFile, distinct

MODULE = child.__name__
BATCH_ROWS = 65536
FEWER_ROWS = 1024  # at a time, where that many take too much memory
_CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)
WAIT_SECONDS = 600  # for a child that may be waiting itself; its processor time is bounded by itself
# Of row groups with more rows a byte than this, if a file has more than so many rows in them, the first rows are looked
# at: as an event has an id of its own, they are no events if no column tells more than a few of them apart.
ROWS_A_BYTE = 64
REPEATED_ROWS = 1 << 17
LOOKED_AT_ROWS = 4096
FEW = 64

Positions = np.ndarray[Any, np.dtype[np.int64]]


class RowGroup(NamedTuple):
    """A row group by its number, where its rows begin, and what speaks against reading it.

    `span` is from the first to the last time in it, in microseconds since 1970 UTC, as far as the file says.
    """

    number: int
    first_row: int
    rows: int
    why_not: str = ""
    span: tuple[int, int] | None = None


def row_groups(
    path: str, fields: Sequence[str] | None = None, time: str | None = None
) -> tuple[list[str], list[RowGroup]]:
    """The names of a file's columns, made `distinct`, and its row groups, for `fields`; BrokenFile if it is none.

    Their spans are those of the column `time`.
    """
    try:
        (text,) = _ask(path, {"time": time})
    except BrokenFile as error:
        raise BrokenFile(f"not a Parquet file: {error}") from None
    about = json.loads(text.to_pybytes())
    names, rows, sizes = about["names"], np.array(about["rows"], np.int64), np.array(about["bytes"], np.int64)
    try:
        names = distinct(names, fields)
    except ValueError as error:
        raise BrokenFile(str(error)) from None
    if (rows < 0).any() or (sizes < 0).any() or rows.sum(dtype=float) > 2**62:
        raise BrokenFile("not a Parquet file: its row groups are of impossible sizes")
    spans = about["spans"] or [None] * len(rows)
    dense = rows > sizes * ROWS_A_BYTE
    if rows[dense].sum() <= REPEATED_ROWS:
        dense[:] = False
    firsts = np.cumsum(rows) - rows
    groups = []
    for number, (first, count, size) in enumerate(zip(firsts.tolist(), rows.tolist(), sizes.tolist(), strict=True)):
        why_not = f"row group {number} claims {count} events in {size} bytes, and they are all alike"
        why_not = why_not if dense[number] and _repeats(path, number, fields) else ""
        groups.append(RowGroup(number, first, count, why_not, spans[number] and tuple(spans[number])))
    return names, groups


def _repeats(path: str, number: int, names: Sequence[str] | None) -> bool:
    """Whether all columns have only a few values in the first rows of a row group; a damaged one tells when read."""
    try:
        parts = [batch for batch, _ in read_row_group(path, number, names, range(LOOKED_AT_ROWS))]
    except BrokenFile:
        return False
    flat = [values for part in parts for values in part.columns if not pa.types.is_nested(values.type)]
    plain = [values.storage if isinstance(values, pa.ExtensionArray) else values for values in flat]
    return all(len(values.unique()) <= FEW for values in plain)


def read_row_group(
    path: str, number: int, names: Sequence[str] | None = None, rows: Collection[int] | None = None
) -> Iterator[tuple[pa.RecordBatch, Positions]]:
    """A row group's columns of these names, and the number of each row in the group; `rows` names some of them.

    Raises:
        BrokenFile: if it is damaged, or can't be read within the child's bounds; what came before was read.
        OSError: if the filesystem can't be read.
    """
    request = {
        "group": number,
        "names": None if names is None else list(names),
        "rows": None if rows is None else sorted(rows),
    }
    done = 0
    for batch_rows in (BATCH_ROWS, FEWER_ROWS):
        try:
            for data in _ask(path, {**request, "batch_rows": batch_rows, "start": done}):
                with pa.ipc.open_stream(data) as reader:
                    batch = reader.read_next_batch()
                *columns, numbers = batch.columns
                fields = list(batch.schema)[:-1]
                yield pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields)), numbers.to_numpy()
                done = numbers[-1].as_py() + 1
            return
        except _Failed:
            if batch_rows == FEWER_ROWS:
                raise


class _Failed(BrokenFile):
    """The child ended, or came to its bounds; with fewer rows at a time it may not."""


class _Child:
    """A running child; it `is_ready` for a request when it has answered all."""

    def __init__(self) -> None:
        self.is_ready = True
        self._process = start_child(MODULE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        self._poll = select.poll()
        self._poll.register(self._answers, select.POLLIN)

    def ask(self, request: dict[str, Any], file: Any) -> Iterator[pa.Buffer]:
        """The answers to a request; `file` is a file that only this process can read."""
        self.is_ready = False
        self._write(json.dumps(request).encode() + b"\n")
        while True:
            kind, size = child.HEADER.unpack(self._read(child.HEADER.size))
            content = self._read(size)
            self.is_ready = kind in (child.END, child.DAMAGE, child.SYSTEM)
            if kind in (child.BATCH, child.TEXT):
                yield content
            elif kind == child.WANT:
                place, length = struct.unpack("<QQ", content)
                file.seek(place)
                data = file.read(length)
                self._write(data + b"\0" * (length - len(data)))
            elif kind == child.END:
                return
            elif kind == child.DAMAGE:
                raise BrokenFile(content.to_pybytes().decode())
            elif kind == child.NO_MEMORY:
                raise _Failed(f"reading it takes more than {child.MAX_BYTES >> 20} MiB of memory")
            elif kind == child.SYSTEM:
                raise OSError(*json.loads(content.to_pybytes()), request["path"])
            else:
                raise RuntimeError(f"reading {request['path']} failed:\n{content.to_pybytes().decode()}")

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[self._requests.write(view) :]
        except BrokenPipeError:
            raise self._ended() from None

    def _read(self, size: int) -> pa.Buffer:
        content = pa.allocate_buffer(size)
        view = memoryview(content).cast("B") if size else memoryview(b"")
        while view:
            if not self._poll.poll(WAIT_SECONDS * 1000):
                raise _Failed(f"reading it takes more than {WAIT_SECONDS} s")
            count = self._answers.readinto(view)  # type: ignore[attr-defined]
            if not count:
                raise self._ended()
            view = view[count:]
        return content

    def _ended(self) -> Exception:
        """Why it ended: what a signal of its own making tells is the file's fault, and all else is not."""
        self.close()
        signum = -self._process.returncode
        if signum == signal.SIGXCPU:
            return _Failed(f"reading it takes more than {child.MAX_SECONDS} s of a processor")
        if signum in _CRASHES:
            return _Failed(f"reading it ends the process by {signal.Signals(signum).name}")
        return RuntimeError(f"the process that reads Parquet files ended with the code {-signum}")

    def close(self) -> None:
        """End it."""
        self._requests.close()
        self._answers.close()
        end_child(self._process, patience_seconds=1)


_idle: list[_Child] = []
_lock = threading.Lock()


def start_early() -> None:
    """Start a child that will be needed, while other things are done."""
    with _lock:
        if not _idle:
            _idle.append(_Child())


@atexit.register
def _close_all() -> None:
    while _idle:
        _idle.pop().close()


def _ask(path: str, request: dict[str, Any]) -> Iterator[pa.Buffer]:
    """The answers of a child to a request about a file."""
    remote = "://" in path
    request = {**request, "path": path, "remote": remote}
    file = None
    if remote:
        request["size"] = FileSystems.match([path])[0].metadata_list[0].size_in_bytes
        file = FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)
    with _lock:
        running = _idle.pop() if _idle else None
    running = running or _Child()
    try:
        yield from running.ask(request, file)
    finally:
        if running.is_ready:
            with _lock:
                _idle.append(running)
        else:
            running.close()
        if file is not None:
            file.close()
