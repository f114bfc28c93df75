"""Isolation forests: how few random cuts set a row apart from others, as trees that xgboost scores.

scikit-learn grows the forest; its trees are kept in xgboost's form. So they score by the code that all models score by,
a row's bits depend on no other row, and a bundle holds no file that scikit-learn would load without looking.

Source: Liu et al., Isolation-based anomaly detection (2012); scikit-learn's IsolationForest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xgboost

from models.predictors.measures import exact_log
from models.predictors.training import TrainingError
from models.project.parameters import find_parameter_faults

_LN2 = 0.6931471805599453
_EULER = 0.5772156649015329
_NO_PARENT = 2**31 - 1

Nodes = npt.NDArray[np.int64]


def fit_forest(
    features: npt.NDArray[np.float32], params: Mapping[str, Any], feature_names: Sequence[str]
) -> xgboost.Booster:
    """Return trees whose score is 2 ** -(mean depth of a row / that of a random search tree), from 0 to 1.

    A row that is set apart early has a high score, one like the others less than 0.5. The same rows in the same order
    give the same bytes.

    Args:
        features: [n, k] float32, n at least 2, NaN where missing.
        params: n_estimators (100 if not given), max_samples that each tree is grown of (256), seed (0).
        feature_names: k names.

    Raises:
        TrainingError: on other parameters, or of fewer than two rows.
    """
    from sklearn.ensemble import IsolationForest  # its import takes a second

    faults = [f"{name} {message}" for name, message in find_parameter_faults(params, "anomaly")]
    if faults:
        raise TrainingError(f"model parameter {'; '.join(faults)}")
    if len(features) < 2:
        raise TrainingError(f"{len(features)} events are too few to tell which of them is set apart")
    trees, samples = int(params.get("n_estimators", 100)), min(int(params.get("max_samples", 256)), len(features))
    seed = int(params.get("seed", 0))
    forest = IsolationForest(n_estimators=trees, max_samples=samples, random_state=seed, n_jobs=1).fit(features)
    unit = -_LN2 / (trees * float(_average_path(np.array([samples]))[0]))
    grown = [_as_xgboost(number, each.tree_, unit, features.shape[1]) for number, each in enumerate(forest.estimators_)]
    return _booster(grown, feature_names)


def _average_path(samples: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """The mean depth at which a search in a random search tree of so many samples ends."""
    more = np.maximum(samples, 3).astype(np.float64)
    path = 2 * (exact_log(more - 1) + _EULER) - 2 * (more - 1) / more
    return np.where(samples > 2, path, (samples == 2).astype(np.float64))


def _as_xgboost(number: int, tree: Any, unit: float, features: int) -> dict[str, Any]:
    """A tree of scikit-learn's as xgboost's JSON has it; a leaf's value is `unit` times its depth.

    Nodes go level by level, as xgboost takes it that a right child stands behind its left one.
    """
    order, parents, depth = _by_level(tree.children_left, tree.children_right)
    samples, leaf = tree.n_node_samples[order].astype(np.int64), tree.children_left[order] < 0
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    left, right = (np.where(leaf, -1, place[nodes[order]]) for nodes in (tree.children_left, tree.children_right))
    values = (unit * (depth + _average_path(samples))).astype(np.float32)
    return {
        "base_weights": values.tolist(),
        "categories": [],
        "categories_nodes": [],
        "categories_segments": [],
        "categories_sizes": [],
        "default_left": np.where(leaf, 0, tree.missing_go_to_left[order]).tolist(),
        "id": number,
        "left_children": left.tolist(),
        "loss_changes": [0.0] * len(order),
        "parents": parents.tolist(),
        "right_children": right.tolist(),
        "split_conditions": np.where(leaf, values, _below(tree.threshold[order])).tolist(),
        "split_indices": np.where(leaf, 0, tree.feature[order]).tolist(),
        "split_type": [0] * len(order),
        "sum_hessian": samples.astype(np.float64).tolist(),
        "tree_param": {
            "num_deleted": "0",
            "num_feature": str(features),
            "num_nodes": str(len(order)),
            "size_leaf_vector": "1",
        },
    }


def _by_level(left: Nodes, right: Nodes) -> tuple[Nodes, Nodes, Nodes]:
    """Nodes level by level, siblings beside each other; the place of each one's parent among them; and its depth."""
    levels, parents, start = [np.zeros(1, np.int64)], [np.array([_NO_PARENT])], 0
    while len(level := levels[-1]):
        inner = np.flatnonzero(left[level] >= 0)
        levels.append(np.column_stack([left[level[inner]], right[level[inner]]]).ravel().astype(np.int64))
        parents.append(np.repeat(inner + start, 2))
        start += len(level)
    depth = np.repeat(np.arange(len(levels)), [len(level) for level in levels])
    return np.concatenate(levels), np.concatenate(parents), depth


def _below(threshold: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """The float32 that a float32 is below if and only if it is at most the threshold."""
    nearest = threshold.astype(np.float32)
    at_most = np.where(nearest.astype(np.float64) > threshold, np.nextafter(nearest, np.float32(-np.inf)), nearest)
    return np.nextafter(at_most, np.float32(np.inf))


def _booster(trees: Sequence[Mapping[str, Any]], names: Sequence[str]) -> xgboost.Booster:
    """A model of these trees, whose score is the exponential of their sum."""
    nothing = xgboost.DMatrix(np.zeros((1, len(names)), np.float32), label=[1.0], feature_names=list(names), nthread=1)
    settings = {"objective": "count:poisson", "base_score": 1.0, "max_depth": 1, "nthread": 1}
    frame = json.loads(xgboost.train(settings, nothing, 1).save_raw("json"))
    model = frame["learner"]["gradient_booster"]["model"]
    model["gbtree_model_param"]["num_trees"] = str(len(trees))
    model |= {"trees": list(trees), "tree_info": [0] * len(trees), "iteration_indptr": list(range(len(trees) + 1))}
    return xgboost.Booster({"nthread": 1}, model_file=bytearray(json.dumps(frame).encode()))
