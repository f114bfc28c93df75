"""What an endpoint counts, as text that Prometheus reads."""

from __future__ import annotations

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

__all__ = ["CONTENT_TYPE_LATEST", "Counts"]

_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Counts:
    """Requests by route and status with their seconds, and events by what became of them."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        of_route = ("path", "status")
        self._requests = Counter("headrace_http_requests", "Requests by route and status.", of_route, registry=registry)
        about = "From the head of a request to its answer."
        self._seconds = Histogram("headrace_http_request_seconds", about, ("path",), registry=registry, buckets=_BOUNDS)
        about = "Events of requests by what became of them."
        self._events = Counter("headrace_served_events", about, ("outcome",), registry=registry)
        self._ready = Gauge("headrace_ready", "Whether the endpoint can score.", registry=registry)
        ProcessCollector(registry=registry)

    def request(self, path: str, status: int, seconds: float) -> None:
        """A request is answered; `path` is that of the route, of which there are few."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def events(self, outcome: str, number: int) -> None:
        """So many events became that."""
        self._events.labels(outcome).inc(number)

    def text(self, ready: bool) -> bytes:
        """All of it, and the processor time and memory of this process."""
        self._ready.set(ready)
        return generate_latest(self._registry)
