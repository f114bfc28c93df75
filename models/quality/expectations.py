"""What is expected of counted rows, and the estimates of a window's record that it makes (models.quality.estimates)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from models.batches import as_batch, as_int64, column
from models.predictors.measures import shown
from models.project.declarations import Project
from models.quality.calibration import Calibration, is_estimated
from models.quality.estimates import (
    SCALE_BITS,
    Estimate,
    Floats,
    confusion,
    estimate_binary,
    estimate_classes,
    estimate_errors,
)
from models.record import BUNDLE_ID, PREDICTED, SCORE

ESTIMATED, LOW, HIGH = "estimated_", "_low", "_high"
ESTIMATED_ROWS = "estimated_rows"
STEP = "__step"  # of a row, -1 of one that nothing can be expected of
ERRORS = 3  # standard errors from an estimate to the ends of its interval
# What goes with every estimate that people see.
BLIND_SPOT = (
    "Each with an interval of three standard errors. An estimate sees that scores are others than before, not that "
    "the same score has come to mean something else (concept drift)."
)
# From a bundle's id to its calibration, None if it has none.
Calibrations = Callable[[str], Calibration | None]
Estimates = dict[str, tuple[float, float, float]]  # by figure, with the ends of its interval

_FIGURES = {
    "binary": ("roc_auc", "average_precision", "positives"),
    "multiclass": ("accuracy", "macro_f1"),
    "regression": ("mae", "rmse"),
    "count": ("mae", "rmse"),
}
_ROWS = "__rows"
_EXPECTED, _VARIANCE, _SUPPORT = "__expected ", "__variance ", "__support"


def no_calibration(bundle_id: str) -> Calibration | None:
    """That of bundles without one."""
    return None


def estimated_figures(project: Project) -> tuple[str, ...]:
    """The figures that are estimated; () if none is."""
    return _FIGURES[project.target.kind] if is_estimated(project) else ()


def estimate_fields(project: Project) -> dict[str, pa.DataType]:
    """The columns of a record that hold estimates."""
    figures = estimated_figures(project)
    names = [ESTIMATED + name + end for name in figures for end in ("", LOW, HIGH)]
    return ({ESTIMATED_ROWS: pa.int64()} if figures else {}) | dict.fromkeys(names, pa.float64())


def expectation_fields(project: Project) -> dict[str, pa.DataType]:
    """The columns that a part of counted rows has for estimates."""
    if not is_estimated(project):
        return {}
    support = {_SUPPORT: pa.int64()}
    if project.classes:
        return {**{f"{_EXPECTED}{place}": pa.int64() for place in range(len(project.classes))}, **support}
    width = 1 if project.target.kind == "binary" else 2
    names = [f"{what}{place}" for what in (_EXPECTED, _VARIANCE) for place in range(width)]
    return {**dict.fromkeys(names, pa.float64()), **support}


def by_bundle(
    rows: pa.RecordBatch, project: Project, calibrations: Calibrations
) -> Iterator[tuple[pa.RecordBatch, Calibration | None]]:
    """The rows of each bundle with its calibration, if it has one of this target."""
    if not is_estimated(project):
        yield rows, None
        return
    bundles = column(rows, BUNDLE_ID)
    names = sorted(bundles.unique().to_pylist())
    for name in names:
        calibration = calibrations(name)
        some = rows if len(names) == 1 else rows.filter(pc.equal(bundles.cast(pa.string()), name))
        yield some, calibration if calibration is not None and calibration.fits(project) else None


def expect(
    rows: pa.RecordBatch, project: Project, calibration: Calibration | None
) -> tuple[dict[str, pa.Array], dict[str, pa.Array]]:
    """What rows are to be counted by, beside other keys, and what is to be added up of them; {} without calibration."""
    if calibration is None:
        return {}, {}
    if not project.classes:
        scores = column(rows, SCORE).to_numpy(zero_copy_only=False)
        places = calibration.steps[0].places(scores)
        return {STEP: pa.array(np.where(np.isfinite(scores), places, -1))}, {}
    outputs = np.column_stack([column(rows, n).to_numpy(zero_copy_only=False) for n in project.score_columns[1:]])
    finite = np.isfinite(outputs).all(axis=1)
    shares = np.rint(np.ldexp(class_shares(outputs, calibration), SCALE_BITS))
    whole = np.where(finite[:, np.newaxis], shares, 0).astype(np.int64)
    summed = {f"{_EXPECTED}{place}": pa.array(whole[:, place]) for place in range(outputs.shape[1])}
    return {STEP: pa.array(np.where(finite, 0, -1))}, summed


def class_shares(outputs: npt.NDArray[np.float32], calibration: Calibration) -> Floats:
    """How probable each class is, float64[n, o], by what is said of it; where all are 0, what is said."""
    found = [steps.expected[steps.places(outputs[:, place]), 0] for place, steps in enumerate(calibration.steps)]
    shares = np.column_stack(found)
    shares = np.where(shares.any(axis=1)[:, np.newaxis], shares, np.maximum(outputs, 0))
    total = np.zeros(len(shares))
    for place in range(shares.shape[1]):  # in order: a sum whose bits depend on no processor
        total += shares[:, place]
    return np.divide(shares, total[:, np.newaxis], out=np.zeros_like(shares), where=total[:, np.newaxis] > 0)


def expectations_of(counted: pa.Table, project: Project, calibration: Calibration | None) -> dict[str, pa.Array]:
    """The columns of `expectation_fields` of rows counted by `expect`'s keys; {} without calibration."""
    if calibration is None:
        return {}
    steps = counted[STEP].to_numpy()
    unknown, places = steps < 0, np.maximum(steps, 0)

    def null_where_unknown(values: npt.NDArray[Any]) -> pa.Array:
        return pa.array(values, mask=unknown)

    if project.classes:
        names = [f"{_EXPECTED}{place}" for place in range(len(project.classes))]
        sums = {name: null_where_unknown(counted[f"{name}_sum"].to_numpy()) for name in names}
        return {**sums, _SUPPORT: null_where_unknown(np.full(len(steps), calibration.rows))}
    of = calibration.steps[0]
    found = {_SUPPORT: null_where_unknown(of.rows[places])}
    for place in range(of.expected.shape[1]):
        found[f"{_EXPECTED}{place}"] = null_where_unknown(of.expected[places, place])
        found[f"{_VARIANCE}{place}"] = null_where_unknown(of.variance[places, place])
    return found


def estimate_rows(rows: pa.RecordBatch, project: Project, calibrations: Calibrations) -> Estimates:
    """The estimates of score rows with their bundles, in any order; {} if nothing is estimated."""
    if not is_estimated(project):
        return {}
    keys = [PREDICTED] if project.classes else []
    parts = []
    for some, calibration in by_bundle(rows, project, calibrations):
        steps, summed = expect(some, project, calibration)
        table = pa.table({**{name: column(some, name).cast(pa.string()) for name in keys}, **steps, **summed})
        if calibration is not None:
            grouped = table.group_by([*keys, *steps], use_threads=False)
            counted = grouped.aggregate([([], "count_all"), *((name, "sum") for name in summed)])
            found = expectations_of(counted, project, calibration)
            parts.append(pa.table({**found, _ROWS: counted["count_all"], **{name: counted[name] for name in keys}}))
    if not parts:
        return {}
    counts = as_batch(pa.concat_tables(parts))
    estimator = Estimator(counts, as_int64(column(counts, _ROWS)), project, PREDICTED)
    return estimates_in(estimator.figures(np.arange(counts.num_rows)))


class Estimator:
    """Estimates of any of the counted rows of a window and a bundle, which parts of `expectation_fields` are.

    `rows` int64[n] is how many each counts for; `predicted` names the column of the class of a multi-class target.
    """

    def __init__(self, counts: pa.RecordBatch, rows: npt.NDArray[np.int64], project: Project, predicted: str) -> None:
        self._project = project
        if not is_estimated(project):
            return
        known = column(counts, _SUPPORT).is_valid().to_numpy(zero_copy_only=False)
        self._rows = np.where(known, rows, 0)
        names = [name for name in expectation_fields(project) if name != _SUPPORT]
        facts = [column(counts, name).fill_null(0).to_numpy(zero_copy_only=False) for name in names]
        support = column(counts, _SUPPORT).fill_null(1).to_numpy(zero_copy_only=False)
        if project.classes:
            classes = pa.array(map(str, project.classes))
            self._predicted = as_int64(pc.index_in(column(counts, predicted), value_set=classes).fill_null(0))
            self._sums = np.column_stack(facts)
            self._support = int(support.min(initial=1 << 62, where=known))
            return
        table = np.column_stack([*facts, support.astype(np.float64)])
        found, places = np.unique(table, axis=0, return_inverse=True)
        self._places, width = places.reshape(-1), len(facts) // 2
        self._expected, self._variance, self._steps_support = found[:, :width], found[:, width:-1], found[:, -1]

    def figures(self, chosen: npt.NDArray[np.int64]) -> dict[str, Any]:
        """The columns of `estimate_fields` of the counted rows at those positions; {} if nothing is estimated."""
        project = self._project
        if not is_estimated(project):
            return {}
        rows = self._rows[chosen]
        said: dict[str, Any] = dict.fromkeys(estimate_fields(project))
        said[ESTIMATED_ROWS] = total = int(rows.sum())
        if not total:
            return said
        if project.classes:
            sums, predicted = self._sums[chosen], self._predicted[chosen]
            estimates = estimate_classes(*confusion(sums, predicted, rows), self._support)
        else:
            counted = np.bincount(self._places[chosen], rows, len(self._expected))
            there = counted > 0
            n, support = counted[there].astype(np.float64), self._steps_support[there]
            expected, variance = self._expected[there], self._variance[there]
            if project.target.kind == "binary":
                estimates = estimate_binary(n, expected[:, 0], variance[:, 0], support)
            else:
                estimates = estimate_errors(n, expected, variance, support)
        for name, found in estimates.items():
            most = {"positives": float(total), "mae": math.inf, "rmse": math.inf}.get(name, 1.0)
            said |= _interval(name, found, most)
        return said


def _interval(name: str, estimate: Estimate, most: float) -> dict[str, float]:
    """The columns of a figure; of the mean squared error those of its root."""
    figure, error = estimate
    low, high = max(figure - ERRORS * error, 0.0), min(figure + ERRORS * error, most)
    if name == "mse":
        name, figure, low, high = "rmse", math.sqrt(figure), math.sqrt(low), math.sqrt(figure + ERRORS * error)
    return {ESTIMATED + name: figure, ESTIMATED + name + LOW: low, ESTIMATED + name + HIGH: high}


def estimates_in(record: Mapping[str, Any]) -> Estimates:
    """Name → estimate, low and high of the figures that a record has estimates of."""
    names = [name.removeprefix(ESTIMATED) for name in record if name.startswith(ESTIMATED) and name != ESTIMATED_ROWS]
    names = [name for name in names if not name.endswith((LOW, HIGH))]
    found = {}
    for name in names:
        figure, low, high = (record[ESTIMATED + name + end] for end in ("", LOW, HIGH))
        if figure is not None:
            found[name] = figure, low, high
    return found


def shown_beside(name: str, figure: float | None) -> str:
    """A figure, estimated or not, as people read it."""
    if name == "positives" and figure is not None:
        return f"{figure:,.0f}"
    return shown(name, figure)


def estimate_text(name: str, estimate: tuple[float, float, float] | None) -> str:
    """An estimate with its interval as people read it."""
    if estimate is None:
        return "-"
    figure, low, high = (shown_beside(name, each) for each in estimate)
    return f"{figure} ({low} to {high})"
