"""That no input of the model and no window reads what is not known yet, whatever it is called or computed of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from models.project.availability import KnownAt, after_us
from models.project.declarations import Project
from models.project.expressions import Expression
from models.project.places import Fault, unknown_field
from models.project.syntax import ExpressionError

_Late = dict[str, tuple[str, int | None]]  # name → when it is known, and microseconds after the event


def check_available(project: Project) -> Iterator[Fault]:
    """Each fault of `available`, and each input or window that would read what is not known yet."""
    late: _Late = {}
    for name, when in project.available.items():
        yield from unknown_field(project, ("available", name), name)
        if isinstance(when, KnownAt):
            yield from unknown_field(project, ("available", name, "at"), when.at)
            late[name] = (f"at {when.at}", None)
            continue
        try:
            delay_us = after_us(when)
        except ValueError as error:
            yield ("available", name), str(error)
            continue
        if delay_us:
            late[name] = (f"{when} of the event", delay_us)
    if label := project.label:
        late.setdefault(label.field, ("as late as a label is", label.delay))
    _spread(late, project.derive)
    yield from _check_windows(project, late)
    _spread(late, project.features.row)
    for i, name in enumerate(project.model.inputs):
        if name in late and not (label and name == label.field):  # of the label itself others tell
            yield ("model", "inputs", i), f"{name} is known {late[name][0]}, and the model scores at the event"


def _spread(late: _Late, expressions: Mapping[str, str]) -> None:
    """Add what is computed of something late: it is known when the last of it is."""
    for name, text in expressions.items():
        try:
            read = [late[each] for each in sorted(Expression.parse(text).names & late.keys())]
        except ExpressionError:  # of which models.project.checks tells
            continue
        if read:
            latest = max(read, key=_lateness)
            late[name] = max(late.get(name, latest), latest, key=_lateness)


def _lateness(when: tuple[str, int | None]) -> tuple[bool, int]:
    return when[1] is None, when[1] or 0


def _check_windows(project: Project, late: _Late) -> Iterator[Fault]:
    """A window may read what is late if its delay is at least as long."""
    computed = {name: when for name, when in late.items() if project.label is None or name != project.label.field}
    _spread(computed, project.features.row)
    for i, rolling in enumerate(project.features.rolling):
        for name, text in rolling.features.items():
            try:
                reads = next(rolling.model_copy(update={"features": {name: text}}).expand()).reads
            except ValueError:  # of which models.project.rolling_checks tells
                continue
            for field in sorted(set(reads) & computed.keys()):
                said, delay_us = computed[field]
                if delay_us is None:
                    yield (
                        ("features", "rolling", i, "features", name),
                        f"{field} is known {said}, which differs from event to event: no delay of a window fits",
                    )
                elif rolling.delay < delay_us:
                    yield (
                        ("features", "rolling", i, "features", name),
                        f"{field} is known {said}: the delay of its window must be at least as long",
                    )
