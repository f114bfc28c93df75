"""Raw records of a stream, and how it decodes them. Without Beam, as the process that probes them starts often."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from models.batches import column, with_column
from models.decode import decode_early
from models.record import MARKS, RECORDS, SLICE, RecordType

Int64 = np.ndarray[Any, np.dtype[np.int64]]
NO_TIME_US = -(1 << 61)  # of a record without a usable event time: it waits for nothing


def type_number(batch: pa.RecordBatch) -> int:
    """The number of the type of a batch's records."""
    return int((batch.schema.metadata or {}).get(RECORDS, 0))


def about(number: int) -> dict[bytes, bytes]:
    """What the metadata of a batch says of its records' type."""
    return {RECORDS: b"%d" % number} if number else {}


def probe_records(types: Mapping[int, RecordType], batch: pa.RecordBatch) -> None:
    """Read records as a stream reads them, for what that may crash; nothing of a type that is not read."""
    records = types.get(type_number(batch))
    if batch.num_rows and records is not None:
        decode_raw(batch, records)


def decode_raw(batch: pa.RecordBatch, records: RecordType) -> pa.RecordBatch:
    """Raw records decoded as `decode_early` does, without marks and of no slice yet."""
    marked = with_column(batch, MARKS, pa.array(np.zeros(batch.num_rows, np.int8)))
    return decode_early(marked.replace_schema_metadata({**batch.schema.metadata, SLICE: b"=0"}), records)


def times_of(decoded: pa.RecordBatch, records: RecordType) -> Int64:
    """The event times int64[n] of decoded records in microseconds; NO_TIME_US where none is usable."""
    times = np.asarray(column(decoded, records.time).cast(pa.int64()).fill_null(NO_TIME_US).to_numpy())
    return np.where((times < records.earliest_us) | (times >= records.latest_us), NO_TIME_US, times)
