"""Lines of text files, plain or compressed, from any byte on."""

from __future__ import annotations

import bz2
import json
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import zstandard
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from models.codecs import MAX_BLOCK_ROWS
from pipelines.sources.raw import BrokenFile, raw_batch, unreadable
from transforms.batches import COLUMNS, FORMAT

READ_BYTES = 4 << 20
MAX_LINE_BYTES = 16 << 20

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
    """The bytes of a file from `start` on, uncompressed (then `start` is 0); BrokenFile where it is damaged."""
    compression = compression_of(path)
    with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
        if compression is None:
            file.seek(start)
            while block := file.read(READ_BYTES):
                yield block
        else:
            yield from _uncompressed(file, *_COMPRESSIONS[compression])


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


def read_first_line(path: str) -> bytes | None:
    """The first line of a file, or of as much of it as may be one; None if it is empty."""
    buffer = b""
    for block in read_blocks(path):
        buffer += block
        if b"\n" in block or len(buffer) > MAX_LINE_BYTES:
            break
    return buffer.partition(b"\n")[0] if buffer else None


def read_lines(path: str, kind: str, start: int, stop: int | None, header: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
    """The lines that start in [start, stop): empty ones are passed over, as is the first if there is a header."""
    metadata = {FORMAT: kind.encode(), COLUMNS: json.dumps(header).encode()}
    # The line that starts before `start` belongs to the part before, unless it ends right there.
    at, skip_line = max(start - 1, 0), bool(start or header)
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
            if end:
                yield from _to_batches(buffer[:end], at, metadata)
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
        yield from _to_batches(buffer, at, metadata)


def _to_batches(block: bytes, offset: int, metadata: dict[bytes, bytes]) -> Iterator[pa.RecordBatch]:
    data = np.frombuffer(block, np.uint8)
    stops = np.flatnonzero(data == ord("\n")) + 1
    if not len(stops) or stops[-1] != len(data):
        stops = np.append(stops, len(data))
    starts = np.concatenate([[0], stops[:-1]])
    lengths = stops - starts
    empty = np.isin(data[starts], (ord("\n"), ord("\r"))) & (lengths <= 2)
    for row in np.flatnonzero(empty & (lengths == 2)).tolist():
        empty[row] = block[starts[row] : stops[row]] == b"\r\n"
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
