"""Numbers as whole ones of their last decimal place, so that sums are exact."""

from __future__ import annotations

from typing import Any

import numpy as np

Float64 = np.ndarray[Any, np.dtype[np.float64]]


def to_units(values: Float64, places: int) -> Float64:
    """Each value in units of its last place, as a whole float64; NaN stays.

    A value is the decimal number that its shortest text says. One with more places is rounded, half to even: 10.505 and
    10.515 of two places are 1050 and 1052.
    """
    unit = float(10**places)
    units: Float64 = np.rint(values * unit)
    others = np.flatnonzero((units / unit != values) & ~np.isnan(values))
    if len(others):
        units[others] = _rounded(values[others], unit)
    return units


def has_more_places(values: Float64, places: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which numbers, bool[n], have more decimal places than these; NaN has none."""
    unit = float(10**places)
    more: np.ndarray[Any, np.dtype[np.bool_]] = (np.rint(values * unit) / unit != values) & ~np.isnan(values)
    return more


def _rounded(values: Float64, unit: float) -> Float64:
    """By comparing with the number half way, not with a product, which may be a little off."""
    below = np.floor(values * unit)
    half_way = (2 * below + 1) / (2 * unit)
    even = below + below % 2
    return np.where(values < half_way, below, np.where(values > half_way, below + 1, even))
