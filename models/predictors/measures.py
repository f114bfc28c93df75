"""Measure what models say of classes, numbers, counts and quantiles; and how true probabilities are.

Sums are exact (`math.fsum`), logarithms are of IEEE 754's basic operations alone: neither the order of the rows nor the
machine changes a bit of a figure.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from models.batches import as_float64, as_int64
from models.predictors.evaluation import STANDARD, Evaluation, slice_name, slice_values
from models.project.declarations import Project
from models.project.targets import Target

Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[Any]

CALIBRATION_BINS = 10
_LEAST = float(np.finfo(np.float32).eps)  # of a probability whose logarithm is taken, as scikit-learn has it
_LN2 = 0.6931471805599453
_TERMS = 13  # of the series of a logarithm: what is left out is below 2**-64

_HEADINGS = {
    **STANDARD,
    "log_loss": "log loss",
    "macro_f1": "macro F1",
    "calibration_error": "calibration error",
    "mean_score": "mean score",
    "score_50th": "median score",
    "score_99th": "99% of scores up to",
    "mae": "MAE",
    "rmse": "RMSE",
    "r2": "R²",
}
_OF_ANY_SIZE = re.compile("mae|rmse|pinball_.*")  # figures in the unit of the label, and not from 0 to 1


def heading(name: str) -> str:
    """What a figure is called in tables; a declared one as it is declared."""
    return _HEADINGS.get(name) or re.sub(r"^(pinball|coverage)_(?=0\.)", r"\1 ", name)


def shown(name: str, figure: float | None) -> str:
    """A figure as people read it."""
    if figure is None:
        return "-"
    return f"{figure:.4g}" if _OF_ANY_SIZE.fullmatch(name) else f"{figure:.3f}"


@dataclass(frozen=True)
class Figures:
    """The figures of some rows by name; None where they have no value, such as of no rows."""

    rows: int
    values: Mapping[str, float | None] = field(default_factory=dict)
    confusion: tuple[tuple[int, ...], ...] = ()  # rows by true class, and of these by predicted class
    positives: None = None

    def figures(self) -> dict[str, float | None]:
        """Name → figure."""
        return dict(self.values)

    def as_dict(self) -> dict[str, Any]:
        """All of it in one dict, ready for JSON."""
        table = {"confusion": [list(row) for row in self.confusion]} if self.confusion else {}
        return {"rows": self.rows, **self.values, **table}


def label_numbers(values: pa.Array, project: Project) -> tuple[Numbers, npt.NDArray[np.bool_]]:
    """A label column as numbers [n], of a multi-class target the classes' numbers, and where it is known, bool[n]."""
    known = values.is_valid().to_numpy(zero_copy_only=False)
    if project.classes:
        places = pc.index_in(values, value_set=pa.array(project.classes, values.type))
        return places.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64), known
    if project.has_positives or project.target.kind == "count":
        return as_int64(values.fill_null(-1)), known
    return np.where(known, as_float64(values), 0.0), known


Measure = Callable[[Numbers, npt.NDArray[np.float32]], Figures]


def evaluate_target(
    label: Numbers, outputs: npt.NDArray[np.float32], target: Target, slices: Mapping[str, npt.ArrayLike] | None = None
) -> Evaluation:
    """The figures of all rows, and of the rows of each value of each slice column.

    Args:
        label: [n] numbers; of a multi-class target the classes' numbers.
        outputs: [n] what the model says, or [n, o] of several outputs.
        target: multiclass, regression, count or quantile.
        slices: as models.predictors.evaluation.evaluate has it.

    Raises:
        EvaluationError: on a slice column of another type or of too many values.
        ValueError: on other shapes, or labels and outputs that are not finite.
    """
    measure = measure_of(target)
    _check(label, outputs)
    by_column: dict[str, dict[str, Figures]] = {}
    for name, values in (slices or {}).items():
        names, codes = slice_values(name, np.asarray(values), label.shape)
        ends = np.cumsum(np.bincount(codes, minlength=len(names)))[:-1]
        rows = np.split(np.argsort(codes, kind="stable"), ends)[: len(names)]  # of no values there is one part, too
        measured = (measure(label[some], outputs[some]) for some in rows)
        by_column[name] = dict(zip(map(slice_name, names), measured, strict=True))
    return Evaluation(measure(label, outputs), by_column)


def measure_of(target: Target) -> Measure:
    """What measures some rows' outputs against their labels."""
    if target.kind == "multiclass":
        return measure_classes
    if target.kind == "quantile":
        return lambda label, outputs: measure_quantiles(label, outputs, target.quantiles)
    return measure_scores if target.kind == "anomaly" else measure_numbers


def loss_of(target: Target, objective: str) -> Callable[[Numbers, npt.NDArray[np.float32]], float]:
    """What early stopping watches, a mean over rows: the less the better."""
    if target.kind in ("binary", "multiclass"):
        return log_loss
    if target.kind == "quantile":
        return lambda label, outputs: exact_sum(_pinball(label, outputs, target.quantiles).ravel()) / len(label)
    name = "mae" if objective == "reg:absoluteerror" else "rmse"
    return lambda label, outputs: float(measure_numbers(label, outputs).values[name] or 0)


def log_loss(label: Numbers, outputs: npt.NDArray[np.float32]) -> float:
    """The mean of -log of what was said of the true class: of 0 and 1 by one output, of o classes by o outputs.

    Probabilities are held within [2**-23, 1 - 2**-23], as scikit-learn's `log_loss` does with float32.
    """
    scores = outputs.astype(np.float64)
    of_true = np.where(label == 1, scores, 1 - scores) if scores.ndim == 1 else _of_class(scores, label)
    return exact_sum(-exact_log(np.clip(of_true, _LEAST, 1 - _LEAST))) / len(label)


def measure_classes(label: Numbers, outputs: npt.NDArray[np.float32]) -> Figures:
    """Log loss, accuracy, macro F1, expected calibration error and the confusion of o classes.

    F1 of a class is 2 x right / (true + predicted), 0 for one that is neither; macro F1 is the mean over the classes
    that are true or predicted somewhere, as scikit-learn's `f1_score` has it.
    """
    rows, classes = outputs.shape
    predicted = np.argmax(outputs, axis=1)
    table = np.bincount(label.astype(np.int64) * classes + predicted, minlength=classes**2).reshape(classes, classes)
    confusion = tuple(tuple(row) for row in table.tolist())
    if not rows:
        return Figures(0, dict.fromkeys(("log_loss", "accuracy", "macro_f1", "calibration_error")), confusion)
    right, all_of = np.diag(table), table.sum(axis=0) + table.sum(axis=1)
    there = all_of > 0
    values = {
        "log_loss": log_loss(label, outputs),
        "accuracy": int(right.sum()) / rows,
        "macro_f1": exact_sum(2 * right[there] / all_of[there]) / int(there.sum()),
        "calibration_error": calibration_error(predicted == label, _of_class(outputs, predicted)),
    }
    return Figures(rows, values, confusion)


def measure_numbers(label: Numbers, outputs: npt.NDArray[np.float32]) -> Figures:
    """Mean absolute error, root of the mean squared error, and R² where labels differ."""
    if not len(label):
        return Figures(0, dict.fromkeys(("mae", "rmse", "r2")))
    labels, rows = label.astype(np.float64), len(label)
    errors = outputs.astype(np.float64) - labels
    squared = exact_sum(errors * errors)
    spread = labels - exact_sum(labels) / rows
    around = exact_sum(spread * spread)
    r2 = 1 - squared / around if around else None
    return Figures(rows, {"mae": exact_sum(np.abs(errors)) / rows, "rmse": math.sqrt(squared / rows), "r2": r2})


def measure_quantiles(label: Numbers, outputs: npt.NDArray[np.float32], quantiles: list[float]) -> Figures:
    """For each quantile the mean pinball loss, and its coverage: the share of labels not above it."""
    names = [f"{quantile:g}" for quantile in quantiles]
    if not len(label):
        return Figures(0, dict.fromkeys([f"{what}_{name}" for name in names for what in ("pinball", "coverage")]))
    losses, scores = _pinball(label, outputs, quantiles), _columns(outputs)
    values: dict[str, float | None] = {}
    for place, name in enumerate(names):
        values[f"pinball_{name}"] = exact_sum(losses[:, place]) / len(label)
        values[f"coverage_{name}"] = int(np.count_nonzero(label <= scores[:, place])) / len(label)
    return Figures(len(label), values)


def measure_scores(label: Numbers, outputs: npt.NDArray[np.float32]) -> Figures:
    """Of scores without a label: their mean, and what half of them and 99% of them are not above."""
    names, rows = ("mean_score", "score_50th", "score_99th"), len(outputs)
    if not rows:
        return Figures(0, dict.fromkeys(names))
    scores = np.sort(outputs.astype(np.float64))
    places = [-(-rows * percent // 100) - 1 for percent in (50, 99)]
    return Figures(rows, dict(zip(names, [exact_sum(scores) / rows, *scores[places].tolist()], strict=True)))


@dataclass(frozen=True)
class CalibrationBin:
    """The rows whose score is from `start` to below `end`: how many, their mean score, and the share that is right."""

    start: float
    end: float
    rows: int
    mean_score: float
    share: float


def calibrate(right: Numbers, score: Numbers, bins: int = CALIBRATION_BINS) -> list[CalibrationBin]:
    """How true probabilities are, in bins of one width that have rows; the last has the score 1, too.

    Args:
        right: [n] whether a row is positive, or of its predicted class.
        score: [n] float32 from 0 to 1: how probable that is said to be.
    """
    edges = np.arange(1, bins) / bins
    places = np.searchsorted(edges, score.astype(np.float64), side="right")
    order = np.argsort(places, kind="stable")
    bounds = np.searchsorted(places[order], np.arange(bins + 1))
    found = []
    for place, (first, last) in enumerate(itertools.pairwise(bounds.tolist())):
        rows, some = last - first, order[first:last]
        if rows:
            mean = exact_sum(score[some].astype(np.float64)) / rows
            share = int(np.count_nonzero(right[some])) / rows
            found.append(CalibrationBin(place / bins, (place + 1) / bins, rows, mean, share))
    return found


def calibration_error(right: Numbers, score: Numbers) -> float:
    """The mean over rows of |mean score - share that is right| of their bin: the expected calibration error.

    Source: Naeini et al., Obtaining well calibrated probabilities using Bayesian binning (2015), with 10 bins.
    """
    return math.fsum(bin.rows * abs(bin.mean_score - bin.share) for bin in calibrate(right, score)) / len(score)


def exact_log(values: Floats) -> Floats:
    """The natural logarithm of normal numbers above 0, the same bits on every machine.

    log(m 2^e) = e log 2 + 2 artanh((m - 1) / (m + 1)), the latter by its series, in order.
    """
    mantissa, exponent = np.frexp(values)
    low = mantissa < math.sqrt(0.5)
    mantissa, exponent = np.where(low, 2 * mantissa, mantissa), exponent - low
    ratio = (mantissa - 1) / (mantissa + 1)
    square, series = ratio * ratio, np.zeros_like(ratio)
    for term in reversed(range(_TERMS)):
        series = series * square + 1 / (2 * term + 1)
    return np.asarray(exponent * _LN2 + 2 * ratio * series)


def exact_sum(values: Numbers) -> float:
    """The sum of numbers [n], rounded once."""
    return math.fsum(values.tolist())  # of Python's floats it takes a third of the time


def _check(label: Numbers, outputs: Numbers) -> None:
    if label.ndim != 1 or outputs.shape[:1] != label.shape:
        raise ValueError(f"label has shape {label.shape}, outputs {outputs.shape}: one label for each row")
    if not np.isfinite(label).all() or not np.isfinite(outputs).all():
        raise ValueError("labels and outputs must be finite")


def _of_class(outputs: Numbers, classes: Numbers) -> Numbers:
    return np.asarray(outputs[np.arange(len(outputs)), classes.astype(np.int64)])


def _columns(outputs: Numbers) -> Numbers:
    return outputs[:, np.newaxis] if outputs.ndim == 1 else outputs


def _pinball(label: Numbers, outputs: Numbers, quantiles: list[float]) -> Floats:
    """float64[n, q]: q (y - s) where the label y is above what was said, s, and (1 - q) (s - y) where it is below."""
    above = label.astype(np.float64)[:, np.newaxis] - _columns(outputs).astype(np.float64)
    shares = np.asarray(quantiles, np.float64)
    return np.maximum(shares * above, (shares - 1) * above)
