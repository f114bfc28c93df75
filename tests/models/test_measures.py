"""The figures of models.predictors.measures against scikit-learn, in any order of the rows."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings

from models.predictors.evaluation import EvaluationError
from models.predictors.measures import (
    calibrate,
    calibration_error,
    evaluate_target,
    exact_log,
    log_loss,
    measure_classes,
    measure_numbers,
    measure_quantiles,
)
from models.project.targets import Target

pytestmark = [pytest.mark.both_sets, pytest.mark.core_set]

CLASSES = Target(kind="multiclass")


def classes(rows=500, seed=0, number=4):
    random = np.random.default_rng(seed)
    outputs = random.dirichlet(np.ones(number), rows).astype(np.float32)
    outputs[::7] = np.eye(number, dtype=np.float32)[random.integers(0, number, len(outputs[::7]))]  # sure, often wrong
    return random.integers(0, number - 1, rows), outputs  # one class never comes


def test_classes_are_measured_as_scikit_learn_does():
    label, outputs = classes()
    found = measure_classes(label, outputs)
    predicted = outputs.argmax(axis=1)
    assert found.values["log_loss"] == pytest.approx(sk.log_loss(label, outputs, labels=range(4)), rel=1e-6)
    assert found.values["accuracy"] == sk.accuracy_score(label, predicted)
    assert found.values["macro_f1"] == pytest.approx(sk.f1_score(label, predicted, average="macro"), abs=1e-12)
    assert np.array_equal(found.confusion, sk.confusion_matrix(label, predicted, labels=range(4)))


def test_binary_log_loss_is_scikit_learns():
    random = np.random.default_rng(1)
    label, score = random.integers(0, 2, 300), random.random(300).astype(np.float32)
    assert log_loss(label, score) == pytest.approx(sk.log_loss(label, score), rel=1e-6)


def test_numbers_are_measured_as_scikit_learn_does():
    random = np.random.default_rng(2)
    label = random.normal(1e6, 3, 400)
    outputs = (label + random.normal(0, 1, 400)).astype(np.float32)
    found = measure_numbers(label, outputs).values
    assert found["mae"] == pytest.approx(sk.mean_absolute_error(label, outputs.astype(float)), rel=1e-12)
    assert found["rmse"] == pytest.approx(sk.root_mean_squared_error(label, outputs.astype(float)), rel=1e-12)
    assert found["r2"] == pytest.approx(sk.r2_score(label, outputs.astype(float)), rel=1e-9)
    assert measure_numbers(np.ones(3), np.ones(3, np.float32)).values == {"mae": 0, "rmse": 0, "r2": None}


@pytest.mark.parametrize("quantiles", [[0.5], [0.1, 0.5, 0.9]])
def test_quantiles_are_measured_as_scikit_learn_does(quantiles):
    random = np.random.default_rng(3)
    label = random.normal(size=400)
    outputs = np.quantile(label, quantiles) + random.normal(0, 0.1, (400, len(quantiles)))
    outputs = (outputs if len(quantiles) > 1 else outputs[:, 0]).astype(np.float32)
    found = measure_quantiles(label, outputs, quantiles).values
    for place, quantile in enumerate(quantiles):
        said = outputs.reshape(400, -1)[:, place].astype(float)
        wanted = sk.mean_pinball_loss(label, said, alpha=quantile)
        assert found[f"pinball_{quantile:g}"] == pytest.approx(wanted, rel=1e-12)
        assert found[f"coverage_{quantile:g}"] == np.mean(label <= said)
        assert abs(found[f"coverage_{quantile:g}"] - quantile) < 0.1


@pytest.mark.parametrize("target", [CLASSES, Target(kind="regression"), Target(kind="quantile", quantiles=[0.2, 0.8])])
def test_no_figure_depends_on_the_order_of_the_rows(target):
    label, outputs = classes()
    outputs = {"multiclass": outputs, "regression": outputs[:, 0] * 1e7, "quantile": outputs[:, :2]}[target.kind]
    values = np.array(["a", "b", None, "ä"], object)[label * 7 % 4]
    found = evaluate_target(label, outputs, target, {"x": values})
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(label))
        assert evaluate_target(label[order], outputs[order], target, {"x": values[order]}).as_dict() == found.as_dict()
    for value, figures in found.slices["x"].items():
        rows = np.flatnonzero(values == (None if value == "null" else value))
        assert figures.as_dict() == evaluate_target(label[rows], outputs[rows], target).overall.as_dict()
    assert sum(figures.rows for figures in found.slices["x"].values()) == len(label)


def test_what_can_not_be_measured_is_refused():
    label, outputs = classes(20)
    with pytest.raises(ValueError, match="one label for each row"):
        evaluate_target(label[1:], outputs, CLASSES)
    with pytest.raises(ValueError, match="must be finite"):
        evaluate_target(label, np.where(outputs > 0.5, np.float32(np.nan), outputs), CLASSES)
    with pytest.raises(EvaluationError, match="slice x has 1001 values"):
        evaluate_target(np.zeros(1001), np.zeros(1001, np.float32), Target(kind="count"), {"x": np.arange(1001)})
    for target in (CLASSES, Target(kind="count"), Target(kind="quantile", quantiles=[0.5])):
        nothing = evaluate_target(label[:0], outputs[:0], target).overall
        assert evaluate_target(label[:0], outputs[:0], target, {"x": np.array([], object)}).slices == {"x": {}}
        assert nothing.rows == 0
        assert set(nothing.figures().values()) == {None}


def test_calibration_is_that_of_each_bin():
    score = np.float32([0.0, 0.05, 0.1, 0.95, 1.0, 1.0])
    right = np.array([0, 1, 0, 1, 1, 0])
    first, second, last = calibrate(right, score)
    assert (first.start, first.end, first.rows, first.share) == (0, 0.1, 2, 0.5)
    assert (second.start, second.rows, second.share) == (0.1, 1, 0)
    assert (last.end, last.rows, last.share) == (1, 3, 2 / 3)
    assert last.mean_score == pytest.approx((0.95 + 1 + 1) / 3)
    gaps = [abs(bin.mean_score - bin.share) * bin.rows for bin in (first, second, last)]
    assert calibration_error(right, score) == pytest.approx(sum(gaps) / 6)
    random = np.random.default_rng(0)
    said = random.random(20_000).astype(np.float32)
    assert calibration_error(random.random(20_000) < said, said) < 0.02
    assert calibration_error(random.random(20_000) < said / 2, said) > 0.2


@settings(deadline=None)
@given(st.floats(1e-300, 1e300))
def test_logarithms_are_right(value):
    assert exact_log(np.array([value]))[0] == pytest.approx(math.log(value), rel=4e-16, abs=1e-16)
