"""Models of LightGBM's in its text format.

LightGBM follows the places of its nodes without looking, and ends the process on a text that is cut off: texts from
elsewhere are read in a child process, and `check_text` looks at what LightGBM itself writes of them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

MAX_FEATURES = 100_000

Places = npt.NDArray[np.int64]


class LightGBMModel:
    """A booster of LightGBM's with the part of an xgboost.Booster's methods that scoring needs."""

    def __init__(self, content: bytes, names: Sequence[str] = ()) -> None:
        """Load a text; ValueError where LightGBM can't.

        LightGBM writes an underscore for a blank in a name: where its names are `names` but for that, they are taken.
        """
        import lightgbm  # its import takes a second or two

        lightgbm.register_logger(logging.getLogger("lightgbm"))  # or it prints to standard output
        try:
            self._booster: Any = lightgbm.Booster(model_str=content.decode())
        except lightgbm.basic.LightGBMError as error:
            raise ValueError(str(error)) from error
        found = self._booster.feature_name()
        same = found == [name.replace(" ", "_") for name in names]
        self.feature_names: list[str] = list(names) if same else found

    def num_features(self) -> int:
        """How many features it has."""
        return int(self._booster.num_feature())

    def inplace_predict(self, features: npt.NDArray[np.float32], validate_features: bool = False) -> npt.NDArray[Any]:
        """What its objective makes of the sums of leaves, float64 [n], or [n, o] of several classes."""
        return np.asarray(self._booster.predict(features, num_threads=1))

    def text(self) -> str:
        """The model as LightGBM writes it."""
        return str(self._booster.model_to_string())


def read_head(text: str) -> dict[str, str]:
    """What stands before the trees of a text that LightGBM wrote, by name."""
    return _pairs(text.partition("\nTree=")[0])


def read_splits(text: str) -> dict[int, set[bool]]:
    """By feature that is split, whether by number (False), by category (True) or both."""
    found: dict[int, set[bool]] = {}
    for tree in _trees(text):
        if int(tree["num_leaves"]) > 1:
            kinds = _places(tree, "decision_type") & 1
            for feature, kind in set(zip(_places(tree, "split_feature").tolist(), kinds.tolist(), strict=True)):
                found.setdefault(feature, set()).add(bool(kind))
    return found


def check_text(text: str) -> None:
    """ValueError for a text that LightGBM wrote, if a place in its trees leads out of them."""
    head = read_head(text)
    features, trees = int(head["max_feature_idx"]) + 1, list(_trees(text))
    if not 1 <= features <= MAX_FEATURES:
        raise ValueError(f"it says that it has {features} features, 1 to {MAX_FEATURES} are allowed")
    outputs = int(head["num_tree_per_iteration"])
    if outputs not in (1, int(head["num_class"])) or not trees or len(trees) % outputs:
        raise ValueError(f"its {len(trees)} trees are not each of one of its {outputs} outputs")
    for number, tree in enumerate(trees):
        for fault in _faults(tree, features):
            raise ValueError(f"tree {number}: {fault}")


def _faults(tree: Mapping[str, str], features: int) -> Iterator[str]:
    leaves = int(tree["num_leaves"])
    if tree.get("is_linear", "0") != "0":
        yield "its leaves are linear models, and not values"
    if leaves < 1 or len(tree["leaf_value"].split()) != leaves:
        yield "its leaves have not each a value"
    if leaves <= 1:
        return
    left, right, split, kinds = (
        _places(tree, name) for name in ("left_child", "right_child", "split_feature", "decision_type")
    )
    thresholds = np.array(tree["threshold"].split(), np.float64)
    if {len(values) for values in (left, right, split, kinds, thresholds)} != {leaves - 1}:
        yield "its lists are not of one length"
        return
    children = np.concatenate([left, right])
    if not _within(children, -leaves, leaves - 1):
        yield "a child is no node"
        return
    # -1 is leaf 0, and 0 the first node, which is nobody's child: all others are one node's each.
    if not np.array_equal(np.sort(children), np.setdiff1d(np.arange(-leaves, leaves - 1), [0])):
        yield "a node has several parents"
    if not _within(split, 0, features):
        yield "a split is of no feature"
    if not _within(kinds, 0, 16):
        yield "a split is of no kind"
    by_category = thresholds[(kinds & 1) == 1]
    bounds = _places(tree, "cat_boundaries") if len(by_category) else np.zeros(1, np.int64)
    words = len(_places(tree, "cat_threshold")) if len(by_category) else 0
    if (
        len(bounds) != int(tree["num_cat"]) + 1
        or bounds[0] != 0
        or bounds[-1] != words
        or (np.diff(bounds) < 0).any()
        or not ((by_category >= 0) & (by_category < len(bounds) - 1)).all()
    ):
        yield "a split has categories that are not there"


def _trees(text: str) -> Iterator[dict[str, str]]:
    for block in text.partition("\nend of trees")[0].split("\nTree=")[1:]:
        yield _pairs(block)


def _pairs(block: str) -> dict[str, str]:
    return {name: value for name, _, value in (line.partition("=") for line in block.splitlines())}


def _places(tree: Mapping[str, str], name: str) -> Places:
    return np.array(tree[name].split(), np.int64)


def _within(places: Places, least: int, end: int) -> bool:
    return bool(((places >= least) & (places < end)).all())
