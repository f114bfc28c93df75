"""Measure scores against labels: ROC AUC, average precision and declared metrics, overall and per slice.

Every figure is a count of integers with one division at the end (average precision: one sum in a fixed
order), so neither the order of the rows nor the machine changes a bit of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from models.errors import HeadraceError
from models.predictors.score_counts import ScoreCounts
from models.predictors.top_of_day import DailyTop, Groups, by_day_and_group, check_binary, sorted_by

MAX_SLICE_VALUES = 1000
STANDARD = {"roc_auc": "AUC", "average_precision": "AP"}  # what is always measured, and its heading

_Rows = npt.NDArray[np.int64]  # positions of rows


class EvaluationError(HeadraceError, ValueError):
    """A column that rows can't be sliced by."""


@dataclass(frozen=True)
class Metrics:
    """The figures of one set of rows; those that need both classes are None where one is absent."""

    rows: int
    positives: int
    roc_auc: float | None = None
    average_precision: float | None = None
    declared: Mapping[str, float | None] = field(default_factory=dict)

    def figures(self) -> dict[str, float | None]:
        """Name → figure: the two that are always measured, then the declared ones."""
        return {"roc_auc": self.roc_auc, "average_precision": self.average_precision, **self.declared}

    def as_dict(self) -> dict[str, Any]:
        """All of it in one flat dict, ready for JSON."""
        return {"rows": self.rows, "positives": self.positives, **self.figures()}


class Measured(Protocol):
    """The figures of some rows."""

    @property
    def rows(self) -> int:
        """How many rows."""

    @property
    def positives(self) -> int | None:
        """How many of them are positive; None where the target is not binary."""

    def figures(self) -> dict[str, float | None]:
        """Name → figure."""

    def as_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""


@dataclass(frozen=True)
class TopOfDay:
    """What precision at k needs beside labels and scores: [n] days, [n] entities, and k."""

    days: npt.NDArray[Any]
    groups: npt.NDArray[Any]
    k: int


@dataclass(frozen=True)
class Evaluation:
    """The figures of a whole test set and of its slices: slices[column][value as text]."""

    overall: Measured
    slices: Mapping[str, Mapping[str, Measured]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as nested dicts of int, float and None, ready for JSON."""
        return {
            "overall": self.overall.as_dict(),
            "slices": {
                column: {value: metrics.as_dict() for value, metrics in values.items()}
                for column, values in self.slices.items()
            },
        }


def roc_auc(label: npt.ArrayLike, score: npt.ArrayLike) -> float:
    """Return the area under the ROC curve: P(score of a positive > of a negative), ties counting half.

    Source: Fawcett, An introduction to ROC analysis (2006), algorithm 3: trapezoids over distinct scores;
    scikit-learn's `roc_auc_score` is the same figure.

    Args:
        label: [n] bool, or integers 0 and 1.
        score: [n] real numbers; higher is more suspicious.

    Raises:
        ValueError: on NaN scores, other labels, unequal lengths, or if one class is absent.
    """
    counts = _counts_of(label, score)
    if counts.positives in (0, counts.rows):
        raise ValueError("ROC AUC needs both classes among the labels")
    return counts.roc_auc()


def average_precision(label: npt.ArrayLike, score: npt.ArrayLike) -> float:
    """Return the sum over distinct scores, descending, of precision times the gain in recall.

    Source: the definition of scikit-learn's `average_precision_score` (no interpolation).

    Args:
        label: [n] bool, or integers 0 and 1.
        score: [n] real numbers; higher is more suspicious.

    Raises:
        ValueError: on NaN scores, other labels, unequal lengths, or if there is no positive.
    """
    counts = _counts_of(label, score)
    if not counts.positives:
        raise ValueError("average precision needs a positive among the labels")
    return counts.average_precision()


def _counts_of(label: npt.ArrayLike, score: npt.ArrayLike) -> ScoreCounts:
    labels, scores = check_binary(label, score)
    descending = np.argsort(-scores, kind="stable")
    counts = ScoreCounts()
    counts.add(labels[descending], scores[descending])
    return counts


def evaluate(
    label: npt.ArrayLike,
    score: npt.ArrayLike,
    *,
    declared: Mapping[str, TopOfDay] | None = None,
    slices: Mapping[str, npt.ArrayLike] | None = None,
) -> Evaluation:
    """Return the figures of all rows, and of the rows of each value of each slice column.

    Args:
        label: [n] bool, or integers 0 and 1.
        score: [n] real numbers; higher is more likely positive.
        declared: Name to the days, entities and k of a precision at k. In a slice it is still k: the figure says how
            many of the k would be positive if only the slice's rows were looked at.
        slices: column name to [n] integers (floats too, if whole; NaN is null), booleans, or strings (None
            is null). Values are named `7`, `true`, `text` and `null`, and come in ascending order.

    Raises:
        EvaluationError: on a slice column of another type or of more than MAX_SLICE_VALUES values.
        ValueError: on NaN scores, other labels, or unequal lengths.
    """
    evaluator = Evaluator()
    evaluator.add(label, score, declared=declared, slices=slices)
    return evaluator.evaluation()


class Evaluator:
    """`evaluate`, of rows that come part by part; a part has no day before the first one of the part before it."""

    def __init__(self) -> None:
        self._overall: _Measure | None = None
        self._slices: dict[str, dict[Any, _Measure]] = {}  # by column and value, None for null

    def add(
        self,
        label: npt.ArrayLike,
        score: npt.ArrayLike,
        *,
        declared: Mapping[str, TopOfDay] | None = None,
        slices: Mapping[str, npt.ArrayLike] | None = None,
    ) -> None:
        """See `evaluate`, of which arguments and errors are; the same metrics and slices each time."""
        labels, scores = check_binary(label, score)
        tops = dict(declared or {})
        for name, top in tops.items():
            if not top.days.shape == top.groups.shape == labels.shape:
                shapes = f"days have shape {top.days.shape}, groups {top.groups.shape}, label {labels.shape}"
                raise ValueError(f"{name}: {shapes}")
        part = _Part(labels, scores, tops, {name: Groups.of(top.groups) for name, top in tops.items()})
        everything = part.orders()
        self._overall = self._overall or _Measure.of(tops)
        self._overall.add(part, everything)
        for name, values in (slices or {}).items():
            found, codes = slice_values(name, np.asarray(values), labels.shape)
            measures = self._slices.setdefault(name, {})
            split = zip(*(_split(rows, codes, len(found)) for rows in everything), strict=True)
            for value, rows in zip(found, split, strict=True):
                measures.setdefault(value, _Measure.of(tops)).add(part, rows)
            if len(measures) - (None in measures) > MAX_SLICE_VALUES:
                raise _too_many(name, len(measures))

    @property
    def has_rows(self) -> bool:
        """Whether there was a row."""
        return self._overall is not None and self._overall.counts.rows > 0

    def evaluation(self) -> Evaluation:
        """The figures of all rows so far."""
        overall = (self._overall or _Measure.of({})).metrics()
        slices = {
            column: {slice_name(value): measures[value].metrics() for value in sorted(measures, key=_in_order)}
            for column, measures in self._slices.items()
        }
        return Evaluation(overall, slices)


@dataclass(frozen=True)
class _Part:
    """Some rows."""

    labels: npt.NDArray[np.int64]
    scores: npt.NDArray[np.floating[Any]]
    tops: Mapping[str, TopOfDay]
    groups: Mapping[str, Groups]

    def orders(self) -> list[_Rows]:
        """The rows by score, descending, and for each metric of days by day and group."""
        daily = (by_day_and_group(top.days, self.groups[name].codes) for name, top in self.tops.items())
        return [np.argsort(-self.scores, kind="stable"), *daily]


@dataclass(frozen=True)
class _Measure:
    """The figures of some rows as they add up."""

    counts: ScoreCounts
    tops: Mapping[str, DailyTop]

    @staticmethod
    def of(tops: Mapping[str, TopOfDay]) -> _Measure:
        return _Measure(ScoreCounts(), {name: DailyTop(top.k) for name, top in tops.items()})

    def add(self, part: _Part, orders: Sequence[_Rows]) -> None:
        """Some of a part's rows, in the orders of `_Part.orders`."""
        descending, *daily = orders
        self.counts.add(part.labels[descending], part.scores[descending])
        for (name, top), rows in zip(self.tops.items(), daily, strict=True):
            top.add(part.tops[name].days[rows], part.groups[name].take(rows), part.labels[rows], part.scores[rows])

    def metrics(self) -> Metrics:
        rows, positives = self.counts.rows, self.counts.positives
        if positives in (0, rows):
            return Metrics(rows, positives, declared=dict.fromkeys(self.tops))
        precisions = {name: top.precision() for name, top in self.tops.items()}
        return Metrics(rows, positives, self.counts.roc_auc(), self.counts.average_precision(), precisions)


def _split(rows: _Rows, codes: npt.NDArray[np.int64], count: int) -> Iterator[_Rows]:
    """Yield the rows of each code from 0 to below `count`, in the order given."""
    ordered, ends = sorted_by(codes, rows), np.cumsum(np.bincount(codes, minlength=count)).tolist()
    for first, last in itertools.pairwise([0, *ends]):
        yield ordered[first:last]


def slice_name(value: Any) -> str:
    """The name of a slice by its value: `7`, `true`, `text`, or `null` for None."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _in_order(value: Any) -> tuple[bool, Any]:
    return value is None, 0 if value is None else value


def _too_many(name: str, count: int) -> EvaluationError:
    return EvaluationError(f"slice {name} has {count} values, at most {MAX_SLICE_VALUES} are allowed")


def slice_values(
    name: str, values: npt.NDArray[Any], shape: tuple[int, ...]
) -> tuple[list[Any], npt.NDArray[np.int64]]:
    """A slice column's values, ascending, None last, and the place of each row's; raises as `evaluate` does."""
    if values.shape != shape:
        raise EvaluationError(f"slice {name} has shape {values.shape}, label {shape}")
    null = np.zeros(shape, dtype=bool)
    if values.dtype.kind == "O":
        texts = _texts(name, values)
        null, values = (
            texts.is_null().to_numpy(zero_copy_only=False),
            texts.fill_null("").to_numpy(zero_copy_only=False),
        )
    elif values.dtype.kind == "f":
        null = np.isnan(values)
        whole = np.where(null, 0, values)
        if np.all(np.abs(whole) < 2**53) and np.all(whole == np.rint(whole)):
            values = whole.astype(np.int64)
    if values.dtype.kind not in "biuUO":
        raise EvaluationError(f"slice {name} is {values.dtype}: whole numbers, booleans or strings are needed")
    there = Groups.of(values[~null])
    found = there.found.tolist()
    if len(found) > MAX_SLICE_VALUES:
        raise _too_many(name, len(found))
    codes = np.full(shape, len(found), dtype=np.int64)
    codes[~null] = there.codes
    return ([*found, None] if null.any() else found), codes


def _texts(name: str, values: npt.NDArray[Any]) -> Any:
    try:
        return pa.array(values, pa.string())
    except pa.ArrowException as error:
        raise EvaluationError(f"slice {name}: an object column must hold strings or None") from error
