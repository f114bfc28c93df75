"""Calibration: what is to be expected of a row by its score, learned from rows with labels that a model has not seen.

It is made of steps of the score, each with one expectation: so the counts of rows by step are all that an estimate of a
window needs, and they add up in any order.

- binary: the share of positives, never falling with the score (isotonic regression; Zadrozny and Elkan, Transforming
  classifier scores into accurate multiclass probability estimates, 2002);
- multiclass: the same for each class by its own output; a row's shares are divided by their sum;
- regression, count: the mean absolute and squared error, by quantiles of the score. Errors need not rise with it, so
  they are no isotonic regression.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from typing import Any

import numpy as np
import numpy.typing as npt

from models.errors import HeadraceError
from models.project.declarations import Project

FORMAT = 1
MAX_CALIBRATION_BYTES = 4 << 20
MIN_ROWS = 100  # with a label, of which a calibration can be made
MIN_OF_A_KIND = 10  # positive ones, and others, of a binary target
_LARGEST_LABEL = 1e60  # that is learned from: the fourth power of an error is to be finite
MAX_STEPS = 50  # of errors
MIN_STEP_ROWS = 50  # of errors
ESTIMATED_KINDS = ("binary", "multiclass", "regression", "count")

Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[Any]


class CalibrationError(HeadraceError, ValueError):
    """A calibration that can't be read; the message says why."""


@dataclasses.dataclass(frozen=True, eq=False)
class Steps:
    """k steps of a score: the first holds below `cuts[0]`, the i-th from `cuts[i - 1]` on, inclusive.

    Fields:
        cuts: [k - 1] float32, rising.
        expected: [k, e] float64, what is expected of a row: one share, or the absolute and the squared error.
        variance: [k, e] float64, how far a row's value is from it; of a share p(1 - p) with half a row added to both
            kinds (Jeffreys), so that it is not 0 where no positive was seen.
        rows: [k] int64, of how many rows it was learned.
    """

    cuts: npt.NDArray[np.float32]
    expected: Floats
    variance: Floats
    rows: npt.NDArray[np.int64]

    def places(self, scores: Numbers) -> npt.NDArray[np.int64]:
        """The step int64[n] of each of n scores float32[n]."""
        return np.searchsorted(self.cuts, scores, side="right")

    def to_lists(self) -> dict[str, Any]:
        """What JSON can hold; a float32 as a Python float is written in full."""
        return {field.name: getattr(self, field.name).tolist() for field in dataclasses.fields(self)}

    @staticmethod
    def from_lists(lists: dict[str, Any], width: int) -> Steps:
        """The inverse of to_lists; KeyError, TypeError or ValueError for anything else."""
        cuts, expected, variance = (np.array(lists[name], np.float64) for name in ("cuts", "expected", "variance"))
        rows = np.array(lists["rows"])
        shape = (len(rows), width)
        if rows.dtype != np.int64 or not len(rows) or cuts.shape != (len(rows) - 1,) or expected.shape != shape:
            raise ValueError("steps are not of one length")
        if variance.shape != shape or not all(np.isfinite(each).all() for each in (cuts, expected, variance)):
            raise ValueError("a step is not finite")
        if (np.diff(cuts) <= 0).any() or (expected < 0).any() or (variance < 0).any() or (rows < 1).any():
            raise ValueError("cuts don't rise, or a step has an expectation or rows that can't be")
        if width == 1 and (expected > 1).any():
            raise ValueError("a share is above 1")
        return Steps(cuts.astype(np.float32), expected, variance, rows)


@dataclasses.dataclass(frozen=True, eq=False)
class Calibration:
    """Steps of a model's score, or of each of its classes, and of how many rows they were learned."""

    kind: str
    steps: tuple[Steps, ...]
    rows: int

    def to_json(self) -> bytes:
        """One line of JSON."""
        steps = [each.to_lists() for each in self.steps]
        said = {"format": FORMAT, "kind": self.kind, "rows": self.rows, "steps": steps}
        return json.dumps(said, sort_keys=True, separators=(",", ":"), allow_nan=False).encode() + b"\n"

    @staticmethod
    def from_json(content: bytes) -> Calibration:
        """A calibration file; CalibrationError if it is none."""
        if len(content) > MAX_CALIBRATION_BYTES:
            raise CalibrationError(f"is larger than {MAX_CALIBRATION_BYTES} bytes")
        try:
            data: Any = json.loads(content)
            if data["format"] != FORMAT or data["kind"] not in ESTIMATED_KINDS:
                raise CalibrationError(f"is not of format {FORMAT}, or of no kind that is estimated")
            width = 2 if data["kind"] in ("regression", "count") else 1
            steps = tuple(Steps.from_lists(each, width) for each in data["steps"])
            if type(data["rows"]) is not int or data["rows"] < 1 or not steps:
                raise CalibrationError("has no steps, or no rows")
            return Calibration(data["kind"], steps, data["rows"])
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            if isinstance(error, CalibrationError):
                raise
            raise CalibrationError(f"is not a calibration: {type(error).__name__}: {error}") from error

    def fits(self, project: Project) -> bool:
        """Whether it is of the project's target."""
        return self.kind == project.target.kind and len(self.steps) == max(len(project.classes), 1)


def is_estimated(project: Project) -> bool:
    """Whether the project declares estimates."""
    return project.label_metrics is not None and project.label_metrics.estimate


def calibrate_scores(label: Numbers, outputs: Numbers, project: Project) -> Calibration | None:
    """The calibration of rows in any order, None if they are too few.

    Args:
        label: [n] numbers, of a multi-class target the classes' numbers; all known.
        outputs: [n] float32 what the model says, or [n, o] of o classes. Rows that are not finite are left out,
            and those of a label that is next to it.
        project: whose target it is.
    """
    outputs = outputs if outputs.ndim == 2 else outputs[:, np.newaxis]
    finite = np.isfinite(outputs).all(axis=1) & (np.abs(label) < _LARGEST_LABEL)
    label, outputs, kind = label[finite], outputs[finite], project.target.kind
    if len(label) < MIN_ROWS or kind not in ESTIMATED_KINDS:
        return None
    if kind == "binary":
        positives = int(label.sum())
        if min(positives, len(label) - positives) < MIN_OF_A_KIND:
            return None
        return Calibration(kind, (_learn_shares(label == 1, outputs[:, 0]),), len(label))
    if kind == "multiclass":
        steps = tuple(_learn_shares(label == place, outputs[:, place]) for place in range(outputs.shape[1]))
        return Calibration(kind, steps, len(label))
    return Calibration(kind, (_learn_errors(label, outputs[:, 0]),), len(label))


def _learn_shares(right: npt.NDArray[np.bool_], scores: Numbers) -> Steps:
    from sklearn.isotonic import isotonic_regression  # only where models are trained: the import takes long

    values, places = np.unique(scores, return_inverse=True)
    rows, positives = (np.bincount(places, weights, len(values)).astype(np.int64) for weights in (None, right))
    fitted = isotonic_regression(positives / rows, sample_weight=rows.astype(np.float64))
    starts = np.flatnonzero(np.append(True, np.diff(fitted) > 0))
    rows, positives = np.add.reduceat(rows, starts), np.add.reduceat(positives, starts)
    smooth = (positives + 0.5) / (rows + 1)
    expected, variance = positives / rows, smooth * (1 - smooth)
    cuts = values[starts[1:]].astype(np.float32)
    return Steps(cuts, expected[:, np.newaxis], variance[:, np.newaxis], rows)


def _learn_errors(label: Numbers, scores: Numbers) -> Steps:
    order = np.lexsort((label, scores))
    label, scores = label[order].astype(np.float64), scores[order]
    wanted = max(min(MAX_STEPS, len(scores) // MIN_STEP_ROWS), 1)
    places = np.arange(1, wanted) * len(scores) // wanted
    starts = np.unique(np.searchsorted(scores, scores[places], side="left"))  # rows of one score are of one step
    starts = np.concatenate([[0], starts[starts > 0]])
    error = np.abs(scores.astype(np.float64) - label)
    values = np.column_stack([error, error * error])
    parts = [values[a:b] for a, b in itertools.pairwise([*starts.tolist(), len(scores)])]
    expected = np.array([part.mean(axis=0) for part in parts])
    variance = np.array([part.var(axis=0) for part in parts])
    return Steps(scores[starts[1:]].astype(np.float32), expected, variance, np.array([len(part) for part in parts]))
