"""Avro containers, block by block: a broken block is one unreadable record, and reading goes on behind it."""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from collections.abc import Iterator
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import zstandard
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from models.codecs import DATUM_ERRORS, WriterSchemaError, parse_writer_schema, row_as_json
from pipelines.sources.raw import BrokenFile, raw_batch, rows_batch, unreadable
from transforms.batches import FORMAT

MAX_HEADER_BYTES = 4 << 20
XZ_MEMORY_BYTES = 256 << 20
MAX_BLOCK_BYTES = 64 << 20  # compressed or not
READ_BYTES = 4 << 20

_MAGIC = b"Obj\x01"
_SYNC_BYTES = 16
_METADATA = fastavro.parse_schema({"type": "map", "values": "bytes"})
_CODEC_ERRORS = (zlib.error, OSError, EOFError, ValueError, lzma.LZMAError, zstandard.ZstdError)


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
                rows = _read_rows(schema, count, _decompress(codec, data))
            except BrokenFile as error:
                if buffer.place == place:  # it has no end where it says: look for the next sync mark
                    data = buffer.skip_past(sync)
                yield unreadable(f"a broken Avro block at byte {place}: {error}", data, row)
                row += 1
                continue
            if rows:
                yield _to_batch(rows, row)
            row += len(rows)


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


def _read_header(head: bytes) -> tuple[Any, str, bytes, int]:
    """The writer's schema, the codec, the sync mark, and the header's length."""
    stream = io.BytesIO(head)
    if stream.read(len(_MAGIC)) != _MAGIC:
        raise BrokenFile("it does not begin as one")
    try:
        metadata: Any = fastavro.schemaless_reader(stream, _METADATA, None)
        text, codec = metadata["avro.schema"], metadata.get("avro.codec", b"null").decode()
    except DATUM_ERRORS as error:
        raise BrokenFile(f"its header is broken: {type(error).__name__} {error}") from None
    sync = stream.read(_SYNC_BYTES)
    if len(sync) < _SYNC_BYTES:
        raise BrokenFile("its header is cut off")
    return parse_writer_schema(text), codec, sync, stream.tell()


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
                result = zstandard.ZstdDecompressor().stream_reader(data).read(limit)
            case _:
                raise BrokenFile(f"the codec {codec} is not one of null, deflate, bzip2, xz and zstandard")
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


def _read_rows(schema: Any, count: int, data: bytes) -> list[Any]:
    if count > len(data):
        raise BrokenFile(f"{count} rows in {len(data)} bytes")
    stream = io.BytesIO(data)
    try:
        rows = [fastavro.schemaless_reader(stream, schema, None) for _ in range(count)]
    except DATUM_ERRORS as error:
        raise BrokenFile(f"{type(error).__name__} {error}") from None
    if stream.read(1):
        raise BrokenFile("bytes are left over")
    return rows


def _to_batch(rows: list[Any], first: int) -> pa.RecordBatch:
    positions = pa.array(np.arange(first, first + len(rows)))
    try:
        table = pa.RecordBatch.from_pylist(rows)
        return rows_batch(table.schema.names, table.columns, positions)
    except (pa.ArrowException, AttributeError):  # values of several types in a field, or records that are no mappings
        texts = pa.array([row_as_json(row) for row in rows], pa.binary())
        return raw_batch(texts, positions, {FORMAT: b"json"})
