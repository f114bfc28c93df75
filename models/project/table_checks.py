"""What can be wrong with declared tables, and with what reads their fields."""

from __future__ import annotations

import re
from collections.abc import Iterator

from models.project.aggregates import SUMMED
from models.project.contract import UNIX_UNITS, fault_of_time_format
from models.project.declarations import Project
from models.project.documents import Path
from models.project.expressions import Expression
from models.project.places import Fault
from models.project.sections import RollingFeature
from models.project.syntax import ExpressionError
from models.project.tables import Table
from models.record import EVENTS, LABELS, RESERVED


def check_tables(project: Project) -> Iterator[Fault]:
    """Each fault of tables, and of what may not read their fields."""
    for name, table in project.tables.items():
        if name in (EVENTS, LABELS):
            yield ("tables", name), f"{name} is what headrace calls other records: give another name"
        yield from _check_table(project, ("tables", name), table)
        yield from _check_fields(project, ("tables", name, "fields"), name)
    if project.tables:
        yield from _check_readers(project)


def _check_table(project: Project, path: Path, table: Table) -> Iterator[Fault]:
    known = ", ".join(project.entities) or "none"
    if table.entity not in project.entities:
        yield (*path, "entity"), f"{table.entity!r} is not an entity; there are {known}"
    elif project.entities[table.entity] in project.joined_fields:
        yield (*path, "entity"), f"{table.entity} is known by a table itself: name one that events have"
    text = table.time_format
    if text is not None and text not in UNIX_UNITS and (fault := fault_of_time_format(text)) is not None:
        yield (*path, "time_format"), fault
    own = {"key": table.key or project.entities.get(table.entity), "time": table.time}
    own |= {"until": table.until, "deleted": table.deleted}
    for place, name in own.items():
        if name is None:
            continue
        if not name or not name.isprintable() or name.startswith("__"):
            yield (*path, place), f"{name!r} can't be a field: it is reserved, or has characters that can't be seen"
        if name in table.fields or list(own.values()).count(name) > 1:
            yield (*path, place), f"{name} stands twice: each field of a row is one thing"


def _check_fields(project: Project, path: Path, own: str) -> Iterator[Fault]:
    for name in project.tables[own].fields:
        others = [other for other, table in project.tables.items() if other != own and name in table.fields]
        if not re.fullmatch(r"[A-Za-z_]\w*", name) or name.startswith("__"):
            yield (*path, name), f"{name!r} is not a name: letters, digits and single underscores, no digit first"
        if name in project.own_fields or name in project.derive:
            yield (*path, name), f"{name} is the name of an event's field already"
        if others:
            yield (*path, name), f"{name} is a field of the table {others[0]}, too"
        if name in RESERVED:
            yield (*path, name), f"{name} is reserved: a score row has a column of that name"


def _check_readers(project: Project) -> Iterator[Fault]:
    joined, why = project.joined_fields, "is a field of a table, which is not known yet"
    single: list[tuple[Path, str | None]] = [
        (("event", "id"), project.event.id),
        (("event", "time"), project.event.time),
    ]
    single += [(("label", "field"), project.label.field)] if project.label else []
    for path, name in single:
        if name in joined:
            yield path, f"{name} {why}"
    try:
        early: dict[Path, frozenset[str]] = {("derive", name): e.names for name, e in project.derived_fields.items()}
        early |= {("where",): Expression.parse(project.where).names} if project.where is not None else {}
    except ExpressionError:  # which is told where it stands
        early = {}
    for place, names in early.items():
        for name in sorted(names & joined.keys()):
            yield place, f"{name} {why} where derive and where are"
    for i, rolling in enumerate(project.features.rolling):
        for text in rolling.features:
            yield from _check_sums(project, ("features", "rolling", i, "features", text), text)


def _check_sums(project: Project, path: Path, name: str) -> Iterator[Fault]:
    try:
        sums = [
            f for f in project.rolling_features if re.fullmatch(re.escape(name).replace(r"\{window\}", ".*"), f.name)
        ]
    except ValueError:  # which is told where it stands
        return
    for feature in sums:
        for message in fault_of_sum(project, feature):
            yield path, message
            return


def fault_of_sum(project: Project, feature: RollingFeature) -> Iterator[str]:
    """That of a row feature which reads a table: its values are checked with an event, before tables are joined."""
    if feature.aggregate not in SUMMED or feature.field not in project.features.row:
        return
    try:
        read = Expression.parse(project.features.row[feature.field]).names
    except ExpressionError:  # which is told where it stands
        return
    for name in sorted(read & project.joined_fields.keys()):
        yield (
            f"sums {feature.field}, which reads {name}, a field of a table, that is joined after what is summed is "
            f"checked: sum fields of the table or the event themselves, such as {name}"
        )
