"""What can be wrong with declared rolling features."""

from __future__ import annotations

from collections.abc import Iterator

from models.project.aggregates import AGGREGATES, OF_PERIODS_ALONE, SUMMED
from models.project.declarations import Project
from models.project.documents import Path
from models.project.expressions import Expression
from models.project.places import Fault, place_of, unknown_field
from models.project.sections import Rolling, RollingFeature
from models.project.syntax import ExpressionError

ALL = "all"  # an entity of which all events are


def check_rolling(project: Project, path: Path, rolling: Rolling) -> Iterator[Fault]:
    """Each fault of one part of features.rolling."""
    yield from _check_entity(project, (*path, "entity"), rolling)
    for window, length in rolling.windows.items():
        if length == 0:
            yield (*path, "windows", window), "a window must be longer than zero"
        elif rolling.gap and isinstance(length, int) and length < rolling.gap:
            yield (*path, "windows", window), "is shorter than gap, which then never cuts it"
    if not rolling.include_current and rolling.delay:
        yield (*path, "include_current"), "a delayed window never includes the current event: leave this out"
    if rolling.gap is not None and rolling.delay:
        yield (*path, "gap"), "a session goes up to the event itself: leave out gap or delay"
    if rolling.gap == 0:
        yield (*path, "gap"), "must be longer than zero"
    for name, text in rolling.features.items():
        if len(rolling.windows) > 1 and "{window}" not in name:
            yield (*path, "features", name), "needs {window} in its name, as there is more than one window"
        for message in _faults_of_aggregate(project, rolling.model_copy(update={"features": {name: text}})):
            yield (*path, "features", name), message


def _check_entity(project: Project, path: Path, rolling: Rolling) -> Iterator[Fault]:
    known = ", ".join(project.entities) or "none"
    if rolling.entity == ALL and ALL not in project.entities:
        if rolling.missing:
            yield (*path[:-1], "missing"), f"no event is without the entity {ALL}: leave this out"
        return
    if not rolling.entities:
        yield path, f"names no entity; there are {known}, and {ALL}"
    for place, name in enumerate(rolling.entities):
        if name not in project.entities:
            yield path, f"{name!r} is not an entity; there are {known}"
        if name in rolling.entities[:place]:
            yield path, f"{name} stands twice"


def _faults_of_aggregate(project: Project, rolling: Rolling) -> Iterator[str]:
    try:
        feature = next(rolling.expand())
    except ValueError as error:
        yield str(error)
        return
    if feature.aggregate in OF_PERIODS_ALONE:
        yield (
            f"there is {feature.aggregate} in aggregates alone: each event, also a late one, asks a window for the "
            "number at its own time, and a sketch knows only its last. Write distinct, which is exact"
        )
        return
    yield from faults_of_reads(project, feature)
    label = project.label
    if label is None or label.field not in feature.reads:
        return
    if rolling.delay < label.delay:
        yield f"reads the label {label.field} before it is known: its delay must be at least label.delay"
    if label.events is None:
        return
    if feature.aggregate not in ("sum", "mean", "rate"):
        yield f"there is no {feature.aggregate} of labels that are records of their own: write sum, mean or rate"
    elif feature.where is not None or feature.period is not None:
        yield f"reads the label {label.field}: where labels are records of their own, there is no where and no calendar"
    if not rolling.delay:
        yield (
            f"reads the label {label.field}: where labels are records of their own, a delay must be longer than zero"
        )


def faults_of_reads(project: Project, feature: RollingFeature) -> Iterator[str]:
    """What is wrong with the field that an aggregate reads, and with its condition."""
    if feature.field is not None:
        yield from _faults_of_field(project, feature, feature.field)
    if feature.where is not None:
        yield from _faults_of_condition(project, feature.where)
    for name in sorted(feature.reads & project.features.row.keys()):
        yield from _faults_of_order(project, name)


def _faults_of_field(project: Project, feature: RollingFeature, name: str) -> Iterator[str]:
    fields, takes = project.contract.fields, AGGREGATES[feature.aggregate].takes
    if name in project.features.row:
        yield from _faults_of_row_feature(project, feature, name)
        return
    for _, message in unknown_field(project, (), name):
        yield message
    if name not in fields:
        return
    if takes == "any" and fields[name].kind == "time":
        yield f"{name} is a time: there is {feature.aggregate} of numbers and texts"
    if takes != "any" and fields[name].kind not in ("int", "float"):
        yield f"{name} is not a number"
    if feature.aggregate in SUMMED and fields[name].kind == "float" and name not in project.fixed_point:
        yield f"sums are exact: declare the decimal places of {name} under fixed_point"
    if takes == "boolean" and not fields[name].is_boolean:
        where = place_of(project, name)
        yield f"rate needs a field of 0 and 1: give {name} int_domain {{ min: 0 max: 1 }} in {where}"


def _faults_of_row_feature(project: Project, feature: RollingFeature, name: str) -> Iterator[str]:
    try:
        kind = Expression.parse(project.features.row[name]).check(_kinds(project))
    except ExpressionError:  # which is told where it stands
        return
    if feature.aggregate in SUMMED and kind == "float" and name not in project.fixed_point:
        yield f"sums are exact: declare the decimal places of {name} under fixed_point"
    if feature.aggregate == "rate" and kind != "bool":
        yield f"rate needs a feature of 0 and 1, such as a comparison: {name} is {kind}"


def _faults_of_order(project: Project, name: str) -> Iterator[str]:
    """A row feature that reads windows is computed after all of them."""
    try:
        read = sorted(project.row_features[name].names & project.rolling_kinds.keys())
    except ValueError:  # of which is told where it is declared
        return
    if read:
        yield f"{name} reads the rolling feature {read[0]}, so no window can be over it"


def _faults_of_condition(project: Project, condition: Expression) -> Iterator[str]:
    kinds = {**_kinds(project), **dict.fromkeys(project.features.row, "float")}
    for name in sorted(condition.names - kinds.keys()):
        yield f"{name!r} is neither a field of {project.schema_file} nor a row feature"
    if not condition.names:
        yield f"its condition {condition.text!r} reads no field"
    try:
        if condition.check(kinds) in ("string", "time"):
            yield f"its condition {condition.text!r} is not true or false"
    except ExpressionError as error:
        yield str(error)


def _kinds(project: Project) -> dict[str, str]:
    return {name: field.kind for name, field in project.contract.fields.items()}
