"""The records of files as JSON, as a topic has them, with their times and fields."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from models.batches import column, same_text, with_column, without
from models.codecs import MAX_BLOCK_ROWS, decode_json, rows_as_json
from models.decode import decode_batch
from models.faults import RowFaults
from models.project.contract import UNIX_UNITS, Contract, Field
from models.project.declarations import Project
from models.raw import raw_records
from models.record import FORMAT, MARKS, PAYLOAD, POSITION, SLICE, SOURCE, RecordType
from pipelines.sources.files import read_split, split_file
from pipelines.sources.listing import format_of, match_files
from pipelines.sources.records import NO_TIME_US, decode_raw, times_of


def read_payloads(uris: Sequence[str], records: RecordType | None = None) -> list[bytes]:
    """The records of files as JSON: their own lines, or their rows; of CSV and Avro, the fields of `records`.

    What of CSV or Avro can't be decoded stays as it is, for whoever reads it to refuse.
    """
    return [payload for uri in uris for path in match_files(uri) for payload in _payloads_of(path, records)]


def _payloads_of(path: str, records: RecordType | None) -> Iterator[bytes]:
    for split in split_file(path, format_of(path)):
        for batch in read_split(split):
            kind = batch.schema.metadata[FORMAT]
            if kind == b"json":
                yield from (p.rstrip(b"\r\n") for p in column(batch, PAYLOAD).to_pylist())
            elif kind == b"rows":
                rows = without(batch, POSITION)
                yield from rows_as_json(dict(zip(rows.schema.names, rows.columns, strict=True)))
            elif records is None:
                raise ValueError(f"{path}: which fields to publish of {kind.decode()} is for a record type to say")
            else:
                yield from _fields_as_json(batch, records)


def _fields_as_json(batch: pa.RecordBatch, records: RecordType) -> list[bytes]:
    """The fields of a contract, with times of CSV as they are written; records that can't be decoded as they are."""
    contract = records.read
    if batch.schema.metadata[FORMAT] == b"csv":
        contract = dataclasses.replace(contract, fields={n: _as_written(f) for n, f in contract.fields.items()})
    raw = with_column(batch, SOURCE, same_text("", batch.num_rows))
    raw = with_column(raw, MARKS, pa.array(np.zeros(batch.num_rows, np.int8)))
    raw = raw.replace_schema_metadata({**batch.schema.metadata, SLICE: b"=0"})
    decoded, faults = decode_batch(raw, contract, records.max_bytes)
    rows = rows_as_json({name: column(decoded, name) for name in contract.fields})
    for row in faults.rows.tolist():
        rows[row] = column(batch, PAYLOAD)[row].as_py()
    return rows


def _as_written(field: Field) -> Field:
    if field.kind != "time":
        return field
    return dataclasses.replace(field, kind="int" if field.time_format in UNIX_UNITS else "string", time_format=None)


def event_times(payloads: Sequence[bytes], project: Project) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Event times in microseconds; a record without one takes its neighbour's."""
    parts = [payloads[start : start + MAX_BLOCK_ROWS] for start in range(0, len(payloads), MAX_BLOCK_ROWS)]
    times, last = [], 0
    for value in itertools.chain.from_iterable(_times_of(part, project).tolist() for part in parts):
        last = last if value == NO_TIME_US else value
        times.append(last)
    return np.array(times, np.int64)


def read_texts(payloads: Sequence[bytes], project: Project, name: str) -> list[str | None]:
    """One field of JSON records as text; null where there is none of its type."""
    contract = Contract({name: project.contract.fields[name]}, b"")
    values = decode_json(pa.array(payloads, pa.binary()), contract, False, RowFaults(len(payloads)))[name]
    return list(values.cast(pa.string()).to_pylist())


def _times_of(payloads: Sequence[bytes], project: Project) -> Any:
    decoded = decode_raw(raw_records(payloads, "", 0), project.event_type)
    return times_of(decoded, project.event_type)
