"""How good a run's scores were, where labels are known: metrics, what decisions caught, and both over time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from models.predictors.evaluation import Evaluation, EvaluationError, average_precision, roc_auc
from models.predictors.measures import CalibrationBin, Numbers, calibrate, heading, measure_of
from models.project.declarations import Project
from models.project.targets import Target
from models.record import DECISION, SCORE
from models.rollout.holdout import SELECTED, WEIGHTED, weights_of
from pipelines.report.quality import Floats, Times
from pipelines.report.scores import choose_step
from pipelines.results import evaluate_tables, evaluated_columns, read_evaluated

Measured = Callable[[Numbers, Numbers], dict[str, float | None]]


@dataclasses.dataclass(frozen=True)
class Caught:
    """The labelled events that got a decision: how many, and of what label they are.

    That are the positive ones, those of each class, or the mean of their labels, by the kind of target.
    """

    action: str
    events: int
    positives: int = 0
    classes: tuple[int, ...] = ()
    mean: float | None = None


@dataclasses.dataclass(frozen=True)
class Performance:
    """Metrics of the labelled rows; by steps of event time in `lines`, NaN where a step lacks what a metric needs."""

    evaluation: Evaluation | None
    fault: str  # why there is no evaluation
    caught: tuple[Caught, ...]
    starts: Times
    size_us: int
    lines: dict[str, Floats]
    binary: bool = True  # whether labels are 0 and 1
    classes: tuple[str, ...] = ()
    calibration: tuple[CalibrationBin, ...] = ()  # of probabilities
    note: str = ""  # how labels came, where decisions block


def measure(run: str, project: Project, labels: Sequence[str] = ()) -> Performance | None:
    """The performance of a run's score rows by their label column or the records of `labels`; None without labels."""
    table = read_evaluated(run, project, labels)
    if table is None or project.label is None:
        return None
    label, outputs = evaluated_columns(table, project)
    score = table.column(SCORE).to_numpy()
    evaluation, fault = None, ""
    try:
        evaluation = evaluate_tables([table], project)
    except EvaluationError as error:
        fault = str(error)
    caught: list[Caught] = []
    if DECISION in table.schema.names:
        decided = np.asarray(table.column(DECISION).to_numpy())
        declared = list(dict.fromkeys(band.action for band in project.decisions))
        for action in [*declared, *sorted(set(decided.tolist()) - set(declared))]:
            caught.append(_caught(action, label[decided == action], project))
    calibration: list[CalibrationBin] = []
    if project.target.kind == "binary":
        calibration = calibrate(label, score)
    elif project.classes:
        calibration = calibrate(np.argmax(outputs, axis=1) == label, score)
    times = table.column(project.event.time).cast("int64").to_numpy()
    figures = _binary_figures if project.has_positives else _figures_of(project.target)
    starts, size_us, lines = _over_time(times, label, outputs, figures)
    return Performance(
        evaluation,
        fault,
        tuple(caught),
        starts,
        size_us,
        lines,
        project.has_positives,
        tuple(map(str, project.classes)),
        tuple(calibration),
        "" if not project.rollout.blocks else SELECTED if weights_of(table, project) is None else WEIGHTED,
    )


def _caught(action: str, label: Numbers, project: Project) -> Caught:
    if project.has_positives:
        return Caught(action, len(label), positives=int(label.sum()))
    if project.classes:
        counts = np.bincount(label.astype(np.int64), minlength=len(project.classes))
        return Caught(action, len(label), classes=tuple(counts.tolist()))
    return Caught(action, len(label), mean=math.fsum(label) / len(label) if len(label) else None)


def _over_time(
    times: npt.NDArray[np.int64], label: Numbers, outputs: Numbers, figures: Measured
) -> tuple[Times, int, dict[str, Floats]]:
    size = choose_step(times)
    first = int(times.min()) // size
    steps = times // size - first
    length = int(steps.max()) + 1
    order = np.argsort(steps, kind="stable")
    bounds = np.searchsorted(steps[order], np.arange(length + 1))
    lines = {name: np.full(length, np.nan) for name in figures(label[:0], outputs[:0])}
    for step in range(length):
        rows = order[bounds[step] : bounds[step + 1]]
        for name, figure in figures(label[rows], outputs[rows]).items():
            lines[name][step] = np.nan if figure is None else figure
    return ((first + np.arange(length)) * size).astype("M8[us]"), size, lines


def _binary_figures(label: Numbers, score: Numbers) -> dict[str, float | None]:
    both = 0 < label.sum() < len(label)
    return {
        "ROC AUC": roc_auc(label, score) if both else None,
        "average precision": average_precision(label, score) if both else None,
    }


def _figures_of(target: Target) -> Measured:
    measured = measure_of(target)
    return lambda label, outputs: {heading(n): v for n, v in measured(label, outputs).figures().items()}
