"""Metrics of a run, by its steps."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

from apache_beam.metrics.execution import MetricResult, MetricsContainer
from apache_beam.metrics.metric import MetricResults


class RunMetrics(MetricResults):
    """Metrics by step; while a run lasts, what Beam's Metrics report to in its thread."""

    def __init__(self) -> None:
        self.steps: list[MetricsContainer] = []
        self.metrics_container = MetricsContainer("")  # of the step that is being called

    def update_metric(self, name: Any, value: Any) -> None:
        self.metrics_container.get_metric_cell(name).update(value)

    def current_state(self) -> RunMetrics:
        return self

    def query(self, filter: Any = None) -> dict[str, list[MetricResult]]:
        kinds = (self.COUNTERS, self.DISTRIBUTIONS, self.GAUGES, self.STRINGSETS, self.BOUNDED_TRIES)
        found: dict[str, list[MetricResult]] = {kind: [] for kind in kinds}
        for kind, step in itertools.product(kinds, self.steps):
            for key, data in getattr(_cumulative(step), kind).items():
                value = data.get_result() if hasattr(data, "get_result") else data
                found[kind] += [MetricResult(key, value, value)] if self.matches(filter, key) else []
        return found


def _cumulative(step: MetricsContainer) -> Any:
    """The step's metrics so far; another thread may ask while the step adds one, and then looks again."""
    while True:
        with contextlib.suppress(RuntimeError):  # the dictionary changed its size while it was read
            return step.get_cumulative()
