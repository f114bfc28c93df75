"""Events from files: Parquet, CSV, JSON lines and Avro, by path or glob, on any filesystem that Beam knows."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from models.batches import column, same_text, with_column
from models.metrics import ROWS
from models.record import (
    COLUMNS,
    EVENTS,
    IS_HISTORY,
    LABELS,
    MARKS,
    PAYLOAD,
    POSITION,
    SLICE,
    SOURCE,
    SYSTEM_FIELDS,
)
from pipelines.sources import SLICE_US
from pipelines.sources.avro_blocks import read_avro
from pipelines.sources.feeds import Feed
from pipelines.sources.in_order import InOrder, check_order
from pipelines.sources.journal import read_segment_file
from pipelines.sources.journal_check import check_segments, needed_row
from pipelines.sources.lines import compression_of, has_quotes, read_header, read_lines, read_records
from pipelines.sources.listing import Files, size_of
from pipelines.sources.parquet import read_row_group, row_groups
from pipelines.sources.raw import KEPT_BYTES, BrokenFile, rows_batch, unreadable
from pipelines.sources.records import about, type_number
from pipelines.sources.runs import RUN, sort_records
from pipelines.sources.split import Split
from pipelines.spill import Spill
from transforms.metrics import count

__all__ = [
    "SLICE_US",
    "ReadFiles",
    "Split",
    "check_files",
    "read_all",
    "read_of",
    "read_split",
    "split_file",
    "split_of",
]

SPLIT_BYTES = 32 << 20


@dataclasses.dataclass(eq=False)
class ReadFiles(beam.PTransform):
    """All records of the files of each feed, as batches of raw records; a journal may hold those of several.

    `in_order`, events and labels are read slice by slice; see pipelines.sources.in_order. With a `spill` they are
    sorted there first.
    """

    feeds: tuple[Feed[Files], ...]
    slice_us: int = SLICE_US
    in_order: bool = False
    spill: Spill | None = None

    def with_files(self, files: Mapping[str, Files]) -> ReadFiles:
        """The same with other files of some feeds, by their names."""
        feeds = (dataclasses.replace(feed, source=files.get(feed.name, feed.source)) for feed in self.feeds)
        return dataclasses.replace(self, feeds=tuple(feeds))

    @property
    def format(self) -> str | None:
        """That of events whose files' names don't tell it."""
        return self.feeds[0].source.format

    def expand(self, pbegin: Any) -> dict[str, beam.PCollection]:
        """{name of a feed: its batches}; their metadata names their format, see transforms.decode."""
        return {feed.name: pbegin | feed.name.capitalize() >> self._read(feed) for feed in self.feeds}

    def _read(self, feed: Feed[Files]) -> _ReadFeed:
        in_order = self.in_order and feed.name in (EVENTS, LABELS)
        return _ReadFeed(feed, self.slice_us, in_order, self.spill if in_order else None)


@dataclasses.dataclass(eq=False)
class _ReadFeed(beam.PTransform):
    feed: Feed[Files]
    slice_us: int
    in_order: bool
    spill: Spill | None

    def expand(self, pbegin: Any) -> beam.PCollection:
        splits = (
            pbegin
            | "Start" >> beam.Impulse()
            | "List" >> beam.FlatMap(self._list).with_output_types(str)
            | "Split" >> beam.FlatMap(self._split).with_output_types(Split)
        )
        if self.spill is not None:
            splits = splits | "Share" >> beam.Reshuffle() | "Sort" >> beam.FlatMap(self._sort).with_output_types(Split)
        if self.in_order:
            splits |= "In order" >> InOrder(self.slice_us)
        spread = splits | "Spread" >> beam.Reshuffle()
        return spread | "Read" >> beam.FlatMap(self._read).with_output_types(pa.RecordBatch)

    def _list(self, _: bytes) -> tuple[str, ...]:
        return self.feed.source.paths

    def _split(self, path: str) -> Iterator[Split]:
        yield from split_of(self.feed, path)

    def _sort(self, split: Split) -> Iterator[Split]:
        assert self.spill is not None
        raw = (_with_origin(batch, split.path, self.feed, 0, self.slice_us) for batch in read_of(self.feed, split))
        return sort_records(raw, self.feed.record_type, self.slice_us, self.spill)

    def _read(self, split: Split) -> Iterator[pa.RecordBatch]:
        if split.format == RUN:
            assert self.spill is not None
            for batch in self.spill.read(split.start, split.stop or 0):
                count(ROWS, batch.num_rows, step="read")
                yield batch
            return
        for batch in read_of(self.feed, split):
            check_order(batch, split, self.feed.record_type.time)
            count(ROWS, batch.num_rows, step="read")
            yield _with_origin(batch, split.path, self.feed, 0, self.slice_us)


def check_files(files: Files) -> None:
    """SourceError if a pattern matches nothing or has no known format, JournalError if a journal is not whole."""
    check_segments([path for path in files.paths if files.format_of(path) == "journal"])


def split_file(path: str, kind: str, fields: tuple[str, ...] | None = None, time: str | None = None) -> Iterator[Split]:
    """The parts of a file that can be read on their own; only `fields`, or all, must be columns of one name each.

    With the column `time` they are told the first time in them, where the file's own statistics say it.
    """
    if kind == "parquet":
        yield from _split_parquet(path, fields, time)
    elif kind == "avro":
        yield Split(path, kind)
    elif kind == "journal":
        yield Split(path, kind, stop=needed_row(path))
    else:
        yield from _split_lines(path, kind, fields)


def _split_parquet(path: str, fields: tuple[str, ...] | None, time: str | None) -> Iterator[Split]:
    try:
        names, groups = row_groups(path, fields, time)
    except BrokenFile as error:
        yield Split(path, "unreadable", stop=KEPT_BYTES, header=(str(error),))
        return
    for group in groups:
        if group.why_not:
            yield Split(path, "unreadable", header=(group.why_not,), first_row=group.first_row)
        elif group.rows:
            first_us = None if group.span is None else group.span[0]
            yield Split(path, "parquet", group.number, group.number + 1, tuple(names), group.first_row, first_us)


def _split_lines(path: str, kind: str, fields: tuple[str, ...] | None) -> Iterator[Split]:
    """Ranges of bytes that lines start in; of CSV with quotes, whose records may go over lines, all in one."""
    header: tuple[str, ...] = ()
    first = 0
    if kind == "csv":
        try:
            found = read_header(path, fields)
        except (BrokenFile, ValueError) as error:
            yield Split(path, "unreadable", stop=KEPT_BYTES, header=(f"its header can't be read: {error}",))
            return
        if found is None:
            return
        header, first = found
    if compression_of(path):
        yield Split(path, kind, first, header=header)
        return
    size = size_of(path)
    if kind == "csv" and (size - first <= SPLIT_BYTES or has_quotes(path, first)):
        yield Split(path, kind, first, header=header)
        return
    for start in range(first, size, SPLIT_BYTES):
        yield Split(path, kind, start, min(start + SPLIT_BYTES, size), header)


def _first_bytes(path: str, count: int) -> bytes:
    """The first bytes of a file as they lie there, compressed or not."""
    with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
        return bytes(file.read(count))


def read_split(split: Split, fields: tuple[str, ...] | None = None, number: int = 0) -> Iterator[pa.RecordBatch]:
    """The records of a part of a file, with their positions, as batches of their format.

    Of columns only `fields` are read, of a journal the records of the type `number`.
    """
    if split.format == "parquet":
        yield from _read_parquet(split, fields)
    elif split.format == "avro":
        yield from read_avro(split.path)
    elif split.format == "journal":
        yield from _read_journal(split, number)
    elif split.format == "unreadable":
        yield unreadable(split.header[0], _first_bytes(split.path, split.stop or 0), split.first_row)
    elif split.format == "csv" and split.stop is None:
        yield from read_records(split.path, split.start, split.header)
    else:
        yield from read_lines(split.path, split.format, split.start, split.stop, split.header)


def _read_parquet(split: Split, fields: tuple[str, ...] | None) -> Iterator[pa.RecordBatch]:
    """The rows of a row group; with `fields`, only these columns, and the names of those that are not read."""
    unread = [name for name in split.header if fields is not None and name not in fields]
    about = {COLUMNS: json.dumps(unread).encode("utf-8", "backslashreplace")} if unread else {}
    position = split.first_row
    try:
        for batch, numbers in read_row_group(split.path, split.start, fields):
            position += len(numbers)
            rows = rows_batch(batch.schema.names, batch.columns, pa.array(numbers + split.first_row))
            yield rows.replace_schema_metadata({**rows.schema.metadata, **about})
    except BrokenFile as error:
        yield unreadable(f"row group {split.start} is broken from row {position} on: {error}", b"", position)


def _read_journal(split: Split, number: int) -> Iterator[pa.RecordBatch]:
    """The records of one type that a stream has kept, with the places that the stream knew them by."""
    for batch in read_segment_file(split.path, split.stop or 0):
        if type_number(batch) == number:
            kept = [column(batch, name) for name in (PAYLOAD, POSITION, SOURCE)]
            fields = [SYSTEM_FIELDS[name] for name in (PAYLOAD, POSITION, SOURCE)]
            yield pa.RecordBatch.from_arrays(kept, schema=pa.schema(fields, batch.schema.metadata))


def split_of(feed: Feed[Files], path: str) -> Iterator[Split]:
    """The parts of a feed's file."""
    records = feed.record_type
    return split_file(path, feed.source.format_of(path), tuple(records.read.fields), records.read_time)


def read_of(feed: Feed[Files], split: Split) -> Iterator[pa.RecordBatch]:
    """The feed's records in a part of a file; of columns only those that its contract names."""
    return read_split(split, tuple(feed.record_type.read.fields), feed.record_type.number)


def read_all(feed: Feed[Files]) -> Iterator[pa.RecordBatch]:
    """All records of a feed's files, with their origin, as history."""
    for path in feed.source.paths:
        for split in split_of(feed, path):
            for batch in read_of(feed, split):
                yield _with_origin(batch, path, feed, IS_HISTORY, SLICE_US)


def _with_origin(batch: pa.RecordBatch, path: str, feed: Feed[Files], marks: int, slice_us: int) -> pa.RecordBatch:
    rows = batch.num_rows
    if SOURCE not in batch.schema.names:
        batch = with_column(batch, SOURCE, same_text(path, rows))
    batch = with_column(batch, MARKS, pa.array(np.full(rows, marks, np.int8)))
    told = {**about(feed.record_type.number), SLICE: str(slice_us).encode()}
    return batch.replace_schema_metadata({**batch.schema.metadata, **told})
