"""What a change of schema does to events that were valid before and to a model that was trained before."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterator, Sequence

import pyarrow as pa
from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2

from models.codecs.times import times_from_text
from models.project.contract import UNIX_UNITS, Contract, Field
from models.schemas.needs import Needs

_SHOWN = 4  # of a list of values or roles
_MAX_SHOWN_CHARS = 60
_KINDS = {"int": "whole number", "float": "number", "string": "text", "time": "time"}
_UNSEEN = "old events stay valid; a model trained before has not seen such values"
_UNKNOWN_NEEDS = "name a project to know whether one of its declarations needs it"
# Parts of a feature whose changes are told by what they do to events.
_TOLD = {
    "name",
    "type",
    "presence",
    "value_count",
    "shape",
    "int_domain",
    "float_domain",
    "bool_domain",
    "string_domain",
    "domain",
    "time_domain",
}


@dataclasses.dataclass(frozen=True)
class Change:
    """One difference of two schemas; breaking if old events or an old model may not go on as they did."""

    field: str  # empty: the schema as a whole
    what: str
    breaking: bool
    reason: str

    def __str__(self) -> str:
        kind = "breaking" if self.breaking else "compatible"
        return f"{kind:<10}  {_name(self.field) if self.field else 'schema'}: {self.what}: {self.reason}"


def is_breaking(changes: Sequence[Change]) -> bool:
    """Whether one of the changes is breaking."""
    return any(change.breaking for change in changes)


def render_changes(changes: Sequence[Change]) -> str:
    """One change a line, breaking ones first."""
    return "\n".join(str(change) for change in sorted(changes, key=lambda change: not change.breaking))


def diff_schemas(old: Contract, new: Contract, needs: Needs | None) -> list[Change]:
    """Every change from `old` to `new`, by field in the order of `old`, then added ones.

    Compatible means that each event that is valid under `old`, and has no field that `old` does not declare, is
    valid under `new` with the same values, and that what a model trained under `old` reads is still there. Without
    `needs` a field that is removed, or may be missing from now on, counts as needed.
    """
    changes = [change for name in old.fields for change in _diff_old_field(old.fields[name], new, needs)]
    changes += [_added(field) for name, field in new.fields.items() if name not in old.fields]
    changes += _other_changes(old, new)
    if not changes and _parse(old) != _parse(new):
        changes.append(Change("", "written otherwise", False, "events are checked as before"))
    return changes


def _diff_old_field(before: Field, new: Contract, needs: Needs | None) -> Iterator[Change]:
    after = new.fields.get(before.name)
    if after is None:
        yield _removed(before, needs)
        return
    if before.kind != after.kind:
        what = f"type {_KINDS[before.kind]} -> {_KINDS[after.kind]}"
        yield Change(
            before.name, what, True, "old events may not be read, or as other values than the model was trained on"
        )
        return
    if before.required != after.required:
        yield _presence_changed(before, after, needs)
    if before.time_format != after.time_format:
        yield _time_format_changed(before, after)
    yield from _diff_bounds(before, after)
    yield from _diff_domain(before, after)


def _added(field: Field) -> Change:
    if field.required:
        return Change(field.name, "added, required", True, "old events have it not and would be dead letters")
    return Change(field.name, "added, optional", False, "old events need not have it; what they have of it is checked")


def _removed(field: Field, needs: Needs | None) -> Change:
    if needs is None:
        return Change(field.name, "removed", True, _UNKNOWN_NEEDS)
    if roles := needs.roles.get(field.name):
        return Change(field.name, "removed", True, f"needed by {_several(roles)}")
    if needs.refuses_unknown:
        return Change(field.name, "removed", True, "old events with it would be refused, as event.unknown_fields says")
    return Change(field.name, "removed", False, "nothing needs it; where events have it, it is passed over")


def _presence_changed(before: Field, after: Field, needs: Needs | None) -> Change:
    if after.required:
        return Change(before.name, "optional -> required", True, "old events without it would be dead letters")
    what = "required -> optional"
    if needs is None:
        return Change(before.name, what, True, _UNKNOWN_NEEDS)
    if before.name in needs.never_missing:
        reason = f"may be missing now, and is needed by {_several(needs.roles[before.name])}"
        return Change(before.name, what, True, reason)
    return Change(before.name, what, False, "old events stay valid, and no feature or model input reads it")


def _time_format_changed(before: Field, after: Field) -> Change:
    old, new = str(before.time_format), str(after.time_format)
    what = f"time format {_text(old)} -> {_text(new)}"
    if _reads_as(old, new):
        return Change(before.name, what, False, "times of the old format are read as the same moments")
    return Change(before.name, what, True, "times of old events would not be read, or as other moments")


def _reads_as(old: str, new: str) -> bool:
    """Whether some times written in the format `old` are the same moments when read as `new`."""
    if old in UNIX_UNITS or new in UNIX_UNITS:
        return False
    moments = [
        datetime.datetime(2024, 2, 29, 13, 14, 15, 678901, datetime.UTC),
        datetime.datetime(2021, 3, 4, 5, 6, 7, tzinfo=datetime.UTC),
        datetime.datetime(1999, 12, 1, 23, 0, 59, tzinfo=datetime.UTC),
    ]
    written = pa.array([moment.strftime(old) for moment in moments])
    by_old, by_new = times_from_text(written, old), times_from_text(written, new)
    return by_old.null_count == 0 and bool(by_old.equals(by_new))


def _diff_bounds(before: Field, after: Field) -> Iterator[Change]:
    for side, old, new, sign in (
        ("minimum", before.minimum, after.minimum, -1),
        ("maximum", before.maximum, after.maximum, 1),
    ):
        if old == new:
            continue
        what = f"{side} {'none' if old is None else old} -> {'none' if new is None else new}"
        if new is not None and (old is None or sign * new < sign * old):
            reason = f"old events {'below' if sign < 0 else 'above'} {new} would be dead letters"
            yield Change(before.name, what, True, reason)
        else:
            yield Change(before.name, what, False, _UNSEEN)
    if before.is_boolean and not after.is_boolean:
        what = "no longer of 0 and 1 only"
        yield Change(before.name, what, True, "old events that say true or false would be dead letters")


def _diff_domain(before: Field, after: Field) -> Iterator[Change]:
    old, new = before.domain, after.domain
    if old is None and new is not None:
        yield Change(before.name, f"domain none -> {_several(new)}", True, "other old values would be dead letters")
    elif old is not None and new is None:
        yield Change(before.name, f"domain {_several(old)} -> none", False, _UNSEEN)
    elif old is not None and new is not None:
        if lost := sorted(set(old) - set(new)):
            reason = "old events with them would be dead letters"
            yield Change(before.name, f"out of the domain: {_several(lost)}", True, reason)
        if gained := sorted(set(new) - set(old)):
            yield Change(before.name, f"into the domain: {_several(gained)}", False, _UNSEEN)


def _other_changes(old: Contract, new: Contract) -> Iterator[Change]:
    """What changed beside what is checked of each event: comparators, annotations, the order."""
    old_proto, new_proto = _parse(old), _parse(new)
    before, after = ({feature.name: feature for feature in proto.feature} for proto in (old_proto, new_proto))
    for name in before:
        if name in after and (parts := _differing(before[name], after[name], _TOLD)):
            yield Change(name, f"{', '.join(parts)} changed", False, "events are checked as before")
    if parts := _differing(old_proto, new_proto, {"feature", "string_domain"}):
        yield Change("", f"{', '.join(parts)} changed", False, "events are checked as before")
    common = [[name for name in names if name in before and name in after] for names in (old.fields, new.fields)]
    if common[0] != common[1]:
        yield Change("", "the order of fields changed", False, "columns of the output follow it")


def _parse(contract: Contract) -> schema_pb2.Schema:
    return text_format.Parse(contract.text.decode(), schema_pb2.Schema())


def _differing(before: object, after: object, told: set[str]) -> list[str]:
    """Names of the parts of two messages of one kind that differ, but for those that are told otherwise."""
    found = [{part.name: value for part, value in message.ListFields()} for message in (before, after)]  # type: ignore[attr-defined]
    names = sorted((found[0].keys() | found[1].keys()) - told)
    return [name for name in names if found[0].get(name) != found[1].get(name)]


def _several(values: Sequence[str]) -> str:
    shown = ", ".join(_text(value) for value in values[:_SHOWN])
    return shown if len(values) <= _SHOWN else f"{shown} and {len(values) - _SHOWN} more"


def _text(value: str) -> str:
    short = value if len(value) <= _MAX_SHOWN_CHARS else value[: _MAX_SHOWN_CHARS - 1] + "…"
    return short if short.isprintable() and short == short.strip() and short else repr(short)


def _name(field: str) -> str:
    return field if field.isprintable() else repr(field)
