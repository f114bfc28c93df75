"""Metrics of a run, by its steps."""

from __future__ import annotations

import contextlib
from typing import Any

from apache_beam.metrics.execution import MetricResult, MetricsContainer
from apache_beam.metrics.metric import MetricResults


class RunMetrics(MetricResults):
    """Metrics by step: what the containers of its lanes add up to. One lane at a time counts in each of them."""

    def __init__(self) -> None:
        self.containers: list[MetricsContainer] = []

    def query(self, filter: Any = None) -> dict[str, list[MetricResult]]:
        cumulative = [_cumulative(container) for container in list(self.containers)]
        found: dict[str, list[MetricResult]] = {}
        for kind in (self.COUNTERS, self.DISTRIBUTIONS, self.GAUGES, self.STRINGSETS, self.BOUNDED_TRIES):
            whole: dict[Any, Any] = {}
            for key, data in (item for each in cumulative for item in getattr(each, kind).items()):
                if not self.matches(filter, key):
                    continue
                if key in whole:
                    whole[key] = whole[key] + data if kind == self.COUNTERS else whole[key].combine(data)
                else:
                    whole[key] = data
            values = {key: data.get_result() if hasattr(data, "get_result") else data for key, data in whole.items()}
            found[kind] = [MetricResult(key, value, value) for key, value in values.items()]
        return found


def _cumulative(container: MetricsContainer) -> Any:
    """The metrics so far; another thread may ask while the step adds one, and then looks again."""
    while True:
        with contextlib.suppress(RuntimeError):  # the dictionary changed its size while it was read
            return container.get_cumulative()
