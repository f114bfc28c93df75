"""What is wrong with the rows of a batch: which rows, which field, which rule, which value."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from json.encoder import encode_basestring
from typing import Any

import numpy as np
import pyarrow as pa

MAX_VALUE_CHARS = 200
UNKNOWN_FIELD = "unknown field"  # the one rule whose field may have any name

Rows = np.ndarray[Any, np.dtype[np.int64]]


class RowFaults:
    """Reasons against rows 0..n-1 of one batch, gathered a rule at a time."""

    def __init__(self, rows: int) -> None:
        self.bad = np.zeros(rows, dtype=bool)
        self._reasons: dict[int, str] = {}  # a row's, as the items of a JSON list

    @staticmethod
    def read(texts: pa.Array) -> RowFaults:
        """Of a column with null for a good row, and for a bad one what `reasons` gives."""
        faults = RowFaults(len(texts))
        if texts.null_count < len(texts):
            faults._reasons = {row: text[1:-1] for row, text in enumerate(texts.to_pylist()) if text is not None}
            faults.bad[list(faults._reasons)] = True
        return faults

    def as_column(self) -> pa.Array:
        """The column that `read` reads."""
        if not self._reasons:
            return pa.nulls(len(self.bad), pa.string())
        texts = [None if (items := self._reasons.get(row)) is None else f"[{items}]" for row in range(len(self.bad))]
        return pa.array(texts, pa.string())

    def add(self, rows: Rows, field: str, rule: str, values: pa.Array | Sequence[Any] | None = None) -> None:
        """Say that `rows` break `rule` in `field`; `values` is the whole column, or one value a named row."""
        if not len(rows):
            return
        self.bad[rows if len(rows) > 1 else int(rows[0])] = True  # a record at a time is refused where all are broken
        if values is None:
            texts: Sequence[Any] = [""] * len(rows)
        elif isinstance(values, pa.Array):
            texts = python_values(values.take(pa.array(rows)))
        else:
            texts = values
        self._extend(rows.tolist(), reason_texts(field, rule, texts))

    def include(self, others: RowFaults, rows: Rows) -> None:
        """Take over the reasons of a part of the batch: its row i is row `rows[i]` here."""
        self.bad[rows] |= others.bad
        self._extend(rows[list(others._reasons)].tolist() if others._reasons else [], others._reasons.values())

    @property
    def rows(self) -> Rows:
        """The bad rows, ascending."""
        return np.flatnonzero(self.bad)

    def reasons(self) -> list[str]:
        """For each bad row, ascending, its reasons as a JSON list of {field, rule, value}."""
        return [f"[{self._reasons[row]}]" for row in self.rows.tolist()]

    def _extend(self, rows: Sequence[int], texts: Iterable[str]) -> None:
        reasons = self._reasons
        for row, text in zip(rows, texts, strict=True):
            before = reasons.get(row)
            reasons[row] = text if before is None else f"{before}, {text}"


def reason_texts(field: str, rule: str, values: Iterable[Any]) -> list[str]:
    """The reason against a row for each value, as a JSON object of field, rule and value."""
    start = f'{{"field": {encode_basestring(_printable(field))}, "rule": {encode_basestring(rule)}, "value": '
    return [f"{start}{encode_basestring(_shorten(value))}}}" for value in values]


# A quote within a JSON string has a backslash before it, so no value can look like this.
_FIELD_AND_RULE = re.compile(r'"field": ("(?:[^"\\]|\\.)*"), "rule": ("(?:[^"\\]|\\.)*"), "value": "', re.DOTALL)


def rules_of(reasons: Iterable[str]) -> Iterator[tuple[tuple[str, str], ...]]:
    """Of each row's reasons the field and the rule, each pair once, in their order."""
    known: dict[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]] = {}
    for text in reasons:
        found = tuple(_FIELD_AND_RULE.findall(text))
        if found not in known:
            known[found] = tuple((json.loads(field), json.loads(rule)) for field, rule in dict.fromkeys(found))
        yield known[found]


def how_many(count: int, of: int) -> str:
    """A number of records as people read it: that they are all of them is worth a word."""
    return f"all {count:,}" if count == of else f"{count:,}"


def python_values(column: pa.Array) -> list[Any]:
    """A column as Python values; those that Python can't hold as the bytes or numbers that they are made of.

    Python has no text that is not UTF-8 and no times outside the years 1 to 9999, which files can hold.
    Its times of day have no nanoseconds: those are texts.
    """
    shown = _without_nanoseconds(column.type)
    column = column if shown == column.type else column.cast(shown)
    try:
        return column.to_pylist()  # type: ignore[no-any-return]
    except (ValueError, OverflowError, KeyError):
        numbers = [None] * len(column)
        if pa.types.is_temporal(column.type):
            numbers = column.view(pa.int32() if column.type.bit_width == 32 else pa.int64()).to_pylist()
        return [_python_value(scalar, number) for scalar, number in zip(column, numbers, strict=True)]


def _without_nanoseconds(kind: pa.DataType) -> pa.DataType:
    if kind == pa.time64("ns"):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_without_nanoseconds(kind.value_type)))
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_without_nanoseconds(kind.value_type)))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_without_nanoseconds(field.type)) for field in kind.fields])
    return kind


def _python_value(scalar: pa.Scalar, number: int | None) -> Any:
    try:
        return scalar.as_py()
    except (ValueError, OverflowError, KeyError):  # KeyError: a timezone that is not known here
        if number is not None:
            return number
        if isinstance(scalar, pa.DictionaryScalar):
            return _python_value(scalar.value, None)
        if isinstance(scalar, pa.StringScalar | pa.LargeStringScalar):
            return scalar.as_buffer().to_pybytes()
        return f"({scalar.type} that can't be shown)"


def _shorten(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str) and len(value) <= MAX_VALUE_CHARS and value.isascii():
        return value
    text = _printable(value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value))
    return text if len(text) <= MAX_VALUE_CHARS else text[: MAX_VALUE_CHARS - 1] + "…"


def _printable(text: str) -> str:
    """Text as UTF-8 can hold it: JSON can spell a lone surrogate."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()
