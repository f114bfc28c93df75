"""What can be wrong with what challengers are declared to be judged by."""

from __future__ import annotations

from collections.abc import Iterator

from models.predictors.evaluation import STANDARD
from models.project.declarations import Project
from models.project.feedback_checks import NO_BETTER
from models.project.places import Fault
from models.quality.label_metrics import figure_names


def check_rollout(project: Project) -> Iterator[Fault]:
    """Each fault of `rollout.blocks` and `rollout.rules`."""
    blocks, rules = project.rollout.blocks, project.rollout.rules
    actions = [band.action for band in project.decisions]
    for i, action in enumerate(blocks):
        if action not in actions:
            known = ", ".join(actions) or "none"
            yield ("rollout", "blocks", i), f"{action!r} is not an action of decisions; there are {known}"
    if rules is None:
        return
    place = ("rollout", "rules")
    if not project.has_model:
        yield place, "needs a model: declare model"
        return
    margins = rules.margins
    if all(getattr(margins, name) is None for name in type(margins).model_fields):
        yield (*place, "margins"), f"nothing is judged: declare one of {', '.join(type(margins).model_fields)}"
    if margins.decisions is not None and not project.decisions:
        yield (*place, "margins", "decisions"), "there are none: declare decisions"
    for name in ("metric", "slices"):
        if getattr(margins, name) is not None and rules.metric is None:
            yield (*place, "margins", name), "is of rules.metric: declare it"
    if margins.slices is not None and not project.training.slices:
        yield (*place, "margins", "slices"), "there are none: declare training.slices"
    if rules.metric is not None:
        yield from _check_metric(project, rules.metric)


def _check_metric(project: Project, metric: str) -> Iterator[Fault]:
    place = ("rollout", "rules", "metric")
    if project.label is None:
        yield place, "needs labels: declare label"
        return
    if project.has_positives:
        probable = ["log_loss", "calibration_error"] if project.target.kind == "binary" else []
        known = [*STANDARD, *project.metrics, *probable]
    else:
        known = [name for name in figure_names(project) if not NO_BETTER.fullmatch(name)]
    if project.rollout.blocks:
        known = [name for name in known if name in STANDARD]
    if metric not in known:
        beside = " by which rows can be weighed, as rollout.blocks asks for" if project.rollout.blocks else ""
        yield place, f"{metric!r} is no figure{beside}; there are {', '.join(known) or 'none'}"
