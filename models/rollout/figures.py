"""Figures of champion and challenger beside each other, and how far chance alone may put them apart.

An interval is by the delete-a-group jackknife (Kott, J. Official Statistics 17, 2001): what is compared, events of a
shadow or entities of a canary, is hashed into GROUPS groups; the figures are computed without each of them; and how
they differ tells how sure the difference is, with Student's t of one degree less than there are groups. It takes any
figure, needs no random numbers, and an entity's events, which are alike, stay together.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from models.predictors.evaluation import TopOfDay, evaluate
from models.predictors.measures import Numbers, exact_sum, measure_of
from models.predictors.weighted import weighted_figures
from models.project.declarations import Project
from models.quality.label_metrics import measure_probabilities
from models.rollout.assign import parts_of

GROUPS = 25
ALPHA = 0.05  # of an interval: with this chance, chance alone puts the true difference outside of it
DAY_US = 86_400_000_000
_SALT = "interval"  # other than a canary's and a holdout's, so that groups are independent of them
_PLACES = 12
Int64 = npt.NDArray[np.int64]
Rows = npt.NDArray[np.int64]  # positions of rows
Values = Mapping[str, float | None]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A figure of both, the change from champion to challenger, and the interval that holds it; None where unknown."""

    champion: float | None
    challenger: float | None
    change: float | None = None
    low: float | None = None
    high: float | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Labelled:
    """What figures by labels take of score rows, [n] each.

    Fields:
        label: numbers, of a multi-class target the classes'.
        outputs: float32, [n] or of several outputs [n, o].
        known: where there is a label, and all outputs are finite.
        weight: int64, how much a row counts; None if each is one.
        days: int64, days since 1970.
        ranked: by a declared metric's name, the keys of its entity.
    """

    label: Numbers
    outputs: npt.NDArray[np.float32]
    known: npt.NDArray[np.bool_]
    weight: Int64 | None
    days: Int64
    ranked: Mapping[str, Numbers]

    def measure(self, rows: Rows, project: Project) -> dict[str, float | None]:
        """The figures of rows with a label: of a test and of probabilities; if weighted, AUC and average precision."""
        label, outputs = self.label[rows], self.outputs[rows]
        if self.weight is not None:
            return weighted_figures(label.astype(np.int64), outputs, self.weight[rows])
        if not project.has_positives:
            figures = measure_of(project.target)(label, outputs).figures()
        else:
            days = self.days[rows]
            tops = {n: TopOfDay(days, self.ranked[n][rows], m.k) for n, m in project.declared_metrics.items()}
            figures = evaluate(label, outputs, declared=tops).overall.figures()
        return {**figures, **measure_probabilities(label, outputs, project)}


def groups_of(keys: pa.Array) -> Int64:
    """The group int64[n], from 0 to below GROUPS, of each key; -1 where there is none."""
    parts = parts_of(keys, _SALT)
    return np.where(parts >= 0, parts % GROUPS, -1)


def compare_shares(counts: Sequence[Int64], totals: Sequence[Int64], alpha: float | None = ALPHA) -> Estimate:
    """The share of counts in totals, int64[GROUPS] of champion and challenger each."""
    said = [_share(int(count.sum()), int(total.sum())) for count, total in zip(counts, totals, strict=True)]
    used = np.flatnonzero(totals[0] + totals[1]) if alpha is not None else np.empty(0, np.int64)
    left_out = [
        [_share(int(count.sum() - count[g]), int(total.sum() - total[g])) for g in used.tolist()]
        for count, total in zip(counts, totals, strict=True)
    ]
    return _estimate(said[0], said[1], left_out[0], left_out[1], alpha)


def compare_means(values: Sequence[Numbers], groups: Sequence[Int64], alpha: float | None = ALPHA) -> Estimate:
    """The mean of values [n] of champion and challenger, whose groups are given."""
    sums, totals = [], []
    for value, group in zip(values, groups, strict=True):
        parts = [value[group == g].astype(np.float64) for g in range(GROUPS)]
        sums.append([exact_sum(part) for part in parts])
        totals.append([len(part) for part in parts])
    used = [g for g in range(GROUPS) if alpha is not None and totals[0][g] + totals[1][g]]

    def mean(side: int, without: int) -> float | None:
        rows = sum(totals[side]) - (totals[side][without] if without >= 0 else 0)
        return math.fsum(s for g, s in enumerate(sums[side]) if g != without) / rows if rows else None

    left_out = [[mean(side, g) for g in used] for side in (0, 1)]
    return _estimate(mean(0, -1), mean(1, -1), left_out[0], left_out[1], alpha)


def compare_figures(
    measures: Sequence[Callable[[Rows], Values]],
    rows: Sequence[Rows],
    groups: Sequence[Int64],
    alpha: float | None = ALPHA,
) -> dict[str, Estimate]:
    """Any figures of champion and challenger.

    `measures` give the figures of some rows of each, `rows` are those to look at, `groups` are of all rows. Without
    `alpha` there are no intervals.
    """
    said = [measure(some) for measure, some in zip(measures, rows, strict=True)]
    of = [group[some] for group, some in zip(groups, rows, strict=True)]
    used = np.unique(np.concatenate(of)).tolist() if alpha is not None else []
    left_out = [
        [measure(some[group != g]) for g in used] for measure, some, group in zip(measures, rows, of, strict=True)
    ]
    mine, theirs = left_out
    return {
        name: _estimate(
            said[0][name], said[1][name], [each[name] for each in mine], [each[name] for each in theirs], alpha
        )
        for name in said[0]
    }


def _estimate(
    champion: float | None,
    challenger: float | None,
    without: Sequence[float | None],
    challenger_without: Sequence[float | None],
    alpha: float | None,
) -> Estimate:
    """The change with its interval; `without` are the figures without each group."""
    if champion is None or challenger is None:
        return Estimate(champion, challenger)
    change = challenger - champion
    pairs = list(zip(without, challenger_without, strict=True))
    changes = [after - before for before, after in pairs if before is not None and after is not None]
    if alpha is None or len(changes) < 2 or len(changes) < len(pairs):
        return Estimate(champion, challenger, change)
    mean = math.fsum(changes) / len(changes)
    spread = math.fsum((each - mean) * (each - mean) for each in changes)
    error = math.sqrt((len(changes) - 1) / len(changes) * spread)
    wide = _student(len(changes) - 1, alpha) * error
    return Estimate(champion, challenger, change, round(change - wide, _PLACES), round(change + wide, _PLACES))


def _share(count: int, total: int) -> float | None:
    return count / total if total else None


@functools.cache
def _student(freedom: int, alpha: float) -> float:
    """What Student's t is beyond, on either side, with a chance of `alpha`, to six digits."""
    from scipy.special import stdtrit  # only where something is compared: the import takes 0.3 s

    return float(f"{stdtrit(freedom, 1 - alpha / 2):.5e}")
