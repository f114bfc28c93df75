"""Isolation forests in xgboost's form against scikit-learn's own."""

import numpy as np
import pytest
from sklearn.ensemble import IsolationForest

from models.predictors.booster import predict
from models.predictors.forest import fit_forest
from models.predictors.training import TrainingError, model_bytes

pytestmark = [pytest.mark.both_sets, pytest.mark.core_set]

NAMES = list("abcde")


def make_rows(number=3000, seed=0):
    random = np.random.default_rng(seed)
    rows = random.normal(size=(number, 5)).astype(np.float32)
    rows[:, 1] = random.integers(0, 3, number)  # cuts between values that many rows have
    rows[random.random(rows.shape) < 0.05] = np.nan
    rows[:30] *= 6
    return rows


@pytest.mark.parametrize("params", [{}, {"n_estimators": 20, "max_samples": 50, "seed": 3}, {"max_samples": 5000}])
def test_scores_are_scikit_learns(params):
    rows = make_rows()
    booster = fit_forest(rows, params, NAMES)
    settings = {"n_estimators": 100, "random_state": params.get("seed", 0), **params}
    settings.pop("seed", None)
    settings["max_samples"] = min(settings.get("max_samples", 256), len(rows))
    theirs = IsolationForest(**settings).fit(rows)
    unseen = np.concatenate([rows, make_rows(500, 1) * 3])
    scores, wanted = predict(booster, unseen), -theirs.score_samples(unseen)
    np.testing.assert_allclose(scores, wanted, rtol=2e-6)
    assert scores[:30].mean() > scores[30:3000].mean() + 0.1


def test_cuts_at_the_very_values_go_the_same_way():
    rows = np.repeat(np.float32([[0.1, 0, 0, 0, 0], [0.2, 0, 0, 0, 0], [0.3, 1, 0, 0, 0]]), 20, axis=0)
    booster, theirs = fit_forest(rows, {"seed": 1}, NAMES), IsolationForest(max_samples=60, random_state=1).fit(rows)
    cuts = np.unique([t for each in theirs.estimators_ for t in each.tree_.threshold[each.tree_.feature == 0]])
    near = cuts.astype(np.float32)
    around = np.concatenate([near, np.nextafter(near, np.float32(1)), np.nextafter(near, np.float32(0))])
    probe = np.zeros((len(around), 5), np.float32)
    probe[:, 0] = around
    np.testing.assert_allclose(predict(booster, probe), -theirs.score_samples(probe), rtol=2e-6)


def test_a_rows_bits_do_not_depend_on_others_and_bytes_not_on_chance():
    rows = make_rows()
    booster = fit_forest(rows, {}, NAMES)
    whole = predict(booster, rows)
    for size in (1, 3, 7):
        parts = [predict(booster, rows[start : start + size]) for start in range(0, 210, size)]
        assert np.concatenate(parts).tobytes() == whole[:210].tobytes()
    order = np.random.default_rng(5).permutation(len(rows))
    assert predict(booster, rows[order]).tobytes() == whole[order].tobytes()
    assert model_bytes(fit_forest(rows, {}, NAMES)) == model_bytes(booster)
    assert model_bytes(fit_forest(rows, {"seed": 1}, NAMES)) != model_bytes(booster)


def test_what_no_forest_can_be_grown_of_is_refused():
    with pytest.raises(TrainingError, match="model parameter max_depth has no effect with an anomaly target"):
        fit_forest(make_rows(), {"max_depth": 3}, NAMES)
    with pytest.raises(TrainingError, match="1 events are too few"):
        fit_forest(make_rows()[:1], {}, NAMES)
