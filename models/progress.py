"""How far work in this process has come: events through each step, for whoever shows it.

It is for display only: no result depends on it, and on other machines than the launcher's nobody reads it.
"""

from __future__ import annotations

import collections
import math

import numpy as np

STEPS = ("read", "windowed", "scored", "written")

_done: collections.Counter[str] = collections.Counter()
_gauges: dict[str, float] = {}
# Latencies in buckets that grow by a tenth: the counts since they were last asked for.
_GROWTH = 1.1
_latencies = np.zeros(256, np.int64)


def advance(step: str, events: int) -> None:
    """Say that `events` more have come through `step`."""
    _done[step] += events


def done() -> dict[str, int]:
    """Events through each step since the last reset."""
    return dict(_done)


def gauge(name: str, value: float | None) -> None:
    """Say how large something is now; None if that is not known."""
    if value is None:
        _gauges.pop(name, None)
    else:
        _gauges[name] = value


def gauges() -> dict[str, float]:
    """The last value of each gauge."""
    return dict(_gauges)


def took(milliseconds: np.ndarray[tuple[int], np.dtype[np.float64]]) -> None:
    """Say how long events took from end to end."""
    buckets = np.log(np.maximum(milliseconds, 1.0)) / math.log(_GROWTH)
    np.add.at(_latencies, np.minimum(buckets, len(_latencies) - 1).astype(np.int64), 1)


def take_latencies() -> tuple[float, float] | None:
    """p50 and p99 in milliseconds, to a tenth, of the events since the last call; None if there were none."""
    counts = _latencies.copy()
    _latencies[:] = 0
    below = np.cumsum(counts)
    if not below[-1]:
        return None
    places = np.searchsorted(below, below[-1] * np.array([0.5, 0.99]))
    p50, p99 = (_GROWTH ** (places + 1)).tolist()
    return p50, p99


def reset() -> None:
    """Start from zero."""
    _done.clear()
    _gauges.clear()
    _latencies[:] = 0
