"""How a challenger compares with the champion: decisions, scores, errors, latency, labels; by window and by slice.

Counts are integers, sums exact, and rows sorted by event time and id: the same report whatever order rows come in.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from models.project.declarations import Project
from models.project.rollouts import Rules
from models.quality.distances import chance_of_stability_index, stability_index
from models.rollout.assign import CANARY, SHADOW
from models.rollout.duel import ComparisonError, Duel
from models.rollout.figures import (
    ALPHA,
    GROUPS,
    Estimate,
    Int64,
    Rows,
    compare_figures,
    compare_means,
    compare_shares,
)
from models.rollout.sides import Side, Sides

BINS = 10
MAX_EXAMPLES = 10
MAX_WINDOWS = 1000
PERCENTILES = (50, 99)
Pair = tuple[int, int]  # of champion and challenger


@dataclasses.dataclass(frozen=True)
class Compared:
    """Some rows of both: all of them, those of a window, or those of a slice's value.

    Fields:
        events, labels: how many rows, and how many of them have a label that figures are of.
        agreement: of a shadow alone: the share of events of which both decided the same.
        errors: the share of events without a finite score; of a shadow, or without any.
        decisions: by action its share of what was decided.
        mean_score: of finite scores.
        psi, psi_by_chance: the population stability index of scores, in bins of a tenth of the champion's scores each,
            and what it is beyond with a chance of ALPHA where nothing differs.
        figures: by labels.
    """

    slice: str
    value: str
    start_us: int | None
    events: Pair
    labels: Pair
    agreement: float | None
    errors: Estimate
    decisions: dict[str, Estimate]
    mean_score: Estimate
    psi: float | None
    psi_by_chance: float | None
    figures: dict[str, Estimate]


@dataclasses.dataclass(frozen=True)
class Example:
    """An event that a shadow would have decided otherwise."""

    id: str
    time_us: int
    before: str
    after: str
    champion_score: float | None
    challenger_score: float | None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All that is said of champion and challenger but for the verdict; times in microseconds since 1970 UTC.

    Fields:
        champion, challenger: ids of bundles; `way` is how the challenger ran.
        changes: of a shadow, (decision of the champion, of the challenger, events), the most frequent first.
        examples: of these events, those whose scores are farthest apart.
        latency_ms: of a canary in a stream, by percentile that of both.
        slices: the values of each slice; of those in `left_out` there are too many, or rows lack the column.
        weighted: whether figures by labels are of rows that stand for others, see models.rollout.holdout.
        selected: whether labels are those that the models' own decisions let become known.
    """

    champion: str
    challenger: str
    way: str
    entity: str | None
    releases: tuple[int, ...]
    from_us: int
    to_us: int
    window_us: int
    overall: Compared
    windows: tuple[Compared, ...]
    slices: tuple[Compared, ...]
    left_out: tuple[str, ...]
    changes: tuple[tuple[str, str, int], ...]
    examples: tuple[Example, ...]
    latency_ms: dict[str, tuple[float, float]]
    without_pair: int
    apart: int
    held_out: int
    weighted: bool
    selected: bool

    def as_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return dataclasses.asdict(self)


def compare(sides: Sides, duel: Duel, project: Project) -> Comparison:
    """Compare both sides, in windows as `rollout.rules` declares; ComparisonError if they are too many."""
    window_us = (project.rollout.rules or Rules()).window
    comparer = _Comparer(sides, duel.way == SHADOW, project)
    both = (sides.champion, sides.challenger)
    everything = comparer.compare([np.arange(len(side.times)) for side in both])
    starts = [side.times // window_us * window_us for side in both]
    windows = [
        comparer.compare([_equal(each, start) for each in starts], alpha=None, start_us=start)
        for start in _windows(starts)
    ]
    # Of several values one is beyond its interval more easily by chance: all together are as sure as one.
    values = sum(map(len, sides.slices.values()))
    slices = [
        comparer.compare(
            [np.flatnonzero(side.slices[name] == place) for side in both], ALPHA / values, slice=name, value=value
        )
        for name, found in sides.slices.items()
        for place, value in enumerate(found)
    ]
    changed, examples = _changes(sides) if duel.way == SHADOW else ((), ())
    times = np.concatenate([side.times for side in both])
    labelled = [side.labelled for side in both if side.labelled is not None]
    weighted = any(each.weight is not None for each in labelled)
    return Comparison(
        champion=duel.champion,
        challenger=duel.challenger,
        way=duel.way,
        entity=duel.entity,
        releases=tuple(sorted(duel.releases)),
        from_us=int(times.min()),
        to_us=int(times.max()),
        window_us=window_us,
        overall=everything,
        windows=tuple(windows),
        slices=tuple(slices),
        left_out=sides.left_out,
        changes=changed,
        examples=examples,
        latency_ms=_latencies(both) if duel.way == CANARY else {},
        without_pair=sides.without_pair,
        apart=sides.apart,
        held_out=sides.held_out,
        weighted=weighted,
        selected=bool(project.rollout.blocks and labelled) and not weighted,
    )


class _Comparer:
    def __init__(self, sides: Sides, paired: bool, project: Project) -> None:
        self._sides, self._paired, self._project = sides, paired, project
        self._both = (sides.champion, sides.challenger)
        finite = np.sort(sides.champion.score[np.isfinite(sides.champion.score)])
        places = len(finite) * np.arange(1, BINS) // BINS
        self._edges = np.unique(finite[places]) if len(finite) else finite

    def compare(
        self,
        rows: Sequence[Rows],
        alpha: float | None = ALPHA,
        slice: str = "",
        value: str = "",
        start_us: int | None = None,
    ) -> Compared:
        """Some rows of each side; without `alpha`, there are no intervals."""
        groups = [side.group[some] for side, some in zip(self._both, rows, strict=True)]
        finite = [side.finite[some] for side, some in zip(self._both, rows, strict=True)]
        decided = [side.decided[some] for side, some in zip(self._both, rows, strict=True)]
        totals = [_by_group(group) for group in groups]
        wrong = [_by_group(group[~some]) for group, some in zip(groups, finite, strict=True)]
        with_decision = [_by_group(group[some >= 0]) for group, some in zip(groups, decided, strict=True)]
        decisions = {
            action: compare_shares(
                [_by_group(group[some == place]) for group, some in zip(groups, decided, strict=True)],
                with_decision,
                alpha,
            )
            for place, action in enumerate(self._sides.actions)
        }
        scores = [side.score[some][np.isfinite(side.score[some])] for side, some in zip(self._both, rows, strict=True)]
        scored = [
            group[np.isfinite(side.score[some])] for group, side, some in zip(groups, self._both, rows, strict=True)
        ]
        psi, by_chance = self._shift(scores)
        labels, figures = self._figures(rows, alpha)
        return Compared(
            slice=slice,
            value=value,
            start_us=start_us,
            events=(len(rows[0]), len(rows[1])),
            labels=labels,
            agreement=_agreement(*decided) if self._paired else None,
            errors=compare_shares(wrong, totals, alpha),
            decisions=decisions,
            mean_score=compare_means(scores, scored, alpha),
            psi=psi,
            psi_by_chance=by_chance,
            figures=figures,
        )

    def _shift(self, scores: Sequence[npt.NDArray[np.float32]]) -> tuple[float | None, float | None]:
        if not len(scores[0]) or not len(scores[1]):
            return None, None
        counts = [
            np.bincount(np.searchsorted(self._edges, some, side="right"), minlength=len(self._edges) + 1).astype(float)
            for some in scores
        ]
        return stability_index(*counts), chance_of_stability_index(counts[0], counts[1], ALPHA)

    def _figures(self, rows: Sequence[Rows], alpha: float | None) -> tuple[Pair, dict[str, Estimate]]:
        mine, theirs = (side.labelled for side in self._both)
        if mine is None or theirs is None:
            return (0, 0), {}
        known = [mine.known[rows[0]], theirs.known[rows[1]]]
        if self._paired:  # what both scored
            known = [known[0] & known[1]] * 2
        some = [each[there] for each, there in zip(rows, known, strict=True)]
        labels = (len(some[0]), len(some[1]))
        if not all(labels):
            return labels, {}
        measures = [functools.partial(each.measure, project=self._project) for each in (mine, theirs)]
        groups = [side.group for side in self._both]
        return labels, compare_figures(measures, some, groups, alpha)


def _windows(starts: Sequence[Int64]) -> list[int]:
    found: list[int] = np.unique(np.concatenate(starts)).tolist()
    if len(found) > MAX_WINDOWS:
        raise ComparisonError(
            f"rows are of {len(found):,} windows, at most {MAX_WINDOWS:,} are allowed: declare a longer "
            "rollout.rules.window, or name fewer rows"
        )
    return found


def _equal(ascending: Int64, value: int) -> Rows:
    return np.arange(*(np.searchsorted(ascending, value, side) for side in ("left", "right")))


def _by_group(groups: Int64) -> Int64:
    return np.bincount(groups, minlength=GROUPS)


def _agreement(mine: Int64, theirs: Int64) -> float | None:
    both = (mine >= 0) & (theirs >= 0)
    return int((mine[both] == theirs[both]).sum()) / int(both.sum()) if both.any() else None


def _changes(sides: Sides) -> tuple[tuple[tuple[str, str, int], ...], tuple[Example, ...]]:
    """How often what became what, and the events whose scores differ most; of equal ones the first by time and id."""
    mine, theirs, actions = sides.champion, sides.challenger, sides.actions
    changed = np.flatnonzero((mine.decided >= 0) & (theirs.decided >= 0) & (mine.decided != theirs.decided))
    codes = mine.decided[changed] * len(actions) + theirs.decided[changed]
    counts = [(actions[code // len(actions)], actions[code % len(actions)], int((codes == code).sum()))
              for code in np.unique(codes).tolist()]  # fmt: skip
    apart = np.abs(mine.score[changed].astype(np.float64) - theirs.score[changed])
    farthest = changed[np.argsort(-np.nan_to_num(apart, nan=np.inf), kind="stable")[:MAX_EXAMPLES]]
    examples = tuple(
        Example(
            str(mine.ids[row].as_py()),
            int(mine.times[row]),
            actions[mine.decided[row]],
            actions[theirs.decided[row]],
            _finite(mine.score[row]),
            _finite(theirs.score[row]),
        )
        for row in farthest.tolist()
    )
    return tuple(sorted(counts, key=lambda each: (-each[2], each[:2]))), examples


def _finite(score: np.float32) -> float | None:
    return float(score) if np.isfinite(score) else None


def _latencies(both: Sequence[Side]) -> dict[str, tuple[float, float]]:
    known = [np.sort(side.latency_ms[~np.isnan(side.latency_ms)]) for side in both]
    if not all(map(len, known)):
        return {}
    mine, theirs = known
    return {f"{p}%": (_percentile(mine, p), _percentile(theirs, p)) for p in PERCENTILES}


def _percentile(ordered: npt.NDArray[np.float64], percent: int) -> float:
    return float(ordered[-(-len(ordered) * percent // 100) - 1])
