"""Models that were trained elsewhere: what is asked of one before it may score."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import xgboost

from models.predictors.booster import ModelCorrupt, ModelMismatch, Predictor, load_model
from models.predictors.encoders import Encoders
from models.predictors.lightgbm_model import read_head, read_splits
from models.predictors.onnx_model import OnnxModel
from models.predictors.skops_model import SkopsModel
from models.predictors.training import model_bytes
from models.project.declarations import Project
from models.project.parameters import find_parameter_faults

Rows = npt.NDArray[np.float32]
Predict = Callable[[Rows], Rows]

# By kind of target, the objectives of LightGBM's whose scores are what the target's are.
_OF_LIGHTGBM = {
    "binary": ("binary", "cross_entropy"),
    "multiclass": ("multiclass", "multiclassova"),
    "regression": ("regression", "regression_l1", "huber", "fair", "mape", "gamma", "tweedie"),
    "count": ("poisson",),
    "quantile": ("quantile",),
}
_CUTS = ((1, "alone"), (3, "in threes"), (7, "in sevens"))


def prove_independence(predict: Predict, features: Rows) -> None:
    """ModelMismatch, with the first row that shows it, if a row's bits depend on what it is scored with."""
    whole = predict(features)
    for size, how in _CUTS:
        cuts = range(0, len(features), size)
        parts = [predict(np.ascontiguousarray(features[start : start + size])) for start in cuts]
        _require_same(whole, np.concatenate(parts), how)
    order = np.random.default_rng(0).permutation(len(features))
    permuted = np.empty_like(whole)
    permuted[order] = predict(np.ascontiguousarray(features[order]))
    _require_same(whole, permuted, "in another order")


def _require_same(whole: Rows, again: Rows, how: str) -> None:
    if whole.shape != again.shape:
        raise ModelMismatch(f"the model gives scores of shape {whole.shape} for all rows, and {again.shape} {how}")
    differ = np.argwhere(whole.view(np.uint32) != again.view(np.uint32))
    if len(differ):
        place, rows = tuple(differ[0]), len(np.unique(differ[:, 0]))
        raise ModelMismatch(
            f"a row's score depends on the rows it is scored with: row {place[0]} scores {whole[place]:.9g} among all "
            f"{len(whole)} and {again[place]:.9g} {how}, as {rows} rows differ: such a model has other scores "
            "in a stream than in batch. With model: {alone: true}, one row is scored at a time, which is slow"
        )


def prove_golden(scores: Rows, expected: Rows, near: bool) -> None:
    """ModelMismatch, with the first row that differs, if a model does not say what it is expected to.

    That are the same bits, or with `near` a number next to it, as of models whose bits depend on how rows are scored,
    or on the number of threads.
    """
    if scores.shape != expected.shape:
        raise ModelMismatch(f"the model gives scores of shape {scores.shape}, {expected.shape} is expected")
    same = np.isclose(scores, expected, 1e-5, 1e-7) if near else scores.view(np.uint32) == expected.view(np.uint32)
    differ = np.argwhere(~same)
    if len(differ):
        place, rows = tuple(differ[0]), len(np.unique(differ[:, 0]))
        raise ModelMismatch(
            f"{rows} of {len(expected)} golden scores differ; row {place[0]} scores {scores[place]:.9g}, "
            f"{expected[place]:.9g} is expected"
        )


def adopt_booster(content: bytes, project: Project, encoders: Encoders) -> bytes:
    """XGBoost's UBJSON of a model in its JSON or UBJSON, of the inputs and the target that a project declares.

    Raises:
        ModelCorrupt: if xgboost can't read it.
        ModelMismatch: if it has other features, another objective or other outputs, or is no trees.
    """
    try:
        booster = xgboost.Booster({"nthread": 1}, model_file=bytearray(content))
        learner = json.loads(booster.save_config())["learner"]
    except (xgboost.core.XGBoostError, ValueError, KeyError) as error:
        raise ModelCorrupt(f"xgboost cannot read it: {str(error).splitlines()[0]}") from error
    _check_features(booster, project.model.inputs, encoders)
    kind = learner["learner_train_param"]["booster"]
    if kind not in ("gbtree", "dart"):
        raise ModelMismatch(f"it is {kind}, and not trees")
    objective = learner["objective"]["name"]
    if project.target.kind != "anomaly":
        for _, message in find_parameter_faults({"objective": objective}, project.target.kind):
            raise ModelMismatch(f"its objective, for a {project.target.kind} target, {message}")
    if project.target.kind == "quantile":
        said = learner["objective"]["quantile_loss_param"]["quantile_alpha"]
        quantiles = [float(number) for number in re.findall(r"[0-9.eE+-]+", said)]
        if not np.array_equal(np.array(quantiles, np.float32), np.array(project.target.quantiles, np.float32)):
            raise ModelMismatch(f"its quantiles are {quantiles}, and not {project.target.quantiles}")
    return model_bytes(booster)


def adopt_estimator(content: bytes, project: Project, encoders: Encoders) -> bytes:
    """The file of skops' itself, of an estimator of the inputs and the target that a project declares.

    Raises:
        ModelCorrupt: if it is none, or holds what may do anything.
        ModelMismatch: if it has other features, says another kind of thing, or has no score where inputs are missing.
    """
    expected = encoders.feature_names(project.model.inputs)
    model = load_model(content, "skops", expected)
    assert isinstance(model, SkopsModel)
    _check_names(model.feature_names, expected, "fit it with a DataFrame")
    wanted = [0, 1] if project.target.kind == "binary" else list(project.classes) or None
    if model.classes != wanted:
        raise ModelMismatch(f"its classes are {model.classes}, and a {project.target.kind} target has {wanted}")
    if project.target.kind not in ("binary", "multiclass", "regression", "count"):
        raise ModelMismatch(f"estimators are of no {project.target.kind} target")
    _require_score_of_missing(model)
    return content


def adopt_lightgbm(content: bytes, project: Project, encoders: Encoders) -> bytes:
    """A text that LightGBM wrote, of the inputs and the target that a project declares.

    Raises:
        ModelCorrupt: if lightgbm can't read it.
        ModelMismatch: if it has other features or another objective.
    """
    expected = encoders.feature_names(project.model.inputs)
    model, text = load_model(content, "txt", expected), content.decode()
    unnamed = model.feature_names == [f"Column_{number}" for number in range(model.num_features())]
    _check_names(None if unnamed else model.feature_names, expected, "say them as feature_name of its Dataset")
    splits = read_splits(text)
    for place, kind in enumerate(encoders.feature_types(project.model.inputs) or ["q"] * len(expected)):
        if splits.get(place, set()) - {kind == "c"}:
            raise _mismatch_of_splits(expected[place], by_category=kind != "c")
    objective, target = read_head(text).get("objective", "none").split(" ")[0], project.target
    if objective not in _OF_LIGHTGBM.get(target.kind, (objective,)):
        wanted = " or ".join(_OF_LIGHTGBM[target.kind])
        raise ModelMismatch(f"its objective, for a {target.kind} target, must be {wanted}, not {objective!r}")
    if target.kind == "quantile":
        alpha = [float(number) for number in re.findall(r"^\[alpha: (\S+)\]$", text, re.MULTILINE)]
        if alpha != target.quantiles:
            raise ModelMismatch(f"its quantiles are {alpha}, and not {target.quantiles}")
    return content


def adopt_onnx(content: bytes, project: Project, encoders: Encoders) -> bytes:
    """An ONNX file, of the inputs that a project declares; what its outputs are, golden scores tell.

    Raises:
        ModelCorrupt: if onnxruntime can't read it.
        ModelMismatch: if it has other inputs, or has no score where inputs are missing.
    """
    expected = encoders.feature_names(project.model.inputs)
    model = load_model(content, "onnx", expected)
    if model.feature_names is None:
        raise ModelMismatch(
            f"its input has {model.num_features()} columns, and the features are {len(expected)}: {', '.join(expected)}"
        )
    _check_names(model.feature_names, expected, "name its inputs")
    _require_score_of_missing(model)
    return content


def names_columns(model: Predictor) -> bool:
    """Whether a model's file says what its columns are called."""
    return not isinstance(model, OnnxModel) or model.named


def _require_score_of_missing(model: Predictor) -> None:
    try:
        scores = np.asarray(model.inplace_predict(np.full((1, model.num_features()), np.nan, np.float32)))
        why = "" if np.isfinite(scores).all() else "it says that it is not finite"
    except ValueError as error:
        why = str(error).splitlines()[0]
    if why:
        raise ModelMismatch(f"it has no score where inputs are missing: begin it with an imputer ({why})")


def _check_features(booster: xgboost.Booster, inputs: Sequence[str], encoders: Encoders) -> None:
    expected = encoders.feature_names(inputs)
    _check_names(booster.feature_names, expected, "set them before it is saved")
    if booster.num_features() != len(expected):
        raise ModelMismatch(f"it has {len(expected)} feature names, and {booster.num_features()} features")
    types = encoders.feature_types(inputs) or ["q"] * len(expected)
    found = [kind if kind == "c" else "q" for kind in booster.feature_types or ["q"] * len(expected)]
    for name, ours, theirs in zip(expected, types, found, strict=True):
        if ours != theirs:
            raise _mismatch_of_splits(name, by_category=theirs == "c")


def _mismatch_of_splits(name: str, by_category: bool) -> ModelMismatch:
    how = "splits it by category" if by_category else "takes it as a number"
    return ModelMismatch(f"its feature {name}: the model {how}, unlike what model.categories declares")


def _check_names(found: Sequence[str] | None, expected: Sequence[str], how: str) -> None:
    if not found:
        raise ModelMismatch(f"it has no feature names: {how}, to {', '.join(expected)}")
    if tuple(found) != tuple(expected):
        order = ": it has them in another order, which model.inputs must have" if {*found} == {*expected} else ""
        raise ModelMismatch(f"its features are {', '.join(found)}, and not {', '.join(expected)}{order}")
