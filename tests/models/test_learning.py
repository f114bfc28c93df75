"""Training of every kind of target: the same bytes whatever the threads, and what can't be learned is refused."""

import numpy as np
import pytest

from models.predictors.booster import predict
from models.predictors.measures import loss_of, measure_of
from models.predictors.training import Stopping, TrainingError, fit, model_bytes
from models.project.targets import OBJECTIVES, Target

pytestmark = [pytest.mark.both_sets, pytest.mark.core_set]

NAMES = ["a", "b", "c"]
TYPES = ["q", "c", "q"]
TARGETS = {
    "binary": Target(),
    "multiclass": Target(kind="multiclass"),
    "regression": Target(kind="regression"),
    "count": Target(kind="count"),
    "quantile": Target(kind="quantile", quantiles=[0.25, 0.75]),
}


def make(kind, rows=3000, categories=1000):
    random = np.random.default_rng(0)
    features = random.normal(size=(rows, 3)).astype(np.float32)
    features[:, 1] = random.integers(0, categories, rows)
    features[::11, 1] = np.nan
    value = features[:, 0] + np.nan_to_num(features[:, 1]) % 2 + random.normal(0, 0.3, rows)
    label = {
        "binary": (value > 0.5).astype(int),
        "multiclass": np.digitize(value, [0, 1]),
        "count": random.poisson(np.exp(value / 3)),
    }.get(kind, np.exp(value / 3))
    return features, label


@pytest.mark.parametrize("method", ["hist", "approx", "exact"])
@pytest.mark.parametrize(("kind", "objective"), [(kind, name) for kind in OBJECTIVES for name in OBJECTIVES[kind]])
def test_each_objective_gives_the_same_bytes_whatever_the_threads(kind, objective, method):
    features, label = make(kind)
    params = {"n_estimators": 6, "max_depth": 4, "objective": objective, "tree_method": method, "subsample": 0.8}
    types = None if method == "exact" else TYPES
    made = [
        fit(features, label, params, feature_names=NAMES, feature_types=types, target=TARGETS[kind], nthread=threads)
        for threads in (1, 2, 3)
    ]
    assert len({model_bytes(booster) for booster in made}) == 1
    outputs = predict(made[0], features)
    assert outputs.shape == {"multiclass": (3000, 3), "quantile": (3000, 2)}.get(kind, (3000,))
    for start in range(0, 70, 7):
        assert predict(made[0], features[start : start + 7]).tobytes() == outputs[start : start + 7].tobytes()
    assert predict(made[0], features[:0]).shape == (0, *outputs.shape[1:])
    if kind != "binary":
        assert all(np.isfinite(figure) for figure in measure_of(TARGETS[kind])(label, outputs).figures().values())


@pytest.mark.parametrize("kind", TARGETS)
def test_training_stops_where_the_loss_is_least(kind):
    features, label = make(kind, categories=20)
    learned, held = slice(0, 600), slice(600, 1200)
    loss = loss_of(TARGETS[kind], OBJECTIVES[kind][0])
    stopping = Stopping(5, np.ascontiguousarray(features[held]), label[held], loss)
    params = {"n_estimators": 60, "max_depth": 6, "learning_rate": 0.9}
    options = {"feature_names": NAMES, "feature_types": TYPES, "target": TARGETS[kind]}
    found = fit(features[learned], label[learned], params, stopping=stopping, **options)
    every = fit(features[learned], label[learned], params, **options)
    losses = [loss(label[held], predict(every[: n + 1], features[held])) for n in range(60)]
    best = next(n for n in range(60) if min(losses[n : n + 6]) == losses[n] and losses[n] == min(losses[: n + 6]))
    assert found.num_boosted_rounds() == best + 1 < 60
    assert predict(found, features).tobytes() == predict(every[: best + 1], features).tobytes()


def test_a_loss_by_absolute_errors_is_their_mean():
    label, outputs = np.array([1.0, 2.0, 4.0]), np.float32([1, 1, 1])
    assert loss_of(TARGETS["regression"], "reg:absoluteerror")(label, outputs) == 4 / 3
    assert loss_of(TARGETS["regression"], "reg:squarederror")(label, outputs) == pytest.approx((10 / 3) ** 0.5)


@pytest.mark.parametrize(
    ("kind", "label", "message"),
    [
        ("multiclass", [0, 2, 2], "labels must be the numbers of the classes, all present"),
        ("multiclass", [0, 0, 0], "labels must be the numbers of the classes, all present"),
        ("regression", [0, np.nan, 1], "labels must be finite"),
        ("count", [], "labels must be finite, of at least one row"),
        ("regression", [1, np.inf, 1], "labels must be finite"),
    ],
)
def test_labels_that_are_none_are_refused(kind, label, message):
    with pytest.raises(ValueError, match=message):
        fit(np.zeros((len(label), 3), np.float32), np.array(label), {}, feature_names=NAMES, target=TARGETS[kind])


def test_what_xgboost_refuses_is_said_in_a_line():
    features, label = make("regression")
    with pytest.raises(TrainingError, match="xgboost refuses: .* must be greater than 0 for gamma regression"):
        fit(features, label - 5, {"objective": "reg:gamma"}, feature_names=NAMES, target=TARGETS["regression"])
    with pytest.raises(TrainingError, match="model parameter objective must be count:poisson"):
        fit(features, label, {"objective": "reg:gamma"}, feature_names=NAMES, target=TARGETS["count"])
