"""What is told of a comparison of challenger and champion, in a terminal and on a page: facts, tables and notes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from models.predictors.measures import heading, shown
from models.project.sections import duration_text
from models.rollout.comparison import Compared, Comparison
from models.rollout.figures import ALPHA, Estimate
from models.rollout.holdout import SELECTED, WEIGHTED
from models.rollout.records import time_text
from models.rollout.rules import Decided

NONE = "-"


@dataclasses.dataclass(frozen=True)
class Shown:
    """A table of texts; the first `texts` columns are names, the others numbers."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    texts: int = 1


def facts_of(decided: Decided, versions: Mapping[str, int]) -> list[tuple[str, str]]:
    """Who is compared, by what events, and when."""
    told = decided.comparison
    labels = told.overall.labels
    return [
        ("champion", named(told.champion, versions)),
        (f"challenger, as {told.way}", named(told.challenger, versions)),
        ("releases", ", ".join(map(str, told.releases))),
        ("events of (UTC)", f"{_time(told.from_us)} to {_time(told.to_us)}"),
        ("events", _counts(told, told.overall.events)),
        ("of them with a label", _counts(told, labels) if any(labels) else "none"),
    ]


def named(bundle: str, versions: Mapping[str, int]) -> str:
    """A bundle as people name it: by its version, if that is known, and its id."""
    return f"{versions[bundle]} ({bundle})" if bundle in versions else bundle


def notes_of(told: Comparison) -> Iterator[str]:
    """What has to be known to read the figures."""
    if told.selected:
        yield SELECTED
    if told.weighted:
        yield WEIGHTED
    if told.held_out:
        yield f"{told.held_out:,} events were held out: what counts as their decision is what the model would decide."
    if told.without_pair:
        yield f"{told.without_pair:,} events were not scored by the shadow; they count as errors of it."
    if told.apart:
        yield f"{told.apart:,} events without {told.entity} are left out: they are in no share."
    if told.left_out:
        yield f"Not compared by {', '.join(told.left_out)}: too many values, or rows do not have the column."


def tables_of(decided: Decided) -> Iterator[Shown]:
    """All tables, the most telling first."""
    told, metric = decided.comparison, decided.metric
    rulings = tuple((each.rule, each.verdict.value, each.text) for each in decided.rulings)
    yield Shown("Rules", ("rule", "says", "why"), rulings, texts=3)
    compared = ("champion", "challenger", "change", f"{1 - ALPHA:.0%} interval")
    yield Shown("All events", ("figure", *compared), tuple(_figures(told)))
    if told.latency_ms:
        latency = tuple((f"{p} within", *(f"{ms:,.1f} ms" for ms in both)) for p, both in told.latency_ms.items())
        yield Shown("Latency, from source to score", ("events", "champion", "challenger"), latency)
    if told.changes:
        yield from _changes(told)
    if told.slices and metric is not None:
        yield _slices(told, metric)
    yield _windows(told, metric)


def _changes(told: Comparison) -> Iterator[Shown]:
    total = max(told.overall.events[0], 1)
    rows = tuple((before, after, f"{n:,}", f"{n / total:.3%}") for before, after, n in told.changes)
    yield Shown("Decisions that change", ("champion", "challenger", "events", "share"), rows, texts=2)
    examples = tuple(
        (e.id, _time(e.time_us), e.before, e.after, _score(e.champion_score), _score(e.challenger_score))
        for e in told.examples
    )
    headings = ("event", "time", "champion", "challenger", "score", "challenger's")
    yield Shown("Examples of them", headings, examples, "Those whose scores are farthest apart.", texts=4)


def _slices(told: Comparison, metric: str) -> Shown:
    rows = tuple(
        (f"{each.slice} = {each.value}", *map(_count, each.labels), *_estimate(metric, each.figures.get(metric)))
        for each in told.slices
    )
    headings = ("slice", "labels", "challenger's", "champion", "challenger", "change", "interval")
    note = "Intervals are as wide as makes all of them together as sure as one."
    return Shown(f"{heading(metric)} by slice", headings, rows, note)


def _windows(told: Comparison, metric: str | None) -> Shown:
    rows = tuple(_window(each, told, metric) for each in told.windows)
    agreed = ("agreement",) if told.way == "shadow" else ()
    of_labels = (heading(metric), "challenger's") if metric else ()
    headings = ("window from", "events", "challenger's", *agreed, "errors", "challenger's", "PSI", *of_labels)
    return Shown(f"Windows of {duration_text(told.window_us)}", headings, rows)


def _figures(told: Comparison) -> Iterator[tuple[str, ...]]:
    overall = told.overall
    if overall.agreement is not None:
        yield "decisions that agree", NONE, f"{overall.agreement:.3%}", NONE, NONE
    for action, found in overall.decisions.items():
        yield f"share of {action}", *_estimate("", found)
    yield "without a finite score", *_estimate("", overall.errors)
    yield "mean score of all", *_estimate("", overall.mean_score)
    if overall.psi is not None:
        yield "PSI of scores", NONE, f"{overall.psi:.4g}", NONE, f"by chance up to {overall.psi_by_chance:.2g}"
    for name, found in overall.figures.items():
        yield heading(name), *_estimate(name, found)


def _window(each: Compared, told: Comparison, metric: str | None) -> tuple[str, ...]:
    agreed = [] if told.way == "canary" else [NONE if each.agreement is None else f"{each.agreement:.2%}"]
    found = each.figures.get(metric) if metric else None
    said = [shown(metric, v) for v in (found.champion, found.challenger)] if metric and found else [NONE, NONE]
    errors = [NONE if v is None else f"{v:.2%}" for v in (each.errors.champion, each.errors.challenger)]
    psi = NONE if each.psi is None else f"{each.psi:.3f}"
    start = _time(each.start_us) if each.start_us is not None else NONE
    return (start, *map(_count, each.events), *agreed, *errors, psi, *(said if metric else []))


def _estimate(name: str, found: Estimate | None) -> tuple[str, str, str, str]:
    if found is None:
        return NONE, NONE, NONE, NONE
    before, after = (
        NONE if value is None else shown(name, value) if name else f"{value:.4g}"
        for value in (found.champion, found.challenger)
    )
    change = NONE if found.change is None else f"{found.change:+.3g}"
    if found.low is None or found.high is None:
        return before, after, change, NONE
    return before, after, change, f"{found.low:+.3g} to {found.high:+.3g}"


def _counts(told: Comparison, counts: Sequence[int]) -> str:
    if told.way == "shadow":
        return f"{counts[0]:,}"
    return f"champion {counts[0]:,}, challenger {counts[1]:,}"


def _count(count: int) -> str:
    return f"{count:,}"


def _score(score: float | None) -> str:
    return NONE if score is None else f"{score:.4f}"


def _time(time_us: int) -> str:
    return time_text(time_us).replace("T", " ").removesuffix("Z").removesuffix(".000000")
