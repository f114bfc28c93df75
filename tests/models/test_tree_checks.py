"""Trees that lead out of themselves: xgboost follows them, so they are refused before it does."""

import json

import numpy as np
import pytest
import xgboost

from models.predictors.tree_checks import check_trees


def make(objective="binary:logistic", categories=True, **params):
    random = np.random.default_rng(0)
    rows = random.normal(size=(500, 3)).astype(np.float32)
    rows[:, 1] = random.integers(0, 20, 500)
    label = {"multi:softprob": random.integers(0, 3, 500)}.get(objective, (rows[:, 0] + rows[:, 1] % 3 > 1) * 1)
    types = ["q", "c" if categories else "q", "q"]
    data = xgboost.DMatrix(rows, label, feature_types=types, enable_categorical=True)
    params = {"objective": objective, "max_depth": 4, "nthread": 1, **params}
    return json.loads(xgboost.train(params, data, 4).save_raw("json"))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"categories": False, "tree_method": "exact"},
        {"objective": "multi:softprob", "num_class": 3},
        {"booster": "dart", "rate_drop": 0.5},
        {"objective": "reg:quantileerror", "quantile_alpha": [0.1, 0.9]},
        {"grow_policy": "lossguide", "max_leaves": 9, "gamma": 3.0},
        {"tree_method": "approx", "num_parallel_tree": 3},
    ],
    ids=str,
)
def test_what_xgboost_makes_is_right(options):
    frame = make(**options)
    check_trees(frame)


def model_of(frame):
    return frame["learner"]["gradient_booster"]["model"]


@pytest.mark.parametrize(
    ("part", "value", "fault"),
    [
        ("left_children", 10**6, "a child is no node"),
        ("right_children", 10**6, "a child is no node"),
        ("left_children", 0, "a child is no node"),
        ("split_indices", 3, "a split is of no feature"),
        ("split_indices", -1, "a split is of no feature"),
        ("split_type", 7, "by category are not those with categories"),
    ],
)
def test_a_place_outside_is_found(part, value, fault):
    frame = make(categories=False)
    model_of(frame)["trees"][2][part][0] = value
    with pytest.raises(ValueError, match=f"^tree 2: .*{fault}"):
        check_trees(frame)


def test_nodes_that_go_round_are_found():
    frame = make(categories=False)
    tree = model_of(frame)["trees"][0]
    last = max(node for node, left in enumerate(tree["left_children"]) if left > 0)
    tree["left_children"][last], tree["right_children"][last] = tree["left_children"][0], tree["right_children"][0]
    with pytest.raises(ValueError, match="a node has several parents"):
        check_trees(frame)


@pytest.mark.parametrize(
    ("part", "value", "fault"),
    [
        ("categories_segments", 10**6, "categories that are not there"),
        ("categories_sizes", 10**6, "categories that are not there"),
        ("categories_nodes", 10**6, "categories that are not there"),
        ("categories", 1 << 30, "a category is no code"),
        ("categories_sizes", None, "its categories have no places"),
    ],
)
def test_categories_outside_are_found(part, value, fault):
    frame = make()
    tree = next(tree for tree in model_of(frame)["trees"] if tree["categories"])
    tree[part] = [] if value is None else [value, *tree[part][1:]]
    with pytest.raises(ValueError, match=fault):
        check_trees(frame)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda frame: model_of(frame)["trees"][0]["split_conditions"].pop(), "its lists are not of one length"),
        (lambda frame: model_of(frame)["tree_info"].pop(), "are not each of one of its 1 outputs"),
        (lambda frame: model_of(frame)["tree_info"].__setitem__(0, 5), "are not each of one of its 1 outputs"),
        (lambda frame: model_of(frame)["iteration_indptr"].__setitem__(-1, 50), "its rounds are not made of its trees"),
        (
            lambda frame: frame["learner"]["learner_model_param"].update(num_feature="4000000000"),
            "it says that it has 4000000000 features",
        ),
    ],
)
def test_a_model_that_does_not_fit_together_is_found(change, fault):
    frame = make(categories=False)
    change(frame)
    with pytest.raises(ValueError, match=fault):
        check_trees(frame)
