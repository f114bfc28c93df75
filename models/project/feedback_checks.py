"""What can be wrong with declared label metrics, with declared retraining, and with objectives of labels."""

from __future__ import annotations

import re
from collections.abc import Iterator

from models.predictors.evaluation import STANDARD
from models.project.declarations import Project
from models.project.places import Fault
from models.quality.calibration import ESTIMATED_KINDS, is_estimated
from models.quality.expectations import estimate_fields
from models.quality.label_metrics import COLUMNS, figure_names

NO_BETTER = re.compile("mean_score|coverage_.*|score_[0-9]+th")  # figures that are neither better nor worse


def check_feedback(project: Project) -> Iterator[Fault]:
    """Each fault of `label_metrics` and `retrain`."""
    for key in ("label_metrics", "retrain"):
        if getattr(project, key) is not None and not project.has_model:
            yield (key,), "needs a model: declare model"
    yield from _check_label_metrics(project)
    yield from _check_retrain(project)
    yield from _check_slo(project)


def _check_slo(project: Project) -> Iterator[Fault]:
    slo = project.slo
    if slo is None or not (slo.labels or slo.performance) or not project.has_model:
        return
    if project.label_metrics is None or project.label is None:
        for key in [*(["labels"] if slo.labels else []), *(["performance"] if slo.performance else [])]:
            yield ("slo", key), "needs windows whose labels are known: declare label_metrics"
        return
    known = figure_names(project)
    for name in slo.performance:
        if name not in known:
            yield ("slo", "performance", name), f"{name!r} is no figure; there are {', '.join(known)}"


def _check_label_metrics(project: Project) -> Iterator[Fault]:
    label = project.label
    if project.label_metrics is None:
        return
    if is_estimated(project) and project.target.kind not in ESTIMATED_KINDS:
        yield ("label_metrics", "estimate"), f"is of {', '.join(ESTIMATED_KINDS)}, not of {project.target.kind}"
        return
    if label is None or not (label.events or label.field in project.output or is_estimated(project)):
        yield ("label_metrics",), "needs labels: declare label.events, or name the label among output"
        return
    for name in sorted(project.metrics.keys() & {*COLUMNS, *estimate_fields(project)}):
        yield ("metrics", name), f"{name} is a column of label metrics: give another name"


def _check_retrain(project: Project) -> Iterator[Fault]:
    retrain = project.retrain
    if retrain is None or not project.has_model:
        return
    if project.label is None:
        yield ("retrain",), "needs a label to be better by: declare label"
        return
    known = [*STANDARD, *project.metrics] if project.has_positives else figure_names(project)
    known = [name for name in known if not NO_BETTER.fullmatch(name)]
    if project.rollout.blocks and project.has_positives:
        known = list(STANDARD)  # by which rows can be weighed
    if retrain.gate.metric not in known:
        yield ("retrain", "gate", "metric"), f"{retrain.gate.metric!r} is no figure; there are {', '.join(known)}"
    for name in retrain.gate.slices:
        if name not in project.training.slices:
            yield (
                ("retrain", "gate", "slices", name),
                f"{name} is not among training.slices, by which figures are given",
            )
    for i, name in enumerate(retrain.or_on):
        needed = {"drift": project.quality, "label_metrics": project.label_metrics}[name]
        if needed is None:
            what = {"drift": "quality", "label_metrics": "label_metrics"}[name]
            yield ("retrain", "or_on", i), f"{name} needs what it is seen by: declare {what}"
