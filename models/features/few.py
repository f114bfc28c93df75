"""Least values, greatest values and different ones of few windows, however many rows each of them holds.

What takes a look at each row of a run is done once and kept with it: the least or greatest value of each block of rows,
and where each code stands first and last. A window then reads its edges, and blocks or codes in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from models.features.windows import Run

Int64 = np.ndarray[Any, np.dtype[np.int64]]
Float64 = np.ndarray[Any, np.dtype[np.float64]]

FEW = 8  # windows of which each is looked at by itself
_BLOCK = 1024
_MANY = 8 * _BLOCK  # rows of a window, and at least this part of its run's, for which something is kept
_PART = 8


def extremes(run: Run, column: str, pick: np.ufunc, neutral: float, low: Int64, high: Int64) -> Float64:
    """`pick` over each window's rows low .. high of a run, NaN left out; `neutral` where there is none."""
    values, found = run.values[column], np.full(len(low), neutral)
    for window, (start, stop) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
        if not _is_large(run, stop - start):
            found[window] = pick.reduce(values[start:stop] + 0.0, initial=neutral)  # -0.0 is 0.0, whichever comes first
            continue
        first, last = -(-start // _BLOCK), stop // _BLOCK
        blocks = run.kept((column, pick.__name__), lambda: _blocks(values, pick))[first:last]
        edges = (values[start : first * _BLOCK] + 0.0, values[last * _BLOCK : stop] + 0.0)
        found[window] = pick.reduce([pick.reduce(part, initial=neutral) for part in (*edges, blocks)])
    return found


def count_different(parts: Sequence[tuple[Run, Int64, Int64]], column: str) -> Int64:
    """How many different codes, none below 0, each window has in the rows low .. high of all runs together."""
    found = np.zeros(len(parts[0][1]), np.int64)
    for window in range(len(found)):
        codes = np.concatenate([_codes(run, column, int(low[window]), int(high[window])) for run, low, high in parts])
        if len(codes) < _MANY:
            found[window] = np.count_nonzero(np.unique(codes) >= 0)
            continue
        there = np.zeros(int(codes.max()) + 2, bool)
        there[codes] = True  # those below 0 at the end
        found[window] = np.count_nonzero(there[:-1])
    return found


def _is_large(run: Run, rows: int) -> bool:
    return rows >= _MANY and rows * _PART >= len(run)


def _blocks(values: Float64, pick: np.ufunc) -> Float64:
    found: Float64 = pick.reduceat(values + 0.0, np.arange(0, len(values), _BLOCK))
    return found


def _codes(run: Run, column: str, low: int, high: int) -> Int64:
    """Codes that have all that rows low .. high of a run have, and no others."""
    codes = run.values[column].astype(np.int64, copy=False)
    if not _is_large(run, high - low) or (low > 0 and high < len(run)):
        return codes[low:high]
    if low > 0:
        place, of = run.kept((column, "last"), lambda: _places(codes[::-1]))
        return of[: place.searchsorted(len(run) - low)]
    place, of = run.kept((column, "first"), lambda: _places(codes))
    return of[: place.searchsorted(high)]


def _places(codes: Int64) -> tuple[Int64, Int64]:
    """The rows, ascending, in which a code stands first, and these codes."""
    _, first = np.unique(codes, return_index=True)
    place = np.sort(first)
    return place, codes[place]
