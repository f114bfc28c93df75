"""From examples to a model: labels as numbers, inputs that are but names as codes, trees, and what these say."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xgboost

from models.batches import as_batch, column, take_rows
from models.predictors.booster import predict
from models.predictors.encoders import NO_ENCODERS, Encoders, encode_in_order, learn_table, learn_values
from models.predictors.forest import fit_forest
from models.predictors.measures import loss_of
from models.predictors.training import Stopping, TrainingError, fit, golden, model_bytes
from models.project.declarations import Project
from models.project.targets import OBJECTIVES
from models.score import model_inputs

Labels = npt.NDArray[Any]
Rows = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Learned:
    """A model with what codes its inputs, and the rows that it is proven on."""

    booster: xgboost.Booster
    model: bytes
    encoders: Encoders
    feature_names: tuple[str, ...]
    golden_features: npt.NDArray[np.float32]
    golden_scores: npt.NDArray[np.float32]

    def predict(self, batch: pa.RecordBatch, inputs: Sequence[str]) -> npt.NDArray[np.float32]:
        """What the model says of rows."""
        return predict(self.booster, model_inputs(batch, inputs, self.encoders))


def learn(
    examples: pa.Table,
    times: Rows,
    label: Labels,
    rows: Rows,
    held: Rows,
    project: Project,
    nthread: int,
    weight: npt.NDArray[np.float32] | None = None,
) -> Learned:
    """The model of some rows of a table that is in order.

    Args:
        examples: the model's inputs.
        times: [n] event times, microseconds.
        label: [n] of `models.predictors.measures.label_numbers`.
        rows: the rows to learn from, ascending.
        held: the rows whose loss may end the training; none without early stopping.
        project: what is declared.
        nthread: threads, at least 1.
        weight: [n] above 0 of the rows to learn from, how much each counts for the trees; all as much if not given.

    Raises:
        TrainingError: on parameters, values or classes that no model can be made of.
    """
    names, batch = project.model.inputs, as_batch(examples.select(project.model.inputs))
    if project.classes:
        missing = [name for place, name in enumerate(project.classes) if not (label[rows] == place).any()]
        if missing:
            some = ", ".join(map(str, missing[:5]))
            raise TrainingError(f"no event to train on is of class {some}: give more, or take it out of the domain")
    own = take_rows(batch, rows)
    encoders = learn_encoders(own, label[rows], project)
    feature_names = encoders.feature_names(names)
    if project.target.kind == "anomaly":
        booster = fit_forest(model_inputs(own, names, encoders), project.model.params, feature_names)
        return _learned(booster, own, encoders, names)
    matrix = _encode_training(own, times[rows], label[rows], encoders, project)
    early, stopping = project.model.early_stopping, None
    if early is not None:
        if not len(held):
            raise TrainingError(
                "no labelled event is in the time of model.early_stopping.on_last: declare a longer one"
            )
        objective = str(project.model.params.get("objective", OBJECTIVES[project.target.kind][0]))
        inputs = model_inputs(take_rows(batch, held), names, encoders)
        stopping = Stopping(early.rounds, inputs, label[held], loss_of(project.target, objective))
    booster = fit(
        matrix,
        label[rows],
        project.model.params,
        feature_names=feature_names,
        feature_types=encoders.feature_types(names),
        target=project.target,
        stopping=stopping,
        weight=None if weight is None else weight[rows],
        nthread=nthread,
    )
    return _learned(booster, own, encoders, names)


def _learned(booster: xgboost.Booster, rows: pa.RecordBatch, encoders: Encoders, names: Sequence[str]) -> Learned:
    model, inputs = model_bytes(booster), model_inputs(rows, names, encoders)
    return Learned(booster, model, encoders, encoders.feature_names(names), *golden(model, inputs))


def learn_encoders(batch: pa.RecordBatch, label: Labels, project: Project) -> Encoders:
    """The encoders of rows to train on; EncoderError where there are too many values."""
    found = {}
    for name, category in project.categories.items():
        values = column(batch, name)
        encoder = learn_values(name, values, category)
        if category.encoding == "target":
            sums, scale = _summed(label, project)
            encoder = learn_table(encoder, values, sums, scale, category, tuple(map(str, project.classes)))
        found[name] = encoder
    return Encoders(found) if found else NO_ENCODERS


def _encode_training(
    batch: pa.RecordBatch, times: Rows, label: Labels, encoders: Encoders, project: Project
) -> npt.NDArray[np.float32]:
    """As `model_inputs`, but for target encodings, which see only labels that were known at each event's time."""
    matrix = model_inputs(batch, project.model.inputs, encoders)
    place = 0
    for name in project.model.inputs:
        encoder = encoders.by_name.get(name)
        width = len(encoder.columns) if encoder else 1
        if encoder and encoder.encoding == "target" and project.label:
            sums, scale = _summed(label, project)
            delay_us, category = project.label.delay, project.categories[name]
            codes = encode_in_order(encoder, column(batch, name), times, sums, delay_us, scale, category)
            matrix[:, place : place + width] = codes
        place += width
    return matrix


def _summed(label: Labels, project: Project) -> tuple[Rows, int]:
    """Labels as whole numbers int64[n, c], and how many of these are one: places declared, or a column a class."""
    if project.classes:
        return (label[:, np.newaxis] == np.arange(len(project.classes))).astype(np.int64), 1
    assert project.label is not None
    scale = 10 ** project.fixed_point.get(project.label.field, 0)
    return np.rint(label * scale).astype(np.int64)[:, np.newaxis], scale
