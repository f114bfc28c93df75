"""The metrics of a run that goes on, over the last hour: rates, latency, how far event time has come."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any

from models import metrics
from models.metrics import Series
from models.objectives import SCORE, WRITTEN
from models.record import Outcome

KEPT_SECONDS = 3600
QUANTILES = (0.5, 0.99)
_GONE = metrics.EVENTS.name


@dataclasses.dataclass(frozen=True)
class Sample:
    """What was so at a time of the clock, in seconds since 1970 UTC, and since the sample before."""

    clock: float
    rates: dict[str, float]  # events a second, by outcome
    latency: tuple[float, ...] | None  # of QUANTILES, in seconds from published to written; None if nothing was
    lag: metrics.Lag | None  # None if it is not known
    watermark: float | None  # the event time that was reached, in seconds since 1970 UTC
    backlog: float | None
    waiting: float | None


class Live:
    """Samples of the last KEPT_SECONDS, and the newest metrics."""

    def __init__(self) -> None:
        self.samples: collections.deque[Sample] = collections.deque()
        self.found: Mapping[Series, int] = {}
        self.fault: str | None = None
        self._clock: float | None = None
        self._first: Mapping[Series, int] = {}  # what was so at first, since the run has started

    def add(self, clock: float, found: Mapping[Series, int]) -> None:
        """Take metrics of a time of the clock, in seconds; the first ones tell no rates. A run may start again."""
        before = self.found
        if any(number < before.get(series, 0) for series, number in found.items() if series[0] == _GONE):
            before = self._first = {}  # it has started again, and counts from nothing
        if self._clock is None:
            self._first = found
        elif clock > self._clock:
            self.samples.append(_sample(clock, clock - self._clock, found, before))
        while self.samples and self.samples[0].clock < clock - KEPT_SECONDS:
            self.samples.popleft()
        self.found, self._clock, self.fault = found, clock, None

    def fail(self, why: str) -> None:
        """There were no metrics this time."""
        self.fault = why

    def facts(self) -> dict[str, Any]:
        """What the page shows; times in milliseconds since 1970 UTC, latencies in milliseconds."""
        samples = list(self.samples)
        outcomes = sorted({name for sample in samples for name in sample.rates})
        last = samples[-1] if samples else None
        lag = None if last is None else last.lag
        return {
            "fault": self.fault,
            "times": [round(1000 * each.clock) for each in samples],
            "rates": {name: [round(each.rates.get(name, 0.0), 2) for each in samples] for name in outcomes},
            "latency": {
                f"p{100 * share:g}": [None if s.latency is None else 1000 * s.latency[place] for s in samples]
                for place, share in enumerate(QUANTILES)
            },
            "replay": lag is not None and lag.is_resent,
            "event_time": None if last is None or last.watermark is None else round(1000 * last.watermark),
            "behind": None if lag is None else lag.seconds,
            "backlog": None if last is None else last.backlog,
            "waiting": None if last is None else last.waiting,
            "events": metrics.by_label(self.found, metrics.EVENTS),
            "scores": _by_decision(self.found),
            "open_incidents": metrics.value_of(self.found, metrics.OPEN),
            "memory": metrics.value_of(self.found, metrics.MEMORY),
            "state": sum(state.values()) if (state := metrics.by_label(self.found, metrics.STATE)) else None,
            **self._cost(),
        }

    def _cost(self) -> dict[str, Any]:
        """Processor seconds, and how many a million events took since it was first asked, its start left out."""
        now, then = (metrics.value_of(each, metrics.PROCESSOR) or 0.0 for each in (self.found, self._first))
        read, before = (
            metrics.by_label(each, metrics.EVENTS).get(Outcome.READ, 0) for each in (self.found, self._first)
        )
        known = metrics.value_of(self.found, metrics.PROCESSOR)
        return {
            "processor": known,
            "a_million": 1e6 * (now - then) / (read - before) if known and read > before else None,
        }


class Served:
    """What an endpoint did: all of it, and since the look before."""

    def __init__(self) -> None:
        self.found: Mapping[Series, int] = {}
        self.fault: str | None = None
        self._now: dict[str, Any] = {}
        self._clock: float | None = None

    def add(self, clock: float, found: Mapping[Series, int]) -> None:
        """Take metrics of a time of the clock, in seconds; the first ones tell no rate. It may start again."""
        before = self.found if _requests(found) >= _requests(self.found) else {}
        if self._clock is not None and clock > self._clock:
            told = metrics.quantiles(found, before, metrics.REQUEST_SECONDS, (("path", SCORE),), QUANTILES)
            self._now = {
                "requests": round((_requests(found) - _requests(before)) / (clock - self._clock), 2),
                "p50": None if told is None else 1000 * told[0],
                "p99": None if told is None else 1000 * told[1],
            }
        self.found, self._clock, self.fault = found, clock, None

    def fail(self, why: str) -> None:
        """There were no metrics this time."""
        self.fault, self._now = why, {}

    def facts(self) -> dict[str, Any]:
        """What the page shows: requests for scores a second, how many milliseconds they took, and events by outcome."""
        ready = metrics.value_of(self.found, metrics.READY)
        events = metrics.by_label(self.found, metrics.SERVED)
        known = {"ready": bool(ready), "queued": metrics.value_of(self.found, metrics.QUEUED)}
        return {"fault": self.fault, **known, "events": dict(sorted(events.items())), **self._now}


def _requests(found: Mapping[Series, int]) -> int:
    """Requests for scores, whatever they were answered."""
    return sum(n for (name, labels), n in found.items() if name == metrics.REQUESTS.name and ("path", SCORE) in labels)


def _sample(clock: float, seconds: float, found: Mapping[Series, int], before: Mapping[Series, int]) -> Sample:
    now, then = (metrics.by_label(each, metrics.EVENTS) for each in (found, before))
    quantiles = metrics.quantiles(found, before, metrics.LATENCY, (("stage", WRITTEN),), QUANTILES)
    behind = metrics.value_of(found, metrics.WATERMARK_LAG)
    return Sample(
        clock,
        {name: max(0, number - then.get(name, 0)) / seconds for name, number in now.items()},
        None if quantiles is None else tuple(quantiles),
        metrics.lag(found),
        None if behind is None else clock - behind,
        metrics.value_of(found, metrics.BACKLOG),
        metrics.value_of(found, metrics.WAITING),
    )


def _by_decision(found: Mapping[Series, int]) -> dict[str, int]:
    """Score rows by decision, of all bundles together."""
    counts: collections.Counter[str] = collections.Counter()
    for (name, labels), number in found.items():
        if name == metrics.SCORES.name:
            counts[dict(labels)["decision"]] += number
    return {name: counts[name] for name in sorted(counts)}


def read_outcomes(events: Mapping[str, int]) -> dict[str, int]:
    """Events by outcome of a finished run, those read first; reasons, which have a colon, are left out."""
    named = {name: number for name, number in events.items() if ":" not in name}
    return {name: named[name] for name in sorted(named, key=lambda name: (name != Outcome.READ, name))}
