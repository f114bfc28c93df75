"""What a stream reads of raw records: their event times. Without Beam, as the process that probes them starts often."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from models.batches import column, with_column
from models.decode import decode_batch
from models.project.contract import Contract
from models.project.project import Project
from models.record import MARKS, PARTITION, SLICE, RecordType
from pipelines.sources.journal import LABEL_PARTITION

Int64 = np.ndarray[Any, np.dtype[np.int64]]
NO_TIME_US = -(1 << 61)  # of a record without a usable event time: it waits for nothing


def type_of(batch: pa.RecordBatch, project: Project) -> RecordType:
    """The type of a batch's records."""
    return project.label_type or project.event_type if has_labels(batch) else project.event_type


def probe_records(project: Project, batch: pa.RecordBatch) -> None:
    """Read records as a stream reads them, for what that may crash."""
    if batch.num_rows:
        own = type_of(batch, project)
        read_event_times(batch, own)
        _decode(batch, own.contract, own.max_bytes)


def has_labels(batch: pa.RecordBatch) -> bool:
    """Whether a batch's records, which all are or none, are labels."""
    return batch.num_rows > 0 and bool(column(batch, PARTITION)[0].as_py() == LABEL_PARTITION)


def read_event_times(batch: pa.RecordBatch, records: RecordType) -> Int64:
    """The event times int64[n] of raw records in microseconds, and of nothing else; NO_TIME_US where none is usable."""
    name = records.time
    contract = Contract({name: records.contract.fields[name]}, b"")
    decoded = _decode(batch, contract, records.max_bytes)
    times = np.asarray(column(decoded, name).cast(pa.int64()).fill_null(NO_TIME_US).to_numpy())
    return np.where((times < records.earliest_us) | (times >= records.latest_us), NO_TIME_US, times)


def _decode(batch: pa.RecordBatch, contract: Contract, max_bytes: int) -> pa.RecordBatch:
    marked = with_column(batch, MARKS, pa.array(np.zeros(batch.num_rows, np.int8)))
    marked = marked.replace_schema_metadata({**batch.schema.metadata, SLICE: b"=0"})
    return decode_batch(marked, contract, max_bytes)[0]
