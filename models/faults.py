"""What is wrong with the rows of a batch: which rows, which field, which rule, which value."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

MAX_VALUE_CHARS = 200

Rows = np.ndarray[Any, np.dtype[np.int64]]


class RowFaults:
    """Reasons against rows 0..n-1 of one batch, gathered a rule at a time."""

    def __init__(self, rows: int) -> None:
        self.bad = np.zeros(rows, dtype=bool)
        self._reasons: dict[int, list[dict[str, str]]] = {}

    def add(self, rows: Rows, field: str, rule: str, values: pa.Array | Sequence[Any] | None = None) -> None:
        """Say that `rows` break `rule` in `field`; `values` is the whole column, or one value a named row."""
        if not len(rows):
            return
        self.bad[rows] = True
        if values is None:
            texts: Sequence[Any] = [""] * len(rows)
        elif isinstance(values, pa.Array):
            texts = python_values(values.take(pa.array(rows)))
        else:
            texts = values
        field = _printable(field)
        for row, text in zip(rows.tolist(), texts, strict=True):
            reason = {"field": field, "rule": rule, "value": _shorten(text)}
            self._reasons.setdefault(row, []).append(reason)

    def include(self, others: RowFaults, rows: Rows) -> None:
        """Take over the reasons of a part of the batch: its row i is row `rows[i]` here."""
        self.bad[rows] |= others.bad
        for row, reasons in others._reasons.items():
            self._reasons.setdefault(int(rows[row]), []).extend(reasons)

    @property
    def rows(self) -> Rows:
        """The bad rows, ascending."""
        return np.flatnonzero(self.bad)

    def reasons(self) -> list[str]:
        """For each bad row, ascending, its reasons as a JSON list of {field, rule, value}."""
        return [json.dumps(self._reasons[row], ensure_ascii=False) for row in self.rows.tolist()]


def python_values(column: pa.Array) -> list[Any]:
    """A column as Python values; those that Python can't hold as the bytes or numbers that they are made of.

    Python has no text that is not UTF-8 and no times outside the years 1 to 9999, which files can hold.
    """
    try:
        return column.to_pylist()  # type: ignore[no-any-return]
    except (ValueError, OverflowError, KeyError):
        numbers = [None] * len(column)
        if pa.types.is_temporal(column.type):
            numbers = column.view(pa.int32() if column.type.bit_width == 32 else pa.int64()).to_pylist()
        return [_python_value(scalar, number) for scalar, number in zip(column, numbers, strict=True)]


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
    text = _printable(value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value))
    return text if len(text) <= MAX_VALUE_CHARS else text[: MAX_VALUE_CHARS - 1] + "…"


def _printable(text: str) -> str:
    """Text as UTF-8 can hold it: JSON can spell a lone surrogate."""
    return text.encode("utf-8", "backslashreplace").decode()
