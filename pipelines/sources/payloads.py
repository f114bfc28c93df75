"""The records of files as JSON, as a topic has them, with their times and fields."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from models.batches import column, without
from models.codecs import MAX_BLOCK_ROWS, decode_json, rows_as_json
from models.faults import RowFaults
from models.project.contract import Contract
from models.project.declarations import Project
from models.raw import raw_records
from models.record import FORMAT, PAYLOAD, POSITION
from pipelines.sources.files import read_split, split_file
from pipelines.sources.listing import format_of, match_files
from pipelines.sources.records import NO_TIME_US, decode_raw, times_of


def read_payloads(uris: Sequence[str]) -> list[bytes]:
    """The records of files as JSON: their own lines, or their rows."""
    return [payload for uri in uris for path in match_files(uri) for payload in _payloads_of(path)]


def _payloads_of(path: str) -> Iterator[bytes]:
    for split in split_file(path, format_of(path)):
        for batch in read_split(split):
            if batch.schema.metadata[FORMAT] == b"json":
                yield from (p.rstrip(b"\r\n") for p in column(batch, PAYLOAD).to_pylist())
            else:
                rows = without(batch, POSITION)
                yield from rows_as_json(dict(zip(rows.schema.names, rows.columns, strict=True)))


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
