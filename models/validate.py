"""Validate: each row against its record type; what stays goes on with only the columns that are read later."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from models.batches import as_int64, column, marks_of, same_text, system_names
from models.faults import RowFaults
from models.project.contract import check_event_time, check_fixed_point
from models.record import (
    EVENT_TIME,
    FORMAT,
    IS_HISTORY,
    MARKS,
    PAYLOAD,
    PAYLOAD_FORMAT,
    POSITION,
    PUBLISHED,
    SOURCE,
    SYSTEM_FIELDS,
    RecordType,
)


def validate_batch(batch: pa.RecordBatch, records: RecordType) -> RowFaults:
    """All that is wrong with each row: presence, domains, finiteness, time, size of what is summed."""
    faults = RowFaults(batch.num_rows)
    columns = {name: batch.column(batch.schema.get_field_index(name)) for name in records.contract.fields}
    records.contract.check(columns, faults)
    check_event_time(columns[records.time], records.time, records.earliest_us, records.latest_us, faults)
    for name, expression in records.computed.items():
        read = {n: columns[n] for n in expression.names or {records.time}}
        columns[name] = pa.array(np.ascontiguousarray(expression.evaluate(read)))
    check_fixed_point(columns, records.fixed_point, faults, records.exact_places)
    return faults


def carry(batch: pa.RecordBatch, records: RecordType, score_from_us: int | None = None) -> pa.RecordBatch:
    """The columns that later steps read, with the time field as the event time column.

    Of a stream, payloads are among them: a file's record can be read again for a dead letter, and a message can't. Rows
    before `score_from_us` (microseconds since 1970 UTC) are marked as history.
    """
    names = batch.schema.names
    arrays, fields = [], []
    for name in records.carried:
        arrays.append(batch.column(names.index(name)))
        fields.append(pa.field(name, records.contract.fields[name].arrow_type))
    for name in system_names(batch, EVENT_TIME, SOURCE, POSITION, MARKS):
        values = batch.column(names.index(records.time if name == EVENT_TIME else name))
        if name == MARKS and score_from_us is not None:
            past = as_int64(column(batch, records.time)) < score_from_us
            values = pa.array(marks_of(batch) | past * np.int8(IS_HISTORY))
        arrays.append(values)
        fields.append(SYSTEM_FIELDS[name])
    if PUBLISHED in names:
        kinds = same_text((batch.schema.metadata or {}).get(FORMAT, b"row").decode(), batch.num_rows)
        arrays += [column(batch, PAYLOAD), kinds]
        fields += [SYSTEM_FIELDS[PAYLOAD], SYSTEM_FIELDS[PAYLOAD_FORMAT]]
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))
