"""Avro containers, block by block: a broken block is one unreadable record, and reading goes on behind it."""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import cramjam
import fastavro
import numpy as np
import pyarrow as pa
import zstandard
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from models.codecs import (
    DATUM_ERRORS,
    MAX_BLOCK_ROWS,
    PlainSchema,
    WriterSchemaError,
    parse_writer_schema,
    plain_schema,
    row_as_json,
)
from models.faults import python_values
from models.record import FORMAT
from pipelines.sources.raw import BrokenFile, raw_batch, rows_batch, unreadable

MAX_HEADER_BYTES = 4 << 20
XZ_MEMORY_BYTES = 256 << 20
ZSTANDARD_WINDOW_BYTES = 64 << 20
MAX_BLOCK_BYTES = 64 << 20  # compressed or not
MAX_ROW_BYTES = 4 << 20  # of which Python makes up to 200 times as much, if it is a list of records of a byte each
READ_BYTES = 4 << 20

_MAGIC = b"Obj\x01"
_SYNC_BYTES = 16
_METADATA = fastavro.parse_schema({"type": "map", "values": "bytes"})
_CODECS = ("null", "deflate", "snappy", "zstandard", "bzip2", "xz", "lz4")
_CODEC_ERRORS = (
    zlib.error, OSError, EOFError, ValueError, lzma.LZMAError, zstandard.ZstdError, cramjam.DecompressionError,
)  # fmt: skip


def read_avro(path: str) -> Iterator[pa.RecordBatch]:
    """The records of an Avro container, with the number of each."""
    with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
        buffer = _Buffer(file)
        head = buffer.peek(MAX_HEADER_BYTES)
        try:
            schema, codec, sync, length = _read_header(head)
        except (BrokenFile, WriterSchemaError) as error:
            yield unreadable(f"not an Avro container: {error}", head, 0)
            return
        buffer.skip(length)
        row = 0
        while buffer.peek(1):
            place = buffer.place
            try:
                count, data = _next_block(buffer, sync)
                for rows in _read_rows(schema.schema, count, _decompress(codec, data)):
                    yield _to_batch(schema, rows, row)
                    row += len(rows)
            except BrokenFile as error:
                if buffer.place == place:  # it has no end where it says: look for the next sync mark
                    data = buffer.skip_past(sync)
                yield unreadable(f"a broken Avro block at byte {place}: {error}", data, row)
                row += 1


class _Buffer:
    """A file that can be looked into ahead of where it is read."""

    def __init__(self, file: Any) -> None:
        self.place = 0
        self._file, self._ahead = file, b""

    def peek(self, size: int) -> bytes:
        """The next `size` bytes, fewer at the end."""
        while len(self._ahead) < size and (more := self._file.read(READ_BYTES)):
            self._ahead += more
        return self._ahead[:size]

    def skip(self, size: int) -> None:
        """Go on by bytes that were looked at."""
        self._ahead = self._ahead[size:]
        self.place += size

    def skip_past(self, mark: bytes) -> bytes:
        """Go on behind the next `mark`, or to the end; gives the first of the bytes gone over."""
        kept = self.peek(READ_BYTES)
        while (found := self._ahead.find(mark)) < 0:
            passed = max(len(self._ahead) - len(mark) + 1, 0)
            self.skip(passed)
            if len(self.peek(len(mark))) < len(mark):
                self.skip(len(self._ahead))
                return kept
            self.peek(READ_BYTES)
        self.skip(found + len(mark))
        return kept


def _read_header(head: bytes) -> tuple[PlainSchema, str, bytes, int]:
    """The writer's schema, the codec, the sync mark, and the header's length."""
    stream = io.BytesIO(head)
    if stream.read(len(_MAGIC)) != _MAGIC:
        raise BrokenFile("it does not begin as one")
    try:
        metadata: Any = fastavro.schemaless_reader(stream, _METADATA, None)
        text, codec = metadata["avro.schema"], metadata.get("avro.codec", b"null").decode()
    except DATUM_ERRORS as error:
        raise BrokenFile(f"its header is broken: {type(error).__name__} {error}") from None
    if codec not in _CODECS:
        raise BrokenFile(f"its codec {codec!r} is not one of {', '.join(_CODECS)}")
    sync = stream.read(_SYNC_BYTES)
    if len(sync) < _SYNC_BYTES:
        raise BrokenFile("its header is cut off")
    return plain_schema(parse_writer_schema(text)), codec, sync, stream.tell()


def _next_block(buffer: _Buffer, sync: bytes) -> tuple[int, bytes]:
    """The number of rows of the next block and its data; goes on behind it unless that is not where it ends."""
    head = buffer.peek(20)
    count, at = _read_long(head, 0)
    size, at = _read_long(head, at)
    if not (0 <= size <= MAX_BLOCK_BYTES and count >= 0):
        raise BrokenFile(f"{count} rows in {size} bytes")
    block = buffer.peek(at + size + _SYNC_BYTES)
    if block[at + size :] != sync:
        raise BrokenFile("it does not end where it says")
    buffer.skip(len(block))
    return count, block[at : at + size]


def _read_long(data: bytes, at: int) -> tuple[int, int]:
    """A zigzag number of 64 bits, and where it ends."""
    number = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        number |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return (number >> 1) ^ -(number & 1), at
    raise BrokenFile("its length is broken")


def _decompress(codec: str, data: bytes) -> bytes:
    limit = MAX_BLOCK_BYTES + 1
    try:
        match codec:
            case "null":
                return data
            case "deflate":
                result = _bounded(zlib.decompressobj(-15), data, limit)
            case "bzip2":
                result = _bounded(bz2.BZ2Decompressor(), data, limit)
            case "xz":
                result = _bounded(lzma.LZMADecompressor(memlimit=XZ_MEMORY_BYTES), data, limit)
            case "zstandard":
                machine = zstandard.ZstdDecompressor(max_window_size=ZSTANDARD_WINDOW_BYTES)
                result = machine.stream_reader(data).read(limit)
            case "snappy":
                result = _sized(cramjam.snappy.decompress_raw, data[:-4], cramjam.snappy.decompress_raw_len(data[:-4]))
                if zlib.crc32(result) != int.from_bytes(data[-4:], "big"):
                    raise ValueError("its checksum is not that of its data")
            case "lz4":  # fastavro's: the length in four bytes, little-endian, and a raw block
                result = _sized(cramjam.lz4.decompress_block, data, int.from_bytes(data[:4], "little"))
            case _:
                raise AssertionError(codec)
    except _CODEC_ERRORS as error:
        raise BrokenFile(f"{type(error).__name__} {error}") from None
    if len(result) == limit:
        raise BrokenFile(f"more than {MAX_BLOCK_BYTES} bytes")
    return result


def _bounded(machine: Any, data: bytes, limit: int) -> bytes:
    result: bytes = machine.decompress(data, limit)
    if not machine.eof and len(result) < limit:
        raise EOFError("compressed data that is cut off")
    return result


def _sized(decompress: Callable[[bytes], Any], data: bytes, size: int) -> bytes:
    """What becomes of compressed data that says how much that is."""
    if size > MAX_BLOCK_BYTES:
        raise BrokenFile(f"more than {MAX_BLOCK_BYTES} bytes: {size}")
    result = bytes(decompress(data))
    if len(result) != size:
        raise ValueError(f"{len(result)} bytes in place of {size}")
    return result


def _read_rows(schema: Any, count: int, data: bytes) -> Iterator[list[Any]]:
    """The rows of a block, so many at once as a batch may have; BrokenFile before the first if it is broken."""
    if count > len(data):
        raise BrokenFile(f"{count} rows in {len(data)} bytes")
    if len(data) > MAX_ROW_BYTES:
        _check_rows(schema, count, data)
    if count > MAX_BLOCK_ROWS:
        for _ in _decode_rows(schema, count, data):
            pass
    yield from _decode_rows(schema, count, data)


def _check_rows(schema: Any, count: int, data: bytes) -> None:
    """Go over the rows of a block without making anything of them; BrokenFile if one is too large."""
    if not (isinstance(schema, dict) and schema["type"] == "record"):
        raise BrokenFile(f"{len(data)} bytes of what are no records")
    nothing = fastavro.parse_schema({"type": "record", "name": schema["name"], "fields": []})
    stream, place = io.BytesIO(data), 0
    for _ in range(count):
        try:
            fastavro.schemaless_reader(stream, schema, nothing)
        except DATUM_ERRORS as error:
            raise BrokenFile(f"{type(error).__name__} {error}") from None
        if stream.tell() - place > MAX_ROW_BYTES:
            raise BrokenFile(f"a row of more than {MAX_ROW_BYTES} bytes")
        place = stream.tell()


def _decode_rows(schema: Any, count: int, data: bytes) -> Iterator[list[Any]]:
    stream = io.BytesIO(data)
    for first in range(0, count, MAX_BLOCK_ROWS) or [0]:
        size = min(MAX_BLOCK_ROWS, count - first)
        try:
            rows = [fastavro.schemaless_reader(stream, schema, None) for _ in range(size)]
        except DATUM_ERRORS as error:
            raise BrokenFile(f"{type(error).__name__} {error}") from None
        if first + size == count and stream.read(1):
            raise BrokenFile("bytes are left over")
        if rows:
            yield rows


def _to_batch(schema: PlainSchema, rows: list[Any], first: int) -> pa.RecordBatch:
    positions = pa.array(np.arange(first, first + len(rows)))
    fields = schema.field_types()
    columns: dict[str, pa.Array] = {}
    mixed = not fields
    for name, part in fields.items():
        try:
            columns[name] = schema.to_array([row[name] for row in rows], part)
        except (pa.ArrowException, OverflowError):  # values of several types
            mixed = True
    if not mixed:
        return rows_batch(list(columns), list(columns.values()), positions)
    for name, column in columns.items():
        is_time = schema.time_type(fields[name]) is not None
        for row, value in zip(rows, python_values(column), strict=True):  # a number could be taken for a time
            row[name] = f"{value} {column.type}" if is_time and isinstance(value, int) else value
    texts = pa.array([row_as_json(row) for row in rows], pa.binary())
    return raw_batch(texts, positions, {FORMAT: b"json"})
