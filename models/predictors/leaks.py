"""Inputs that alone tell the label, which is most often because they are known as late as it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from models.batches import as_float64, column
from models.predictors.evaluation import roc_auc
from models.project.declarations import Project

TELLING_AREA = 0.95  # under the ROC curve
TELLING_CORRELATION = 0.99  # of ranks
_LEAST_ROWS = 100
_LEAST_OF_EACH = 10  # positives and negatives: of fewer, chance tells them apart


class Leak(NamedTuple):
    """An input, and how well it alone tells the label: an area under the ROC curve, or a rank correlation."""

    name: str
    measure: str
    figure: float


def find_leaks(batch: pa.RecordBatch, label: npt.NDArray[Any], project: Project) -> Iterator[Leak]:
    """Each column of n rows that alone tells their labels, [n] of `models.predictors.measures.label_numbers`.

    A missing value is below all others. A value that is but a name counts as the mean label of the rows of it in the
    other half of the rows, so that names that are seen once tell nothing.
    """
    if len(label) < _LEAST_ROWS:
        return
    for name in batch.schema.names:
        values = column(batch, name)
        if project.target.kind in ("binary", "multiclass"):
            figure, measure = _best_area(values, label, name in project.categories), "area under the ROC curve"
            telling = TELLING_AREA
        else:
            order = _means(values, label) if name in project.categories else _numbers(values)
            figure, measure = rank_correlation(order, label), "rank correlation"
            telling = TELLING_CORRELATION
        if figure >= telling:
            yield Leak(name, measure, figure)


def _best_area(values: pa.Array, label: npt.NDArray[Any], names: bool) -> float:
    """Of each class against all others: the larger of what the values and their negatives reach."""
    best = 0.0
    order = None if names else _numbers(values)
    for each in np.unique(label) if label.max(initial=0) > 1 else [1]:
        is_class = (label == each).astype(np.int64)
        if min(is_class.sum(), len(label) - is_class.sum()) < _LEAST_OF_EACH:
            continue
        area = roc_auc(is_class, _means(values, is_class) if order is None else order)
        best = max(best, area, 1 - area)
    return best


def _numbers(values: pa.Array) -> npt.NDArray[np.float64]:
    numbers = as_float64(values)
    return np.where(np.isnan(numbers), -np.inf, numbers)


def _means(values: pa.Array, label: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """For each row the mean label of the rows of its value in the other half; of all rows, where there are none."""
    codes = pc.dictionary_encode(values, null_encoding="encode").indices.to_numpy()
    count = int(codes.max(initial=0)) + 1
    half = np.arange(len(codes)) % 2
    found = np.full(len(codes), float(np.mean(label)))
    for each in (0, 1):
        rows = np.bincount(codes[half == each], minlength=count)
        sums = np.bincount(codes[half == each], np.asarray(label, np.float64)[half == each], count)
        there = (half != each) & (rows[codes] > 0)
        found[there] = sums[codes[there]] / rows[codes[there]]
    return found


def _ranks(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """The mean place of each value among all, from 0."""
    _, codes, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts + 1) / 2)[codes])


def rank_correlation(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
    """Spearman's coefficient without its sign; 0 where all values of one are the same."""
    one, other = (_ranks(values) - (len(values) - 1) / 2 for values in (one, other))
    norm = float(np.sqrt((one @ one) * (other @ other)))
    return abs(float(one @ other)) / norm if norm else 0.0
