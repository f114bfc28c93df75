"""Dead letters with the whole of their row: what a step no longer had of it is read again from its file."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa

from models.batches import column, concat_batches, partition, with_column, without
from models.codecs import rows_as_json
from models.record import FORMAT, PAYLOAD, POSITION
from pipelines.brokers import is_broker
from pipelines.sources.files import read_split, split_file
from pipelines.sources.listing import SourceError, format_of
from pipelines.sources.parquet import read_row_group, row_groups
from pipelines.sources.raw import BrokenFile

ROW = "row"  # the format of a payload that a step made of what it had
_INCOMPLETE = "incomplete"

Record = tuple[bytes, str]  # a payload and its format


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
            | "By file" >> beam.GroupByKey()
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
        path, batches = element
        letters = concat_batches(list(batches))
        positions = column(letters, "position").to_numpy()
        kind = self._kind_of(path)
        wanted = np.unique(positions)
        records = dict(_rows_of_parquet(path, wanted) if kind == "parquet" else _records_of(path, str(kind), wanted))
        before = zip(column(letters, "payload").to_pylist(), column(letters, "format").to_pylist(), strict=True)
        found = [records.get(at, old) for at, old in zip(positions.tolist(), before, strict=True)]
        completed = with_column(letters, "payload", pa.array([payload for payload, _ in found], pa.binary()))
        yield with_column(completed, "format", pa.array([kind for _, kind in found], pa.string()))


def _records_of(path: str, kind: str, wanted: Any) -> Iterator[tuple[int, Record]]:
    """The records at some positions of a file that is read from its beginning."""
    missing = set(wanted.tolist())
    for split in split_file(path, kind, ()):
        for batch in read_split(split) if missing else ():
            rows = np.flatnonzero(np.isin(column(batch, POSITION).to_numpy(), wanted))
            kind = batch.schema.metadata[FORMAT].decode()
            if not len(rows) or kind == "unreadable":
                continue
            part = batch.take(pa.array(rows))
            places = column(part, POSITION).to_pylist()
            missing.difference_update(places)
            if PAYLOAD in part.schema.names:
                payloads = [
                    payload.removesuffix(b"\n").removesuffix(b"\r") for payload in column(part, PAYLOAD).to_pylist()
                ]
                yield from zip(places, ((payload, kind) for payload in payloads), strict=True)
            else:
                yield from zip(places, _as_json(without(part, POSITION)), strict=True)


def _rows_of_parquet(path: str, wanted: Any) -> Iterator[tuple[int, Record]]:
    try:
        names, groups = row_groups(path, ())
    except BrokenFile:  # it was another file when it was read first
        return
    for group in groups:
        rows = wanted[(wanted >= group.first_row) & (wanted < group.first_row + group.rows)] - group.first_row
        if len(rows):
            for numbers, part in _read_rows(path, group.number, names, rows.tolist()):
                yield from zip((numbers + group.first_row).tolist(), _as_json(part), strict=True)


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


def _as_json(rows: pa.RecordBatch) -> list[Record]:
    return [(text, ROW) for text in rows_as_json(dict(zip(rows.schema.names, rows.columns, strict=True)))]
