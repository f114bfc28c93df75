"""Counting by Beam's metrics, so that every runner has them; models.metrics is the table of their names."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt
from apache_beam.metrics import Metrics
from apache_beam.metrics.metric import MetricsFilter

from models.metrics import UNKNOWN, Metric, Series, parse

NAMESPACE = "headrace"


def count(metric: Metric, number: int, **labels: str) -> None:
    """Add to a counter."""
    if number:
        _counter(metric.beam_name(labels)).inc(int(number))


def gauge(metric: Metric, value: float | None, **labels: str) -> None:
    """Say how large something is now, None if that is not known."""
    _gauge(metric.beam_name(labels)).set(UNKNOWN if value is None else int(value * metric.scale))


def observe(metric: Metric, values: npt.NDArray[np.float64], **labels: str) -> None:
    """Add values, float64[n] in the unit of the metric's name, to a histogram."""
    places = np.searchsorted(metric.bounds, values, side="left")
    for place, number in enumerate(np.bincount(places, minlength=len(metric.bounds) + 1).tolist()):
        if number:
            _counter(metric.bucket_name(labels, place)).inc(number)
    if len(values):
        _counter(metric.beam_name(labels, "_sum")).inc(int(np.rint(values * metric.scale).sum()))


def read(results: Any) -> dict[Series, int]:
    """The table's metrics of a run so far, of all steps together: sums of counters, the newest of gauges."""
    found: dict[Series, int] = {}
    queried = results.query(MetricsFilter().with_namespace(NAMESPACE))
    for kind in ("counters", "gauges"):
        for result in queried[kind]:
            series = parse(result.key.metric.name)
            if series is None:
                continue
            if kind == "counters":
                found[series] = found.get(series, 0) + int(result.result)
            elif result.result.value is not None:
                found[series] = int(result.result.value)
    return found


@functools.lru_cache(4096)
def _counter(name: str) -> Any:
    return Metrics.counter(NAMESPACE, name)


@functools.lru_cache(4096)
def _gauge(name: str) -> Any:
    return Metrics.gauge(NAMESPACE, name)
