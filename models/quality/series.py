"""Series of windows: what a window says, beside what windows of the same hour and weekday said in the weeks before.

Each series of a window is one number. It is compared with the median of what it was at the same place of earlier
seasons, in units of chance where that is known (a count's and a share's), and then of how far such comparisons have
been off lately, by their median absolute deviation. Of these deviations z a single one may be too large; or all of them
are a little to one side, which a sum tells that grows by z - 0.25 and never falls below 0, and the same downwards: the
cumulative sum test of Page (Continuous inspection schemes, 1954). So a drift is found that is too slow for any window.

All here depends on the windows' statistics in their order alone. Medians are of sorted numbers, and what is not of
basic operations is rounded.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models.project.declarations import Project
from models.quality.records import WindowStatistics
from models.record import SCORE

MIN_SEASONS = 3  # before a window is compared
MIN_ERRORS = 20  # comparisons before one is judged
MAX_ERRORS = 300  # of them, by which the next is judged
SLACK = 0.25  # of a deviation that the sum leaves out: shifts of half a deviation are found soonest
LARGEST = 3.0  # that one window may add to the sum
_MAD = 1.4826  # times the median absolute deviation is a normal distribution's standard deviation
_EFFICIENCY = 0.37  # of that estimate, beside the standard deviation's (Rousseeuw and Croux, 1993)
_OVERSHOOT = 1.166  # by which a sum of normal steps is above its limit, in Siegmund's approximation

Floats = npt.NDArray[np.float64]


class Point(NamedTuple):
    """A series' number in one window: of how many rows, and whether it is a count, a share or a mean.

    `of_model`: another model has another one.
    """

    name: str
    value: float
    rows: int
    kind: str
    of_model: bool


class Deviation(NamedTuple):
    """How far a number is from what it was at its place before, and the larger of its two sums."""

    name: str
    value: float
    usual: float
    deviation: float  # in units of those before
    errors: int  # comparisons before it, by which it is judged
    total: float


def points_of(current: WindowStatistics, project: Project) -> list[Point]:
    """The series of a window: rows, shares of decisions, unseen entities and nulls, the mean score, and estimates."""
    rows = current.rows
    points = [Point("rows", float(rows), rows, "count", False)]
    points += [Point(f"unseen {name}", count / rows, rows, "share", False) for name, count in current.unseen.items()]
    points += [
        Point(f"decision {band}", current.decisions.get(band, 0) / rows, rows, "share", True)
        for band in dict.fromkeys(band.action for band in project.decisions)
    ]
    declared = project.quality.series if project.quality else None
    for name in declared.nulls if declared else ():
        points.append(Point(f"null {name}", current.nulls.get(name, 0) / rows, rows, "share", False))
    score = current.distributions.get(SCORE)
    if score is not None and score.mean is not None:
        points.append(Point("mean score", score.mean, score.rows, "mean", True))
    for name, (figure, _, _) in sorted(current.estimates.items()):
        if name != "positives":  # which the mean score and the rows tell
            points.append(Point(f"estimated {name}", figure, current.sampled, "mean", True))
    return points


@dataclasses.dataclass(frozen=True, eq=False)
class Past:
    """What earlier windows said, by series: s names, p places of a season, k seasons.

    Fields:
        bundle: the bundle of the last window; series of a model begin anew with another one.
        values: [s, p, k] float64, NaN where none was, the newest last.
        errors: [s, MAX_ERRORS] float64, NaN where none was: the last deviations in units of chance.
        totals: [s, 2] float64, the sums upwards and downwards.
    """

    bundle: str = ""
    names: tuple[str, ...] = ()
    values: Floats = dataclasses.field(default_factory=lambda: np.empty((0, 0, 0)))
    errors: Floats = dataclasses.field(default_factory=lambda: np.empty((0, MAX_ERRORS)))
    totals: Floats = dataclasses.field(default_factory=lambda: np.empty((0, 2)))

    def to_data(self) -> dict[str, Any]:
        """What JSON can hold."""
        arrays = {name: getattr(self, name) for name in ("values", "errors", "totals")}
        packed = {n: base64.b64encode(np.ascontiguousarray(a, "<f8").tobytes()).decode() for n, a in arrays.items()}
        return {"bundle": self.bundle, "names": list(self.names), "shape": list(self.values.shape), **packed}

    @staticmethod
    def from_data(data: dict[str, Any]) -> Past:
        """The inverse of to_data."""
        size = len(data["names"])
        shapes = {"values": data["shape"], "errors": (size, MAX_ERRORS), "totals": (size, 2)}
        arrays = {
            name: np.frombuffer(base64.b64decode(data[name]), "<f8").reshape(shape).astype(np.float64)
            for name, shape in shapes.items()
        }
        return Past(data["bundle"], tuple(data["names"]), **arrays)

    def see(self, points: list[Point], place: int, shape: tuple[int, int], bundle: str, limit: float) -> Seen:
        """How far a window is from those before, and what is known after it.

        Args:
            points: the window's.
            place: of the season.
            shape: places of a season, and seasons that are remembered.
            bundle: that of most of the window's rows.
            limit: of the sums, above which they rise by no more than one.
        """
        past = self._of([point.name for point in points], [p.of_model and bundle != self.bundle for p in points], shape)
        values, errors, totals = past.values.copy(), past.errors.copy(), past.totals.copy()
        found = []
        for row, point in enumerate(points):
            before = values[row, place]
            before = before[~np.isnan(before)]
            if len(before) >= MIN_SEASONS:
                usual = float(np.median(before))
                error = _in_chance(point, usual)
                known = errors[row, ~np.isnan(errors[row])]
                scale = _scale(known, point.kind)
                if len(known) >= MIN_ERRORS and scale > 0:
                    deviation = error / scale
                    # The scale is itself known only so well: one standard error more, as sums double what is wrong.
                    step = deviation / (1 + 1 / math.sqrt(2 * _EFFICIENCY * len(known)))
                    step = min(max(step, -LARGEST), LARGEST)
                    for side, signed in enumerate((step, -step)):
                        totals[row, side] = min(max(totals[row, side] + signed - SLACK, 0.0), limit + 1)
                    total = float(totals[row].max())
                    found.append(Deviation(point.name, point.value, usual, deviation, len(known), total))
                errors[row] = np.append(errors[row, 1:], error)
            values[row, place] = np.append(values[row, place, 1:], point.value)
        return Seen(found, Past(bundle, past.names, values, errors, totals))

    def _of(self, names: list[str], anew: list[bool], shape: tuple[int, int]) -> Past:
        """The same of these series, in their order; those that were not there, or are to begin anew, are empty."""
        rows = {name: row for row, name in enumerate(self.names)}
        values = np.full((len(names), *shape), np.nan)
        errors, totals = np.full((len(names), MAX_ERRORS), np.nan), np.zeros((len(names), 2))
        for place, (name, fresh) in enumerate(zip(names, anew, strict=True)):
            if name in rows and not fresh and self.values.shape[1:] == shape:
                row = rows[name]
                values[place], errors[place], totals[place] = self.values[row], self.errors[row], self.totals[row]
        return Past(self.bundle, tuple(names), values, errors, totals)


class Seen(NamedTuple):
    """What a window says of its series, and what is known after it."""

    deviations: list[Deviation]
    past: Past


def _in_chance(point: Point, usual: float) -> float:
    """A number less the usual one, in standard deviations of so many independent rows; of a mean in 1/sqrt(rows)."""
    if point.kind == "count":  # Anscombe: the square root of a count has the same variance for any
        return 2 * (math.sqrt(point.value) - math.sqrt(usual))
    spread = usual * (1 - usual) + 1 / point.rows if point.kind == "share" else 1.0
    return (point.value - usual) * math.sqrt(point.rows / spread)


def _scale(errors: Floats, kind: str) -> float:
    """How far comparisons are off; of counts and shares at least by chance."""
    if not len(errors):
        return 0.0
    scale = _MAD * float(np.median(np.abs(errors)))
    return scale if kind == "mean" else max(scale, 1.0)


def chance_of_deviation(errors: int, alpha: float) -> float:
    """What a deviation is beyond, to either side, with a chance of `alpha`, to six digits.

    By Student's distribution, as the scale is known by `errors` comparisons.
    """
    from scipy.special import stdtrit  # only where windows are judged: the import takes 0.3 s

    return float(f"{-stdtrit(max(_EFFICIENCY * errors, 1.0), alpha / 2):.5e}")


@functools.lru_cache(maxsize=64)
def sum_limit(run_length: float) -> float:
    """The limit h that one of two sums of normal deviations is above once in so many windows, to six digits.

    Siegmund's approximation (Sequential Analysis, 1985) of one sum's run length, (exp(2kb) - 2kb - 1) / 2k^2 with
    b = h + 1.166; that of two sums is half of it.
    """

    def length(limit: float) -> float:
        exponent = 2 * SLACK * (limit + _OVERSHOOT)
        return (math.exp(exponent) - exponent - 1) / (2 * SLACK * SLACK) / 2

    low, high = 0.0, 200.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if length(middle) < run_length else (low, middle)
    return float(f"{high:.5e}")
