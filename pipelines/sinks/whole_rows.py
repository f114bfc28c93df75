"""Dead letters with the whole of their row: what a step no longer had of it is read again from its file."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.batches import column, partition, take_rows, with_column, without
from models.codecs import rows_as_json
from models.record import FORMAT, PAYLOAD, POSITION
from pipelines.brokers import is_broker
from pipelines.sinks.encode import in_order_on_disk
from pipelines.sources.files import read_split, split_file
from pipelines.sources.listing import SourceError, format_of
from pipelines.sources.parquet import read_row_group, row_groups
from pipelines.sources.raw import BrokenFile
from transforms.batches import GatherOnDisk

ROW = "row"  # the format of a payload that a step made of what it had
_INCOMPLETE = "incomplete"

Places = np.ndarray[Any, np.dtype[np.int64]]


class Found(NamedTuple):
    """Records of one format, with their positions, which ascend."""

    positions: Places
    payloads: pa.Array
    format: str


@dataclasses.dataclass(eq=False)
class CompleteRows(beam.PTransform):
    """Dead letters → the same, those of rows of files with the record as the file has it.

    `format` is that of the files where it is not told by their names. Columns that can't be read say so in place of
    their values. What a stream brought is left as it is.
    """

    format: str | None = None

    def expand(self, letters: beam.PCollection) -> beam.PCollection:
        """Batches of dead letters."""
        apart = letters | "Set apart" >> beam.FlatMap(self._set_apart).with_output_types(
            pa.RecordBatch, **{_INCOMPLETE: tuple[str, pa.RecordBatch]}
        ).with_outputs(_INCOMPLETE, main="whole")
        completed = (
            apart[_INCOMPLETE]
            | "By file" >> GatherOnDisk()
            | "Read again" >> beam.FlatMap(self._read_again).with_output_types(pa.RecordBatch)
        )
        return (apart.whole, completed) | "All" >> beam.Flatten()

    def _set_apart(self, batch: pa.RecordBatch) -> Iterator[Any]:
        sources = column(batch, "source").dictionary_encode()
        of_files = [self._kind_of(source.as_py()) is not None for source in sources.dictionary]
        codes = sources.indices.fill_null(-1).to_numpy()
        rows = np.array([kind == ROW for kind in column(batch, "format").to_pylist()])
        incomplete = rows & np.array([*of_files, False])[codes]
        for code, part in partition(batch, np.where(incomplete, codes, -1)):
            if code < 0:
                yield part
            else:
                yield beam.pvalue.TaggedOutput(_INCOMPLETE, (sources.dictionary[code].as_py(), part))

    def _kind_of(self, source: str) -> str | None:
        """The format of a file of records of its own; None of others."""
        try:
            kind = None if is_broker(source) else self.format or format_of(source)
        except SourceError:
            return None
        return kind if kind in ("parquet", "csv", "json", "avro") else None

    def _read_again(self, element: tuple[str, Iterable[pa.RecordBatch]]) -> Iterator[pa.RecordBatch]:
        """The letters of a file in the order of their positions, in parts, so that their file is read but once."""
        path, batches = element
        kind = self._kind_of(path)
        read = functools.partial(_rows_of_parquet, path) if kind == "parquet" else _Records(path, str(kind)).at
        for letters in in_order_on_disk(batches, "position", "source"):
            positions = column(letters, "position").to_numpy()
            parts = list(read(np.unique(positions)))
            yield _completed(letters, positions, parts) if parts else letters


def _completed(letters: pa.RecordBatch, positions: Places, parts: Sequence[Found]) -> pa.RecordBatch:
    """Dead letters with the records that were found at their positions, which ascend."""
    found = np.concatenate([part.positions for part in parts])
    payloads = pa.concat_arrays([part.payloads for part in parts])
    formats = pa.concat_arrays([pa.repeat(part.format, len(part.positions)) for part in parts])
    places = np.minimum(np.searchsorted(found, positions), len(found) - 1)
    there, rows = pa.array(found[places] == positions), pa.array(places)
    for name, values in (("payload", payloads), ("format", formats)):
        letters = with_column(letters, name, pc.if_else(there, values.take(rows), column(letters, name)))
    return letters


class _Records:
    """The records of a file that is read from its beginning."""

    def __init__(self, path: str, kind: str) -> None:
        self._batches = (batch for split in split_file(path, kind, ()) for batch in read_split(split))
        self._batch: pa.RecordBatch | None = None

    def at(self, wanted: Places) -> Iterator[Found]:
        """Those at some positions, which ascend, and are after those that were asked for before."""
        while (batch := self._batch or next(self._batches, None)) is not None:
            self._batch = batch
            places = column(batch, POSITION).to_numpy()
            rows = np.flatnonzero(np.isin(places, wanted))
            kind = batch.schema.metadata[FORMAT].decode()
            if len(rows) and kind != "unreadable":
                part = take_rows(batch, rows)
                if PAYLOAD in part.schema.names:
                    bare = pc.replace_substring_regex(column(part, PAYLOAD), pattern=r"\r?\n?\z", replacement="")
                    yield Found(places[rows], bare, kind)
                else:
                    yield _as_json(places[rows], without(part, POSITION))
            if len(places) and places[-1] >= wanted[-1]:
                return
            self._batch = None


def _rows_of_parquet(path: str, wanted: Places) -> Iterator[Found]:
    try:
        names, groups = row_groups(path, ())
    except BrokenFile:  # it was another file when it was read first
        return
    for group in groups:
        rows = wanted[(wanted >= group.first_row) & (wanted < group.first_row + group.rows)] - group.first_row
        if len(rows):
            for numbers, part in _read_rows(path, group.number, names, rows.tolist()):
                yield _as_json(numbers + group.first_row, part)


def _read_rows(path: str, group: int, names: list[str], rows: list[int]) -> Iterator[tuple[Any, pa.RecordBatch]]:
    """The rows of a row group, all columns at once, or if one of them can't be read each by itself."""
    try:
        parts = [(numbers, batch) for batch, numbers in read_row_group(path, group, rows=rows)]
    except BrokenFile:
        columns = {name: _read_column(path, group, name, rows) for name in names}
        yield np.array(rows), pa.RecordBatch.from_pydict(columns)
    else:
        yield from parts


def _read_column(path: str, group: int, name: str, rows: list[int]) -> pa.Array:
    """A column's values, or in place of each why it can't be read."""
    try:
        return pa.concat_arrays([batch.column(0) for batch, _ in read_row_group(path, group, [name], rows)])
    except BrokenFile as error:
        return pa.array([f"(cannot be read: {error})"] * len(rows))


def _as_json(positions: Places, rows: pa.RecordBatch) -> Found:
    texts = rows_as_json(dict(zip(rows.schema.names, rows.columns, strict=True)))
    return Found(positions, pa.array(texts, pa.binary()), ROW)
