"""Columns to JSON: rows that were refused, and rows that go out."""

from __future__ import annotations

import base64
import datetime
import decimal
import functools
import json
import math
import re
import secrets
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.batches import as_dictionary
from models.codecs.lines import offsets_and_bytes
from models.faults import python_values

_MARK = secrets.token_hex(8)  # of a text that stands for a decimal, which json can't write
_MARKED = re.compile(rf'"{_MARK}([^"]*)"')
_WHOLE_DIGITS = 80  # of a decimal of Arrow's, or fewer
_FEW = 16  # values that are written sooner one by one than as codes of different ones
_ISO = pc.StrftimeOptions('"%Y-%m-%dT%H:%M:%SZ"')


def rows_as_json(columns: dict[str, pa.Array]) -> list[bytes]:
    """Each row of typed columns as a JSON object, whatever its values are; see `row_as_json`."""
    values = [python_values(column) for column in columns.values()]
    return [row_as_json(dict(zip(columns, row, strict=True))) for row in zip(*values, strict=True)]


def row_as_json(row: Any) -> bytes:
    """A row as JSON: times in ISO 8601, bytes as text or else in base64, NaN and infinity as texts.

    A decimal is a number of all its digits; a whole one has no fraction, as readers make a double of that.
    """
    text = json.dumps(_jsonable(row), ensure_ascii=False, default=str)
    return _MARKED.sub(r"\1", text).encode("utf-8", "backslashreplace")


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _jsonable(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(part) for part in value]
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return base64.b64encode(value).decode()
    if isinstance(value, decimal.Decimal):
        return _MARK + _digits(value) if value.is_finite() else str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    return value


def _digits(value: decimal.Decimal) -> str:
    if value.adjusted() < _WHOLE_DIGITS and value == value.to_integral_value():
        return format(value.to_integral_value(), "f")
    return str(value)


def encode_json_lines(batch: pa.RecordBatch, objects: Sequence[str] = ()) -> bytes:
    """One JSON object a row, columns in order; null, NaN and infinity as null, times in ISO 8601 and UTC.

    Numbers are written so that they read back to the same bits. The first columns stand in members that are objects
    themselves: `objects` names that of each, where those of one name follow one another.
    """
    if not batch.num_rows:
        return b""
    parts: list[Any] = []
    within = ""
    for place, (name, values) in enumerate(zip(batch.schema.names, batch.columns, strict=True)):
        member = objects[place] if place < len(objects) else ""
        parts += [_before(name, place == 0, within, member), _json_texts(values)]
        within = member
    lines = pc.binary_join_element_wise(*parts, *_after(within))
    return offsets_and_bytes(lines)[1].tobytes()


def _json_texts(values: pa.Array) -> pa.Array:
    kind = values.type
    if pa.types.is_floating(kind):
        numbers = values.to_numpy(zero_copy_only=False)
        if not np.isfinite(numbers).all():
            values = pc.if_else(pc.is_finite(values), values, None)
        texts = values.cast(pa.string())
        if (np.signbit(numbers) & (numbers == 0)).any():  # many readers make the integer 0 of -0
            texts = pc.if_else(pc.equal(texts, "-0"), "-0.0", texts)
    elif pa.types.is_timestamp(kind):
        if len(values) <= _FEW:
            texts = pc.strftime(values, options=_ISO)
        else:
            texts = pc.binary_join_element_wise('"', _iso_texts(values), 'Z"', "")
    elif pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        texts = values.cast(pa.string())
    else:
        if len(values) <= _FEW:
            few = ["null" if value is None else _json_text(value) for value in values.to_pylist()]
            return pa.array(few, pa.string())
        encoded = as_dictionary(values)
        distinct = [_json_text(value) for value in encoded.dictionary.to_pylist()]
        texts = pa.DictionaryArray.from_arrays(encoded.indices, pa.array(distinct, pa.string())).dictionary_decode()
    return texts.fill_null("null") if texts.null_count else texts


@functools.lru_cache(4096)
def _before(name: str, is_first: bool, within: str, member: str) -> pa.Scalar:
    """What stands before a value, as a scalar, which Arrow takes much longer to make than to use.

    It is in the object `member`, and the value before it in `within`, "" of none.
    """
    start = "{" if is_first else ","
    if member != within:
        start = ("}" if within else "") + start + (f"{json.dumps(member)}:{{" if member else "")
    return pa.scalar(f"{start}{json.dumps(name)}:")


@functools.cache
def _after(within: str) -> tuple[pa.Scalar, pa.Scalar]:
    """What stands after a row's last value, and between texts: made at first use, as Arrow then looks for pandas."""
    return pa.scalar("}}\n" if within else "}\n"), pa.scalar("")


def _iso_texts(times: pa.Array) -> pa.Array:
    """Times in UTC as ISO 8601, without its Z: as `strftime` writes them, in a tenth of the time."""
    texts = times.cast(pa.timestamp(times.type.unit)).cast(pa.string())
    if pc.any(pc.starts_with(texts, "<")).as_py():  # of years that the cast does not write, some beyond 32767
        return pc.strftime(times, "%Y-%m-%dT%H:%M:%S")
    return pc.replace_substring(texts, " ", "T", max_replacements=1)


def _json_text(value: Any) -> str:
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value
    return json.dumps(text, ensure_ascii=False)
