"""Inputs that alone tell the label are found, and others are not."""

import types

import numpy as np
import pyarrow as pa
import pytest

from models.predictors.leaks import find_leaks, rank_correlation

ROWS = 2000
RANDOM = np.random.default_rng(5)
NOISE = RANDOM.normal(size=ROWS)


def project(inputs, kind="binary", categories=()):
    return types.SimpleNamespace(
        model=types.SimpleNamespace(inputs=list(inputs)),
        target=types.SimpleNamespace(kind=kind),
        categories=dict.fromkeys(categories),
    )


def found(columns, label, kind="binary", categories=()):
    batch = pa.RecordBatch.from_pydict(columns)
    return {leak.name: leak.figure for leak in find_leaks(batch, label, project(columns, kind, categories))}


@pytest.fixture
def label():
    return (RANDOM.random(ROWS) < 0.05).astype(np.int64)


def test_numbers_that_tell_a_label_whichever_way_they_run(label):
    columns = {
        "same": label + 0.1 * RANDOM.random(ROWS),
        "reverse": -label.astype(np.float64),
        "noise": NOISE,
        "good": label + NOISE,  # no leak: a feature as good as one may be
    }
    assert found(columns, label) == {"same": 1.0, "reverse": 1.0}


def test_a_number_that_is_missing_where_there_is_nothing_to_tell(label):
    late = pa.array([7.0 if each else None for each in label])
    assert found({"closed_by": late, "noise": NOISE}, label) == {"closed_by": 1.0}


def test_names_that_tell_a_label_and_not_those_that_are_seen_once(label):
    columns = {
        "outcome": pa.array([["refunded", None][each] for each in label]),
        "id": pa.array([f"n{n}" for n in range(ROWS)]),
        "any": pa.array([f"n{n % 7}" for n in range(ROWS)]),
    }
    assert found(columns, label, categories=columns) == {"outcome": 1.0}


def test_one_of_several_classes():
    classes = np.arange(ROWS) % 3
    assert found({"one": np.where(classes == 1, 1.0, NOISE / 100), "noise": NOISE}, classes, "multiclass") == {
        "one": 1.0
    }


def test_numbers_by_their_ranks():
    label = RANDOM.exponential(size=ROWS)
    columns = {"log": -np.log(label), "near": label + 0.0001 * NOISE, "half": label + NOISE}
    assert found(columns, label, "regression") == pytest.approx({"log": 1.0, "near": 1.0}, abs=1e-4)


def test_a_few_rows_tell_nothing(label):
    assert found({"same": label[:50]}, label[:50]) == {}
    few = np.zeros(ROWS, np.int64)
    few[:9] = 1
    assert found({"same": few}, few) == {}


def test_the_order_of_rows_changes_no_area(label):
    columns = {"same": label + 0.99 * RANDOM.random(ROWS)}
    order = RANDOM.permutation(ROWS)
    assert found(columns, label) == found({"same": columns["same"][order]}, label[order])


@pytest.mark.parametrize("values", [NOISE, np.round(NOISE), -np.arange(ROWS), np.arange(ROWS) // 7])
def test_the_rank_correlation_is_scipys(values):
    spearmanr = pytest.importorskip("scipy.stats").spearmanr
    other = np.arange(ROWS) * 10**9
    assert rank_correlation(values, other) == pytest.approx(abs(spearmanr(values, other).statistic), abs=1e-12)
