"""Typed columns, and Python values of any type, as columns of the contract's types.

What is not of a field's type becomes null and a fault.
"""

from __future__ import annotations

import datetime
import decimal
import math
import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.codecs.times import micros_of, times_from_numbers, times_from_text, times_from_timestamps
from models.faults import UNKNOWN_FIELD, RowFaults
from models.project.contract import UNIX_UNITS, Contract, Field

Columns = dict[str, pa.Array]
RECORD = "(record)"  # the place of a fault that is no single field's

_NONE = type(None)
_NAMES = {"int": "a 64-bit integer", "float": "a number", "string": "UTF-8 text", "time": "a time"}


def wrong_type(field: Field) -> str:
    """The rule that a value of another type breaks."""
    return f"not {_NAMES[field.kind]}"


def decode_rows(
    table: pa.RecordBatch, contract: Contract, refuse_unknown: bool, faults: RowFaults, unread: Sequence[str] = ()
) -> Columns:
    """Decode typed columns, as a Parquet file has them; system columns are passed over.

    `unread` names columns that the rows have and the table has not.
    """
    names = table.schema.names
    for name in sorted({*names, *unread}) if refuse_unknown else ():
        if name not in contract.fields and not name.startswith("__"):
            faults.add(np.arange(table.num_rows), name, UNKNOWN_FIELD)
    found = {name: table.column(i) for i, name in enumerate(names) if name in contract.fields}
    return coerce_all(found, contract, faults, table.num_rows)


def decode_dicts(
    rows: Sequence[dict[str, Any]], contract: Contract, refuse_unknown: bool, faults: RowFaults
) -> Columns:
    """Decode Python mappings, a record each: the slow way that every format can fall back to."""
    for number, row in enumerate(rows if refuse_unknown else ()):
        for name in sorted(row.keys() - contract.fields.keys()):
            faults.add(np.array([number]), name, UNKNOWN_FIELD, [row[name]])
    return {
        name: _from_values([row.get(name) for row in rows], field, faults) for name, field in contract.fields.items()
    }


def coerce_all(found: Columns, contract: Contract, faults: RowFaults, rows: int | None = None) -> Columns:
    """Every field of the contract: from `found`, or null."""
    rows = rows if rows is not None else len(next(iter(found.values())))
    return {
        name: coerce(found[name], field, faults) if name in found else pa.nulls(rows, field.arrow_type)
        for name, field in contract.fields.items()
    }


def coerce(column: pa.Array, field: Field, faults: RowFaults) -> pa.Array:
    """A typed column as the field's type."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if isinstance(column.type, pa.BaseExtensionType):
        column = _uuid_text(column.storage) if isinstance(column.type, pa.UuidType) else column.storage
    if _is_text_of_another_layout(column.type):
        column = column.cast(pa.large_binary())
    source, target = column.type, field.arrow_type
    if pa.types.is_null(source):
        return pa.nulls(len(column), target)
    if pa.types.is_decimal(source):  # by way of Python, which rounds to the nearest double as JSON's readers do
        return _from_values(column.to_pylist(), field, faults)
    result: pa.Array | None = None
    if _is_text(source):
        if field.kind in ("string", "time") and field.time_format not in UNIX_UNITS:
            text = _valid_text(column)
            result = text if field.kind == "string" else times_from_text(text, str(field.time_format))
    elif field.kind == "float":
        result = _floats(column)
    elif field.kind == "int" or (field.kind == "time" and field.time_format in UNIX_UNITS):
        result = _integers(column, field.is_boolean)
        if field.kind == "time" and result is not None:
            result = times_from_numbers(result, UNIX_UNITS[str(field.time_format)])
    if field.kind == "time" and (pa.types.is_timestamp(source) or pa.types.is_date(source)):
        result = times_from_timestamps(column)
    if result is None:
        result = pa.nulls(len(column), target)
    if result.null_count > column.null_count:
        wrong = pc.and_(pc.is_valid(column), pc.is_null(result)).to_numpy(zero_copy_only=False)
        faults.add(np.flatnonzero(wrong), field.name, wrong_type(field), column)
    return result


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(
        types.is_string(kind) or types.is_large_string(kind) or types.is_binary(kind) or types.is_large_binary(kind)
    )


def _is_text_of_another_layout(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_string_view(kind) or types.is_binary_view(kind) or types.is_fixed_size_binary(kind))


def _uuid_text(column: pa.Array) -> pa.StringArray:
    """UUIDs of 16 bytes as their text of 36."""
    rows = len(column)
    numbers = np.frombuffer(column.buffers()[1] or b"", np.uint8)[column.offset * 16 :][: rows * 16]
    digits = np.frombuffer(numbers.tobytes().hex().encode(), np.uint8).reshape(rows, 32)
    text = np.insert(digits, (8, 12, 16, 20), ord("-"), axis=1)
    offsets = pa.py_buffer(np.arange(rows + 1, dtype=np.int64) * 36)
    whole = pa.Array.from_buffers(pa.large_string(), rows, [None, offsets, pa.py_buffer(np.ascontiguousarray(text))])
    return pc.if_else(pc.is_valid(column), whole, None)


def _valid_text(column: pa.Array) -> pa.StringArray:
    """Text or bytes as UTF-8, null where they are not; a file's text is not always what its type says."""
    try:
        text = column.cast(pa.string())
        text.validate(full=True)
        return text
    except pa.ArrowInvalid:
        values = [_as_text(value) for value in column.cast(pa.binary()).to_pylist()]
        return pa.array(values, pa.string())


def _as_text(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None


def _floats(column: pa.Array) -> pa.Array | None:
    if pa.types.is_float16(column.type):
        values = column.to_numpy(zero_copy_only=False).astype(np.float64)
        return pa.array(values, mask=pc.is_null(column).to_numpy(zero_copy_only=False))
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        return column.cast(pa.float64(), safe=False)
    return None


def _integers(column: pa.Array, from_boolean: bool) -> pa.Array | None:
    if pa.types.is_boolean(column.type) and not from_boolean:
        return None
    if pa.types.is_uint64(column.type):
        numbers = column.cast(pa.int64(), safe=False)
        return pc.if_else(pc.greater_equal(numbers, 0), numbers, None)
    if pa.types.is_integer(column.type) or pa.types.is_boolean(column.type):
        return column.cast(pa.int64())
    numbers = _floats(column)
    if numbers is None:
        return None
    whole = pc.equal(pc.floor(numbers), numbers)
    fits = pc.and_(pc.less(numbers, 2.0**63), pc.greater_equal(numbers, -(2.0**63)))
    return pc.if_else(pc.and_(whole, fits), numbers, None).cast(pa.int64())


def _from_values(values: Sequence[Any], field: Field, faults: RowFaults) -> pa.Array:
    """A column from Python values of any type."""
    kind = field.kind
    if kind == "time":
        moments = [micros_of(v) if isinstance(v, datetime.date) else None for v in values]
        if any(moment is not None for moment in moments):
            others = [None if isinstance(v, datetime.date) else v for v in values]
            known = times_from_numbers(pa.array(moments, pa.int64()), 1)
            return pc.coalesce(known, _from_values(others, field, faults))
        kind = "int" if field.time_format in UNIX_UNITS else "string"
    target, plain, convert = _TARGETS[kind]
    if set(map(type, values)) <= plain:
        try:
            column = pa.array(values, target)
            return coerce(column, field, faults) if field.kind == "time" else column
        except (pa.ArrowException, OverflowError, UnicodeEncodeError):  # one of them at least does not fit
            pass
    if field.is_boolean:
        values = [int(value) if isinstance(value, bool) else value for value in values]
    kept = [None if value is None else convert(value) for value in values]
    wrong = [n for n, (v, k) in enumerate(zip(values, kept, strict=True)) if v is not None and k is None]
    if wrong:
        faults.add(np.array(wrong), field.name, wrong_type(field), [values[n] for n in wrong])
    return coerce(pa.array(kept, target), field, faults)


def fits_int64(value: int | float | decimal.Decimal) -> bool:
    """Whether it is of the integers of 64 bits, or between two of them."""
    return -(1 << 63) <= value < 1 << 63


def _to_int(value: Any) -> int | None:
    """An integer; 5.0 is one, as in JSON Schema."""
    if isinstance(value, bool) or not isinstance(value, int | float | decimal.Decimal):
        return None
    if not isinstance(value, int) and not (math.isfinite(value) and fits_int64(value) and value == int(value)):
        return None
    return int(value) if fits_int64(value) else None


def _to_float(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | decimal.Decimal):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
    except ValueError:  # a signalling NaN
        return math.nan


def _to_text(value: Any) -> str | None:
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, bytes):
        return _as_text(value)
    if not isinstance(value, str):
        return None
    try:
        value.encode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON can spell
        return None
    return value


# A kind's Arrow type, the Python types that Arrow makes it from as we would, and how we would.
_TARGETS: dict[str, tuple[pa.DataType, set[type], Any]] = {
    "int": (pa.int64(), {int, _NONE}, _to_int),
    "float": (pa.float64(), {float, int, _NONE}, _to_float),
    "string": (pa.string(), {str, _NONE}, _to_text),
}
