"""What can be wrong with where decisions go, and with what is decided without a score."""

from __future__ import annotations

from collections.abc import Iterator

from models.project.declarations import Project
from models.project.places import Fault
from models.record import OUTCOME
from models.routes import fault_of


def check_fallback(project: Project) -> Iterator[Fault]:
    """That a row with the fallback decision has a place among others, and columns of its own."""
    if project.fallback is None:
        return
    if project.has_model and not project.decisions:
        yield ("fallback",), "is one more decision: declare decisions, or leave fallback out"
    if OUTCOME in (project.event.id, project.event.time):
        yield (
            ("fallback",),
            f"its rows have a column {OUTCOME}: derive the event's id and time by other names",
        )


def check_sinks(project: Project) -> Iterator[Fault]:
    """That rows of the decisions named come, and can go where they are sent."""
    for decision, place in project.sinks.items():
        if decision not in project.actions:
            known = ", ".join(project.actions) or "none"
            yield ("sinks", decision), f"no rule gives the decision {decision!r}; there are {known}"
        if (fault := fault_of(place)) is not None:
            yield ("sinks", decision), fault
