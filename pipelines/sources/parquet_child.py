"""The process that reads Parquet files for headrace: what crashes in C, grows or never ends costs one answer, no run.

It answers requests of `pipelines.sources.parquet`, each a line of JSON on the standard input, by messages on the
standard output: a letter for the kind, eight bytes for the length, and the content. It imports no Beam, so that it
starts quickly.
"""

from __future__ import annotations

import functools
import io
import json
import os
import resource
import signal
import struct
import sys
import traceback
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.sources.raw import distinct

BATCH, TEXT, END, DAMAGE, NO_MEMORY, SYSTEM, BUG, WANT = b"B", b"T", b"E", b"D", b"M", b"S", b"X", b"W"
POSITION = "(row)"  # the last column of a batch: the number in its row group
HEADER = struct.Struct("<cQ")

# The key of Arrow's types in a footer: in Thrift's compact protocol, a text of 12 bytes that another text follows.
_ARROW_TYPES = b"\x18\x0cARROW:schema\x18"

MAX_BYTES = 2 << 30  # of memory
MAX_SECONDS = 60  # of processor time for a batch
SENT_BYTES = 64 << 20  # about as much at a time
MOST_US = 1 << 60  # times beyond, of the year 38,000, are no times
_PER_SECOND = {"milliseconds": 1000, "microseconds": 1_000_000, "nanoseconds": 1_000_000_000}

# What Arrow raises on bytes that are not Parquet's, and on types and encodings that it does not know.
_DAMAGE = (pa.ArrowException, OSError, ValueError, RuntimeError, OverflowError)


class _Server:
    """Answers requests one after another; it keeps the last local file open."""

    def __init__(self, requests: BinaryIO, answers: BinaryIO) -> None:
        self._requests = requests
        self._answers = answers
        self._open = functools.lru_cache(1)(_open)

    def serve(self) -> None:
        """Answer until the requests end."""
        while line := self._requests.readline():
            _limit_time()
            try:
                self._answer(json.loads(line))
            except MemoryError:
                self._send(NO_MEMORY)
            except _DAMAGE as error:
                if isinstance(error, OSError) and error.errno:
                    self._send(SYSTEM, json.dumps([error.errno, error.strerror]).encode())
                else:
                    self._send(DAMAGE, " ".join(str(error).split())[:1000].encode("utf-8", "backslashreplace"))
            except BaseException:  # noqa: BLE001, it is raised where the answer is read
                self._send(BUG, traceback.format_exc().encode("utf-8", "backslashreplace"))

    def _answer(self, request: dict[str, Any]) -> None:
        path = request["path"]
        if request["remote"]:
            file = _File(_Remote(self._send, self._requests, request["size"]))
        else:
            state = os.stat(path)
            file = self._open(path, state.st_ino, state.st_size, state.st_mtime_ns)
        if "group" in request:
            for batch in file.read(request["group"], request["names"], request["batch_rows"], request["start"]):
                rows = request["rows"]
                self._send_batch(batch if rows is None else _take(batch, rows))
                _limit_time()
        else:
            self._send(TEXT, json.dumps(file.describe(request["time"])).encode("utf-8", "surrogatepass"))
        self._send(END)

    def _send_batch(self, batch: pa.RecordBatch) -> None:
        parts = min(-(-batch.nbytes // SENT_BYTES), batch.num_rows) or 1
        size = -(-batch.num_rows // parts) or 1
        for start in range(0, batch.num_rows, size):
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, batch.schema) as writer:
                writer.write_batch(batch.slice(start, size))
            self._send(BATCH, sink.getvalue())

    def _send(self, kind: bytes, content: Any = b"") -> None:
        self._answers.write(HEADER.pack(kind, len(content)))
        self._answers.write(content)
        self._answers.flush()


class _Remote(io.RawIOBase):
    """A file that the other process reads."""

    def __init__(self, send: Any, answers: BinaryIO, size: int) -> None:
        self._send, self._answers, self._size, self._place = send, answers, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = 0) -> int:
        self._place = offset + (0, self._place, self._size)[whence]
        return self._place

    def read(self, size: int = -1) -> bytes:
        left = max(self._size - self._place, 0)
        size = left if size < 0 else min(size, left)
        self._send(WANT, struct.pack("<QQ", self._place, size))
        data = self._answers.read(size)
        self._place += len(data)
        return data


class _File:
    """A Parquet file whose parts are read only if the two places that tell of each agree."""

    def __init__(self, source: Any) -> None:
        metadata = None

        def read_times_as(unit: str) -> pq.ParquetFile:
            return pq.ParquetFile(
                source, metadata=metadata, coerce_int96_timestamp_unit=unit, page_checksum_verification=True
            )

        self._types_unknown = False
        try:
            self._file = read_times_as("us")
        except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
            metadata = _without_arrow_types(source)
            if metadata is None:
                raise
            self._types_unknown = True
            self._file = read_times_as("us")
        self._coarse = functools.cache(lambda: read_times_as("ms"))
        self._schema = self._file.schema_arrow
        self._leaves = self._file.schema
        counts = [_count_leaves(field.type) for field in self._schema]
        self._starts = np.cumsum([0, *counts]).tolist()
        if self._starts[-1] != len(self._leaves):
            raise ValueError("its columns are not those of its schema")

    def describe(self, time: str | None) -> dict[str, Any]:
        """The names of the columns, and of each row group the rows, the bytes as they lie in the file, and the least
        and greatest value of the column `time`, in microseconds, or None where it is not known to have such.
        """
        metadata = self._file.metadata
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        sizes = [sum(group.column(i).total_compressed_size for i in range(group.num_columns)) for group in groups]
        spans = None if time is None else self._spans(groups, time)
        rows = [group.num_rows for group in groups]
        return {"names": self._schema.names, "rows": rows, "bytes": sizes, "spans": spans}

    def _spans(self, groups: list[Any], time: str) -> list[tuple[int, int] | None] | None:
        """The least and greatest times of row groups; None if a column of that name is none of times."""
        places = self._schema.get_all_field_indices(time)
        if len(places) != 1 or not pa.types.is_timestamp(self._schema.field(places[0]).type):
            return None
        return [_span(group.column(self._starts[places[0]]).statistics) for group in groups]

    def read(self, number: int, names: list[str] | None, batch_rows: int, start: int) -> Iterator[pa.RecordBatch]:
        """The rows of a row group from `start` on: the columns `names` as far as they are there, and POSITION."""
        distinct_names = distinct(self._schema.names, names or ())
        places = [place for place, name in enumerate(distinct_names) if names is None or name in names]
        leaves = [leaf for place in places for leaf in range(self._starts[place], self._starts[place + 1])]
        group = self._file.metadata.row_group(number)
        size = self._check(group, leaves)
        found_names, chosen = [self._schema.field(place).name for place in places], [distinct_names[p] for p in places]
        batch_rows = max(min(batch_rows, SENT_BYTES * group.num_rows // (size or 1)), 1)
        if not leaves:
            leaves = [0]  # the rows are counted by a column
        batches = self._iterate(self._file, batch_rows, number, leaves)
        has_int96 = any(self._leaves.column(leaf).physical_type == "INT96" for leaf in leaves)
        coarse = self._iterate(self._coarse(), batch_rows, number, leaves) if has_int96 else None
        row = 0
        for batch in batches:
            found = batch.columns[: len(places)]
            if batch.schema.names[: len(places)] != found_names:
                raise ValueError(f"it has the columns {batch.schema.names} in place of {found_names}")
            if coarse is not None:
                found = map(_without_overflow, found, next(coarse).columns)
            columns = [_plain(values) for values in found]
            positions = pa.array(np.arange(row, row + batch.num_rows))
            row += batch.num_rows
            if row > start:
                part = pa.RecordBatch.from_arrays([*columns, positions], [*chosen, POSITION])
                yield part.slice(max(part.num_rows - (row - start), 0))
        if row != group.num_rows:
            raise ValueError(f"it has {row} rows in place of {group.num_rows}")

    @staticmethod
    def _iterate(file: pq.ParquetFile, batch_rows: int, group: int, leaves: list[int]) -> Iterator[pa.RecordBatch]:
        yield from file.reader.iter_batches(batch_rows, row_groups=[group], column_indices=leaves, use_threads=False)

    def _check(self, group: Any, leaves: list[int]) -> int:
        """The bytes of some leaves of a row group; ValueError if it is another column than the schema says."""
        size = 0
        for leaf in leaves:
            column, chunk = self._leaves.column(leaf), group.column(leaf)
            if (chunk.path_in_schema, chunk.physical_type) != (column.path, column.physical_type):
                said = f"{chunk.path_in_schema} of {chunk.physical_type}"
                raise ValueError(f"it has {said} where its schema has {column.path} of {column.physical_type}")
            if column.max_repetition_level == 0 and chunk.num_values != group.num_rows:
                raise ValueError(f"{column.path} has {chunk.num_values} values for {group.num_rows} rows")
            # Where Arrow's types are passed over, bytes without a type of Parquet's may be anything, and not text.
            bare = column.logical_type.type == "NONE" and column.physical_type.endswith("BYTE_ARRAY")
            if column.logical_type.type == "UNDEFINED" or (bare and self._types_unknown):
                raise ValueError(f"{column.path} is of a type that Arrow {pa.__version__} does not know")
            size += max(chunk.total_uncompressed_size, 0)
        return size


def _open(path: str, *_: int) -> _File:
    """A local file; the other arguments tell one file of its name from another."""
    return _File(pa.memory_map(path))


def _span(statistics: Any) -> tuple[int, int] | None:
    """The least and greatest time, in microseconds; None if that is not told, or beyond all times."""
    if statistics is None or not statistics.has_min_max or statistics.physical_type != "INT64":
        return None
    per_second = _PER_SECOND.get(json.loads(statistics.logical_type.to_json()).get("timeUnit"))
    if per_second is None:
        return None
    # As they lie in the file: dates of Python know the years 1 to 9999 alone.
    least, most = (end * 1_000_000 // per_second for end in (statistics.min_raw, statistics.max_raw))
    return (least, most) if max(-least, most) < MOST_US else None


def _without_arrow_types(source: Any) -> pq.FileMetaData | None:
    """A file's footer without the types that Arrow noted beside Parquet's own; None if it has none.

    Arrow opens no file in which one column has a type that it doesn't know, such as the 128-bit integers of Polars.
    """
    source.seek(0, 2)
    size = source.tell()
    source.seek(max(size - 8, 0))
    tail = source.read(8)
    if len(tail) < 8 or tail[4:] != b"PAR1":
        return None
    length = int.from_bytes(tail[:4], "little")
    if length > size - 8:
        return None
    source.seek(size - 8 - length)
    footer = source.read(length)
    if _ARROW_TYPES not in footer:
        return None
    other = footer.replace(_ARROW_TYPES, _ARROW_TYPES.lower())
    return pq.read_metadata(pa.BufferReader(b"PAR1" + other + tail))


def _count_leaves(kind: pa.DataType) -> int:
    """How many of Parquet's columns a column of Arrow's is."""
    if isinstance(kind, pa.BaseExtensionType):
        return _count_leaves(kind.storage_type)
    if pa.types.is_dictionary(kind) or not pa.types.is_nested(kind):
        return 1
    return sum(_count_leaves(kind.field(place).type) for place in range(kind.num_fields))


def _without_overflow(fine: pa.Array, coarse: pa.Array) -> pa.Array:
    """Times in microseconds; those of INT96 that are beyond them, which Arrow wraps round, as the least number."""
    if not pa.types.is_timestamp(fine.type) or fine.type == coarse.type:
        return fine
    same = np.floor_divide(_numbers(fine), 1000) == _numbers(coarse)
    if same.all():
        return fine
    numbers = np.where(same, _numbers(fine), np.iinfo(np.int64).min)
    return pa.array(numbers, mask=pc.is_null(fine).to_numpy(zero_copy_only=False)).cast(fine.type)


def _numbers(times: pa.Array) -> Any:
    return times.view(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)


def _plain(values: pa.Array) -> pa.Array:
    """A column that is whole, as its values lie one behind the other."""
    if pa.types.is_dictionary(values.type):
        values.validate(full=True)
        values = values.dictionary_decode()
    if pa.types.is_string_view(values.type) or pa.types.is_binary_view(values.type):
        values = values.cast(pa.large_string() if pa.types.is_string_view(values.type) else pa.large_binary())
    bare = values
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        bare = values.view(pa.binary() if pa.types.is_string(values.type) else pa.large_binary())  # see _valid_text
    elif pa.types.is_nested(values.type):
        values.validate()
        return values
    bare.validate(full=True)
    return values


def _take(batch: pa.RecordBatch, rows: list[int]) -> pa.RecordBatch:
    """The rows of a batch with positions among `rows`."""
    return batch.filter(pc.is_in(batch.columns[-1], pa.array(rows, pa.int64())))


def _limit_time() -> None:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    used = int(usage.ru_utime + usage.ru_stime)
    resource.setrlimit(resource.RLIMIT_CPU, (used + MAX_SECONDS, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def main() -> None:
    """Answer what the other process asks, within bounds of memory and time."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other process gets it, too
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (MAX_BYTES if hard < 0 else min(MAX_BYTES, hard), hard))
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        _Server(sys.stdin.buffer, answers).serve()
    except BrokenPipeError:
        os._exit(1)  # the other process is gone


if __name__ == "__main__":
    main()
