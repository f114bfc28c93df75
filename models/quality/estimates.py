"""Estimates: how good scores are to be expected to be, before any label is known.

Confidence-based performance estimation of probabilities, and direct loss estimation of numbers, as NannyML describes
them: each row counts with what a calibration (models.quality.calibration) expects of it. What is counted are rows by
step, and of classes sums of whole numbers, so neither order nor parts change a bit. An interval is
three standard errors to either side, of two independent errors: of the labels that rows of these scores happen to get,
and of the calibration, which was learned from so many rows. By the delta method: with g the derivative of the figure by
one label, v a label's variance, n a step's rows and m those that it was learned from, it is sum g^2 v n (1 + n/m).

All of it holds as long as scores mean what they did. That they do not, concept drift, is what no estimate can see.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from models.predictors.measures import exact_log, exact_sum

SCALE_BITS = 40  # of shares of classes that are added up
Floats = npt.NDArray[np.float64]
Estimate = tuple[float, float]  # a figure and its standard error

_GAMMA = 0.5772156649015329
_HARMONIC_TABLE = 32
_LOW_BITS = 20


def estimate_binary(n: Floats, share: Floats, variance: Floats, support: Floats) -> dict[str, Estimate]:
    """Estimates of rows counted by steps.

    ROC AUC is P(score of a positive > of a negative) of expected positives and negatives, ties counting half; average
    precision the sum over rows, descending, of precision times the gain in recall. Both are NannyML's, row by row; that
    rows of a step have one share makes their sums closed: precision over a step is a sum of 1/rank.

    Args:
        n: [k] rows of each step, above 0.
        share: [k] expected share of positives of each step, ascending as its scores do.
        variance: [k] of a row's label.
        support: [k] rows that the step's share was learned from.
    """
    positive, negative = n * share, n - n * share
    positives, negatives = exact_sum(positive), exact_sum(negative)
    spread = variance * n * (1 + n / support)
    found = {"positives": (positives, math.sqrt(exact_sum(spread)))}
    if positives <= 0 or negatives <= 0:
        return found
    below, above = np.cumsum(negative) - negative / 2, positives - np.cumsum(positive) + positive / 2
    area = exact_sum(positive * below) / (positives * negatives)
    slope = (below - above - area * (negatives - positives)) / (positives * negatives)
    found["roc_auc"] = area, math.sqrt(exact_sum(slope * slope * spread))
    found["average_precision"] = _estimate_precision(n[::-1], share[::-1], positives, spread[::-1])
    return found


def _estimate_precision(n: Floats, share: Floats, positives: float, spread: Floats) -> Estimate:
    """Average precision of steps, descending."""
    last = np.cumsum(n)
    before, positive = last - n, n * share
    ranks = np.diff(harmonic(np.append(0.0, last)))  # the sum of 1/rank over a step
    found_before = np.cumsum(positive) - positive
    precision = positive + (found_before - before * share) * ranks  # summed over the rows of a step
    average = exact_sum(share * precision) / positives
    # By one label: its own precision, the ranks that it moves, and what it adds to the positives.
    moved = share * ranks
    later = np.cumsum(moved[::-1])[::-1] - moved
    within = share * (1 - before * ranks / n)
    slope = (precision / n + within + later - average) / positives
    return average, math.sqrt(exact_sum(slope * slope * spread))


def confusion(
    sums: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]
) -> tuple[Floats, Floats]:
    """Expected rows by true and predicted class, float64[o, o], and rows by predicted class, [o].

    Args:
        sums: [n, o] of shares in units of 2**-SCALE_BITS.
        predicted: [n] classes.
        rows: [n]; those of 0 rows count nothing.
    """
    classes = sums.shape[1]
    sums = np.where(rows[:, np.newaxis] > 0, sums, 0)
    halves = np.zeros((2, classes, classes), np.int64)
    np.add.at(halves[0], predicted, sums >> _LOW_BITS)
    np.add.at(halves[1], predicted, sums & ((1 << _LOW_BITS) - 1))
    whole = np.ldexp(halves[0].astype(np.float64), _LOW_BITS) + halves[1]
    counted = np.zeros(classes, np.int64)
    np.add.at(counted, predicted, rows)
    return np.ldexp(whole, -SCALE_BITS).T, counted.astype(np.float64)


def estimate_classes(table: Floats, predicted: Floats, support: int) -> dict[str, Estimate]:
    """Accuracy and macro F1 of `confusion`, as models.predictors.measures has them.

    The variance is that of labels drawn by the mean shares of the rows that are predicted the same, which is no less
    than that of each row's own.

    Args:
        table: [o, o] expected rows by true and predicted class.
        predicted: [o] rows by predicted class.
        support: rows that the calibration was learned from.
    """
    rows, right = exact_sum(predicted), np.diag(table)
    true = np.array([exact_sum(each) for each in table])
    both = true + predicted
    there = both > 0
    f1 = np.divide(2 * right, both, out=np.zeros_like(right), where=there)
    number = int(there.sum())
    moved = np.divide(f1, both, out=np.zeros_like(f1), where=there)
    hit = np.divide(2.0, both, out=np.zeros_like(f1), where=there)
    of_f1 = (np.diag(hit) - moved[:, np.newaxis]) / number
    slopes = {"accuracy": np.eye(len(right)) / rows, "macro_f1": of_f1}
    figures = {"accuracy": exact_sum(right) / rows, "macro_f1": exact_sum(f1) / number}
    shares = np.divide(table, predicted, out=np.zeros_like(table), where=predicted > 0)
    found = {}
    for name, slope in slopes.items():
        terms = []
        for place in np.flatnonzero(predicted):
            share, by = shares[:, place], slope[:, place]
            mean = exact_sum(share * by)
            terms.append(float(predicted[place]) * max(exact_sum(share * by * by) - mean * mean, 0.0))
        found[name] = figures[name], math.sqrt(math.fsum(terms) * (1 + rows / support))
    return found


def estimate_errors(n: Floats, expected: Floats, variance: Floats, support: Floats) -> dict[str, Estimate]:
    """Mean absolute error, and root of the mean squared error, whose standard error is that of the mean square.

    Args:
        n: [k] rows of each step, above 0.
        expected: [k, 2] absolute and squared error of a row.
        variance: [k, 2] of them.
        support: [k] rows that the step was learned from.
    """
    rows = exact_sum(n)
    means = [exact_sum(n * expected[:, place]) / rows for place in (0, 1)]
    errors = [math.sqrt(exact_sum(variance[:, place] * n * (1 + n / support))) / rows for place in (0, 1)]
    return {"mae": (means[0], errors[0]), "mse": (means[1], errors[1])}


def harmonic(numbers: Floats) -> Floats:
    """The sum of 1/r for r from 1 to n, of whole numbers n float64[k] from 0, the same bits on every machine.

    Above 32 by Euler and Maclaurin, log n + gamma + 1/2n - 1/12n^2 + 1/120n^4 - 1/252n^6, with an error below 1e-14.
    """
    table = np.append(0.0, np.cumsum(1 / np.arange(1, _HARMONIC_TABLE + 1)))
    n = np.maximum(numbers, _HARMONIC_TABLE)
    square = 1 / (n * n)
    series = exact_log(n) + _GAMMA + 1 / (2 * n) - square * (1 / 12 - square * (1 / 120 - square / 252))
    small = np.minimum(numbers, _HARMONIC_TABLE).astype(np.int64)
    return np.where(numbers <= _HARMONIC_TABLE, table[small], series)
