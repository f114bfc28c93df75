"""Events from files: Parquet, CSV, JSON lines and Avro, by path or glob, on any filesystem that Beam knows."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems

from models import progress
from models.batches import (
    COLUMNS,
    IS_HISTORY,
    MARKS,
    PAYLOAD,
    POSITION,
    SLICE,
    SOURCE,
    SYSTEM_FIELDS,
    column,
    take_rows,
    with_column,
)
from models.errors import HeadraceError
from models.project.project import Project
from pipelines.sources.avro_blocks import read_avro
from pipelines.sources.journal import LABEL_PARTITION, PARTITION, read_segment_file
from pipelines.sources.journal_check import check_segments, needed_row
from pipelines.sources.lines import compression_of, has_quotes, read_header, read_lines, read_records
from pipelines.sources.parquet import read_row_group, row_groups
from pipelines.sources.raw import KEPT_BYTES, BrokenFile, rows_batch, unreadable

FORMATS = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".avro": "avro",
    ".journal": "journal",
}
JOURNALED_LABELS = "journaled labels"
_HIDDEN = (".", "_")
SPLIT_BYTES = 32 << 20
# Days of event time that are handed on at once. It changes no result; a shard holds this much at a time.
SLICE_US = 30 * 86_400_000_000


class SourceError(HeadraceError, ValueError):
    """A source that can't be read at all."""


@dataclasses.dataclass(frozen=True)
class Split:
    """A part of a file: a Parquet row group, a range of bytes that lines start in, or all from `start` on.

    `header` names its columns, or tells why it can't be read; the file's bytes up to `stop` are kept then. The whole
    segment of a journal stops at the record that it has to reach at least.
    """

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
    fields: tuple[str, ...] | None = None  # of files of columns, only these are read

    def expand(self, pbegin: Any) -> beam.PCollection:
        """Batches whose metadata names their format; see transforms.decode."""
        return (
            pbegin
            | "Patterns" >> beam.Create([self.patterns])
            | "Match" >> beam.FlatMap(_match_all).with_output_types(str)
            | "Split" >> beam.FlatMap(self._split)
            | "Spread" >> beam.Reshuffle()
            | "Read" >> beam.FlatMap(self._read).with_output_types(pa.RecordBatch)
        )

    def _split(self, path: str) -> Iterator[Split]:
        yield from split_file(path, self.format or format_of(path), self.fields)

    def _read(self, split: Split) -> Iterator[pa.RecordBatch]:
        for batch in read_split(split, self.fields):
            progress.advance("read", batch.num_rows)
            yield _with_origin(batch, split.path, self.history, self.slice_us)


@dataclasses.dataclass(eq=False)
class ReadLabelled(beam.PTransform):  # type: ignore[misc]
    """The records of events, and those of their labels; a journal may be the files of both."""

    events: ReadFiles
    labels: tuple[str, ...]
    label_fields: tuple[str, ...] | None = None

    @property
    def format(self) -> str | None:
        """That of events whose files' names don't tell it."""
        return self.events.format

    def expand(self, pbegin: Any) -> dict[str, beam.PCollection]:
        """{"events", "labels"} of batches."""
        journals = tuple(pattern for pattern in self.labels if pattern.endswith(".journal"))
        others = tuple(pattern for pattern in self.labels if not pattern.endswith(".journal"))
        parts = [
            ("Journaled labels", ReadFiles(journals, JOURNALED_LABELS, slice_us=self.events.slice_us)),
            ("Labels", ReadFiles(others, slice_us=self.events.slice_us, fields=self.label_fields)),
        ]
        labels = [pbegin | name >> read for name, read in parts if read.patterns]
        return {"events": pbegin | "Events" >> self.events, "labels": labels | "All labels" >> beam.Flatten()}


def only_fields_of(project: Project, source: beam.PTransform) -> beam.PTransform:
    """The source with only those columns of files that the project's contract names; another as it is."""
    if isinstance(source, ReadFiles):
        return dataclasses.replace(source, fields=tuple(project.contract.fields))
    if isinstance(source, ReadLabelled):
        records = project.label_records
        label_fields = tuple(records.contract.fields) if records else None
        return dataclasses.replace(source, events=only_fields_of(project, source.events), label_fields=label_fields)
    return source


def _match_all(patterns: tuple[str, ...]) -> list[str]:
    """The paths that one of the patterns matches, once each."""
    return sorted({path for pattern in patterns for path in match_files(pattern)})


def match_files(pattern: str) -> list[str]:
    """The paths that match, sorted; SourceError if there are none. A `*` matches no hidden file."""
    try:
        found = [metadata.path for metadata in FileSystems.match([pattern])[0].metadata_list]
    except (BeamIOError, OSError, ValueError) as error:
        raise SourceError(f"{pattern}: cannot be listed: {' '.join(str(error).split())}") from None
    if not _name(pattern).startswith(_HIDDEN):
        found = [path for path in found if not _name(path).startswith(_HIDDEN)]
    if not found:
        raise SourceError(f"{pattern}: no such file")
    for path in found:
        if os.path.isdir(path):
            raise SourceError(f"{path}: is a folder: name its files, as in {path.rstrip('/')}/*")
    return sorted(found)


def check_files(patterns: Sequence[str]) -> None:
    """SourceError if a pattern matches nothing or has no known format, JournalError if a journal is not whole."""
    check_segments([path for path in _match_all(tuple(patterns)) if format_of(path) == "journal"])


def _name(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def format_of(path: str) -> str:
    """The format that a file's name tells, compression aside."""
    name = path.lower()
    for compression in (".gz", ".bz2", ".zst"):
        name = name.removesuffix(compression)
    for ending, kind in FORMATS.items():
        if name.endswith(ending):
            return kind
    raise SourceError(f"{path}: its name does not tell its format: end it in {', '.join(FORMATS)}, or name the format")


def split_file(path: str, kind: str, fields: tuple[str, ...] | None = None) -> Iterator[Split]:
    """The parts of a file that can be read on their own; only `fields`, or all, must be columns of one name each."""
    if kind == "parquet":
        yield from _split_parquet(path, fields)
    elif kind == "avro":
        yield Split(path, kind)
    elif kind in ("journal", JOURNALED_LABELS):
        yield Split(path, kind, stop=needed_row(path))
    else:
        yield from _split_lines(path, kind, fields)


def _split_parquet(path: str, fields: tuple[str, ...] | None) -> Iterator[Split]:
    try:
        names, groups = row_groups(path, fields)
    except BrokenFile as error:
        yield Split(path, "unreadable", stop=KEPT_BYTES, header=(str(error),))
        return
    for group in groups:
        if group.why_not:
            yield Split(path, "unreadable", header=(group.why_not,), first_row=group.first_row)
        elif group.rows:
            yield Split(path, "parquet", group.number, group.number + 1, tuple(names), group.first_row)


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
    size = _size(path)
    if kind == "csv" and (size - first <= SPLIT_BYTES or has_quotes(path, first)):
        yield Split(path, kind, first, header=header)
        return
    for start in range(first, size, SPLIT_BYTES):
        yield Split(path, kind, start, min(start + SPLIT_BYTES, size), header)


def _size(path: str) -> int:
    return int(FileSystems.match([path])[0].metadata_list[0].size_in_bytes)


def _first_bytes(path: str, count: int) -> bytes:
    """The first bytes of a file as they lie there, compressed or not."""
    with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
        return bytes(file.read(count))


def read_split(split: Split, fields: tuple[str, ...] | None = None) -> Iterator[pa.RecordBatch]:
    """The records of a part of a file, with their positions, as batches of their format; of columns only `fields`."""
    if split.format == "parquet":
        yield from _read_parquet(split, fields)
    elif split.format == "avro":
        yield from read_avro(split.path)
    elif split.format in ("journal", JOURNALED_LABELS):
        yield from _read_journal(split)
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


def _read_journal(split: Split) -> Iterator[pa.RecordBatch]:
    """The events of a stream, or its labels, with the places that the stream knew them by."""
    labels = split.format == JOURNALED_LABELS
    for both in read_segment_file(split.path, split.stop or 0):
        batch = take_rows(both, np.flatnonzero((column(both, PARTITION).to_numpy() == LABEL_PARTITION) == labels))
        if not batch.num_rows:
            continue
        kept = [column(batch, name) for name in (PAYLOAD, POSITION, SOURCE)]
        fields = [SYSTEM_FIELDS[name] for name in (PAYLOAD, POSITION, SOURCE)]
        yield pa.RecordBatch.from_arrays(kept, schema=pa.schema(fields, batch.schema.metadata))


def read_all(patterns: Sequence[str], project: Project, of_journals: str = "journal") -> Iterator[pa.RecordBatch]:
    """All records of the files that match, with their origin; of journals the events, or the labels."""
    fields = tuple(project.contract.fields)
    for path in _match_all(tuple(patterns)):
        kind = format_of(path)
        for split in split_file(path, of_journals if kind == "journal" else kind, fields):
            for batch in read_split(split, fields):
                yield _with_origin(batch, path, True, SLICE_US)


def _with_origin(batch: pa.RecordBatch, path: str, history: bool, slice_us: int) -> pa.RecordBatch:
    rows = batch.num_rows
    if SOURCE not in batch.schema.names:
        source = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([path]))
        batch = with_column(batch, SOURCE, source)
    batch = with_column(batch, MARKS, pa.array(np.full(rows, IS_HISTORY if history else 0, np.int8)))
    return batch.replace_schema_metadata({**batch.schema.metadata, SLICE: str(slice_us).encode()})
