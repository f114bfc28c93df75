"""Boosted trees by compiled code: xgboost's bits, or nothing."""

import hashlib

import numpy as np
import pytest
import xgboost

from models.predictors import booster as booster_module
from models.predictors import trees as trees_module
from models.predictors.booster import Scorer
from models.predictors.trees import Trees

pytestmark = [pytest.mark.both_sets, pytest.mark.core_set]
compiled = pytest.mark.skipif(
    trees_module.add_leaves is None, reason="there was no compiler when headrace was installed"
)

ROWS, COLUMNS = 700, 5


def rows(seed, count=ROWS):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(count, COLUMNS)).astype(np.float32).round(1)
    values[rng.random(values.shape) < 0.02] = np.nan
    values[rng.random(values.shape) < 0.01] = np.inf
    values[: count // 3] = np.nan_to_num(values[: count // 3], posinf=3.0)  # blocks in which none is missing
    return values


def model(params, seed=1, label=None):
    values = np.nan_to_num(rows(seed), nan=np.nan, posinf=9.0)
    label = (np.nansum(values, axis=1) > 0).astype(float) if label is None else label
    data = xgboost.DMatrix(values, label)
    rounds = params.pop("rounds", 7)
    return xgboost.train({"nthread": 1, "base_score": 0.3, **params}, data, rounds)


KINDS = {
    "depth 1": {"max_depth": 1},
    "depth 8": {"max_depth": 8, "min_child_weight": 0},
    "by leaves": {"grow_policy": "lossguide", "max_leaves": 9, "max_depth": 8, "tree_method": "hist"},
    "probability": {"objective": "binary:logistic"},
    "logit": {"objective": "binary:logitraw"},
    "count": {"objective": "count:poisson"},
    "absolute": {"objective": "reg:absoluteerror", "base_score": 0.5},
    "nothing to split": {"gamma": 1e9},
    "several trees a round": {"num_parallel_tree": 3, "subsample": 0.5},
}


@compiled
@pytest.mark.parametrize("kind", KINDS)
def test_every_bit_is_that_of_xgboost(kind):
    known, other = model(dict(KINDS[kind])), rows(2)
    found = Trees.of(known, rows(1)[:3])
    assert found is not None
    for count in (0, 1, 63, 64, 65, ROWS):
        expected = known.inplace_predict(other[:count]) if count else np.empty(0, np.float32)
        assert found.inplace_predict(other[:count]).tobytes() == expected.tobytes()


OTHERS = {
    "too deep": {"max_depth": 9, "min_child_weight": 0, "rounds": 1, "lambda": 0},
    "dart": {"booster": "dart", "rate_drop": 0.5},
    "linear": {"booster": "gblinear"},
    "classes": {"objective": "multi:softprob", "num_class": 2},
}


@compiled
@pytest.mark.filterwarnings("ignore::UserWarning")  # newer versions say that they are to go
@pytest.mark.parametrize("kind", OTHERS)
def test_models_of_other_kinds_are_left_to_xgboost(kind):
    label = np.random.default_rng(3).random(ROWS).round() if kind == "too deep" else None
    assert Trees.of(model(dict(OTHERS[kind]), label=label), rows(1)) is None


@compiled
def test_splits_by_category_are_left_to_xgboost():
    codes = np.arange(200) % 7
    data = xgboost.DMatrix(codes[:, None].astype(np.float32), codes % 2, feature_types=["c"], enable_categorical=True)
    known = xgboost.train({"nthread": 1, "max_cat_to_onehot": 1}, data, 3)
    assert Trees.of(known, codes[:, None].astype(np.float32)) is None


@compiled
def test_trees_that_give_another_bit_are_not_used(monkeypatch):
    known = model({})
    whole = trees_module._whole_trees

    def wrong(learner):
        nodes, leaves, depth = whole(learner)
        leaves[3] = np.nextafter(leaves[3], np.float32(9))
        return nodes, leaves, depth

    assert Trees.of(known, rows(1)) is not None
    monkeypatch.setattr(trees_module, "_whole_trees", wrong)
    assert Trees.of(known, rows(1)) is None


@compiled
def test_arrays_that_do_not_fit_are_refused():
    found = Trees.of(model({}), rows(1))
    values, sums = rows(2)[:10], np.zeros(10, np.float32)
    good = [values, found.nodes, found.depth, found.leaves, sums]
    trees_module.add_leaves(*good)
    beyond = found.nodes.copy()
    beyond["feature_and_missing_left"][0, 0] = 2 * COLUMNS
    for place, bad in ((0, values[:9]), (1, found.nodes[1:]), (2, found.depth - 1), (2, 17), (2, -1), (1, beyond)):
        with pytest.raises(ValueError, match="do not fit"):
            trees_module.add_leaves(*[bad if n == place else each for n, each in enumerate(good)])


@pytest.mark.parametrize("built", [True, False])
def test_a_scorer_says_the_same_with_and_without(built, monkeypatch):
    if not built:
        monkeypatch.setattr(trees_module, "add_leaves", None)
    monkeypatch.setattr(booster_module, "MANY_ROWS", 100)
    known = model({"objective": "binary:logistic"})
    known.feature_names = [f"f{n}" for n in range(COLUMNS)]
    content, golden = bytes(known.save_raw("ubj")), rows(4, 3)
    scorer = Scorer(
        content,
        sha256=hashlib.sha256(content).hexdigest(),
        feature_names=known.feature_names,
        golden_features=golden,
        golden_scores=known.inplace_predict(golden, validate_features=False),
    )
    expected = known.inplace_predict(rows(2), validate_features=False)
    assert scorer.score(rows(2)).tobytes() == expected.tobytes()
    assert (scorer._trees is not None) is (built and trees_module.add_leaves is not None)
    assert scorer.score(rows(2)[:5]).tobytes() == expected[:5].tobytes()
    with pytest.raises(ValueError, match="float32"):
        scorer.score(rows(2).astype(np.float64))
