"""Lines of text files and records of CSV, plain or compressed, from any byte on."""

from __future__ import annotations

import bz2
import itertools
import json
import zlib
from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import zstandard
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from models.codecs import MAX_BLOCK_ROWS
from models.codecs.rfc4180 import NotCsv, Places, find_records, split_fields
from models.record import COLUMNS, FORMAT
from pipelines.sources.raw import BrokenFile, distinct, raw_batch, unreadable

READ_BYTES = 4 << 20
MAX_LINE_BYTES = 16 << 20
HELD_BYTES = 1 << 20  # that are looked through for the end of a field that may go on
MAX_IDLE_BYTES = (
    1 << 30
)  # that a compressed file may have in a row without a record: a few bytes can become endless ones

# Of each compression: what undoes it, and how many bytes it may be given at once, so as not to
# make gigabytes of them: 64 bytes of bzip2 can be 90 MB.
# Beam's own reading of compressed files takes a file that is cut off for one that ends there.
_COMPRESSIONS: dict[str, tuple[Callable[[], Any], int]] = {
    ".gz": (lambda: zlib.decompressobj(wbits=31), 4096),
    ".bz2": (bz2.BZ2Decompressor, 64),
    ".zst": (lambda: zstandard.ZstdDecompressor().decompressobj(), 1024),
}


def compression_of(path: str) -> str | None:
    """The ending that tells how a file is compressed."""
    return next((ending for ending in _COMPRESSIONS if path.lower().endswith(ending)), None)


def read_blocks(path: str, start: int = 0) -> Iterator[bytes]:
    """The bytes of a file from `start` on, uncompressed; BrokenFile where it is damaged."""
    compression = compression_of(path)
    with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
        if compression is None:
            file.seek(start)
            while block := file.read(READ_BYTES):
                yield block
        else:
            idle = 0
            for large in _uncompressed(file, *_COMPRESSIONS[compression]):
                for block in (large[place : place + READ_BYTES] for place in range(0, len(large), READ_BYTES)):
                    idle = 0 if block.strip(b"\r\n") and b"\n" in block else idle + len(block)
                    if idle > MAX_IDLE_BYTES:
                        raise BrokenFile(f"more than {MAX_IDLE_BYTES} bytes of it are empty lines, or one line")
                    if len(block) > start:
                        yield block[start:]
                    start = max(start - len(block), 0)


def _uncompressed(file: Any, make: Callable[[], Any], step: int) -> Iterator[bytes]:
    machine: Any = None
    parts: list[bytes] = []
    size = 0
    while block := file.read(READ_BYTES):
        for place in range(0, len(block), step):
            data = block[place : place + step]
            while data:
                if machine is None:  # files may stand one after another in one, and zeros behind them
                    data = data.lstrip(b"\0")
                    machine = make() if data else None
                    continue
                try:
                    part = machine.decompress(data)
                except (zlib.error, OSError, EOFError, zstandard.ZstdError) as error:
                    yield b"".join(parts)
                    raise BrokenFile(str(error)) from None
                if part:
                    parts.append(part)
                    size += len(part)
                data = machine.unused_data if machine.eof else b""
                machine = None if machine.eof else machine
            if size >= READ_BYTES:
                yield b"".join(parts)
                parts, size = [], 0
    yield b"".join(parts)
    if machine is not None:
        raise BrokenFile("it ends before its end mark")


def read_header(path: str, fields: Collection[str] | None = None) -> tuple[tuple[str, ...], int] | None:
    """The names of a CSV file's columns, see `distinct`, and the bytes of its first record; None if it is empty.

    Raises:
        BrokenFile: if it can't be uncompressed so far.
        ValueError: if it is no record of CSV, or names one of `fields` twice.
    """
    buffer = b""
    for block in itertools.chain(read_blocks(path), [b""]):
        buffer += block
        stops, torn = find_records(buffer, not block, HELD_BYTES)
        if len(stops) or len(buffer) > MAX_LINE_BYTES:
            break
    if not buffer:
        return None
    if 0 in torn or not len(stops):
        raise ValueError(f"not CSV: {torn[0]}" if torn else f"it has more than {MAX_LINE_BYTES} bytes")
    record = buffer[: stops[0]]
    text = record.decode("utf-8-sig").removesuffix("\n").removesuffix("\r")
    if not text:
        raise ValueError("the first line is empty")
    try:
        names = tuple(split_fields(text))
    except NotCsv as error:
        raise ValueError(f"not CSV: {error}") from None
    return tuple(distinct(names, fields)), len(record)


def has_quotes(path: str, start: int) -> bool:
    """Whether there is a quote in a file from byte `start` on."""
    return any(b'"' in block for block in read_blocks(path, start))


def read_lines(path: str, kind: str, start: int, stop: int | None, header: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
    """The lines that start in [start, stop); empty ones are passed over."""
    metadata = _metadata(kind, header)
    # The line that starts before `start` belongs to the part before, unless it ends right there.
    at, skip_line = max(start - 1, 0), start > 0
    buffer = b""
    try:
        for block in read_blocks(path, at):
            buffer += block
            if skip_line:
                skipped = buffer.find(b"\n") + 1
                skip_line = not skipped
                skipped = skipped or len(buffer)
                at, buffer = at + skipped, buffer[skipped:]
            if stop is not None and at >= stop:
                return
            end = buffer.rfind(b"\n") + 1
            if stop is not None and at + end > stop:
                end = buffer.find(b"\n", stop - at - 1) + 1
            if end and _is_blank(buffer[:end]):
                at, buffer = at + end, buffer[end:]
            elif end:
                yield from _to_batches(buffer[:end], _line_edges(buffer[:end]), at, metadata)
                at, buffer = at + end, buffer[end:]
            if stop is not None and at >= stop:
                return
            if len(buffer) > MAX_LINE_BYTES:
                yield unreadable(f"a line of more than {MAX_LINE_BYTES} bytes", buffer, at)
                at, buffer, skip_line = at + len(buffer), b"", True
    except BrokenFile as error:
        yield unreadable(f"broken after {at + len(buffer)} bytes: {error}", buffer, at)
        return
    if buffer:
        yield from _to_batches(buffer, _line_edges(buffer), at, metadata)


def read_records(path: str, start: int, header: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
    """The records of CSV from byte `start` on, over lines as their quotes say; empty lines are passed over.

    What a quote in a line or record that is too large opens has no end that can be known, so it ends the reading.
    """
    metadata = _metadata("csv", header)
    too_large = f"more than {MAX_LINE_BYTES} bytes"
    at, buffer, skip_line = start, b"", False
    try:
        for block in itertools.chain(read_blocks(path, start), [b""]):
            buffer += block
            if skip_line:
                skipped = buffer.find(b"\n") + 1
                skip_line = not skipped
                skipped = skipped or len(buffer)
                if b'"' in buffer[:skipped]:
                    yield unreadable(f"all from a quote in a line of {too_large} on", buffer, at)
                    return
                at, buffer = at + skipped, buffer[skipped:]
            end = buffer.rfind(b"\n") + 1
            if _is_blank(buffer[:end]):
                at, buffer = at + end, buffer[end:]
            stops, torn = find_records(buffer, not block, HELD_BYTES)
            edges, first = np.append(0, stops), 0
            for record, why in sorted(torn.items()):
                yield from _to_batches(buffer, edges[first : record + 1], at, metadata)
                from_, to = edges[record : record + 2].tolist()
                yield unreadable(f"{to - from_} bytes: {why}", buffer[from_:to], at + from_)
                first = record + 1
            yield from _to_batches(buffer, edges[first:], at, metadata)
            at, buffer = at + int(edges[-1]), buffer[edges[-1] :]
            if len(buffer) > MAX_LINE_BYTES:
                if b'"' in buffer:
                    yield unreadable(f"all from a record with quotes of {too_large} on", buffer, at)
                    return
                yield unreadable(f"a line of {too_large}", buffer, at)
                at, buffer, skip_line = at + len(buffer), b"", True
    except BrokenFile as error:
        yield unreadable(f"broken after {at + len(buffer)} bytes: {error}", buffer, at)


def _metadata(kind: str, header: tuple[str, ...]) -> dict[bytes, bytes]:
    return {FORMAT: kind.encode(), COLUMNS: json.dumps(header).encode()}


def _is_blank(block: bytes) -> bool:
    """Whether whole lines are all empty, told without an array of them: a few bytes can become gigabytes of such."""
    return block[:1] in (b"\n", b"\r") and block.count(b"\n") + block.count(b"\r\n") == len(block)


def _line_edges(block: bytes) -> Places:
    """Where each line of a block starts, and where the last stops, which may have no end."""
    edges = np.append(0, np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + 1)
    return edges if edges[-1] == len(block) else np.append(edges, len(block))


def _to_batches(block: bytes, edges: Places, offset: int, metadata: dict[bytes, bytes]) -> Iterator[pa.RecordBatch]:
    """The records of a block, each from one edge to the next, but for empty lines."""
    data = np.frombuffer(block, np.uint8)
    starts, stops = edges[:-1], edges[1:]
    lengths = stops - starts
    empty = np.isin(data[starts], (ord("\n"), ord("\r"))) & (lengths <= 2)
    pairs = np.flatnonzero(empty & (lengths == 2))
    empty[pairs] = (data[starts[pairs]] == ord("\r")) & (data[starts[pairs] + 1] == ord("\n"))
    for first in range(0, len(starts), MAX_BLOCK_ROWS):
        part = slice(first, first + MAX_BLOCK_ROWS)
        offsets = np.append(starts[part], stops[part][-1]).astype(np.int32)
        lines = pa.BinaryArray.from_buffers(
            pa.binary(), len(offsets) - 1, [None, pa.py_buffer(offsets.tobytes()), pa.py_buffer(block)]
        )
        positions = starts[part] + offset
        if empty[part].any():
            kept = np.flatnonzero(~empty[part])
            lines, positions = lines.take(pa.array(kept)), positions[kept]
        if len(lines):
            yield raw_batch(lines, pa.array(positions), metadata)
