"""Measure scores against labels: ROC AUC, average precision and precision at k a day, overall and per slice.

Every figure is a count of integers with one division at the end (average precision: one sum in a fixed
order), so neither the order of the rows nor the machine changes a bit of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from models.errors import HeadraceError

MAX_SLICE_VALUES = 1000


class EvaluationError(HeadraceError, ValueError):
    """A column that rows can't be sliced by."""


@dataclass(frozen=True)
class Metrics:
    """The figures of one set of rows; those that need both classes are None where one is absent."""

    rows: int
    positives: int
    roc_auc: float | None = None
    average_precision: float | None = None
    precision_at_k: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """The figures of a whole test set and of its slices: slices[column][value as text]."""

    overall: Metrics
    slices: Mapping[str, Mapping[str, Metrics]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as nested dicts of int, float and None, ready for JSON."""
        return {
            "overall": asdict(self.overall),
            "slices": {
                column: {value: asdict(metrics) for value, metrics in values.items()}
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
    true, alerts = _by_threshold(labels, scores)
    false = alerts - true
    if not len(labels) or not true[-1] or not false[-1]:
        raise ValueError("ROC AUC needs both classes among the labels")
    twice_area = np.sum(np.diff(false, prepend=0) * (true + np.concatenate(([0], true[:-1]))))
    return float(twice_area) / float(2 * true[-1] * false[-1])


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
    true, alerts = _by_threshold(labels, scores)
    if not len(labels) or not true[-1]:
        raise ValueError("average precision needs a positive among the labels")
    return float(np.sum(np.diff(true, prepend=0) * (true / alerts)) / true[-1])


def precision_at_k(
    day: npt.ArrayLike, group: npt.ArrayLike, label: npt.ArrayLike, score: npt.ArrayLike, k: int = 100
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
    days, day_code = np.unique(np.asarray(day), return_inverse=True)
    groups, group_code = np.unique(np.asarray(group), return_inverse=True)
    if not len(labels) == len(day_code) == len(group_code):
        raise ValueError(f"day, group and label differ in length: {len(day_code)}, {len(group_code)}, {len(labels)}")
    if not len(labels):
        raise ValueError("precision at k needs at least one row")
    if k < 1:
        raise ValueError(f"k is {k}, at least 1 is needed")

    pair = day_code * len(groups) + group_code
    order = np.argsort(pair, kind="stable")
    starts = np.flatnonzero(np.diff(pair[order], prepend=-1))
    day_of, group_of = np.divmod(pair[order][starts], len(groups))
    top_score = np.maximum.reduceat(scores[order], starts)
    positive = np.maximum.reduceat(labels[order], starts) == 1

    ranked = np.lexsort((group_of, -top_score, day_of))
    bounds = np.searchsorted(day_of, np.arange(len(days) + 1))
    known = np.zeros(len(groups), dtype=bool)
    found = 0
    for first, last in pairwise(bounds):
        today = ranked[first:last]
        checked = today[~known[group_of[today]]][:k]
        caught = checked[positive[checked]]
        known[group_of[caught]] = True
        found += len(caught)
    return found / (k * len(days))


def evaluate(
    label: npt.ArrayLike,
    score: npt.ArrayLike,
    *,
    day: npt.ArrayLike | None = None,
    group: npt.ArrayLike | None = None,
    k: int = 100,
    slices: Mapping[str, npt.ArrayLike] | None = None,
) -> Evaluation:
    """Return the figures of all rows, and of the rows of each value of each slice column.

    Args:
        label: [n] bool, or integers 0 and 1.
        score: [n] real numbers; higher is more likely positive.
        day: [n] integers; without day and group there is no precision at k.
        group: [n] integers or strings.
        k: groups that can be checked in a day. In a slice it is still k: the figure says how many of the k
            would be positive if only the slice's rows were looked at.
        slices: column name to [n] integers (floats too, if whole; NaN is null), booleans, or strings (None
            is null). Values are named `7`, `true`, `text` and `null`, and come in ascending order.

    Raises:
        EvaluationError: on a slice column of another type or of more than MAX_SLICE_VALUES values.
        ValueError: on NaN scores, other labels, or unequal lengths.
    """
    labels, scores = _check(label, score)
    everything = np.ones(len(labels), dtype=bool)
    days = None if day is None else np.asarray(day)
    groups = None if group is None else np.asarray(group)

    def measure(chosen: npt.NDArray[np.bool_]) -> Metrics:
        some, positives = int(np.count_nonzero(chosen)), int(labels[chosen].sum())
        if positives in (0, some):
            return Metrics(some, positives)
        return Metrics(
            some,
            positives,
            roc_auc(labels[chosen], scores[chosen]),
            average_precision(labels[chosen], scores[chosen]),
            None
            if days is None or groups is None
            else precision_at_k(days[chosen], groups[chosen], labels[chosen], scores[chosen], k),
        )

    for name, column in (("day", days), ("group", groups)):
        if column is not None and column.shape != labels.shape:
            raise ValueError(f"{name} has shape {column.shape}, label {labels.shape}")
    by_column: dict[str, dict[str, Metrics]] = {}
    for name, values in (slices or {}).items():
        names, codes = _slice_values(name, np.asarray(values), labels.shape)
        by_column[name] = {value: measure(codes == code) for code, value in enumerate(names)}
    return Evaluation(measure(everything), by_column)


def _check(label: npt.ArrayLike, score: npt.ArrayLike) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    labels = np.asarray(label)
    scores = np.asarray(score, dtype=np.float64)  # float32 fits exactly: no tie is made or broken
    if labels.ndim != 1 or labels.shape != scores.shape:
        raise ValueError(f"label has shape {labels.shape}, score {scores.shape}: one dimension, same length")
    if labels.size and not np.isin(labels, (0, 1)).all():
        raise ValueError("labels must be 0 or 1, without nulls")
    if np.isnan(scores).any():
        raise ValueError(f"{np.count_nonzero(np.isnan(scores))} of {len(scores)} scores are NaN")
    return labels.astype(np.int64), scores


def _by_threshold(
    label: npt.NDArray[np.int64], score: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return, for each distinct score descending, the positives and the rows at or above it."""
    order = np.argsort(-score, kind="stable")
    descending = score[order]
    last = np.flatnonzero(np.append(descending[1:] != descending[:-1], True)[: len(order)])
    return np.cumsum(label[order])[last], last + 1


def _slice_values(
    name: str, values: npt.NDArray[Any], shape: tuple[int, ...]
) -> tuple[list[str], npt.NDArray[np.int64]]:
    if values.shape != shape:
        raise EvaluationError(f"slice {name} has shape {values.shape}, label {shape}")
    null = np.zeros(shape, dtype=bool)
    if values.dtype.kind == "O":
        null = np.array([value is None for value in values], dtype=bool)
        if not all(isinstance(value, str) for value in values[~null]):
            raise EvaluationError(f"slice {name}: an object column must hold strings or None")
        values = np.where(null, "", values).astype(str)
    elif values.dtype.kind == "f":
        null = np.isnan(values)
        whole = np.where(null, 0, values)
        if np.all(np.abs(whole) < 2**53) and np.all(whole == np.rint(whole)):
            values = whole.astype(np.int64)
    if values.dtype.kind not in "biuU":
        raise EvaluationError(f"slice {name} is {values.dtype}: whole numbers, booleans or strings are needed")
    found, inverse = np.unique(values[~null], return_inverse=True)
    if len(found) > MAX_SLICE_VALUES:
        raise EvaluationError(f"slice {name} has {len(found)} values, at most {MAX_SLICE_VALUES} are allowed")
    names = [str(value).lower() if values.dtype.kind == "b" else str(value) for value in found]
    codes = np.full(shape, len(names), dtype=np.int64)
    codes[~null] = inverse
    return ([*names, "null"] if null.any() else names), codes
