"""Split labelled rows by time and fit the model on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xgboost

from models.errors import HeadraceError
from models.predictors.booster import predict
from models.project.parameters import find_parameter_faults
from models.project.targets import OBJECTIVES, Target

DAY_US = 86_400_000_000
BINARY = Target()


@dataclasses.dataclass(frozen=True)
class Stopping:
    """When training ends: after so many `rounds` without a lower `loss` of these rows, which it does not learn from."""

    rounds: int
    features: npt.NDArray[np.float32]
    label: npt.NDArray[Any]
    loss: Callable[[npt.NDArray[Any], npt.NDArray[np.float32]], float]


class TrainingError(HeadraceError, ValueError):
    """Events that no model can be trained on, or parameters that none can be trained with."""


def split_by_time(
    event_time_us: npt.NDArray[np.int64],
    group: npt.NDArray[Any] | None,
    label: npt.NDArray[np.integer[Any]],
    *,
    start_us: int,
    train_us: int,
    delay_us: int,
    test_us: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the positions of the training rows and, a label delay later, of the test rows.

    Training rows lie in [start, start + train). The test rows of day d lie in the 24 hours from start +
    train + delay + d, without the groups then known to be compromised: those with a positive among the
    training rows, or in a 24 hours from start + train + (0 … d) - 1 day. Rows before `start`, in the delay
    or after the test are in neither; nor is a row without a label, which makes no group known either.

    Source: `get_train_test_set` of the Fraud Detection Handbook (Le Borgne et al., 2022, chapter 3.2).

    Args:
        event_time_us: [n] microseconds since the epoch, UTC.
        group: [n] integers or strings, such as the card; None to remove no group.
        label: [n] integers: 1, 0, or -1 for a row without a label.
        start_us: microseconds since the epoch; days are counted from it, so a midnight UTC is meant.
        train_us: microseconds, whole days, at least one.
        delay_us: microseconds, whole days.
        test_us: microseconds, whole days, at least one.

    Returns:
        Two int64 arrays of positions, each ascending; either may be empty.

    Raises:
        ValueError: if a span is not in whole days, the lengths differ, or a label is none of 1, 0 and -1.
    """
    for name, span, least in (("train", train_us, 1), ("delay", delay_us, 0), ("test", test_us, 1)):
        if span % DAY_US or span < least * DAY_US:
            raise ValueError(f"{name} is {span} µs: whole days are needed, at least {least}")
    if label.shape != event_time_us.shape or (group is not None and group.shape != label.shape):
        raise ValueError("event_time_us, group and label differ in length")
    if not np.isin(label, (-1, 0, 1)).all():
        raise ValueError("labels must be 1, 0, or -1 for none")

    day = (event_time_us - start_us) // DAY_US
    train_days, delay_days, test_days = train_us // DAY_US, delay_us // DAY_US, test_us // DAY_US
    labelled, positive = label >= 0, label == 1
    in_train = labelled & (day >= 0) & (day < train_days)
    in_test = labelled & (day >= train_days + delay_days) & (day < train_days + delay_days + test_days)
    if group is not None:
        groups, code = np.unique(group, return_inverse=True)
        known = np.zeros(len(groups), dtype=bool)
        known[code[in_train & positive]] = True
        for test_day in range(test_days):
            known[code[positive & (day == train_days + test_day - 1)]] = True
            in_test &= ~((day == train_days + delay_days + test_day) & known[code])
    return np.flatnonzero(in_train), np.flatnonzero(in_test)


def fit(
    features: npt.NDArray[np.float32],
    label: npt.NDArray[Any],
    params: Mapping[str, Any],
    *,
    feature_names: Sequence[str],
    feature_types: Sequence[str] | None = None,
    target: Target = BINARY,
    stopping: Stopping | None = None,
    weight: npt.NDArray[np.float32] | None = None,
    seed: int | None = None,
    nthread: int = 1,
) -> xgboost.Booster:
    """Return boosted trees, fitted on rows in the order given.

    The same rows in the same order give the same bytes whatever `nthread` is; the caller sorts them (by
    event time, then id). The figures are those of `xgboost.XGBClassifier` with the same parameters.

    Args:
        features: [n, k] float32, NaN where missing.
        label: [n] 0 and 1, both present; of a multi-class target the classes' numbers, all present; else numbers.
        params: as `models.project.parameters` has them; absent ones keep xgboost's defaults (100 trees, depth 6,
            learning rate 0.3), but for the objective, the first of the kind's, and the tree method, hist.
        feature_names: k names, kept in the model.
        feature_types: for each feature `q` of a number or `c` of a code that the trees split by category; all numbers
            if not given.
        target: what is predicted.
        stopping: ends the training early; the trees are those of the least loss.
        weight: [n] float32 above 0, how much each row counts; all as much if not given.
        seed: of the row and column sampling; else `params["seed"]`, else 0.
        nthread: threads, at least 1. More threads than idle cores can be 30 times slower.

    Raises:
        TrainingError: on a parameter unknown or out of range.
        ValueError: on another shape or dtype, an infinite feature, or labels of one class.
    """
    faults = [f"{name} {message}" for name, message in find_parameter_faults(params, target.kind)]
    if faults:
        raise TrainingError(f"model parameter {'; '.join(faults)}")
    if features.dtype != np.float32 or features.shape != (len(label), len(feature_names)):
        raise ValueError(
            f"features are {features.dtype} {list(features.shape)}, "
            f"float32 {[len(label), len(feature_names)]} is needed"
        )
    if np.isinf(features).any():
        row, place = (int(place) for place in np.argwhere(np.isinf(features))[0])
        raise ValueError(f"the feature {feature_names[place]} is infinite in row {row}; a missing one is NaN")
    native = {name: value for name, value in params.items() if name != "n_estimators"}
    native = {"objective": OBJECTIVES[target.kind][0], "tree_method": "hist", **native, "nthread": nthread}
    native |= _check_label(label, target)
    native["seed"] = params.get("seed", 0) if seed is None else seed
    rounds = int(params.get("n_estimators", 100))
    options = {"feature_names": list(feature_names), "nthread": nthread}
    if feature_types is not None:
        options |= {"feature_types": list(feature_types), "enable_categorical": True}
    try:
        rows = _rows(features, label, native["tree_method"], int(params.get("max_bin", 256)), options, weight)
        if stopping is None:
            return xgboost.train(native, rows, num_boost_round=rounds)
        native["disable_default_eval_metric"] = True
        held = xgboost.DMatrix(stopping.features, label=stopping.label.astype(np.float32), **options)
        stop = _Stop(stopping, held)
        # One that is among `evals` is scored tree by tree, and not with all trees after each.
        more: dict[str, Any] = {"evals": [(held, "held")], "verbose_eval": False, "callbacks": [stop]}
        return xgboost.train(native, rows, num_boost_round=rounds, **more)[: stop.best_round + 1]
    except xgboost.core.XGBoostError as error:
        raise TrainingError(f"xgboost refuses: {str(error).splitlines()[0]}") from error


class _Stop(xgboost.callback.TrainingCallback):
    """Ends a training by a loss that is not rounded, as xgboost's own early stopping has it."""

    def __init__(self, stopping: Stopping, held: xgboost.DMatrix) -> None:
        self._stopping, self._held = stopping, held
        self._best = np.inf
        self.best_round = 0

    def after_iteration(self, model: xgboost.Booster, epoch: int, evals_log: Any) -> bool:
        """Whether it is to end."""
        loss = self._stopping.loss(self._stopping.label, model.predict(self._held))
        if loss < self._best:
            self._best, self.best_round = loss, epoch
        return epoch - self.best_round >= self._stopping.rounds


def _check_label(label: npt.NDArray[Any], target: Target) -> dict[str, Any]:
    """What xgboost is told of the label; ValueError if it is not what the target needs."""
    if target.kind == "binary":
        positives = int(np.count_nonzero(label == 1))
        if positives + int(np.count_nonzero(label == 0)) != len(label):
            raise ValueError("labels must be 0 or 1, without nulls")
        if positives in (0, len(label)):
            raise ValueError(f"{positives} of {len(label)} training rows are positive: both classes are needed")
        return {}
    if not len(label) or not np.isfinite(label).all():
        raise ValueError("labels must be finite, of at least one row")
    if target.kind == "multiclass":
        found = np.unique(label)
        if not np.array_equal(found, np.arange(len(found))) or len(found) < 2:
            raise ValueError("labels must be the numbers of the classes, all present")
        return {"num_class": len(found)}
    return {"quantile_alpha": list(target.quantiles)} if target.kind == "quantile" else {}


def _rows(
    features: npt.NDArray[np.float32],
    label: npt.NDArray[Any],
    tree_method: str,
    max_bin: int,
    options: Mapping[str, Any],
    weight: npt.NDArray[np.float32] | None,
) -> xgboost.DMatrix:
    labels = label.astype(np.float32)
    if tree_method != "hist":
        return xgboost.DMatrix(features, label=labels, weight=weight, **options)
    # Half the time and memory of a DMatrix, and the same trees.
    return xgboost.QuantileDMatrix(features, label=labels, weight=weight, max_bin=max_bin, **options)


def model_bytes(booster: xgboost.Booster) -> bytes:
    """Return the model in xgboost's UBJSON; the same trees give the same bytes."""
    return bytes(booster.save_raw("ubj"))


def golden(
    model: bytes, features: npt.NDArray[np.float32], rows: int = 32
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return rows to try a loaded model on, and the scores it must give, bit for bit.

    Args:
        model: bytes of `model_bytes`, trusted. They are loaded again, since it is what is loaded that scores.
        features: [n, k] float32, n at least 1.
        rows: how many are taken, evenly spaced; a row with every feature missing is added.

    Returns:
        [m, k] float32 features and [m] float32 scores, m at most rows + 1.
    """
    chosen = np.unique(np.linspace(0, len(features) - 1, min(rows, len(features))).astype(np.int64))
    missing = np.full((1, features.shape[1]), np.nan, dtype=np.float32)
    sample = np.ascontiguousarray(np.concatenate([features[chosen], missing]))
    return sample, predict(xgboost.Booster({"nthread": 1}, model_file=bytearray(model)), sample)
