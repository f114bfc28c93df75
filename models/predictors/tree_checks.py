"""That no place in a file of xgboost's trees leads out of them: xgboost follows places without looking."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

MAX_FEATURES = 100_000
_MAX_CATEGORY = 1 << 24

Places = npt.NDArray[np.int64]


def check_trees(frame: Mapping[str, Any]) -> None:
    """ValueError for a model in xgboost's JSON, as a dict, whose trees, groups or features are not all within it."""
    learner = frame["learner"]
    features = int(learner["learner_model_param"]["num_feature"])
    if features > MAX_FEATURES:
        raise ValueError(f"it says that it has {features} features, at most {MAX_FEATURES} are allowed")
    groups = max(1, int(learner["learner_model_param"]["num_class"]), int(learner["learner_model_param"]["num_target"]))
    booster = learner["gradient_booster"]
    if booster.get("name") == "gblinear" or ("model" not in booster and "gbtree" not in booster):
        return  # no trees, of which models.predictors.foreign tells
    model = booster.get("model") or booster["gbtree"]["model"]
    trees, group = model["trees"], _places(model["tree_info"])
    if len(group) != len(trees) or not _within(group, 0, groups):
        raise ValueError(f"its {len(trees)} trees are not each of one of its {groups} outputs")
    if (pointers := _places(model.get("iteration_indptr", [0, len(trees)]))).size and (
        pointers[0] != 0 or pointers[-1] != len(trees) or (np.diff(pointers) < 0).any()
    ):
        raise ValueError("its rounds are not made of its trees")
    if len(booster.get("weight_drop", trees)) != len(trees):
        raise ValueError("its trees have not each a weight")
    for number, tree in enumerate(trees):
        for fault in _faults(tree, features):
            raise ValueError(f"tree {number}: {fault}")


def _faults(tree: Mapping[str, Any], features: int) -> Iterator[str]:
    left, right, split = (_places(tree[name]) for name in ("left_children", "right_children", "split_indices"))
    nodes = len(left)
    lists = ("right_children", "split_indices", "split_conditions", "default_left", "parents", "base_weights")
    if not nodes or int(tree["tree_param"]["num_nodes"]) != nodes or {len(tree[name]) for name in lists} != {nodes}:
        yield "its lists are not of one length"
        return
    if int(tree["tree_param"]["size_leaf_vector"]) > 1:
        yield "its leaves have several values"
    inner = np.flatnonzero(left != -1)
    if (
        not _within(left[inner], 1, nodes - 1)
        or (right[inner] != left[inner] + 1).any()
        or (right[left == -1] != -1).any()
    ):
        yield "a child is no node, or does not stand beside its sibling"
        return
    if not _within(split[inner], 0, features):
        yield "a split is of no feature"
    reached = np.bincount(np.concatenate([left[inner], right[inner]]), minlength=nodes)
    if reached[0] or (reached > 1).any():
        yield "a node has several parents"
    categories, sizes = _places(tree["categories"]), _places(tree["categories_sizes"])
    starts, owners = _places(tree["categories_segments"]), _places(tree["categories_nodes"])
    least = min(starts.min(initial=0), sizes.min(initial=0))
    if not len(sizes) == len(starts) == len(owners):
        yield "its categories have no places"
    elif least < 0 or (starts + sizes > len(categories)).any() or not _within(owners, 0, nodes):
        yield "a split has categories that are not there"
    elif not _within(categories, 0, _MAX_CATEGORY):
        yield "a category is no code"
    kinds = _places(tree.get("split_type", [0] * nodes))
    if len(kinds) != nodes or set(np.flatnonzero(kinds).tolist()) != set(owners.tolist()):
        yield "its splits by category are not those with categories"


def _places(values: Any) -> Places:
    return np.asarray(values, np.int64).reshape(-1) if len(values) else np.zeros(0, np.int64)


def _within(places: Places, least: int, end: int) -> bool:
    return bool(((places >= least) & (places < end)).all())
