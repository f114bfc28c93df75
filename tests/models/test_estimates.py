"""Estimates without labels: those of NannyML, those of the rows one by one, and how far they are from what comes."""

import json
import math

import numpy as np
import pytest

from models.predictors.evaluation import average_precision, roc_auc
from models.predictors.measures import measure_classes, measure_numbers
from models.quality.calibration import Calibration, CalibrationError, calibrate_scores
from models.quality.estimates import (
    SCALE_BITS,
    confusion,
    estimate_binary,
    estimate_classes,
    estimate_errors,
    harmonic,
)
from models.quality.expectations import class_shares
from tests.kit.estimated import OF_KIND, calibrated, draw
from tests.kit.support import ROOT

NANNYML = json.loads((ROOT / "tests" / "kit" / "nannyml" / "estimates.json").read_text())
KINDS = list(OF_KIND)
FIGURES = {"binary": ("roc_auc", "average_precision", "positives"), "multiclass": ("accuracy", "macro_f1")}


def estimate(kind, outputs, calibration):
    """The estimates of rows, by name, of the mean squared error its root."""
    if kind == "multiclass":
        shares = np.rint(np.ldexp(class_shares(outputs, calibration), SCALE_BITS)).astype(np.int64)
        table = confusion(shares, outputs.argmax(axis=1), np.ones(len(outputs), np.int64))
        return estimate_classes(*table, calibration.rows)
    steps = calibration.steps[0]
    counted = np.bincount(steps.places(outputs), minlength=len(steps.rows)).astype(float)
    there = counted > 0
    n, expected, variance = counted[there], steps.expected[there], steps.variance[there]
    support = steps.rows[there].astype(float)
    if kind == "binary":
        return estimate_binary(n, expected[:, 0], variance[:, 0], support)
    return estimate_errors(n, expected, variance, support)


def realised(kind, label, outputs):
    if kind == "binary":
        figures = roc_auc(label, outputs), average_precision(label, outputs), float(label.sum())
        return dict(zip(FIGURES["binary"], figures, strict=True))
    if kind == "multiclass":
        return {name: measure_classes(label, outputs).values[name] for name in FIGURES[kind]}
    figures = measure_numbers(label, outputs).values
    return {"mae": figures["mae"], "mse": figures["rmse"] ** 2}


@pytest.mark.parametrize("kind", KINDS)
def test_estimates_are_those_of_nannyml(kind):
    """Of scores that the reference has: between them NannyML draws lines, where here are steps."""

    def rows_of(counted):
        table = np.array(counted)
        return np.repeat(table[:, :-1], table[:, -1].astype(int), axis=0)

    told = NANNYML[kind]
    reference = rows_of(told["reference"])
    outputs = np.squeeze(reference[:, :-1]).astype(np.float32)
    label = reference[:, -1] if kind == "regression" else reference[:, -1].astype(np.int64)
    calibration = calibrate_scores(label, outputs, OF_KIND[kind])
    for window in told["windows"]:
        found = estimate(kind, np.squeeze(rows_of(window["rows"])).astype(np.float32), calibration)
        figures = {name: figure for name, (figure, _) in found.items()} | {"rmse": math.sqrt(found.get("mse", [0])[0])}
        for name in window.keys() - {"rows"}:
            assert figures[name] == pytest.approx(window[name], abs=1e-8)


@pytest.mark.parametrize("seed", range(5))
def test_sums_over_steps_are_those_over_rows(seed):
    """Each row counts as positive by its step's share."""
    calibration, (_, scores) = calibrated(), draw("binary", 500, seed)
    found = estimate("binary", scores, calibration)
    scores = np.sort(scores)[::-1]
    steps = calibration.steps[0]
    share = steps.expected[steps.places(scores), 0]
    precision = np.cumsum(share) / np.arange(1, len(share) + 1)
    assert found["average_precision"][0] == pytest.approx((share * precision).sum() / share.sum(), abs=1e-12)
    place = steps.places(scores)
    higher = (place[:, None] > place[None, :]) + (place[:, None] == place[None, :]) / 2
    pairs = (share[:, None] * (1 - share)[None, :] * higher).sum()
    assert found["roc_auc"][0] == pytest.approx(pairs / (share.sum() * (1 - share).sum()), abs=1e-12)
    assert found["positives"][0] == pytest.approx(share.sum(), abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_the_standard_error_is_how_far_estimates_are_off(kind):
    """Of windows and baselines drawn anew: the mean square of (realised - estimate) / error is about 1."""
    off = {}
    for seed in range(150):
        label, outputs = draw(kind, 1500, 1000 + seed)
        found = estimate(kind, outputs, calibrated(kind, 3000, seed))
        for name, figure in realised(kind, label, outputs).items():
            off.setdefault(name, []).append((figure - found[name][0]) / found[name][1])
    for name, values in off.items():
        spread = math.sqrt(np.mean(np.square(values)))
        assert 0.75 < spread < 1.25, name
        assert np.mean(np.abs(values) <= 3) >= 0.98, name


def test_what_the_labels_do_is_not_seen():
    """Concept drift: scores are as they were, labels are not."""
    label, scores = draw("binary", 5000, 1)
    figure, error = estimate("binary", scores, calibrated())["roc_auc"]
    assert abs(roc_auc(label, scores) - figure) < 3 * error
    assert abs(roc_auc(1 - label, scores) - figure) > 10 * error


def test_other_scores_are_seen():
    """Less certain scores: the estimate falls, and so does what is realised."""
    label, scores = draw("binary", 20000, 1)
    calibration = calibrated(rows=20000)
    unsure = (scores > 0.1) & (scores < 0.3)
    whole, some = (estimate("binary", of, calibration)["roc_auc"][0] for of in (scores, scores[unsure]))
    assert some < whole - 0.1
    assert roc_auc(label[unsure], scores[unsure]) == pytest.approx(some, abs=0.05)


def test_steps_without_positives_or_others_have_no_area():
    one = np.ones(1)
    for share in (0.0, 1.0):
        found = estimate_binary(5 * one, share * one, one / 100, one)
        assert set(found) == {"positives"}
        assert found["positives"][0] == 5 * share


def test_harmonic_numbers():
    numbers = np.array([0, 1, 2, 31, 32, 33, 1000, 10**6])
    exact = [math.fsum(1 / r for r in range(1, n + 1)) for n in numbers]
    assert harmonic(numbers.astype(float)) == pytest.approx(exact, abs=2e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_a_baseline_does_not_matter(kind):
    label, outputs = draw(kind, 1000, 3)
    order = np.random.default_rng(0).permutation(1000)
    one, two = (calibrate_scores(label[rows], outputs[rows], OF_KIND[kind]) for rows in (np.arange(1000), order))
    assert one.to_json() == two.to_json()
    again = Calibration.from_json(one.to_json())
    assert again.to_json() == one.to_json()
    assert again.fits(OF_KIND[kind])
    assert not again.fits(OF_KIND["binary" if kind != "binary" else "regression"])


def test_too_few_labels_make_no_calibration():
    label, scores = draw("binary", 5000, 3)
    positive = np.flatnonzero(label == 1)
    others = np.flatnonzero(label == 0)
    for rows in (np.arange(99), np.append(others, positive[:9]), np.append(positive[:95], others[:9])):
        assert calibrate_scores(label[rows], scores[rows], OF_KIND["binary"]) is None
    amounts = np.append(np.full(50, 1e300), np.arange(99.0))
    assert calibrate_scores(amounts, scores[:149], OF_KIND["regression"]) is None
    assert calibrate_scores(np.append(amounts, 5.0), scores[:150], OF_KIND["regression"]).rows == 100
    assert calibrate_scores(label, np.where(label == 1, np.nan, scores), OF_KIND["binary"]) is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"format":1', b'"format":2'),
        (b'"kind":"binary"', b'"kind":"quantile"'),
        (b'"kind":"binary"', b'"kind":"regression"'),
        (b'"cuts":[', b'"cuts":[2.0,'),
        (b'"cuts":[', b'"cuts":[NaN,'),
        (b'"expected":[[', b'"expected":[[-1'),
        (b'"expected":[[', b'"expected":[[1'),
        (b'"variance":[[', b'"variance":[["a",'),
        (b'"rows":[', b'"rows":[0.5,'),
        (b"}\n", b""),
        (b"{", b"[" * 5000 + b"{"),
        (b"{", b" " * (4 << 20) + b"{"),
    ],
)
def test_what_is_no_calibration_is_refused(old, new):
    content = calibrated().to_json()
    assert old in content
    with pytest.raises(CalibrationError):
        Calibration.from_json(content.replace(old, new, 1))
