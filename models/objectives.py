"""Service level objectives: how much of what happened was good, and how fast what may be bad is used up.

The error budget of a target is what it leaves for the bad; a burn rate of 1 uses it up in just the period. Windows and
burn rates of alerts are those of Google's Site Reliability Workbook, chapter 5, "Multiwindow, Multi-Burn-Rate Alerts"
(https://sre.google/workbook/alerting-on-slos/).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

from models import metrics
from models.counts import DEDUPLICATE
from models.metrics import Series
from models.partitions import Partitions, Span
from models.project.objectives import Fast, Fresh, Objective, Objectives
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


ALARM, WRITTEN = "alarm", "written"  # a verdict's status, and the latency's stage
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
        return None if self.burn is None else self.burn <= 1


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


def bound_of(within_us: int, metric: metrics.Metric = metrics.LATENCY) -> float:
    """The largest bound of a histogram's buckets, in seconds, that is no longer."""
    return max(bound for bound in metric.bounds if bound * 1e6 <= within_us)


def of_metrics(objectives: Objectives, found: Mapping[Series, int]) -> Iterator[Ratio | Least]:
    """The objectives by the metrics of a run that goes on; those of which it tells nothing have a total of 0."""
    if (fast := objectives.latency) is not None:
        written = (("stage", WRITTEN),)
        yield _soon("latency", "rows written within {:g} s", fast, found, metrics.LATENCY, written)
    if (fresh := objectives.freshness) is not None:
        yield _soon("freshness", "rows within {:g} s of their events", fresh, found, metrics.FRESHNESS)
    if objectives.valid is not None:
        dead = metrics.by_label(found, metrics.DEAD_LETTERS)
        bad = sum(number for step, number in dead.items() if step != DEDUPLICATE)
        read = metrics.by_label(found, metrics.EVENTS).get(Outcome.READ, 0)
        yield _valid(objectives.valid, bad, read)
    if objectives.quality is not None:
        told = metrics.by_label(found, metrics.VERDICTS)
        yield _quality(objectives.quality, told.get(ALARM, 0), sum(told.values()))
    if objectives.rows is not None:
        yield _rows(objectives.rows, sum(metrics.by_label(found, metrics.SCORES).values()))


def of_run(
    objectives: Objectives, outcomes: Mapping[str, int], statuses: Sequence[str], done: Least | None = None
) -> Iterator[Ratio | Least]:
    """The objectives by what a finished run left: events by their outcomes, the statuses of its verdicts, what is done.

    Latency and freshness are a stream's alone.
    """
    if objectives.valid is not None:
        yield _valid(objectives.valid, outcomes.get(Outcome.DEAD_LETTERED, 0), outcomes.get(Outcome.READ, 0))
    if objectives.quality is not None:
        yield _quality(objectives.quality, statuses.count(ALARM), len(statuses))
    if objectives.rows is not None:
        yield _rows(objectives.rows, outcomes.get(Outcome.SCORED, 0) + outcomes.get(Outcome.QUARANTINED, 0))
    if done is not None:
        yield done


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


def _soon(
    name: str,
    text: str,
    objective: Fast | Fresh,
    found: Mapping[Series, int],
    metric: metrics.Metric,
    labels: metrics.Labels = (),
) -> Ratio:
    """How much of a histogram is no more than the objective's bound."""
    bound = bound_of(objective.within, metric)
    bucket = f"{metric.name}_bucket"
    numbers = {float(of[-1][1]): n for (each, of), n in found.items() if each == bucket and of[:-1] == labels}
    total = sum(numbers.values())
    good = sum(number for upper, number in numbers.items() if upper <= bound)
    return Ratio(name, text.format(bound), objective.target, total - good, total)


def _valid(objective: Objective, bad: int, total: int) -> Ratio:
    return Ratio("valid", "events that are no dead letters", objective.target, bad, total)


def _quality(objective: Objective, bad: int, total: int) -> Ratio:
    return Ratio("quality", "windows without an alarm", objective.target, bad, total)


def _rows(wanted: int, rows: int) -> Least:
    return Least("rows", "score rows", wanted, rows)
