"""Boosted trees scored by compiled code: xgboost's bits, in about half of its time.

A row's margin is the model's base and then one leaf of each tree, added in the order of the trees in 32 bits, as
xgboost adds them. What it makes of a margin, such as a probability, it makes itself. `Trees.of` compares with it and
gives nothing where a bit differs; nor does it without a compiler, or of trees of another kind: xgboost scores then.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import xgboost

add_leaves: Callable[..., None] | None
try:
    from models.predictors._trees import add_leaves
except ImportError:  # there was no compiler when headrace was installed
    add_leaves = None

# Trees are made whole: each level doubles them.
MAX_DEPTH = 8
# As the compiled code reads it: a row goes left if its value is below, or missing if the feature's last bit is set.
NODE = np.dtype([("below", np.float32), ("feature_and_missing_left", np.uint32)])

Rows = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True, eq=False)
class Trees:
    """A model of one output: `nodes` NODE[trees, 2**depth - 1], `leaves` float32[trees, 2**depth], the margin that they
    are added to, and a model that makes scores of margins.
    """

    nodes: npt.NDArray[Any]
    leaves: Rows
    depth: int
    base: np.float32
    last: xgboost.Booster

    @staticmethod
    def of(booster: Any, features: Rows, nthread: int = 1) -> Trees | None:
        """The trees of a model; None unless they are of a kind that is known here, and give the rows `features`,
        float32[n, k], n at least 1, xgboost's own bits.
        """
        if add_leaves is None or not isinstance(booster, xgboost.Booster):
            return None
        frame = json.loads(booster.save_raw("json"))
        try:
            whole = _whole_trees(frame["learner"])
            if whole is None:
                return None
            nodes, leaves, depth = whole
            content = bytearray(json.dumps(_without_trees(frame)).encode())
            last = xgboost.Booster({"nthread": nthread}, model_file=content)
        except (KeyError, ValueError):  # another version of xgboost writes models another way
            return None
        base = last.inplace_predict(features[:1], predict_type="margin", validate_features=False)[0]
        trees = Trees(nodes, leaves, depth, base, last)
        expected = booster.inplace_predict(features, validate_features=False)
        found = trees.inplace_predict(features)
        same = expected.dtype == found.dtype == np.float32 and expected.shape == found.shape
        return trees if same and (expected.view(np.uint32) == found.view(np.uint32)).all() else None

    def inplace_predict(self, features: Rows) -> Rows:
        """The scores float32[n] of rows float32[n, k], C-contiguous, NaN where missing."""
        assert add_leaves is not None
        margins = np.full(len(features), self.base)
        add_leaves(features, self.nodes, self.depth, self.leaves, margins)
        scores: Rows = self.last.inplace_predict(features, base_margin=margins, validate_features=False)
        return scores


def _whole_trees(learner: Mapping[str, Any]) -> tuple[npt.NDArray[Any], Rows, int] | None:
    """Nodes, leaves and depth of a model in xgboost's JSON; None of a model of another kind."""
    booster, about = learner["gradient_booster"], learner["learner_model_param"]
    if booster["name"] != "gbtree" or int(about["num_class"]) > 1 or int(about["num_target"]) > 1:
        return None
    trees, dropped = booster["model"]["trees"], booster["model"].get("weight_drop")  # a weight for each tree
    if (
        dropped
        or not trees
        or any(any(tree["split_type"]) or int(tree["tree_param"]["size_leaf_vector"]) > 1 for tree in trees)
    ):
        return None
    levels = [_levels(tree) for tree in trees]
    depth = max(map(len, levels)) - 1
    if depth > MAX_DEPTH:
        return None
    nodes, leaves = np.zeros((len(trees), 2**depth - 1), NODE), np.empty((len(trees), 2**depth), np.float32)
    for tree, of_tree, leaf in zip(trees, nodes, leaves, strict=True):
        at, *children = (
            np.asarray(tree[name], np.int64) for name in ("split_indices", "left_children", "right_children")
        )
        values = np.asarray(tree["split_conditions"], np.float32)
        left, right = (np.where(child < 0, np.arange(len(at)), child) for child in children)  # a leaf's are itself
        coded = (at * 2 + np.asarray(tree["default_left"], np.int64)).astype(np.uint32)
        here = np.zeros(1, np.int64)
        for level in range(depth):
            place = slice(2**level - 1, 2 ** (level + 1) - 1)
            of_tree["below"][place], of_tree["feature_and_missing_left"][place] = values[here], coded[here]
            here = np.column_stack([left[here], right[here]]).ravel()
        leaf[:] = values[here]
    return nodes, leaves, depth


def _levels(tree: Mapping[str, Any]) -> list[npt.NDArray[np.int64]]:
    """The nodes of a tree by their depth; more levels than are allowed are not all looked at."""
    left, right = (np.asarray(tree[name], np.int64) for name in ("left_children", "right_children"))
    levels = [np.zeros(1, np.int64)]
    while len(levels) <= MAX_DEPTH + 1:
        inner = levels[-1][left[levels[-1]] >= 0]
        if not len(inner):
            break
        levels.append(np.concatenate([left[inner], right[inner]]))
    return levels


def _without_trees(frame: dict[str, Any]) -> dict[str, Any]:
    """A model in xgboost's JSON with one tree in place of all, a leaf of 0."""
    model = frame["learner"]["gradient_booster"]["model"]
    tree = dict(model["trees"][0])
    nodes = int(tree["tree_param"]["num_nodes"])
    tree |= {name: values[:1] for name, values in tree.items() if isinstance(values, list) and len(values) == nodes}
    tree |= {"left_children": [-1], "right_children": [-1], "split_conditions": [0.0], "base_weights": [0.0], "id": 0}
    tree |= {"split_indices": [0], "default_left": [0], "tree_param": {**tree["tree_param"], "num_nodes": "1"}}
    model |= {"trees": [tree], "tree_info": [0], "iteration_indptr": [0, 1]}
    model["gbtree_model_param"] |= {"num_trees": "1", "num_parallel_tree": "1"}
    return frame
