"""What is wrong with the rows of a batch: which rows, which field, which rule, which value."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

MAX_VALUE_CHARS = 200


class RowFaults:
    """Reasons against rows 0..n-1 of one batch, gathered a rule at a time."""

    def __init__(self, rows: int) -> None:
        self.bad = np.zeros(rows, dtype=bool)
        self._reasons: dict[int, list[dict[str, str]]] = {}

    def add(
        self,
        rows: np.ndarray[tuple[int], np.dtype[np.int64]],
        field: str,
        rule: str,
        values: pa.Array | Sequence[Any] | None = None,
    ) -> None:
        """Say that `rows` break `rule` in `field`; `values` is the whole column, or one text a named row."""
        if not len(rows):
            return
        self.bad[rows] = True
        if values is None:
            texts: Sequence[Any] = [""] * len(rows)
        elif isinstance(values, pa.Array):
            texts = values.take(pa.array(rows)).to_pylist()
        else:
            texts = values
        for row, text in zip(rows.tolist(), texts, strict=True):
            reason = {"field": field, "rule": rule, "value": _shorten(text)}
            self._reasons.setdefault(row, []).append(reason)

    @property
    def rows(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """The bad rows, ascending."""
        return np.flatnonzero(self.bad)

    def reasons(self) -> list[str]:
        """For each bad row, ascending, its reasons as a JSON list of {field, rule, value}."""
        return [json.dumps(self._reasons[row], ensure_ascii=False) for row in self.rows.tolist()]


def _shorten(value: Any) -> str:
    if value is None:
        return ""
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
    return text if len(text) <= MAX_VALUE_CHARS else text[: MAX_VALUE_CHARS - 1] + "…"
