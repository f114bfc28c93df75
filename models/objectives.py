"""Service level objectives: how much of what happened was good, and how fast what may be bad is used up.

The error budget of a target is what it leaves for the bad; a burn rate of 1 uses it up in just the period. Windows and
burn rates of alerts are those of Google's Site Reliability Workbook, chapter 5, "Multiwindow, Multi-Burn-Rate Alerts"
(https://sre.google/workbook/alerting-on-slos/).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from models import metrics
from models.counts import DEDUPLICATE
from models.metrics import Metric, Series
from models.partitions import Partitions, Span
from models.project.objectives import Objective, Objectives, Serving
from models.project.sections import duration_text
from models.record import Outcome


@dataclasses.dataclass(frozen=True)
class Burn:
    """An alert: a long window has used up such a share of the budget, and a short one goes on as fast."""

    share: float
    long_s: int
    short_s: int
    severity: str

    def rate(self, period_us: int) -> float:
        """The burn rate, of a budget for a period."""
        return round(self.share * period_us / 1e6 / self.long_s, 6)


ALARM, WRITTEN, SCORE = "alarm", "written", "/v1/score"  # a verdict's status, the latency's stage, the requests' path
SCORED, REFUSED, FALLBACK, UNANSWERED = "scored", "refused", "fallback", "unanswered"  # what became of an event
_VALID, _QUALITY = "events that are no dead letters", "windows without an alarm"
BURNS = (  # of 30 days these are burn rates of 14.4, 6 and 1
    Burn(0.02, 3600, 300, "page"),
    Burn(0.05, 6 * 3600, 1800, "page"),
    Burn(0.1, 3 * 86_400, 6 * 3600, "ticket"),
)


@dataclasses.dataclass(frozen=True)
class Ratio:
    """What an objective was found to be: `bad` of `total`."""

    name: str
    text: str  # of the good ones
    target: float
    bad: int
    total: int

    @property
    def burn(self) -> float | None:
        """How much of the error budget the bad ones are: 1 is all of it; None where there was nothing."""
        return self.bad / self.total / (1 - self.target) if self.total else None

    @property
    def met(self) -> bool | None:
        """Whether the objective is met; None where nothing tells."""
        return None if self.burn is None else round(self.burn, 9) <= 1  # 1 - 0.9 is less than 0.1


class Window(Protocol):
    """What is known by labels of a window's rows, of one model bundle; times in microseconds since 1970 UTC."""

    @property
    def end_us(self) -> int:
        """When it ended."""

    @property
    def as_of_us(self) -> int:
        """Up to when labels are known."""

    @property
    def rows(self) -> int:
        """Score rows."""

    @property
    def labelled(self) -> int:
        """Those with a label."""

    @property
    def figures(self) -> Mapping[str, float | None]:
        """How good they are, None where there is no such figure."""


@dataclasses.dataclass(frozen=True)
class Least:
    """A number that must be reached."""

    name: str
    text: str
    target: int
    total: int

    @property
    def met(self) -> bool:
        """Whether it is."""
        return self.total >= self.target


def bound_of(within_us: int, metric: Metric = metrics.LATENCY) -> float:
    """The largest bound of a histogram's buckets, in seconds, that is no longer."""
    return max(bound for bound in metric.bounds if bound * 1e6 <= within_us)


@dataclasses.dataclass(frozen=True)
class Counter:
    """Series of a metric whose label has a value, or another one; of a histogram those within a bound, seconds."""

    metric: Metric
    label: str = ""
    value: str = ""
    is_other: bool = False
    within: float | None = None

    @property
    def name(self) -> str:
        """That of the series."""
        return self.metric.name + ("_bucket" if self.metric.kind == "histogram" else "")

    def total(self, found: Mapping[Series, int]) -> int:
        """What they add up to."""
        return sum(number for (name, labels), number in found.items() if name == self.name and self._is_one(labels))

    def _is_one(self, labels: metrics.Labels) -> bool:
        told = dict(labels)
        if self.label and (told.get(self.label) == self.value) == self.is_other:
            return False
        return self.within is None or float(told["le"]) <= self.within


@dataclasses.dataclass(frozen=True)
class Promise:
    """An objective by counters: of all those of `total`, bad are those of the first of `bad` without the others'."""

    name: str
    text: str  # of the good ones
    objective: Objective
    bad: tuple[Counter, ...]
    total: Counter

    def kept(self, found: Mapping[Series, int]) -> Ratio:
        """What it is found to be."""
        first, *others = (counter.total(found) for counter in self.bad)
        return Ratio(self.name, self.text, self.objective.target, first - sum(others), self.total.total(found))


def promises_of_runs(objectives: Objectives) -> Iterator[Promise]:
    """What runs promise that can be counted."""
    if (fast := objectives.latency) is not None:
        bound = bound_of(fast.within)
        every, good = (Counter(metrics.LATENCY, "stage", WRITTEN, within=within) for within in (math.inf, bound))
        yield Promise("latency", f"rows written within {bound:g} s", fast, (every, good), every)
    if (recent := objectives.freshness) is not None:
        bound = bound_of(recent.within, metrics.FRESHNESS)
        every, good = (Counter(metrics.FRESHNESS, within=within) for within in (math.inf, bound))
        yield Promise("row_freshness", f"rows within {bound:g} s of their events", recent, (every, good), every)
    if objectives.valid is not None:
        bad = Counter(metrics.DEAD_LETTERS, "step", DEDUPLICATE, is_other=True)
        read = Counter(metrics.EVENTS, "outcome", Outcome.READ)
        yield Promise("valid", _VALID, objectives.valid, (bad,), read)
    if objectives.quality is not None:
        alarms, told = Counter(metrics.VERDICTS, "status", ALARM), Counter(metrics.VERDICTS)
        yield Promise("quality", _QUALITY, objectives.quality, (alarms,), told)


def promises_of_serving(serving: Serving) -> Iterator[Promise]:
    """What an endpoint promises; its histograms have the declared bounds among theirs."""
    if serving.p99 is not None:
        seconds, fast = serving.p99 / 1e6, Objective(target=0.99)
        every, good = (Counter(metrics.REQUEST_SECONDS, "path", SCORE, within=within) for within in (math.inf, seconds))
        yield Promise("p99", f"requests answered within {seconds:g} s", fast, (every, good), every)
    if serving.availability is not None:
        every = Counter(metrics.SERVED)
        good_ones = (Counter(metrics.SERVED, "outcome", outcome) for outcome in (SCORED, REFUSED))
        told = "events scored, or refused by the contract"
        yield Promise("availability", told, Objective(target=serving.availability), (every, *good_ones), every)
    if (fresh := serving.freshness) is not None:
        seconds = fresh.within / 1e6
        every, good = (Counter(metrics.STATE_AGE, within=within) for within in (math.inf, seconds))
        yield Promise("freshness", f"events at most {seconds:g} s past their state", fresh, (every, good), every)


def promises_of(objectives: Objectives | None, serving: Serving | None) -> Iterator[Promise]:
    """What a project promises that can be counted, of its runs and of its endpoint."""
    yield from promises_of_runs(objectives or Objectives())
    yield from promises_of_serving(serving or Serving())


def is_of_endpoint(found: Mapping[Series, int]) -> bool:
    """Whether metrics are those of an endpoint, and not of a run."""
    return any(name == metrics.READY.name for name, _ in found)


def of_metrics(objectives: Objectives, found: Mapping[Series, int]) -> Iterator[Ratio | Least]:
    """The objectives by the metrics of a run that goes on; those of which it tells nothing have a total of 0."""
    for promise in promises_of_runs(objectives):
        yield promise.kept(found)
    if objectives.rows is not None:
        yield _rows(objectives.rows, sum(metrics.by_label(found, metrics.SCORES).values()))


def of_run(
    objectives: Objectives,
    outcomes: Mapping[str, int],
    statuses: Sequence[str],
    done: Least | None = None,
    windows: Sequence[Window] = (),
) -> Iterator[Ratio | Least]:
    """The objectives by what a finished run left: events by their outcomes, the statuses of its verdicts, what is done,
    and the windows of its label metrics.

    Latency and freshness are a stream's alone.
    """
    if objectives.valid is not None:
        bad, read = outcomes.get(Outcome.DEAD_LETTERED, 0), outcomes.get(Outcome.READ, 0)
        yield Ratio("valid", _VALID, objectives.valid.target, bad, read)
    if objectives.quality is not None:
        yield Ratio("quality", _QUALITY, objectives.quality.target, statuses.count(ALARM), len(statuses))
    yield from _of_labels(objectives, windows)
    if objectives.rows is not None:
        yield _rows(objectives.rows, outcomes.get(Outcome.SCORED, 0) + outcomes.get(Outcome.QUARANTINED, 0))
    if done is not None:
        yield done


def _of_labels(objectives: Objectives, windows: Sequence[Window]) -> Iterator[Ratio]:
    """Those of labels; with `labels`, figures are of windows whose labels are to be there by then."""
    known = objectives.labels
    if known is not None:
        reached_us = max((window.as_of_us for window in windows), default=0)
        windows = [window for window in windows if window.end_us + known.within <= reached_us]
        rows, labelled = sum(window.rows for window in windows), sum(window.labelled for window in windows)
        text = f"score rows with a label {duration_text(known.within)} after their window"
        yield Ratio("labels", text, known.target, rows - labelled, rows)
    for name, wanted in objectives.performance.items():
        values = [value for window in windows if (value := window.figures.get(name)) is not None]
        bad = sum(not wanted.is_kept(value) for value in values)
        yield Ratio(name, f"windows whose {name} is {wanted}", wanted.target, bad, len(values))


def of_days(
    within_us: int, partitions: Partitions, spans: Sequence[Span], starts_us: Iterable[int], now_us: int
) -> Least:
    """Of the days, or hours, that ended at least `within_us` before `now_us`, those that a sink has.

    It has those in its `spans`, and those that it has score rows of, by their starts. The first is the first of these;
    all times are in microseconds, since 1970 UTC.
    """
    bounded = [span for span in spans if span.start_us is not None and span.stop_us is not None]
    there = set(starts_us)
    first = [*there, *(partitions.start_us(span.start_us) for span in bounded if span.start_us is not None)]
    due = found = 0
    start_us = min(first, default=now_us)
    while (stop_us := partitions.next_us(start_us)) + within_us <= now_us:
        due += 1
        found += start_us in there or any(start_us in span and stop_us - 1 in span for span in bounded)
        start_us = stop_us
    return Least("done_within", f"{partitions.by}s that ended {duration_text(within_us)} ago", due, found)


def _rows(wanted: int, rows: int) -> Least:
    return Least("rows", "score rows", wanted, rows)
