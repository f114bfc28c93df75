"""Events from files: Parquet, CSV, JSON lines and Avro, by path or glob, on any filesystem that Beam knows."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import zlib
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import fastavro
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems

from models import progress
from models.codecs import MAX_BLOCK_ROWS
from transforms.batches import COLUMNS, FORMAT, HISTORY, PAYLOAD, POSITION, SLICE, SOURCE, SYSTEM_FIELDS

FORMATS = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".avro": "avro",
}
SPLIT_BYTES = 32 << 20
READ_BYTES = 4 << 20
MAX_LINE_BYTES = 16 << 20
KEPT_BYTES = 65536  # of what could not be read
PARQUET_BATCH_ROWS = 65536
# Days of event time that are handed on at once. It changes no result; a shard holds this much at a time.
SLICE_US = 30 * 86_400_000_000


class SourceError(ValueError):
    """A source that can't be read at all."""


@dataclasses.dataclass(frozen=True)
class Split:
    """A part of a file: a Parquet row group, a range of bytes that lines start in, or the whole file."""

    path: str
    format: str
    start: int = 0
    stop: int | None = None
    header: tuple[str, ...] = ()
    first_row: int = 0


@dataclasses.dataclass(eq=False)
class ReadFiles(beam.PTransform):  # type: ignore[misc]
    """All records of the files that match `patterns`, as batches of raw records."""

    patterns: tuple[str, ...]
    format: str | None = None
    history: bool = False
    slice_us: int = SLICE_US

    def expand(self, pbegin: Any) -> beam.PCollection:
        """Batches whose metadata names their format; see transforms.decode."""
        return (
            pbegin
            | "Patterns" >> beam.Create(list(self.patterns))
            | "Match" >> beam.FlatMap(match_files).with_output_types(str)
            | "Split" >> beam.FlatMap(self._split)
            | "Spread" >> beam.Reshuffle()
            | "Read" >> beam.FlatMap(self._read).with_output_types(pa.RecordBatch)
        )

    def _split(self, path: str) -> Iterator[Split]:
        yield from split_file(path, self.format or format_of(path))

    def _read(self, split: Split) -> Iterator[pa.RecordBatch]:
        for batch in read_split(split):
            progress.advance("read", batch.num_rows)
            yield _with_origin(batch, split.path, self.history, self.slice_us)


def match_files(pattern: str) -> list[str]:
    """The paths that match, sorted; SourceError if there are none."""
    try:
        found = [m.path for m in FileSystems.match([pattern])[0].metadata_list if not _is_hidden(m.path)]
    except (BeamIOError, ValueError) as error:
        raise SourceError(f"{pattern}: cannot be listed: {error}") from None
    if not found:
        raise SourceError(f"{pattern}: no such file")
    return sorted(found)


def _is_hidden(path: str) -> bool:
    return path.rsplit("/", 1)[-1].startswith((".", "_"))


def format_of(path: str) -> str:
    """The format that a file's name tells, compression aside."""
    name = path.lower()
    for compression in (".gz", ".bz2", ".zst"):
        name = name.removesuffix(compression)
    for ending, kind in FORMATS.items():
        if name.endswith(ending):
            return kind
    raise SourceError(f"{path}: its name does not tell its format: end it in {', '.join(FORMATS)}, or name the format")


def split_file(path: str, kind: str) -> Iterator[Split]:
    """The parts of a file that can be read on their own."""
    if kind == "parquet":
        try:
            metadata = pq.ParquetFile(_open_parquet(path)).metadata
        except (pa.ArrowInvalid, pa.ArrowIOError, OSError) as error:
            yield Split(path, "unreadable", header=(f"not a Parquet file: {error}",))
            return
        first_row = 0
        for group in range(metadata.num_row_groups):
            yield Split(path, kind, group, group + 1, first_row=first_row)
            first_row += metadata.row_group(group).num_rows
        return
    header: tuple[str, ...] = ()
    if kind == "csv":
        with FileSystems.open(path) as file:
            line = file.readline(MAX_LINE_BYTES) if hasattr(file, "readline") else b""
        try:
            header = tuple(next(csv.reader([line.decode("utf-8-sig")]), []))
        except (UnicodeDecodeError, csv.Error) as error:
            yield Split(path, "unreadable", header=(f"its header is not CSV: {error}",))
            return
        if not header:
            return  # an empty file
        if len(set(header)) < len(header):
            yield Split(path, "unreadable", header=("its header names a column twice",))
            return
    compressed = CompressionTypes.detect_compression_type(path) != CompressionTypes.UNCOMPRESSED
    size = FileSystems.match([path])[0].metadata_list[0].size_in_bytes
    if kind == "avro" or compressed:
        yield Split(path, kind, header=header)
        return
    for start in range(0, size, SPLIT_BYTES):
        yield Split(path, kind, start, min(start + SPLIT_BYTES, size), header)


def read_split(split: Split) -> Iterator[pa.RecordBatch]:
    """The records of a part of a file, with their positions, as batches of their format."""
    if split.format == "parquet":
        yield from _read_parquet(split)
    elif split.format == "avro":
        yield from _read_avro(split)
    elif split.format == "unreadable":
        yield _unreadable(split.header[0], b"", 0)
    else:
        yield from _read_lines(split)


def _open_parquet(path: str) -> Any:
    return pa.memory_map(path) if "://" not in path else FileSystems.open(path)


def _read_parquet(split: Split) -> Iterator[pa.RecordBatch]:
    position = split.first_row
    try:
        file = pq.ParquetFile(_open_parquet(split.path))
        for batch in file.iter_batches(PARQUET_BATCH_ROWS, row_groups=[split.start], use_threads=True):
            positions = pa.array(np.arange(position, position + batch.num_rows))
            fields = [*batch.schema, SYSTEM_FIELDS[POSITION]]
            position += batch.num_rows
            yield pa.RecordBatch.from_arrays([*batch.columns, positions], schema=pa.schema(fields, {FORMAT: b"rows"}))
    except (pa.ArrowInvalid, pa.ArrowIOError, OSError, pa.ArrowNotImplementedError) as error:
        yield _unreadable(f"a broken row group: {error}", b"", position)


def _unreadable(why: str, payload: bytes, position: int) -> pa.RecordBatch:
    metadata = {FORMAT: b"unreadable", COLUMNS: why.encode()}
    schema = pa.schema([SYSTEM_FIELDS[PAYLOAD], SYSTEM_FIELDS[POSITION]], metadata)
    return pa.RecordBatch.from_arrays(
        [pa.array([payload[:KEPT_BYTES]], pa.binary()), pa.array([position])], schema=schema
    )


def _read_lines(split: Split) -> Iterator[pa.RecordBatch]:
    """The lines that start in [start, stop): blank ones are passed over, as is a CSV file's header."""
    metadata = {FORMAT: split.format.encode(), COLUMNS: json.dumps(split.header).encode()}
    with FileSystems.open(split.path) as file:
        at = split.start
        if split.start:  # the line that starts before belongs to the part before, unless it ends right there
            at -= 1
            file.seek(at)
        buffer, skip_line = b"", bool(split.start or split.header)
        while split.stop is None or at < split.stop:
            try:
                more = file.read(READ_BYTES)
            except (OSError, EOFError, zlib.error) as error:
                yield _unreadable(f"broken after byte {at + len(buffer)}: {error}", buffer, at)
                return
            buffer += more
            end = buffer.rfind(b"\n") + 1 if more else len(buffer)
            if skip_line and end:
                skipped = (buffer.find(b"\n") + 1) or end
                at, buffer, end, skip_line = at + skipped, buffer[skipped:], end - skipped, False
            elif not end and len(buffer) > MAX_LINE_BYTES:
                yield _unreadable(f"a line of more than {MAX_LINE_BYTES} bytes", buffer, at)
                at, buffer, skip_line = at + len(buffer), b"", True
            if split.stop is not None and at + end > split.stop:
                end = (buffer.find(b"\n", max(split.stop - at - 1, 0)) + 1) or end if at < split.stop else 0
            if end:
                yield from _lines_to_batches(buffer[:end], at, metadata)
                at, buffer = at + end, buffer[end:]
            if not more:
                return


def _lines_to_batches(block: bytes, offset: int, metadata: dict[bytes, bytes]) -> Iterator[pa.RecordBatch]:
    data = np.frombuffer(block, np.uint8)
    stops = np.flatnonzero(data == ord("\n")) + 1
    if not len(stops) or stops[-1] != len(data):
        stops = np.append(stops, len(data))
    starts = np.concatenate([[0], stops[:-1]])
    lengths = stops - starts
    schema = pa.schema([SYSTEM_FIELDS[PAYLOAD], SYSTEM_FIELDS[POSITION]], metadata)
    for first in range(0, len(starts), MAX_BLOCK_ROWS):
        part = slice(first, first + MAX_BLOCK_ROWS)
        offsets = np.append(starts[part], stops[part][-1]).astype(np.int32)
        lines = pa.BinaryArray.from_buffers(
            pa.binary(), len(offsets) - 1, [None, pa.py_buffer(offsets.tobytes()), pa.py_buffer(block)]
        )
        positions = starts[part] + offset
        short = np.flatnonzero(lengths[part] <= 2)
        blank = [row for row in short.tolist() if not block[starts[first + row] : stops[first + row]].strip()]
        if blank:
            kept = np.delete(np.arange(len(positions)), blank)
            lines, positions = lines.take(pa.array(kept)), positions[kept]
        if len(lines):
            yield pa.RecordBatch.from_arrays([lines, pa.array(positions)], schema=schema)


def _read_avro(split: Split) -> Iterator[pa.RecordBatch]:
    """Blocks of an Avro container; a broken block is one unreadable record, and reading goes on after it."""
    with FileSystems.open(split.path) as file:
        content = file.read()
    try:
        start = fastavro.reader(io.BytesIO(content))
        sync = start._header["sync"]
    except (
        ValueError,
        EOFError,
        KeyError,
        IndexError,
        TypeError,
        OverflowError,
        OSError,
        zlib.error,
    ) as error:
        yield _unreadable(f"not an Avro container: {error}", content, 0)
        return
    header_end = content.index(sync) + len(sync)
    at, row = header_end, 0
    while at < len(content):
        stop = content.find(sync, at)
        stop = len(content) if stop < 0 else stop + len(sync)
        block = content[at:stop]
        try:
            rows = list(fastavro.reader(io.BytesIO(content[:header_end] + block)))
        except (
            ValueError,
            EOFError,
            KeyError,
            IndexError,
            TypeError,
            OverflowError,
            OSError,
            zlib.error,
        ) as error:
            yield _unreadable(f"a broken Avro block at byte {at}: {type(error).__name__} {error}", block, row)
            rows = []
        if rows:
            yield _rows_to_batch(rows, row)
        at, row = stop, row + max(len(rows), 1)


def _rows_to_batch(rows: list[Any], first: int) -> pa.RecordBatch:
    positions = pa.array(np.arange(first, first + len(rows)))
    try:
        table = pa.RecordBatch.from_pylist(rows)
        schema = pa.schema([*table.schema, SYSTEM_FIELDS[POSITION]], {FORMAT: b"rows"})
        return pa.RecordBatch.from_arrays([*table.columns, positions], schema=schema)
    except (
        pa.ArrowInvalid,
        pa.ArrowTypeError,
        AttributeError,
    ):  # a union of types, or records that are no mappings
        payloads = pa.array([json.dumps(row, default=str).encode() for row in rows], pa.binary())
        schema = pa.schema([SYSTEM_FIELDS[PAYLOAD], SYSTEM_FIELDS[POSITION]], {FORMAT: b"json"})
        return pa.RecordBatch.from_arrays([payloads, positions], schema=schema)


def _with_origin(batch: pa.RecordBatch, path: str, history: bool, slice_us: int) -> pa.RecordBatch:
    rows = batch.num_rows
    source = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([path]))
    arrays = [*batch.columns, source, pa.array(np.full(rows, history))]
    fields = [*batch.schema, SYSTEM_FIELDS[SOURCE], SYSTEM_FIELDS[HISTORY]]
    metadata = {**batch.schema.metadata, SLICE: str(slice_us).encode()}
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields, metadata))
