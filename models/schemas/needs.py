"""Which fields a project's declarations need, and what for; the schema itself is not read."""

from __future__ import annotations

import dataclasses
import pathlib

import pydantic

from models.project.declarations import Project
from models.project.documents import Document, DocumentError
from models.project.project import MAX_PROJECT_BYTES, PROJECT_FILE, ProjectError


@dataclasses.dataclass(frozen=True)
class Needs:
    """Field → what needs it; the fields that no event may lack; whether undeclared fields are refused."""

    roles: dict[str, tuple[str, ...]]
    never_missing: frozenset[str]
    refuses_unknown: bool


def read_declarations(folder: pathlib.Path) -> Project:
    """The declarations of project.yaml without their schema, which may be missing or not fit them yet.

    Raises:
        ProjectError: if the file can't be read or a declaration is not of its type.
    """
    path = folder / PROJECT_FILE
    try:
        with path.open("rb") as file:
            text = file.read(MAX_PROJECT_BYTES + 1)
        if len(text) > MAX_PROJECT_BYTES:
            raise ProjectError(f"{path}: is larger than {MAX_PROJECT_BYTES} bytes")
        return Project.model_validate(Document(text).data)
    except OSError as error:
        raise ProjectError(f"{path}: cannot be read: {error.strerror or error}") from None
    except DocumentError as error:
        raise ProjectError(f"{path}: {error}") from None
    except pydantic.ValidationError as error:
        what = "".join(
            f"\n  {'.'.join(map(str, item['loc']))}: {' '.join(item['msg'].split())}" for item in error.errors()
        )
        raise ProjectError(f"{path}: declarations that can't be used:{what}") from None


def field_needs(project: Project) -> Needs:
    """What each field is needed for: event, entity, label, features, model inputs, output.

    An event must have its id, its time, its entities and what features and the model read; a label comes later.
    """
    always: dict[str, list[str]] = {}
    others: dict[str, list[str]] = {}
    always.setdefault(project.event.id, []).append("the event id")
    always.setdefault(project.event.time, []).append("the event time")
    for entity, name in project.entities.items():
        always.setdefault(name, []).append(f"the entity {entity}")
    for name in project.model.inputs:
        if name not in project.feature_names:
            always.setdefault(name, []).append("a model input")
    for feature, expression in project.row_features.items():
        for name in sorted(expression.names - project.rolling_kinds.keys()):
            always.setdefault(name, []).append(f"the feature {feature}")
    for rolling in project.rolling_features:
        for name in sorted(rolling.reads - project.row_features.keys()):
            always.setdefault(name, []).append(f"the feature {rolling.name}")
    for table, features in project.totals.items():
        for name in {*project.aggregates[table].by, *(name for f in features for name in f.reads)}:
            if name not in project.feature_names:
                others.setdefault(name, []).append(f"the aggregates {table}")
    if project.label:
        others.setdefault(project.label.field, []).append("the label")
    for what, names in (
        ("an output field", project.output),
        ("a slice of training", project.training.slices),
        ("fixed_point", list(project.fixed_point)),
    ):
        for name in names:
            if name not in project.feature_names:
                others.setdefault(name, []).append(what)
    for name in project.joined_fields:  # which an event does not have
        always.pop(name, None)
        others.pop(name, None)
    label = {project.label.field} if project.label else set()
    return Needs(
        roles={name: (*always.get(name, ()), *others.get(name, ())) for name in {**always, **others}},
        never_missing=frozenset(always.keys() - label - project.optional_keys),
        refuses_unknown=project.event.unknown_fields == "refuse",
    )
