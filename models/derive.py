"""Derive: fields that are computed of a record's own, as soon as it is decoded; and the row filter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from models.batches import column
from models.project.contract import Field
from models.project.expressions import Expression
from models.project.functions import missing, truth
from models.record import RecordType


def derive(batch: pa.RecordBatch, records: RecordType) -> pa.RecordBatch:
    """The batch, of decoded fields, with its derived fields at the end, each of its declared type.

    Each is computed of the fields of the record and of those derived before it. It is missing where a field that it
    reads is, but for what it asks about by is_missing(), coalesce() and hash(), and where it has no finite number.
    """
    if not records.derived:
        return batch
    columns = {name: column(batch, name) for name in records.read.fields}
    for name, expression in records.derived.items():
        columns[name] = _derived(expression, columns, records.contract.fields[name])
    added = [pa.field(name, columns[name].type) for name in records.derived]
    schema = pa.schema([*batch.schema, *added], batch.schema.metadata)
    return pa.RecordBatch.from_arrays([*batch.columns, *(columns[name] for name in records.derived)], schema=schema)


def is_wanted(batch: pa.RecordBatch, records: RecordType) -> np.ndarray[Any, np.dtype[np.bool_]] | None:
    """Which rows, bool[n], the row filter lets through; None if all, as there is none."""
    if records.where is None:
        return None
    columns = {name: column(batch, name) for name in records.where.names}
    return np.asarray(truth(records.where.evaluate(columns)))


def _derived(expression: Expression, columns: dict[str, pa.Array], field: Field) -> pa.Array:
    found = expression.evaluate(columns)
    holes = missing(found)
    for name in expression.unasked:
        holes = holes | missing(columns[name])
    if isinstance(found, pa.Array):
        return pa.array(found.to_numpy(zero_copy_only=False), field.arrow_type, mask=holes)
    kind = np.float64 if field.kind == "float" else np.int64
    return pa.array(np.where(holes, 0, found).astype(kind), mask=holes).cast(field.arrow_type)
