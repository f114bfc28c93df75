"""The split by time against plain sets, and fitting against xgboost's scikit-learn interface."""

import hypothesis.strategies as st
import numpy as np
import pytest
import xgboost
from hypothesis import given

from models.predictors.booster import predict
from models.predictors.training import DAY_US, TrainingError, fit, golden, model_bytes, split_by_time
from models.project.parameters import PARAMETERS, Choice, Number, Whole, find_parameter_faults

START = 17_000 * DAY_US
NAMES = ["amount", "night", "count", "risk"]


def split_by_sets(day, group, label, train, delay, test):
    """The same split a row at a time; days count from the start."""
    rows = [(int(d), g, y) for d, g, y in zip(day, group, label, strict=True)]
    training = [i for i, (d, _, y) in enumerate(rows) if 0 <= d < train and y >= 0]
    known = {rows[i][1] for i in training if rows[i][2] == 1}
    testing = []
    for today in range(test):
        known |= {g for d, g, y in rows if d == train + today - 1 and y == 1}
        testing += [i for i, (d, g, y) in enumerate(rows) if d == train + delay + today and y >= 0 and g not in known]
    return training, sorted(testing)


@given(
    st.lists(
        st.tuples(st.integers(-2, 10), st.integers(0, DAY_US - 1), st.integers(0, 5), st.integers(-1, 1)),
        max_size=80,
    ),
    st.integers(1, 3),
    st.integers(0, 3),
    st.integers(1, 4),
)
def test_split_is_the_handbooks(rows, train, delay, test):
    day, within, group, label = np.array(rows, dtype=np.int64).reshape(-1, 4).T
    spans = {"train_us": train * DAY_US, "delay_us": delay * DAY_US, "test_us": test * DAY_US}
    names = np.array([f"card {g}" for g in group], dtype=str)
    found = split_by_time(START + day * DAY_US + within, names, label, start_us=START, **spans)
    expected = split_by_sets(day, group, label, train, delay, test)
    assert [part.tolist() for part in found] == list(expected)


def test_a_group_leaves_the_test_when_its_fraud_is_known():
    day = np.array([0, 1, 2, 3, 4, 4, 5])
    label = np.array([0, 0, 1, 1, 0, 0, 0])
    group = np.array([1, 1, 2, 3, 2, 3, 3])
    spans = {"start_us": START, "train_us": 2 * DAY_US, "delay_us": 2 * DAY_US, "test_us": 3 * DAY_US}
    train, test = split_by_time(START + day * DAY_US, group, label, **spans)
    assert train.tolist() == [0, 1]
    # Group 2's fraud of day 2 is known from day 5, group 3's of day 3 from day 6: both still count on day 4.
    assert test.tolist() == [4, 5, 6]
    label[1] = 1
    assert split_by_time(START + day * DAY_US, np.ones(7, int), label, **spans)[1].tolist() == []
    assert split_by_time(START + day * DAY_US, None, label, **spans)[1].tolist() == [4, 5, 6]


def test_split_names_its_faults():
    one, spans = np.zeros(1, np.int64), {"start_us": 0, "train_us": DAY_US, "delay_us": 0, "test_us": DAY_US}
    with pytest.raises(ValueError, match="train is 3600000000 µs: whole days"):
        split_by_time(one, one, one, **{**spans, "train_us": 3_600_000_000})
    with pytest.raises(ValueError, match="test is 0 µs"):
        split_by_time(one, one, one, **{**spans, "test_us": 0})
    with pytest.raises(ValueError, match="differ in length"):
        split_by_time(one, np.zeros(2), one, **spans)
    with pytest.raises(ValueError, match="1, 0, or -1"):
        split_by_time(one, one, one + 2, **spans)


@pytest.fixture(scope="module")
def rows():
    random = np.random.default_rng(7)
    features = random.normal(size=(800, 4)).astype(np.float32)
    features[random.random(features.shape) < 0.05] = np.nan
    chance = 1 / (1 + np.exp(3 - 2 * np.nan_to_num(features[:, 0]) - np.nan_to_num(features[:, 3])))
    return features, (random.random(800) < chance).astype(np.int8)


def test_same_rows_give_the_same_bytes_on_any_number_of_threads(rows):
    params = {"n_estimators": 5, "max_depth": 3, "subsample": 0.5}
    one, again, two = (model_bytes(fit(*rows, params, feature_names=NAMES, seed=1, nthread=n)) for n in (1, 1, 2))
    assert one == again == two
    assert one != model_bytes(fit(*rows, params, feature_names=NAMES, seed=2))
    assert one == model_bytes(fit(*rows, {**params, "seed": 1}, feature_names=NAMES))


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"n_estimators": 7, "max_depth": 3, "learning_rate": 0.1, "reg_lambda": 2.0, "max_bin": 16},
        {"n_estimators": 7, "scale_pos_weight": 5, "colsample_bytree": 0.5, "min_child_weight": 2},
    ],
)
def test_scores_are_those_of_xgbclassifier(rows, params):
    features, label = rows
    expected = xgboost.XGBClassifier(random_state=0, n_jobs=1, **params).fit(features, label)
    booster = fit(features, label, params, feature_names=NAMES)
    assert booster.feature_names == NAMES
    assert predict(booster, features).tobytes() == expected.predict_proba(features)[:, 1].tobytes()


def test_fit_names_its_faults(rows):
    features, label = rows
    with pytest.raises(TrainingError, match="model parameter depth is not a parameter that may be declared: did you"):
        fit(features, label, {"depth": 3}, feature_names=NAMES)
    with pytest.raises(TrainingError, match="model parameter max_depth must be a whole number from 0 to 64, not -3"):
        fit(features, label, {"max_depth": -3}, feature_names=NAMES)
    with pytest.raises(ValueError, match="float64"):
        fit(features.astype(np.float64), label, {}, feature_names=NAMES)
    with pytest.raises(ValueError, match=r"\[800, 4\], float32 \[800, 3\]"):
        fit(features, label, {}, feature_names=NAMES[:3])
    with pytest.raises(ValueError, match="0 of 800 training rows are positive"):
        fit(features, label * 0, {}, feature_names=NAMES)
    with pytest.raises(ValueError, match="without nulls"):
        fit(features, label - 1, {}, feature_names=NAMES)
    with pytest.raises(ValueError, match="the feature amount is infinite in row 2"):
        fit(np.where(np.isnan(features), np.float32(np.inf), features), label, {}, feature_names=NAMES)


def test_golden_rows_are_spread_and_hold_a_row_without_features(rows):
    features, _ = rows
    model = model_bytes(fit(*rows, {"n_estimators": 3}, feature_names=NAMES))
    golden_features, golden_scores = golden(model, features, rows=5)
    assert golden_features.shape == (6, 4)
    assert golden_scores.shape == (6,)
    np.testing.assert_array_equal(golden_features[[0, 4]], features[[0, -1]])
    assert np.isnan(golden_features[5]).all()
    assert golden(model, features[:2])[0].shape == (3, 4)


def ends_of(name):
    """Values of a parameter at the ends of what may be declared, but for those that would take long."""
    match PARAMETERS[name]:
        case Whole(least, most):
            return [least, 3 if name == "n_estimators" else most]
        case Number(least, most, above, below):
            return [least + 1e-6 * above, most - 1e-6 * below]
        case Choice(texts):
            return texts


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in PARAMETERS for value in ends_of(name)])
def test_xgboost_takes_and_uses_what_may_be_declared(rows, name, value):
    """A parameter that it did not use would be a warning, and warnings are errors here."""
    features, label = rows
    params = {"n_estimators": 2, "max_depth": 3, name: value}
    booster = fit(features[:200], label[:200], params, feature_names=NAMES)
    scores = predict(booster, features)
    assert ((scores >= 0) & (scores <= 1)).all()


@pytest.mark.parametrize("method", ["hist", "approx", "exact"])
def test_each_tree_method_gives_the_same_bytes_whatever_the_threads(rows, method):
    params = {"n_estimators": 4, "tree_method": method, "subsample": 0.7, "colsample_bytree": 0.5}
    models = {model_bytes(fit(*rows, params, feature_names=NAMES, nthread=threads)) for threads in (1, 2, 3)}
    assert len(models) == 1


@pytest.mark.parametrize(
    ("params", "faults"),
    [
        ({"max_depth": 65}, ["max_depth"]),
        ({"seed": 2**31}, ["seed"]),
        ({"learning_rate": 0, "subsample": 1.01, "base_score": 1}, ["learning_rate", "subsample", "base_score"]),
        ({"gamma": float("nan"), "reg_alpha": 10**400, "reg_lambda": "1"}, ["gamma", "reg_alpha", "reg_lambda"]),
        ({"objective": "multi:softmax", "tree_method": "gpu_hist"}, ["objective", "tree_method"]),
        ({"tree_method": "exact", "max_depth": 0, "max_leaves": 3}, ["max_leaves", "max_depth"]),
        ({1: 2}, [1]),
        ({"max_depth": True}, ["max_depth"]),
    ],
)
def test_faults_of_parameters_are_found_without_training(params, faults):
    found = list(find_parameter_faults(params))
    assert [name for name, _ in found] == faults
    assert all(len(message) < 200 for _, message in found)
