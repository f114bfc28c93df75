"""What an endpoint counts, in the text that Prometheus reads (version 0.0.4).

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import bisect
import collections
import itertools
from collections.abc import Iterator

_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Counts:
    """Requests by path and status with their seconds, and events by what became of them; one thread counts."""

    def __init__(self) -> None:
        self._requests: collections.Counter[tuple[str, int]] = collections.Counter()
        self._events: collections.Counter[str] = collections.Counter()
        self._buckets: dict[str, list[int]] = {}
        self._seconds: dict[str, float] = collections.defaultdict(float)

    def request(self, path: str, status: int, seconds: float) -> None:
        """A request is answered; `path` is that of the route, of which there are few."""
        self._requests[path, status] += 1
        self._buckets.setdefault(path, [0] * (len(_BOUNDS) + 1))[bisect.bisect_left(_BOUNDS, seconds)] += 1
        self._seconds[path] += seconds

    def events(self, outcome: str, number: int) -> None:
        """So many events became that."""
        if number:
            self._events[outcome] += number

    def text(self, ready: bool) -> str:
        """All of it."""
        return "\n".join(self._lines(ready)) + "\n"

    def _lines(self, ready: bool) -> Iterator[str]:
        yield "# HELP headrace_http_requests_total Requests by route and status."
        yield "# TYPE headrace_http_requests_total counter"
        for (path, status), number in sorted(self._requests.items()):
            yield f'headrace_http_requests_total{{path="{path}",status="{status}"}} {number}'
        yield "# HELP headrace_http_request_seconds From the head of a request to its answer."
        yield "# TYPE headrace_http_request_seconds histogram"
        for path, buckets in sorted(self._buckets.items()):
            for bound, below in zip((*_BOUNDS, "+Inf"), itertools.accumulate(buckets), strict=True):
                yield f'headrace_http_request_seconds_bucket{{path="{path}",le="{bound}"}} {below}'
            yield f'headrace_http_request_seconds_sum{{path="{path}"}} {self._seconds[path]!r}'
            yield f'headrace_http_request_seconds_count{{path="{path}"}} {sum(buckets)}'
        yield "# HELP headrace_served_events_total Events of requests by what became of them."
        yield "# TYPE headrace_served_events_total counter"
        for outcome, number in sorted(self._events.items()):
            yield f'headrace_served_events_total{{outcome="{outcome}"}} {number}'
        yield "# HELP headrace_ready Whether the endpoint can score."
        yield "# TYPE headrace_ready gauge"
        yield f"headrace_ready {int(ready)}"
