"""What an endpoint counts, as text that Prometheus reads."""

from __future__ import annotations

import math
from collections.abc import Sequence

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from models import metrics
from models.metrics import Metric
from models.project.objectives import Serving

__all__ = ["CONTENT_TYPE_LATEST", "Counts"]


class Counts:
    """Requests by route and status with their seconds, and events by what became of them."""

    def __init__(self, serving: Serving | None = None) -> None:
        """With bounds of histograms at what is declared."""
        self._registry = registry = CollectorRegistry()
        fresh = serving.freshness if serving is not None else None
        self._requests, self._served = (_counter(metric, registry) for metric in (metrics.REQUESTS, metrics.SERVED))
        self._seconds = _histogram(metrics.REQUEST_SECONDS, serving.p99 if serving is not None else None, registry)
        self._ages = _histogram(metrics.STATE_AGE, fresh.within if fresh is not None else None, registry)
        self._ready, self._queued = (
            Gauge(metric.name, metric.help, registry=registry) for metric in (metrics.READY, metrics.QUEUED)
        )
        ProcessCollector(registry=registry)

    def request(self, path: str, status: int, seconds: float) -> None:
        """A request is answered; `path` is that of the route, of which there are few."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def events(self, outcome: str, number: int) -> None:
        """So many events became that."""
        if number:
            self._served.labels(outcome).inc(number)

    def ages(self, ages_us: Sequence[int]) -> None:
        """Events were so far past the state that they were answered by, microseconds."""
        for age_us in ages_us:
            self._ages.observe(age_us / 1e6)

    def text(self, ready: bool, queued: int = 0) -> bytes:
        """All of it, with what is so now, and the processor time and memory of this process."""
        self._ready.set(ready)
        self._queued.set(queued)
        return generate_latest(self._registry)


def _counter(metric: Metric, registry: CollectorRegistry) -> Counter:
    return Counter(metric.name, metric.help, metric.labels, registry=registry)


def _histogram(metric: Metric, declared_us: int | None, registry: CollectorRegistry) -> Histogram:
    bounds = {*metric.bounds, *([declared_us / 1e6] if declared_us is not None else [])}
    return Histogram(metric.name, metric.help, metric.labels, registry=registry, buckets=[*sorted(bounds), math.inf])
