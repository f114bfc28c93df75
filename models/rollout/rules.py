"""Promote, hold or roll back: what a comparison says by the rules that a project declares.

An interval that lies within a margin is for promotion, one that lies beyond it for rolling back, and one that has both
in it for waiting: more events or labels make it narrower. The worst that a rule says is the verdict.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Iterator
from typing import Any

from models.predictors.challenge import gain_of
from models.predictors.measures import heading, shown
from models.project.rollouts import Margins, Rules
from models.rollout.comparison import Comparison
from models.rollout.figures import Estimate
from models.rollout.records import MAX_TEXT


class Verdict(enum.StrEnum):
    """What is to become of a challenger, from good to bad."""

    PROMOTE = "promote"
    HOLD = "hold"
    ROLL_BACK = "roll back"


_ORDER = list(Verdict)


@dataclasses.dataclass(frozen=True)
class Ruling:
    """What one rule says, and by what figures."""

    rule: str
    verdict: Verdict
    text: str


@dataclasses.dataclass(frozen=True)
class Decided:
    """A comparison, the verdict, and what each rule says; `metric` is the figure to show windows and slices by."""

    project: str
    metric: str | None
    comparison: Comparison
    verdict: Verdict
    rulings: tuple[Ruling, ...]

    def as_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        rulings = [dataclasses.asdict(each) for each in self.rulings]
        told = {"project": self.project, "verdict": self.verdict, "rulings": rulings}
        return {**told, **self.comparison.as_dict()}

    def reason(self) -> str:
        """Why, in a line, as a release record has it."""
        told = [f"{each.rule}: {each.text}" for each in self.rulings if each.verdict is self.verdict]
        return f"rollout says {self.verdict}: {'; '.join(told[:2])}{_more(len(told) - 2)}"[:MAX_TEXT]


def judge(project: str, compared: Comparison, rules: Rules | None) -> Decided:
    """The verdict on a comparison of a project's bundles, and what each rule says."""
    if rules is None:
        rulings = [Ruling("rules", Verdict.HOLD, "project.yaml declares no rollout.rules to decide by")]
    elif min(compared.overall.events) < rules.minimum.events:
        told = f"{_counts(compared.overall.events)} events, and {rules.minimum.events:,} of each are needed"
        rulings = [Ruling("events", Verdict.HOLD, told)]
    else:
        rulings = list(_judge_margins(compared, rules))
    verdict = max((each.verdict for each in rulings), key=_ORDER.index)
    metric = (rules and rules.metric) or next(iter(compared.overall.figures), None)
    return Decided(project, metric, compared, verdict, tuple(rulings))


def _judge_margins(compared: Comparison, rules: Rules) -> Iterator[Ruling]:
    margins = rules.margins
    asked: dict[str, Callable[[Comparison, Rules, float], Iterator[Ruling]]] = {
        "metric": _metric,
        "slices": _slices,
        "decisions": _decisions,
        "psi": _psi,
        "errors": _errors,
        "latency": _latency,
    }
    for name in Margins.model_fields:
        margin = getattr(margins, name)
        if margin is not None:
            yield from asked[name](compared, rules, margin)


def _metric(compared: Comparison, rules: Rules, margin: float) -> Iterator[Ruling]:
    metric, overall = str(rules.metric), compared.overall
    if min(overall.labels) < rules.minimum.labels:
        told = f"{_counts(overall.labels)} labels, and {rules.minimum.labels:,} of each are needed"
        yield Ruling(metric, Verdict.HOLD, told)
        return
    found = overall.figures.get(metric)
    yield Ruling(metric, _by_gain(metric, found, margin), _told(metric, found, f"may be worse by {margin:g}"))


def _slices(compared: Comparison, rules: Rules, margin: float) -> Iterator[Ruling]:
    """Worse on a value is surely so, or no objection: few rows of a slice tell little."""
    metric, worse = str(rules.metric), []
    for each in compared.slices:
        found = each.figures.get(metric)
        if _by_gain(metric, found, margin) is Verdict.ROLL_BACK:
            worse.append(f"{each.slice} = {each.value}: {_told(metric, found, f'may be worse by {margin:g}')}")
    if worse:
        yield Ruling("slices", Verdict.ROLL_BACK, "; ".join(worse[:3]) + _more(len(worse) - 3))
    else:
        yield Ruling("slices", Verdict.PROMOTE, f"surely worse by more than {margin:g} on none of {_values(compared)}")


def _decisions(compared: Comparison, rules: Rules, margin: float) -> Iterator[Ruling]:
    for action, found in compared.overall.decisions.items():
        verdict = _within(found, -margin, margin)
        yield Ruling(f"share of {action}", verdict, _told("", found, f"may change by {margin:g}"))


def _psi(compared: Comparison, rules: Rules, margin: float) -> Iterator[Ruling]:
    psi, by_chance = compared.overall.psi, compared.overall.psi_by_chance
    if psi is None or by_chance is None:
        yield Ruling("scores", Verdict.HOLD, "there are none of one of the two")
        return
    verdict = Verdict.PROMOTE if psi <= margin else Verdict.ROLL_BACK if psi > margin + by_chance else Verdict.HOLD
    yield Ruling("scores", verdict, f"PSI {psi:.4g}, by chance up to {by_chance:.2g}; may be {margin:g}")


def _errors(compared: Comparison, rules: Rules, margin: float) -> Iterator[Ruling]:
    found = compared.overall.errors
    yield Ruling("errors", _within(found, None, margin), _told("", found, f"may be more by {margin:g}"))


def _latency(compared: Comparison, rules: Rules, margin: float) -> Iterator[Ruling]:
    if "99%" not in compared.latency_ms:
        why = "rows of shadows have no times by the clock" if compared.way == "shadow" else "rows have no times"
        yield Ruling("latency", Verdict.PROMOTE, f"not measured, as {why}, and no objection")
        return
    mine, theirs = compared.latency_ms["99%"]
    verdict = Verdict.PROMOTE if theirs <= margin * mine else Verdict.ROLL_BACK
    yield Ruling(
        "latency", verdict, f"99% within {theirs:,.1f} ms, champion {mine:,.1f} ms; may be {margin:g} times that"
    )


def _by_gain(metric: str, found: Estimate | None, margin: float) -> Verdict:
    """Of a figure that may be worse by `margin`."""
    if found is None or found.low is None or found.high is None:
        return Verdict.HOLD
    ends = [gain_of(metric, 0.0, change) for change in (found.low, found.high)]
    return _verdict(min(ends), max(ends), -margin, None)


def _within(found: Estimate, low: float | None, high: float | None) -> Verdict:
    if found.low is None or found.high is None:
        return Verdict.HOLD
    return _verdict(found.low, found.high, low, high)


def _verdict(low: float, high: float, least: float | None, most: float | None) -> Verdict:
    """Of an interval, by the bounds of where it may lie."""
    if (least is not None and high < least) or (most is not None and low > most):
        return Verdict.ROLL_BACK
    inside = (least is None or low >= least) and (most is None or high <= most)
    return Verdict.PROMOTE if inside else Verdict.HOLD


def _told(metric: str, found: Estimate | None, bound: str) -> str:
    if found is None or found.change is None:
        return f"not known of both; {bound}"
    figures = [found.champion, found.challenger]
    before, after = (shown(metric, each) if metric else f"{each:.4g}" for each in figures)
    name = f"{heading(metric)} " if metric else ""
    said = f"{name}{after}, champion {before}, change {found.change:+.3g}"
    if found.low is None or found.high is None:
        return f"{said} without an interval; {bound}"
    return f"{said} ({found.low:+.3g} to {found.high:+.3g}); {bound}"


def _counts(counts: tuple[int, int]) -> str:
    return f"champion {counts[0]:,} and challenger {counts[1]:,}"


def _values(compared: Comparison) -> str:
    return f"{len(compared.slices):,} value{'s' * (len(compared.slices) != 1)}"


def _more(count: int) -> str:
    return f"; and {count} more" if count > 0 else ""
