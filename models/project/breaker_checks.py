"""What can be wrong with a declared circuit breaker."""

from __future__ import annotations

from collections.abc import Iterator

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
    if breaker.clock.latency is None and breaker.clock.valid is None:
        yield (*place, "clock"), "nothing is held against it: declare latency or valid"
    if project.rollout.clock != "wall":
        yield (*place, "clock"), "writes releases of now, and the log's clock is event time (rollout.clock)"
