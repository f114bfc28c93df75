"""AUC and average precision of rows that stand for several: as `models.predictors.evaluation` has them, by weight.

Weights are whole numbers, of any unit. The area is a sum of Python's integers with one division at the end, average
precision one exact sum: neither the order of the rows nor the machine changes a bit of a figure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from models.predictors.evaluation import Evaluation, Metrics, slice_name, slice_values
from models.predictors.measures import exact_sum

Int64 = npt.NDArray[np.int64]


def evaluate_weighted(label: Int64, score: npt.NDArray[Any], weight: Int64, slices: Mapping[str, Any]) -> Evaluation:
    """As `models.predictors.evaluation.evaluate`, of rows that count by their weights; of weight 0 not at all."""
    there = weight > 0

    def measure(rows: npt.NDArray[Any]) -> Metrics:
        figures = weighted_figures(label[rows], score[rows], weight[rows])
        return Metrics(len(rows), int(label[rows].sum()), figures["roc_auc"], figures["average_precision"])

    by_column: dict[str, dict[str, Metrics]] = {}
    for name, values in slices.items():
        names, codes = slice_values(name, np.asarray(values), label.shape)
        parts = (np.flatnonzero((codes == place) & there) for place in range(len(names)))
        by_column[name] = dict(zip(map(slice_name, names), map(measure, parts), strict=True))
    return Evaluation(measure(np.flatnonzero(there)), by_column)


def weighted_figures(label: Int64, score: npt.NDArray[Any], weight: Int64) -> dict[str, float | None]:
    """`roc_auc` and `average_precision`, None where a class is absent.

    Args:
        label: int64[n], 0 and 1.
        score: [n] real numbers without NaN; higher is more likely positive.
        weight: int64[n], 0 or more; all together below 2**63.
    """
    order = np.argsort(-score, kind="stable")
    label, score, weight = label[order], score[order], weight[order]
    starts = np.flatnonzero(np.append(True, score[1:] != score[:-1]))
    if not (weight * label).any() or not (weight * (1 - label)).any():
        return {"roc_auc": None, "average_precision": None}
    rows, positives = np.add.reduceat(weight, starts), np.add.reduceat(weight * label, starts)
    there = rows > 0
    rows, positives = rows[there], positives[there]
    true, false = np.cumsum(positives), rows - positives
    # Products of sums of weights need more than 64 bits.
    twice_area = int(np.dot(false.astype(object), 2 * true.astype(object) - positives))
    area = twice_area / (2 * int(true[-1]) * int(false.sum()))
    precision = exact_sum(positives * (true / np.cumsum(rows))) / int(true[-1])
    return {"roc_auc": area, "average_precision": precision}
