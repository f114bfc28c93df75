"""Precision among the k entities with the highest scores of each day, of rows that come part by part."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from models.order import order_by

Int64 = npt.NDArray[np.int64]
Floats = npt.NDArray[np.floating[Any]]


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
    labels, scores = check_binary(label, score)
    days, groups = Groups.of(np.asarray(day)).codes, Groups.of(np.asarray(group))
    if not len(labels) == len(days) == len(groups.codes):
        raise ValueError(f"day, group and label differ in length: {len(days)}, {len(groups.codes)}, {len(labels)}")
    if not len(labels):
        raise ValueError("precision at k needs at least one row")
    if k < 1:
        raise ValueError(f"k is {k}, at least 1 is needed")
    rows = by_day_and_group(days, groups.codes)
    top = DailyTop(k)
    top.add(days[rows], groups.take(rows), labels[rows], scores[rows])
    return top.precision()


def check_binary(label: npt.ArrayLike, score: npt.ArrayLike) -> tuple[Int64, Floats]:
    """Labels 0 and 1 as int64[n] and scores as float32[n] or else float64[n]; ValueError if they are none, or of other
    lengths.
    """
    labels, scores = np.asarray(label), np.asarray(score)
    if scores.dtype != np.float32:
        scores = scores.astype(np.float64)
    if labels.ndim != 1 or labels.shape != scores.shape:
        raise ValueError(f"label has shape {labels.shape}, score {scores.shape}: one dimension, same length")
    if not ((labels == 0) | (labels == 1)).all():
        raise ValueError("labels must be 0 or 1, without nulls")
    if np.isnan(scores).any():
        raise ValueError(f"{np.count_nonzero(np.isnan(scores))} of {len(scores)} scores are NaN")
    return labels.astype(np.int64), scores


@dataclasses.dataclass(frozen=True)
class Groups:
    """Values [n] as places `codes` int64[n] among the distinct ones, which are in ascending order."""

    found: npt.NDArray[Any]
    codes: Int64

    @staticmethod
    def of(values: npt.NDArray[Any]) -> Groups:
        """Of integers, booleans or strings."""
        encoded = pa.array(values).dictionary_encode("encode")  # by hashing; what is sorted are the distinct ones
        found, place = np.unique(encoded.dictionary.to_numpy(zero_copy_only=False), return_inverse=True)
        return Groups(found, place[encoded.indices.to_numpy()])

    def take(self, rows: Int64) -> Groups:
        """Those of some rows."""
        return Groups(self.found, self.codes[rows])


def sorted_by(codes: Int64, rows: Int64) -> Int64:
    """Rows by their codes, and in the order given where these are equal."""
    return rows[order_by(codes[rows])]


def by_day_and_group(days: Int64, groups: Int64) -> Int64:
    """The rows in the order of days, of one day of groups."""
    return sorted_by(Groups.of(days).codes, sorted_by(groups, np.arange(len(days))))


# The groups of a day, ascending, the highest score of each, and whether it is positive.
_Day = tuple[Any, Floats, npt.NDArray[np.bool_]]


class DailyTop:
    """Adds up `precision_at_k` of rows in parts; no part has a day before the first one of the part before it."""

    def __init__(self, k: int) -> None:
        self._k = k
        self._open: dict[int, list[_Day]] = {}
        self._known: list[Any] = []
        self._found = self._days = 0
        self._closed: int | None = None  # the last day that is over

    def add(self, days: Int64, groups: Groups, label: Int64, score: Floats) -> None:
        """Rows sorted by day and group: days int64[n], labels 0 and 1, int64[n], and scores float64[n]."""
        if not len(days):
            return
        if self._closed is not None and days[0] <= self._closed:
            raise ValueError(f"rows of the day {days[0]} come after day {self._closed} was over")
        for day in sorted(day for day in self._open if day < days[0]):
            self._close(day)
        starts = np.flatnonzero((np.diff(days, prepend=days[0] - 1) != 0) | (np.diff(groups.codes, prepend=-1) != 0))
        day_of, group_of = days[starts], groups.found[groups.codes[starts]]
        top_score, positive = np.maximum.reduceat(score, starts), np.maximum.reduceat(label, starts) == 1
        bounds = np.append(np.flatnonzero(np.diff(day_of, prepend=day_of[0] - 1)), len(day_of)).tolist()
        for first, last in itertools.pairwise(bounds):
            part = group_of[first:last], top_score[first:last], positive[first:last]
            self._open.setdefault(int(day_of[first]), []).append(part)

    def precision(self) -> float:
        """The figure of all rows added, of which there must be one."""
        for day in sorted(self._open):
            self._close(day)
        return self._found / (self._k * self._days)

    def _close(self, day: int) -> None:
        groups, score, positive = _joined(self._open.pop(day))
        self._days, self._closed = self._days + 1, day
        values = pa.array(groups)
        known = pc.is_in(values, pa.array(self._known, values.type)).to_numpy(zero_copy_only=False)
        today = np.flatnonzero(~known)
        if len(today) > self._k:  # what is below the k-th highest score need not be sorted
            today = today[score[today] >= np.partition(score[today], -self._k)[-self._k]]
        checked = today[np.argsort(-score[today], kind="stable")][: self._k]  # of equal scores the first group
        caught = checked[positive[checked]]
        self._known += groups[caught].tolist()
        self._found += len(caught)


def _joined(parts: list[_Day]) -> _Day:
    """The groups of all parts of a day, once each."""
    if len(parts) == 1:
        return parts[0]
    groups, score, positive = (np.concatenate(each) for each in zip(*parts, strict=True))
    coded = Groups.of(groups)
    rows = np.argsort(coded.codes, kind="stable")
    starts = np.flatnonzero(np.diff(coded.codes[rows], prepend=-1))
    return coded.found, np.maximum.reduceat(score[rows], starts), np.logical_or.reduceat(positive[rows], starts)
