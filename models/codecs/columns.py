"""Record formats to columns: JSON, CSV, Avro and rows of typed columns, whole blocks at a time.

Each decoder gives a contract's columns and says which rows could not be read and why. A fast way reads a
whole block at once; only a block that it refuses is read record by record, with the same meaning.
"""

from __future__ import annotations

import base64
import csv
import datetime
import io
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import fastavro
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json

from models.contract import TIMESTAMP, UNIX_UNITS, Contract, Field
from models.faults import RowFaults

Columns = dict[str, pa.Array]
MAX_BLOCK_ROWS = 32768  # Arrow's JSON reader refuses blocks of more than 100,000 rows
RECORD = "(record)"  # the place of a fault that is no single field's

_INT_TEXT = r"^[+-]?[0-9]{1,19}$"
_FLOAT_TEXT = r"^[+-]?(([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|(?i:nan|inf|infinity))$"
_OBJECT_LINE = r"^[ \t]*\{[^\n\r]*\}[ \t]*\r?\n?$"


def decode_json(payloads: pa.BinaryArray, contract: Contract, refuse_unknown: bool, faults: RowFaults) -> Columns:
    """Decode one JSON object a payload; a trailing newline of a payload is no part of it."""
    fast = None if refuse_unknown else _json_block(payloads, contract)
    if fast is not None:
        return _coerce_all(fast, contract, faults)
    rows: list[dict[str, Any]] = []
    for number, payload in enumerate(payloads.to_pylist()):
        try:
            row = json.loads(payload, parse_constant=float)
        except (ValueError, RecursionError) as error:
            faults.add(_one(number), RECORD, "not JSON", [str(error)])
            row = {}
        if not isinstance(row, dict):
            faults.add(_one(number), RECORD, "not a JSON object", [payload])
            row = {}
        rows.append(row)
    return decode_dicts(rows, contract, refuse_unknown, faults)


def _json_block(payloads: pa.BinaryArray, contract: Contract) -> Columns | None:
    """All payloads by Arrow's JSON reader, or None where it can't be sure to see a record in each."""
    block = _as_lines(payloads)
    if block is None:
        return None
    try:
        text = payloads.cast(pa.string())
        if not pc.all(pc.match_substring_regex(text, _OBJECT_LINE)).as_py():
            return None
        schema = pa.schema([(f.name, _loose_json_type(f)) for f in contract.fields.values()])
        table = pa.json.read_json(
            pa.BufferReader(block),
            parse_options=pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
            read_options=pa.json.ReadOptions(use_threads=False, block_size=len(block) + 1),
        )
    except pa.ArrowInvalid:
        return None
    # Every line starts with { and ends with }, so holds a record at least: as many records as lines, one in each.
    return {name: _chunk(table.column(name)) for name in contract.fields} if table.num_rows == len(text) else None


def _loose_json_type(field: Field) -> pa.DataType:
    if field.kind == "time":
        return pa.int64() if field.time_format in UNIX_UNITS else pa.string()
    return field.arrow_type


def _as_lines(payloads: pa.BinaryArray) -> pa.Buffer | None:
    """The payloads as lines of one buffer, without a copy where they are that already; None if they can't be."""
    if not len(payloads) or payloads.null_count:
        return None
    offsets = np.frombuffer(payloads.buffers()[1], np.int32)[payloads.offset : payloads.offset + len(payloads) + 1]
    block = payloads.buffers()[2].slice(int(offsets[0]), int(offsets[-1] - offsets[0]))
    data = np.frombuffer(block, np.uint8)
    newlines = np.flatnonzero(data == ord("\n"))
    if not len(newlines):
        return pa.py_buffer(b"\n".join(payloads.to_pylist()))
    # as many newlines as payloads, each the last byte of one; the last payload may lack it
    ends = offsets[1:] - offsets[0] - 1
    if np.array_equal(newlines, ends) or np.array_equal(newlines, ends[:-1]):
        return block
    return None


def decode_csv(
    payloads: pa.BinaryArray,
    header: Sequence[str],
    contract: Contract,
    refuse_unknown: bool,
    faults: RowFaults,
) -> Columns:
    """Decode one line of CSV a payload; an empty field is a missing value."""
    unknown = [name for name in header if name not in contract.fields]
    if refuse_unknown and unknown:
        faults.add(np.arange(len(payloads)), unknown[0], "unknown field", [""] * len(payloads))
    table = _csv_block(payloads, header)
    if table is None:
        table = _csv_rows(payloads, header, faults)
    columns: Columns = {}
    for name, field in contract.fields.items():
        if name in header:
            columns[name] = _parse_text(_chunk(table.column(name)), field, faults)
        else:
            columns[name] = pa.nulls(len(payloads), field.arrow_type)
    return columns


def _csv_options(header: Sequence[str], data: int) -> dict[str, Any]:
    return {
        "read_options": pa.csv.ReadOptions(
            column_names=list(header), use_threads=False, block_size=max(data + 1, 1 << 16)
        ),
        "parse_options": pa.csv.ParseOptions(ignore_empty_lines=False),
        "convert_options": pa.csv.ConvertOptions(
            column_types={name: pa.string() for name in header},
            null_values=[""],
            strings_can_be_null=True,
        ),
    }


def _csv_block(payloads: pa.BinaryArray, header: Sequence[str]) -> pa.Table | None:
    """All lines by Arrow's CSV reader, or None where a line may be broken or hold quotes."""
    block = _as_lines(payloads)
    if block is None or (np.frombuffer(block, np.uint8) == ord('"')).any():
        return None
    try:
        table = pa.csv.read_csv(pa.BufferReader(block), **_csv_options(header, len(block)))
    except pa.ArrowInvalid:
        return None
    return table if table.num_rows == len(payloads) else None


def _csv_rows(payloads: pa.BinaryArray, header: Sequence[str], faults: RowFaults) -> pa.Table:
    """Each line on its own, for blocks with broken or quoted lines."""
    rows: list[list[str | None]] = []
    for number, payload in enumerate(payloads.to_pylist()):
        row: list[str | None] = [None] * len(header)
        try:
            found = list(csv.reader([payload.decode().rstrip("\r\n")], strict=True))
            if len(found) == 1 and len(found[0]) == len(header):
                row = [value or None for value in found[0]]
            else:
                got = len(found[0]) if found else 0
                faults.add(_one(number), RECORD, f"not a line of {len(header)} fields", [f"{got} fields"])
        except (csv.Error, UnicodeDecodeError) as error:
            faults.add(_one(number), RECORD, "not a line of CSV", [str(error)])
        rows.append(row)
    return pa.table({name: pa.array([row[i] for row in rows], pa.string()) for i, name in enumerate(header)})


def _parse_text(text: pa.StringArray, field: Field, faults: RowFaults) -> pa.Array:
    """A column of text as the field's type; what is not of it becomes null and a fault."""
    if field.kind == "string":
        return text
    if field.kind == "time" and field.time_format not in UNIX_UNITS:
        return _coerce(text, field, faults)
    number_kind = "float" if field.kind == "float" else "int"
    trimmed = pc.utf8_trim_whitespace(text)
    fits = pc.match_substring_regex(trimmed, _FLOAT_TEXT if number_kind == "float" else _INT_TEXT)
    good = pc.if_else(fits.fill_null(False), trimmed, None)
    target = pa.float64() if number_kind == "float" else pa.int64()
    try:
        numbers = good.cast(target)
    except pa.ArrowInvalid:  # a plus sign, or 19 digits and beyond 64 bits
        parse: Callable[[str], Any] = float if number_kind == "float" else int
        values = [None if v is None else parse(v) for v in good.to_pylist()]
        numbers = pa.array(
            [v if isinstance(v, float) or (v is not None and _is_int(v)) else None for v in values], target
        )
    wrong = pc.and_(pc.is_valid(text), pc.is_null(numbers))
    if pc.any(wrong).as_py():
        faults.add(_where(wrong), field.name, f"not {_article(field)}", text)
    return _coerce(numbers, field, faults)


def decode_avro(
    payloads: pa.BinaryArray, writer_schema: Any, contract: Contract, refuse_unknown: bool, faults: RowFaults
) -> Columns:
    """Decode one Avro datum of `writer_schema` (parsed) a payload."""
    rows: list[dict[str, Any]] = []
    for number, payload in enumerate(payloads.to_pylist()):
        row: Any = {}
        stream = io.BytesIO(payload)
        try:
            row = fastavro.schemaless_reader(stream, writer_schema, None)
            if stream.read(1):
                faults.add(_one(number), RECORD, "not Avro of its schema", ["bytes are left over"])
        except (EOFError, ValueError, IndexError, OverflowError, MemoryError, TypeError, KeyError) as error:
            faults.add(_one(number), RECORD, "not Avro of its schema", [f"{type(error).__name__}: {error}"])
        rows.append(row if isinstance(row, dict) else {})
    return decode_dicts(rows, contract, refuse_unknown, faults)


def decode_rows(table: pa.RecordBatch, contract: Contract, refuse_unknown: bool, faults: RowFaults) -> Columns:
    """Decode typed columns, as a Parquet file has them; system columns are passed over."""
    names = table.schema.names
    unknown = [name for name in names if name not in contract.fields and not name.startswith("__")]
    if refuse_unknown and unknown:
        faults.add(np.arange(table.num_rows), unknown[0], "unknown field", [""] * table.num_rows)
    found = {name: table.column(i) for i, name in enumerate(names) if name in contract.fields}
    return _coerce_all(found, contract, faults, table.num_rows)


def decode_dicts(
    rows: Sequence[dict[str, Any]], contract: Contract, refuse_unknown: bool, faults: RowFaults
) -> Columns:
    """Decode Python mappings, a record each: the slow way that every format can fall back to."""
    if refuse_unknown:
        for number, row in enumerate(rows):
            for name in row.keys() - contract.fields.keys():
                faults.add(_one(number), name, "unknown field", [str(row[name])])
    return {name: _from_values([row.get(name) for row in rows], f, faults) for name, f in contract.fields.items()}


def _from_values(values: list[Any], field: Field, faults: RowFaults) -> pa.Array:
    """A column from Python values of any type."""
    fits: Callable[[Any], bool]
    if field.kind == "int" or (field.kind == "time" and field.time_format in UNIX_UNITS):
        fits, target = _is_int, pa.int64()
        if field.is_boolean:
            values = [int(v) if isinstance(v, bool) else v for v in values]
        values = [int(v) if isinstance(v, float) and _is_int(v) else v for v in values]
    elif field.kind == "float":
        fits, target = (lambda v: isinstance(v, int | float) and not isinstance(v, bool)), pa.float64()
        values = [_as_float(v) if isinstance(v, int) and not isinstance(v, bool) else v for v in values]
    elif field.kind == "string":
        values = [_as_text(v) if isinstance(v, bytes) else v for v in values]
        fits, target = _is_text, pa.string()
    elif all(isinstance(v, datetime.datetime | None) for v in values):
        fits, target = (lambda v: True), TIMESTAMP
    else:
        values = [v.isoformat() if isinstance(v, datetime.datetime) else v for v in values]
        fits, target = _is_text, pa.string()
    if field.kind == "time" and field.time_format in UNIX_UNITS:
        values = [_to_unix(v, field) if isinstance(v, datetime.datetime) else v for v in values]
    good = [value if value is not None and fits(value) else None for value in values]
    wrong = [n for n, (value, kept) in enumerate(zip(values, good, strict=True)) if value is not None and kept is None]
    if wrong:
        faults.add(np.asarray(wrong), field.name, f"not {_article(field)}", [str(values[n]) for n in wrong])
    return _coerce(pa.array(good, target), field, faults)


def _is_int(value: Any) -> bool:
    """An integer of 64 bits; 5.0 is one, as in JSON Schema."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if isinstance(value, float) and not (math.isfinite(value) and value == int(value)):
        return False
    return -(1 << 63) <= value < 1 << 63


def _is_text(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON can spell
        return False
    return True


def _as_float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.copysign(math.inf, value)


def _as_text(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def _to_unix(value: datetime.datetime, field: Field) -> int:
    value = value if value.tzinfo else value.replace(tzinfo=datetime.UTC)
    micros = (value - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)) // datetime.timedelta(microseconds=1)
    unit = UNIX_UNITS[str(field.time_format)]
    return micros // unit if unit > 0 else micros * -unit


def _coerce_all(found: Columns, contract: Contract, faults: RowFaults, rows: int | None = None) -> Columns:
    rows = rows if rows is not None else len(next(iter(found.values())))
    return {
        name: _coerce(found[name], field, faults) if name in found else pa.nulls(rows, field.arrow_type)
        for name, field in contract.fields.items()
    }


def _coerce(column: pa.Array, field: Field, faults: RowFaults) -> pa.Array:
    """A typed column as the field's type; values that are not of it become null and a fault."""
    source, target = column.type, field.arrow_type
    if pa.types.is_dictionary(source):
        column = column.dictionary_decode()
        source = column.type
    if source.equals(target):
        return column
    if pa.types.is_null(source):
        return pa.nulls(len(column), target)
    result: pa.Array | None = None
    if field.kind == "int" and (pa.types.is_integer(source) or (pa.types.is_boolean(source) and field.is_boolean)):
        result = column.cast(target, safe=not pa.types.is_uint64(source))
        if pa.types.is_uint64(source):
            result = pc.if_else(pc.greater_equal(result, 0), result, None)
    elif field.kind == "int" and pa.types.is_floating(source):
        numbers = column.cast(pa.float64())
        whole = pc.and_(pc.equal(pc.floor(numbers), numbers), pc.less(pc.abs(numbers), 2.0**63))
        result = pc.if_else(whole, numbers, None).cast(target)
    elif field.kind == "float" and (
        pa.types.is_integer(source) or pa.types.is_floating(source) or pa.types.is_decimal(source)
    ):
        result = column.cast(target, safe=False)
    elif field.kind == "string" and (pa.types.is_string(source) or pa.types.is_large_string(source)):
        result = column.cast(target)
    elif field.kind == "string" and (pa.types.is_binary(source) or pa.types.is_large_binary(source)):
        result = pa.array([_utf8_or_none(v) for v in column.to_pylist()], target)
    elif field.kind == "time":
        result = _coerce_time(column, field)
    if result is None:
        result = pa.nulls(len(column), target)
    if result.null_count > column.null_count:
        wrong = pc.and_(pc.is_valid(column), pc.is_null(result))
        faults.add(_where(wrong), field.name, f"not {_article(field)}", column)
    return result


def _utf8_or_none(value: bytes | None) -> str | None:
    text = _as_text(value) if value is not None else None
    return text if isinstance(text, str) else None


def _coerce_time(column: pa.Array, field: Field) -> pa.Array | None:
    source = column.type
    if pa.types.is_timestamp(source) or pa.types.is_date(source):
        try:
            micros = column.cast(pa.timestamp("us", tz=getattr(source, "tz", None)), safe=False).cast(pa.int64())
        except pa.ArrowInvalid:
            return None
        return micros.cast(TIMESTAMP)
    if pa.types.is_integer(source) and field.time_format in UNIX_UNITS:
        unit = UNIX_UNITS[str(field.time_format)]
        numbers = column.cast(pa.int64(), safe=False).to_numpy(zero_copy_only=False)
        if column.null_count:
            numbers = np.nan_to_num(numbers, nan=0.0).astype(np.int64)
        fits = np.abs(numbers // abs(unit) if unit < 0 else numbers) < (1 << 62) // max(unit, 1)
        micros = np.where(fits, numbers, 0) * unit if unit > 0 else numbers // -unit
        known = fits & pc.is_valid(column).to_numpy(zero_copy_only=False)
        return pa.array(micros, pa.int64(), mask=~known).cast(TIMESTAMP)
    if pa.types.is_string(source) and field.time_format not in UNIX_UNITS:
        return _parse_times(column, str(field.time_format))
    return None


def _parse_times(text: pa.StringArray, time_format: str) -> pa.Array:
    """ISO 8601, or else the declared strptime format, as UTC where no offset stands; null where neither."""
    try:
        return text.cast(pa.timestamp("us")).cast(pa.int64()).cast(TIMESTAMP)
    except pa.ArrowInvalid:
        pass
    micros = [_iso_micros(value) for value in text.to_pylist()]
    result = pa.array(micros, pa.int64()).cast(TIMESTAMP)
    if result.null_count == text.null_count:
        return result
    declared = pd.to_datetime(text.to_pandas(), format=time_format, exact=True, errors="coerce", utc=True)
    declared_us = pa.array(declared.to_numpy("M8[us]"), pa.timestamp("us"), from_pandas=True).cast(pa.int64())
    return pc.coalesce(result, declared_us.cast(TIMESTAMP))


_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MICROSECOND = datetime.timedelta(microseconds=1)


def _iso_micros(value: str | None) -> int | None:
    if value is None:
        return None
    try:
        time = datetime.datetime.fromisoformat(value)
        return ((time if time.tzinfo else time.replace(tzinfo=datetime.UTC)) - _EPOCH) // _MICROSECOND
    except (ValueError, OverflowError):
        return None


def _article(field: Field) -> str:
    names = {"int": "a 64-bit integer", "float": "a number", "string": "UTF-8 text", "time": "a time"}
    return names[field.kind]


def _where(condition: pa.BooleanArray) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.flatnonzero(condition.fill_null(False).to_numpy(zero_copy_only=False))


def _one(number: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array([number], np.int64)


def _chunk(column: pa.ChunkedArray) -> pa.Array:
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def row_as_json(row: dict[str, Any]) -> bytes:
    """One row of typed columns as JSON: times in ISO 8601, bytes in base64, NaN and infinity as texts."""
    return json.dumps({k: _jsonable(v) for k, v in row.items()}, ensure_ascii=False, default=str).encode()


def _jsonable(value: Any) -> Any:
    if isinstance(value, datetime.datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    return value


def encode_json_lines(batch: pa.RecordBatch) -> bytes:
    """One JSON object a row, columns in order; null, NaN and infinity as null, times in ISO 8601 and UTC.

    Numbers are written so that they read back to the same bits.
    """
    if not batch.num_rows:
        return b""
    parts: list[Any] = []
    for place, (name, values) in enumerate(zip(batch.schema.names, batch.columns, strict=True)):
        parts += [("{" if place == 0 else ",") + json.dumps(name) + ":", _json_texts(values)]
    lines = pc.binary_join_element_wise(*parts, "}\n", "", null_handling="error")
    return b"".join(lines.cast(pa.binary()).to_pylist())


def _json_texts(values: pa.Array) -> pa.Array:
    kind = values.type
    if pa.types.is_floating(kind):
        texts = pc.if_else(pc.is_finite(values), values, None).cast(pa.string())
    elif pa.types.is_timestamp(kind):
        texts = pc.binary_join_element_wise('"', pc.strftime(values, "%Y-%m-%dT%H:%M:%S"), 'Z"', "")
    elif pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        texts = values.cast(pa.string())
    else:
        encoded = values if pa.types.is_dictionary(kind) else values.dictionary_encode()
        distinct = [_json_text(value) for value in encoded.dictionary.to_pylist()]
        texts = pa.DictionaryArray.from_arrays(encoded.indices, pa.array(distinct, pa.string())).dictionary_decode()
    return texts.fill_null("null")


def _json_text(value: Any) -> str:
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value
    return json.dumps(text, ensure_ascii=False)
