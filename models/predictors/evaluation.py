"""Measure scores against labels: ROC AUC, average precision and declared metrics, overall and per slice.

Every figure is a count of integers with one division at the end (average precision: one sum in a fixed
order), so neither the order of the rows nor the machine changes a bit of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from models.errors import HeadraceError

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
    labels, scores = _check(label, score)
    true, alerts = _by_threshold(labels, scores, _descending(scores))
    if not len(labels) or true[-1] in (0, alerts[-1]):
        raise ValueError("ROC AUC needs both classes among the labels")
    return _area(true, alerts)


def average_precision(label: npt.ArrayLike, score: npt.ArrayLike) -> float:
    """Return the sum over distinct scores, descending, of precision times the gain in recall.

    Source: the definition of scikit-learn's `average_precision_score` (no interpolation).

    Args:
        label: [n] bool, or integers 0 and 1.
        score: [n] real numbers; higher is more suspicious.

    Raises:
        ValueError: on NaN scores, other labels, unequal lengths, or if there is no positive.
    """
    labels, scores = _check(label, score)
    true, alerts = _by_threshold(labels, scores, _descending(scores))
    if not len(labels) or not true[-1]:
        raise ValueError("average precision needs a positive among the labels")
    return _mean_precision(true, alerts)


def precision_at_k(
    day: npt.ArrayLike, group: npt.ArrayLike, label: npt.ArrayLike, score: npt.ArrayLike, k: int
) -> float:
    """Return the mean over days of (positive groups among the day's k with the highest scores) / k.

    A group is an entity's rows, such as a card's. Its score and label on a day are the largest of its rows that day;
    equal scores go by group, ascending. A positive one found on one day is known, and leaves the days after. The
    divisor is k even on a day with fewer groups.

    Source: `card_precision_top_k` of the Fraud Detection Handbook (Le Borgne et al., 2022, chapter 4.4)
    with remove_detected_compromised_cards=True, whose order among equal scores is left to pandas.

    Args:
        day: [n] integers, days in any numbering.
        group: [n] integers or strings.
        label: [n] bool, or integers 0 and 1.
        score: [n] real numbers; higher is more likely positive.
        k: groups that can be checked in a day, at least 1.

    Raises:
        ValueError: on NaN scores, other labels, unequal lengths, no rows, or k below 1.
    """
    labels, scores = _check(label, score)
    (_, days), (_, groups) = _codes(np.asarray(day)), _codes(np.asarray(group))
    if not len(labels) == len(days) == len(groups):
        raise ValueError(f"day, group and label differ in length: {len(days)}, {len(groups)}, {len(labels)}")
    if not len(labels):
        raise ValueError("precision at k needs at least one row")
    if k < 1:
        raise ValueError(f"k is {k}, at least 1 is needed")
    rows = _by_day_and_group(days, groups)
    return _precision_at_k(days[rows], groups[rows], labels[rows], scores[rows], k)


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
    labels, scores = _check(label, score)
    tops = {}
    for name, top in (declared or {}).items():
        if not top.days.shape == top.groups.shape == labels.shape:
            shapes = f"days have shape {top.days.shape}, groups {top.groups.shape}, label {labels.shape}"
            raise ValueError(f"{name}: {shapes}")
        tops[name] = TopOfDay(_codes(top.days)[1], _codes(top.groups)[1], top.k)
    everything = [_descending(scores), *(_by_day_and_group(top.days, top.groups) for top in tops.values())]

    def measure(descending: _Rows, *daily: _Rows) -> Metrics:
        """The figures of some rows: their positions by score, and by day and group of each declared metric."""
        true, alerts = _by_threshold(labels, scores, descending)
        some, positives = len(descending), int(true[-1]) if len(true) else 0
        if positives in (0, some):
            return Metrics(some, positives, declared=dict.fromkeys(tops))
        return Metrics(
            some,
            positives,
            _area(true, alerts),
            _mean_precision(true, alerts),
            {
                name: _precision_at_k(top.days[rows], top.groups[rows], labels[rows], scores[rows], top.k)
                for (name, top), rows in zip(tops.items(), daily, strict=True)
            },
        )

    by_column: dict[str, dict[str, Metrics]] = {}
    for name, values in (slices or {}).items():
        names, codes = slice_values(name, np.asarray(values), labels.shape)
        split = zip(*(_split(rows, codes, len(names)) for rows in everything), strict=True)
        by_column[name] = {value: measure(*rows) for value, rows in zip(names, split, strict=True)}
    return Evaluation(measure(*everything), by_column)


def _check(label: npt.ArrayLike, score: npt.ArrayLike) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    labels = np.asarray(label)
    scores = np.asarray(score, dtype=np.float64)  # float32 fits exactly: no tie is made or broken
    if labels.ndim != 1 or labels.shape != scores.shape:
        raise ValueError(f"label has shape {labels.shape}, score {scores.shape}: one dimension, same length")
    if not ((labels == 0) | (labels == 1)).all():
        raise ValueError("labels must be 0 or 1, without nulls")
    if np.isnan(scores).any():
        raise ValueError(f"{np.count_nonzero(np.isnan(scores))} of {len(scores)} scores are NaN")
    return labels.astype(np.int64), scores


def _codes(values: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Return the distinct values, ascending, and the place of each value among them."""
    encoded = pa.array(values).dictionary_encode("encode")  # by hashing; what is sorted are the distinct ones
    found, place = np.unique(encoded.dictionary.to_numpy(zero_copy_only=False), return_inverse=True)
    return found, place[encoded.indices.to_numpy()]


def _sorted_by(codes: npt.NDArray[np.int64], rows: _Rows) -> _Rows:
    """Return rows by their codes, and in the order given where these are equal."""
    some = codes[rows]
    small = len(some) and some.max() < 1 << 16  # numpy sorts integers of 16 bits by radix, several times as fast
    return rows[np.argsort(some.astype(np.uint16) if small else some, kind="stable")]


def _split(rows: _Rows, codes: npt.NDArray[np.int64], count: int) -> Iterator[_Rows]:
    """Yield the rows of each code from 0 to below `count`, in the order given."""
    ordered, ends = _sorted_by(codes, rows), np.cumsum(np.bincount(codes, minlength=count)).tolist()
    for first, last in itertools.pairwise([0, *ends]):
        yield ordered[first:last]


def _descending(score: npt.NDArray[np.float64]) -> _Rows:
    return np.argsort(-score, kind="stable")


def _by_day_and_group(days: npt.NDArray[np.int64], groups: npt.NDArray[np.int64]) -> _Rows:
    return _sorted_by(days, _sorted_by(groups, np.arange(len(days))))


def _by_threshold(
    label: npt.NDArray[np.int64], score: npt.NDArray[np.float64], descending: _Rows
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return, for each distinct score of some rows, descending, the positives and the rows at or above it."""
    scores = score[descending]
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True)[: len(scores)])
    return np.cumsum(label[descending])[last], last + 1


def _area(true: npt.NDArray[np.int64], alerts: npt.NDArray[np.int64]) -> float:
    false = alerts - true
    twice_area = np.sum(np.diff(false, prepend=0) * (true + np.concatenate(([0], true[:-1]))))
    return float(twice_area) / float(2 * true[-1] * false[-1])


def _mean_precision(true: npt.NDArray[np.int64], alerts: npt.NDArray[np.int64]) -> float:
    return float(np.sum(np.diff(true, prepend=0) * (true / alerts)) / true[-1])


def _precision_at_k(
    day: npt.NDArray[np.int64],
    group: npt.NDArray[np.int64],
    label: npt.NDArray[np.int64],
    score: npt.NDArray[np.float64],
    k: int,
) -> float:
    """The figure of rows that are sorted by day and group."""
    starts = np.flatnonzero((np.diff(day, prepend=-1) != 0) | (np.diff(group, prepend=-1) != 0))
    day_of, group_of = day[starts], group[starts]
    top_score = np.maximum.reduceat(score, starts)
    positive = np.maximum.reduceat(label, starts) == 1
    bounds = np.append(np.flatnonzero(np.diff(day_of, prepend=-1)), len(day_of))
    known = np.zeros(group_of.max() + 1, dtype=bool)
    found = 0
    for first, last in itertools.pairwise(bounds):
        today = np.arange(first, last)[~known[group_of[first:last]]]
        if len(today) > k:  # what is below the k-th highest score need not be sorted
            today = today[top_score[today] >= np.partition(top_score[today], -k)[-k]]
        checked = today[np.argsort(-top_score[today], kind="stable")][:k]  # of equal scores the first group
        caught = checked[positive[checked]]
        known[group_of[caught]] = True
        found += len(caught)
    return found / (k * (len(bounds) - 1))


def slice_values(
    name: str, values: npt.NDArray[Any], shape: tuple[int, ...]
) -> tuple[list[str], npt.NDArray[np.int64]]:
    """The names of a slice column's values, ascending, and the place of each row's; raises as `evaluate` does."""
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
    found, places = _codes(values[~null])
    if len(found) > MAX_SLICE_VALUES:
        raise EvaluationError(f"slice {name} has {len(found)} values, at most {MAX_SLICE_VALUES} are allowed")
    names = [str(value).lower() if values.dtype.kind == "b" else str(value) for value in found]
    codes = np.full(shape, len(names), dtype=np.int64)
    codes[~null] = places
    return ([*names, "null"] if null.any() else names), codes


def _texts(name: str, values: npt.NDArray[Any]) -> Any:
    try:
        return pa.array(values, pa.string())
    except pa.ArrowException as error:
        raise EvaluationError(f"slice {name}: an object column must hold strings or None") from error
