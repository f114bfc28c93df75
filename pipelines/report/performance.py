"""How good a run's scores were, where labels are known: metrics, what decisions caught, and both over time."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from models.predictors.evaluation import Evaluation, EvaluationError, average_precision, roc_auc
from models.project.declarations import Project
from models.record import DECISION, SCORE
from pipelines.report.quality import Floats, Times
from pipelines.report.scores import choose_step
from pipelines.results import evaluate_table, read_evaluated


@dataclasses.dataclass(frozen=True)
class Caught:
    """The labelled events that got a decision, and how many of them are positive."""

    action: str
    events: int
    positives: int


@dataclasses.dataclass(frozen=True)
class Performance:
    """Metrics of the labelled rows; by steps of event time in `lines`, NaN where a step lacks one of the classes."""

    evaluation: Evaluation | None
    fault: str  # why there is no evaluation
    caught: tuple[Caught, ...]
    starts: Times
    size_us: int
    lines: dict[str, Floats]


def measure(run: str, project: Project, labels: Sequence[str] = ()) -> Performance | None:
    """The performance of a run's score rows by their label column or the records of `labels`; None without labels."""
    table = read_evaluated(run, project, labels)
    if table is None or project.label is None:
        return None
    label = table.column(project.label.field).to_numpy()
    score = table.column(SCORE).to_numpy()
    evaluation, fault = None, ""
    try:
        evaluation = evaluate_table(table, project)
    except EvaluationError as error:
        fault = str(error)
    caught: list[Caught] = []
    if DECISION in table.schema.names:
        decided = np.asarray(table.column(DECISION).to_numpy())
        declared = [band.action for band in project.decisions]
        for action in [*declared, *sorted(set(decided.tolist()) - set(declared))]:
            chosen = decided == action
            caught.append(Caught(action, int(chosen.sum()), int(label[chosen].sum())))
    times = table.column(project.event.time).cast("int64").to_numpy()
    starts, size_us, lines = _over_time(times, label, score)
    return Performance(evaluation, fault, tuple(caught), starts, size_us, lines)


def _over_time(
    times: npt.NDArray[np.int64], label: npt.NDArray[np.int64], score: npt.NDArray[np.float32]
) -> tuple[Times, int, dict[str, Floats]]:
    size = choose_step(times)
    first = int(times.min()) // size
    steps = times // size - first
    length = int(steps.max()) + 1
    order = np.argsort(steps, kind="stable")
    bounds = np.searchsorted(steps[order], np.arange(length + 1))
    lines = {name: np.full(length, np.nan) for name in ("ROC AUC", "average precision")}
    for step in range(length):
        rows = order[bounds[step] : bounds[step + 1]]
        if 0 < label[rows].sum() < len(rows):
            lines["ROC AUC"][step] = roc_auc(label[rows], score[rows])
            lines["average precision"][step] = average_precision(label[rows], score[rows])
    return ((first + np.arange(length)) * size).astype("M8[us]"), size, lines
