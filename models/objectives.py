"""Service level objectives: how much of what happened was good, and how fast what may be bad is used up.

The error budget of a target is what it leaves for the bad; a burn rate of 1 uses it up in just the period. Windows and
burn rates of alerts are those of Google's Site Reliability Workbook, chapter 5, "Multiwindow, Multi-Burn-Rate Alerts"
(https://sre.google/workbook/alerting-on-slos/).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from models import metrics
from models.counts import DEDUPLICATE
from models.metrics import Series
from models.project.objectives import Objective, Objectives
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


def bound_of(within_us: int) -> float:
    """The largest bound of the latency's buckets, in seconds, that is no longer."""
    return max(bound for bound in metrics.LATENCY.bounds if bound * 1e6 <= within_us)


def of_metrics(objectives: Objectives, found: Mapping[Series, int]) -> Iterator[Ratio | Least]:
    """The objectives by the metrics of a run that goes on; those of which it tells nothing have a total of 0."""
    if (fast := objectives.latency) is not None:
        bound = bound_of(fast.within)
        numbers = {float(labels[-1][1]): n for (name, labels), n in found.items() if _is_written(name, labels)}
        total = sum(numbers.values())
        good = sum(number for upper, number in numbers.items() if upper <= bound)
        yield Ratio("latency", f"rows written within {bound:g} s", fast.target, total - good, total)
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


def of_run(objectives: Objectives, outcomes: Mapping[str, int], statuses: Sequence[str]) -> Iterator[Ratio | Least]:
    """The objectives by what a finished run left: events by their outcomes, and the statuses of its verdicts.

    Latency is a stream's alone.
    """
    if objectives.valid is not None:
        yield _valid(objectives.valid, outcomes.get(Outcome.DEAD_LETTERED, 0), outcomes.get(Outcome.READ, 0))
    if objectives.quality is not None:
        yield _quality(objectives.quality, statuses.count(ALARM), len(statuses))
    if objectives.rows is not None:
        yield _rows(objectives.rows, outcomes.get(Outcome.SCORED, 0) + outcomes.get(Outcome.QUARANTINED, 0))


def _is_written(name: str, labels: metrics.Labels) -> bool:
    return name == f"{metrics.LATENCY.name}_bucket" and labels[0] == ("stage", WRITTEN)


def _valid(objective: Objective, bad: int, total: int) -> Ratio:
    return Ratio("valid", "events that are no dead letters", objective.target, bad, total)


def _quality(objective: Objective, bad: int, total: int) -> Ratio:
    return Ratio("quality", "windows without an alarm", objective.target, bad, total)


def _rows(wanted: int, rows: int) -> Least:
    return Least("rows", "score rows", wanted, rows)
