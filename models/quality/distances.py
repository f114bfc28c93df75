"""How far two distributions are apart, and how far chance alone puts two samples of one distribution apart.

Counts are arrays of one length: bin i of one belongs to bin i of the other. Each array has at least one row in it.
Logarithms and quantiles may differ in their last bits from processor to processor, and verdicts are to be the same bits
everywhere: what comes of them is rounded.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Counts = np.ndarray[Any, np.dtype[np.float64]]
_PLACES = 12


def jensen_shannon(one: Counts, other: Counts) -> float:
    """The Jensen-Shannon divergence in bits, from 0 to 1, as TFDV defines it for histograms of the same bins."""
    p, q = one / one.sum(), other / other.sum()
    middle = (p + q) / 2
    return round(max(_divergence(p, middle) + _divergence(q, middle), 0.0) / 2, _PLACES)


def _divergence(p: Counts, q: Counts) -> float:
    there = p > 0
    return float((p[there] * np.log2(p[there] / q[there])).sum())


def infinity_norm(one: Counts, other: Counts) -> float:
    """The largest difference of a value's shares, from 0 to 1 (TFDV's L-infinity)."""
    return float(np.abs(one / one.sum() - other / other.sum()).max())


def stability_index(one: Counts, other: Counts) -> float:
    """The population stability index, half a row being added to each bin so that none is empty."""
    there = (one > 0) | (other > 0)
    p, q = one[there] + 0.5, other[there] + 0.5
    p, q = p / p.sum(), q / q.sum()
    return round(float(((p - q) * np.log(p / q)).sum()), _PLACES)


# What follows is what each is beyond with a chance of `alpha`, for two samples of one distribution of n and m
# independent rows: by Hoeffding at most that chance, by chi-square about that chance, as rows become many.


def chance_of_jensen_shannon(one: Counts, other: Counts, alpha: float) -> float:
    """8 ln 2 nm/(n + m) times the divergence is chi-square distributed, as likelihood ratios are (Wilks, 1938)."""
    return min(_chi_square(one, other, alpha) / (8 * math.log(2)), 1.0)


def chance_of_stability_index(one: Counts, other: Counts, alpha: float) -> float:
    """nm/(n + m) times the index is chi-square distributed (Yurdakul, 2018)."""
    return _chi_square(one, other, alpha)


def chance_of_infinity_norm(one: Counts, other: Counts, alpha: float) -> float:
    """Hoeffding's bound (1963) of each value's difference, over all values."""
    return chance_of_share(float(one.sum()), float(other.sum()), alpha / max(_used_bins(one, other), 1))


def chance_of_share(rows: float, other_rows: float, alpha: float) -> float:
    """Hoeffding's bound (1963) of the difference of two shares."""
    return min(math.sqrt(math.log(2 / alpha) * _rarity(rows, other_rows) / 2), 1.0)


def _rarity(rows: float, other_rows: float) -> float:
    return 1 / float(rows) + 1 / float(other_rows)


def _used_bins(one: Counts, other: Counts) -> int:
    return int(np.count_nonzero((one > 0) | (other > 0)))


def _chi_square(one: Counts, other: Counts, alpha: float) -> float:
    """(n + m)/nm times the chi-square quantile of alpha, with Williams's correction (1976), to six digits."""
    freedom = _used_bins(one, other) - 1
    if freedom <= 0:
        return 0.0
    from scipy.special import chdtri  # only where windows are judged: the import takes 0.3 s

    both = one + other
    rows, rarity = float(both.sum()), _rarity(one.sum(), other.sum())
    few = (rows * rarity - 1) * float((rows / both[both > 0]).sum() - 1) / (6 * rows * freedom)
    return float(f"{chdtri(freedom, alpha) * (1 + few) * rarity:.5e}")
