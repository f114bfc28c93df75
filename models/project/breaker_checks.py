"""What can be wrong with a declared circuit breaker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from models.project.breakers import Labelled
from models.project.declarations import Project
from models.project.places import Fault


def check_breaker(project: Project) -> Iterator[Fault]:
    """Each fault of `breaker`."""
    breaker, quality = project.breaker, project.quality
    if breaker is None:
        return
    place, actions = ("breaker",), [band.action for band in project.decisions]
    if not project.has_model:
        yield place, "needs a model: declare model"
    if quality is None and breaker.clock is None:
        yield place, "nothing trips it: declare quality, of whose windows it is, or breaker.clock"
    if quality is None and breaker.kinds:
        yield (*place, "kinds"), "are of the findings of windows: declare quality"
    if quality is not None and quality.gate != "warn":
        yield ("quality", "gate"), f"{quality.gate} and a breaker both decide what becomes of rows: leave one out"
    known = ", ".join(sorted(project.entities)) or "none"
    if breaker.entity is not None and breaker.entity not in project.entities:
        yield (*place, "entity"), f"{breaker.entity!r} is no entity of the project; there are {known}"
    if breaker.entity is None and len(project.entities) != 1:
        yield (*place, "entity"), f"say by whose keys a share is tried (probe); the project has {known}"
    if breaker.to == "safe_action" and breaker.safe_action is None:
        yield (*place, "safe_action"), "is missing: it is what is decided while the circuit is open"
    if breaker.safe_action is not None and breaker.safe_action not in actions:
        there = ", ".join(actions) or "none"
        yield (*place, "safe_action"), f"{breaker.safe_action!r} is not an action of decisions; there are {there}"
    if breaker.clock is None:
        return
    if breaker.clock.latency is None and breaker.clock.valid is None and not breaker.clock.labels:
        yield (*place, "clock"), "nothing is held against it: declare latency, valid or labels"
    if project.rollout.clock != "wall":
        yield (*place, "clock"), "writes releases of now, and the log's clock is event time (rollout.clock)"
    yield from _check_labels(project, breaker.clock.labels)


def _check_labels(project: Project, declared: Sequence[Labelled]) -> Iterator[Fault]:
    place = ("breaker", "clock", "labels")
    if not declared:
        return
    if project.label is None or project.label.events is None:
        yield place, "needs labels that come as records of their own: declare label.events"
        return
    if not project.label_texts:
        if project.target.kind == "multiclass":
            return  # whose classes are missing, of which models.project.target_checks tells
        yield place, f"is of labels that are classes, which those of a {project.target.kind} target are not"
        return
    actions, seen = [band.action for band in project.decisions], set()
    for i, each in enumerate(declared):
        if each.decision not in actions:
            known = ", ".join(actions) or "none"
            yield (*place, i, "decision"), f"{each.decision!r} is not an action of decisions; there are {known}"
        elif each.decision in project.rollout.blocks:
            yield (*place, i, "decision"), f"no label becomes known of {each.decision}, as rollout.blocks says"
        if each.label not in project.label_texts:
            known = ", ".join(project.label_texts)
            yield (*place, i, "label"), f"{each.label!r} is no value of {project.label.field}; there are {known}"
        if each.name in seen:
            yield (*place, i), f"{each.name} stands twice: leave one out"
        seen.add(each.name)
