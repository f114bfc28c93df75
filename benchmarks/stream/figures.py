"""Figures from what was published and read back; no processes here."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .events import Int64


@dataclasses.dataclass(frozen=True)
class Latency:
    """Seconds from when an event was due to be published to when its first score was read; inf if never."""

    events: int
    p50: float
    p90: float
    p99: float
    p999: float
    max: float
    missing: int
    again: int  # scores of events that had one already


def first_arrivals(first: int, count: int, ids: Int64, received_us: Int64) -> tuple[npt.NDArray[np.float64], int]:
    """When each of `count` events from id `first` on was first read (NaN if never), and how many came again."""
    mine = (ids >= first) & (ids < first + count)
    places, times = ids[mine] - first, received_us[mine]
    arrived = np.full(count, np.inf)
    np.minimum.at(arrived, places, times)
    return np.where(np.isinf(arrived), np.nan, arrived), len(places) - int(np.isfinite(arrived).sum())


def latency(due_us: Int64, arrived_us: npt.NDArray[np.float64], again: int = 0) -> Latency:
    """Percentiles by the nearest rank, so that a missing event counts as one that takes for ever."""
    seconds = np.sort(np.nan_to_num((arrived_us - due_us) / 1e6, nan=np.inf))
    if not len(seconds):
        seconds = np.array([np.nan])
    p50, p90, p99, p999, most = (float(seconds[int(np.ceil(q * len(seconds))) - 1]) for q in (0.5, 0.9, 0.99, 0.999, 1))
    return Latency(len(due_us), p50, p90, p99, p999, most, int(np.isinf(seconds).sum()), again)


def slope(times: Sequence[float], values: Sequence[float]) -> float:
    """The least-squares slope of values over times; 0 for fewer than two points."""
    if len(times) < 2:
        return 0.0
    return float(np.polyfit(np.asarray(times) - times[0], np.asarray(values), 1)[0])


def at_times(times: Sequence[float], values: Sequence[float], begin: float, end: float) -> tuple[float, float]:
    """The values at two times, between the samples; those of the ends outside."""
    found = np.interp([begin, end], times, values)
    return float(found[0]), float(found[1])


def milliseconds(seconds: float) -> str:
    return "never" if np.isinf(seconds) else f"{seconds * 1000:,.0f} ms"


def markdown(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table; numbers from 1000 on with commas, others with up to two decimals."""

    def text(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"
        return f"{value:,}" if isinstance(value, int) else str(value)

    lines = [header, ["---"] * len(header), *[[text(value) for value in row] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
