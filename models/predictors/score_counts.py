"""How many rows, and how many positive ones, have each distinct score: what curves over thresholds are made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
Floats = npt.NDArray[np.floating[Any]]
Counts = npt.NDArray[np.signedinteger[Any]]

# So many distinct scores are gathered before parts become one.
_MERGE_AFTER = 1 << 20
# Distinct scores, descending, with the rows and the positive rows of each.
_Part = tuple[Floats, Counts, Counts]


class ScoreCounts:
    """Takes rows part by part, and keeps none of them: what it holds grows with the number of distinct scores."""

    def __init__(self) -> None:
        self._parts: list[_Part] = []
        self._gathered = 0
        self.rows = self.positives = 0

    def add(self, label: Int64, score: Floats) -> None:
        """Labels 0 and 1, int64[n], and scores float32[n] or float64[n] without NaN, by scores, descending."""
        if not len(score):
            return
        self.rows += len(score)
        self.positives += int(label.sum())
        starts = np.flatnonzero(np.append(True, score[1:] != score[:-1]))
        counts = np.diff(np.append(starts, len(score))), np.add.reduceat(label, starts)
        narrow = np.int32 if len(score) < 1 << 31 else np.int64
        self._parts.append((score[starts], counts[0].astype(narrow), counts[1].astype(narrow)))
        self._gathered += len(starts)
        if len(self._parts) > 1 and self._gathered > _MERGE_AFTER + len(self._parts[0][0]):
            self._merge()

    def roc_auc(self) -> float:
        """The area under the ROC curve; see `models.predictors.evaluation.roc_auc`."""
        rows, positives = self._counts()
        true, false = np.cumsum(positives), rows - positives
        twice_area = np.sum(false * (2 * true - positives))
        return float(twice_area) / float(2 * true[-1] * false.sum())

    def average_precision(self) -> float:
        """See `models.predictors.evaluation.average_precision`."""
        rows, positives = self._counts()
        true = np.cumsum(positives)
        return float(np.sum(positives * (true / np.cumsum(rows))) / true[-1])

    def _counts(self) -> tuple[Int64, Int64]:
        self._merge()
        _, rows, positives = self._parts[0]
        return rows.astype(np.int64), positives.astype(np.int64)

    def _merge(self) -> None:
        if len(self._parts) > 1:
            scores, rows, positives = (np.concatenate(each) for each in zip(*self._parts, strict=True))
            order = np.argsort(-scores, kind="stable")
            scores = scores[order]
            starts = np.flatnonzero(np.append(True, scores[1:] != scores[:-1]))
            wide = np.int32 if self.rows < 1 << 31 else np.int64
            rows, positives = (np.add.reduceat(each[order], starts, dtype=wide) for each in (rows, positives))
            self._parts = [(scores[starts], rows, positives)]
        self._gathered = 0
