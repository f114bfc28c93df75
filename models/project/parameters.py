"""The parameters that a model may be trained with, checked without training: their names, types and ranges.

Names are scikit-learn's, ranges those of xgboost's documentation, narrowed where xgboost takes a value that no
training ends with; a test holds the table against xgboost itself.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from models.project.targets import OBJECTIVES


class Whole(NamedTuple):
    """A whole number from `least` to `most`."""

    least: int
    most: int

    def fault(self, value: object) -> str | None:
        """What is wrong with a value."""
        wanted = f"must be a whole number from {self.least} to {self.most}"
        if isinstance(value, bool) or not isinstance(value, int):
            return f"{wanted}, not {_shown(value)}"
        return None if self.least <= value <= self.most else f"{wanted}, not {_shown(value)}"


class Number(NamedTuple):
    """A finite number from `least`, or above it, to `most`, or below it."""

    least: float
    most: float
    above: bool = False
    below: bool = False

    def fault(self, value: object) -> str | None:
        """What is wrong with a value."""
        start = f"above {self.least:g}" if self.above else f"at least {self.least:g}"
        end = f"below {self.most:g}" if self.below else f"at most {self.most:g}"
        wanted = f"must be a number {start} and {end}"
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"{wanted}, not {_shown(value)}"
        low = value > self.least if self.above else value >= self.least
        high = value < self.most if self.below else value <= self.most
        return None if low and high else f"{wanted}, not {_shown(value)}"


class Choice(NamedTuple):
    """One of some texts; `refused` says why another one that xgboost knows is not."""

    texts: tuple[str, ...]
    refused: Mapping[str, str] = {}

    def fault(self, value: object) -> str | None:
        """What is wrong with a value."""
        if isinstance(value, str) and value in self.texts:
            return None
        why = self.refused.get(value, "") if isinstance(value, str) else ""
        return f"must be {' or '.join(self.texts)}, not {_shown(value)}" + (f": {why}" if why else "")


_SHARE = Number(0, 1, above=True)
_WEIGHT = Number(0, 1e30)  # more than its square is beyond 32 bits

_Parameters = dict[str, Whole | Number | Choice | None]

PARAMETERS: dict[str, Whole | Number | Choice] = {
    "base_score": Number(0, 1, above=True, below=True),
    "colsample_bylevel": _SHARE,
    "colsample_bynode": _SHARE,
    "colsample_bytree": _SHARE,
    "gamma": _WEIGHT,
    "grow_policy": Choice(("depthwise", "lossguide")),
    "learning_rate": Number(0, 1, above=True),
    "max_bin": Whole(2, 65_536),
    "max_delta_step": _WEIGHT,
    "max_depth": Whole(0, 64),
    "max_leaves": Whole(0, 65_536),
    "min_child_weight": _WEIGHT,
    "n_estimators": Whole(1, 100_000),
    "objective": Choice(
        OBJECTIVES["binary"],
        {
            "binary:hinge": "its scores are 0 and 1, not the probability that a score is",
            "binary:logitraw": "its scores are log-odds, not the probability that a score is",
        },
    ),
    "reg_alpha": _WEIGHT,
    "reg_lambda": _WEIGHT,
    "scale_pos_weight": Number(0, 1e30, above=True),
    "seed": Whole(0, 2**31 - 1),
    "subsample": _SHARE,
    "tree_method": Choice(
        ("hist", "approx", "exact"),
        {"auto": "name the one that is meant", "gpu_hist": "a processor's trees alone are the same bits everywhere"},
    ),
}

# What is otherwise where a target is not binary; what is None has no effect there.
_BY_KIND: dict[str, _Parameters] = {
    kind: {"objective": Choice(objectives), "scale_pos_weight": None, "base_score": None}
    for kind, objectives in OBJECTIVES.items()
    if kind != "binary"
}
_BY_KIND["regression"]["base_score"] = Number(-1e30, 1e30)
_BY_KIND["count"]["base_score"] = Number(0, 1e30, above=True)

# Of an isolation forest.
_OF_FORESTS: _Parameters = {
    **dict.fromkeys(PARAMETERS),
    "n_estimators": Whole(1, 10_000),
    "max_samples": Whole(2, 1_000_000),
    "seed": PARAMETERS["seed"],
}

# Other names that people know parameters by.
_KNOWN_AS = {
    "alpha": "reg_alpha",
    "eta": "learning_rate",
    "lambda": "reg_lambda",
    "min_split_loss": "gamma",
    "num_boost_round": "n_estimators",
    "num_round": "n_estimators",
    "num_rounds": "n_estimators",
    "random_state": "seed",
}
_NOT_DECLARED = {
    "booster": "the model is boosted trees (gbtree)",
    "device": "training runs on the processor, as its bits are the same everywhere",
    "early_stopping_rounds": "declare model.early_stopping: {rounds: …, on_last: …}",
    "eval_metric": "training has no evaluation set; metrics are in the test's table",
    "n_jobs": "say it with --threads",
    "nthread": "say it with --threads",
    "num_class": "the classes are the domain of the label",
    "quantile_alpha": "declare target: {kind: quantile, quantiles: […]}",
}
_OF_OTHER_METHODS = ("grow_policy", "max_bin", "max_leaves")


def find_parameter_faults(params: Mapping[Any, Any], kind: str = "binary") -> Iterator[tuple[Any, str]]:
    """Each fault of declared parameters for a kind of target: (name, message)."""
    known = _OF_FORESTS if kind == "anomaly" else {**PARAMETERS, **_BY_KIND.get(kind, {})}
    for name, value in params.items():
        if name not in known:
            yield name, f"is not a parameter that may be declared{_hint(name)}"
        elif (parameter := known[name]) is None:
            yield name, f"has no effect with a{'n' * (kind == 'anomaly')} {kind} target: leave it out"
        elif (message := parameter.fault(value)) is not None:
            yield name, message
    if params.get("tree_method") == "exact":
        for name in _OF_OTHER_METHODS:
            if name in params:
                yield name, "has no effect with tree_method exact: leave it out"
        if params.get("max_depth") == 0:
            yield "max_depth", "must be at least 1 with tree_method exact"


def _hint(name: object) -> str:
    if not isinstance(name, str):
        return ": its name is a text"
    if name in _NOT_DECLARED:
        return f": {_NOT_DECLARED[name]}"
    near = difflib.get_close_matches(name, [*PARAMETERS, *_KNOWN_AS], 1)
    meant = _KNOWN_AS.get(name) or (_KNOWN_AS.get(near[0], near[0]) if near else None)
    return f": did you mean {meant}?" if meant else f"; there are {', '.join(PARAMETERS)}"


def _shown(value: object) -> str:
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return repr(value)
        # YAML 1.1 takes 1e-3 for a text: it wants a point.
        plain = f"{number:.6f}".rstrip("0").rstrip(".") if math.isfinite(number) and 1e-6 <= abs(number) < 1e15 else ""
        return f"the text {value!r}" + (f": write {plain}" if plain and float(plain) == number else "")
    shown = "true or false" if isinstance(value, bool) else repr(value)
    return shown if len(shown) <= 40 else shown[:39] + "…"
