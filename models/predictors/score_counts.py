"""How many rows, and how many positive ones, have each distinct score: what curves over thresholds are made of."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
Floats = npt.NDArray[np.floating[Any]]
Counts = npt.NDArray[np.signedinteger[Any]]

# So many distinct scores are gathered before they are added to the others, and so many, at most, are one chunk.
_MERGE_AFTER = 1 << 20
_CHUNK = 1 << 18


@dataclasses.dataclass(frozen=True)
class _Part:
    """Distinct scores, descending, with the rows and the positive rows of each."""

    scores: Floats
    rows: Counts
    positives: Counts

    def __len__(self) -> int:
        return len(self.scores)

    def cut(self, first: int, last: int) -> _Part:
        """Some of them, as a copy that keeps nothing else."""
        some = slice(first, last)
        return _Part(self.scores[some].copy(), self.rows[some].copy(), self.positives[some].copy())

    @staticmethod
    def joined(parts: Sequence[_Part], dtype: type[np.signedinteger[Any]]) -> _Part:
        """All of some parts, of which a score may be in several."""
        scores = np.concatenate([part.scores for part in parts])
        order = np.argsort(-scores, kind="stable")  # the parts are sorted, so that it merges
        scores = scores[order]
        starts = np.flatnonzero(np.append(True, scores[1:] != scores[:-1]))
        rows, positives = (
            np.add.reduceat(np.concatenate(each)[order], starts, dtype=dtype)
            for each in ([part.rows for part in parts], [part.positives for part in parts])
        )
        return _Part(scores[starts], rows, positives)


class ScoreCounts:
    """Takes rows part by part, and keeps none of them: what it holds grows with the number of distinct scores.

    They are held in chunks, each with scores below those of the one before, so that nothing takes a copy of all.
    """

    def __init__(self) -> None:
        self._chunks: list[_Part] = []
        self._new: list[_Part] = []
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
        self._new.append(_Part(score[starts], counts[0].astype(narrow), counts[1].astype(narrow)))
        self._gathered += len(starts)
        if self._gathered > _MERGE_AFTER:
            self._merge()

    def roc_auc(self) -> float:
        """The area under the ROC curve; see `models.predictors.evaluation.roc_auc`."""
        twice_area = true = 0
        for rows, positives in self._descending():
            found = true + np.cumsum(positives)
            twice_area += int(np.sum((rows - positives) * (2 * found - positives)))
            true = int(found[-1])
        return float(twice_area) / float(2 * true * (self.rows - true))

    def average_precision(self) -> float:
        """See `models.predictors.evaluation.average_precision`."""
        terms: list[Floats] = []  # added up as one array: the last bits do not depend on chunks
        true = seen = 0
        for rows, positives in self._descending():
            found, all_rows = true + np.cumsum(positives), seen + np.cumsum(rows)
            terms.append(np.multiply(positives, found / all_rows, dtype=np.float64))
            true, seen = int(found[-1]), int(all_rows[-1])
        return float(np.sum(np.concatenate(terms)) / true)

    def _descending(self) -> Iterator[tuple[Int64, Int64]]:
        """The rows and the positive rows of each distinct score, chunk by chunk."""
        self._merge()
        for chunk in self._chunks:
            yield chunk.rows.astype(np.int64), chunk.positives.astype(np.int64)

    def _merge(self) -> None:
        """Add what was gathered to the chunks that its scores fall into."""
        if not self._new:
            return
        wide = np.int32 if self.rows < 1 << 31 else np.int64
        new, self._new, self._gathered = _Part.joined(self._new, wide), [], 0
        highest = np.array([chunk.scores[0] for chunk in self._chunks[1:]])
        cuts = [0, *np.searchsorted(-new.scores, -highest).tolist(), len(new)] if self._chunks else [0, len(new)]
        old, self._chunks = self._chunks[::-1], []
        for first, last in itertools.pairwise(cuts):
            parts = [old.pop()] if old else []
            if last > first:
                parts = [_Part.joined([*parts, new.cut(first, last)], wide)]
            for whole in parts:
                pieces = -(-len(whole) // _CHUNK)
                bounds = [len(whole) * piece // pieces for piece in range(pieces + 1)]
                self._chunks += [whole] if pieces == 1 else [whole.cut(*pair) for pair in itertools.pairwise(bounds)]
