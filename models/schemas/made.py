"""A whole project that is made for data: what is guessed, with a schema that it is checked with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import pyarrow as pa

from models.codecs.columns import Columns
from models.predictors.leaks import find_leaks
from models.predictors.measures import label_numbers
from models.project.contract import Contract
from models.project.declarations import Project
from models.schemas.guess import Guess, GuessError, Roles, guess_project
from models.schemas.propose import Proposal, propose_schema
from models.schemas.sampled import SampledColumns


@dataclasses.dataclass(frozen=True)
class Made:
    """The declarations and the schema of a new project."""

    guess: Guess
    schema: Proposal


def make_project(name: str, sampled: SampledColumns, told: Roles) -> Made:
    """A project that passes `headrace check` for rows that were read; GuessError if there can be none."""
    columns, unusable = sampled.columns(), sampled.unusable()
    if gone := [field for field in (told.id, told.time, told.label, *told.entities) if field in unusable]:
        raise GuessError("; ".join(f"{field} can't be a field: {unusable[field]}" for field in gone))
    guess, schema, project = _make(name, sampled, told, {})
    if project.has_model and (late := _leaks(columns, project)):
        guess, schema, _ = _make(name, sampled, told, late)
    return Made(guess, schema)


def _make(name: str, sampled: SampledColumns, told: Roles, late: Mapping[str, str]) -> tuple[Guess, Proposal, Project]:
    columns = sampled.columns()
    guess = guess_project(name, columns, told, late)
    project = Project.model_validate(guess.declarations)
    schema = propose_schema(columns, sampled.unusable(), project)
    _open_domains(schema, project)
    return guess, schema, project.with_schema(Contract.parse(schema.text("")))


def _open_domains(schema: Proposal, project: Project) -> None:
    """Texts of a sample are not all that there will be; only a label's are its classes."""
    for feature in schema.schema.feature:
        if project.label is None or feature.name != project.label.field:
            feature.ClearField("string_domain")


def _leaks(columns: Columns, project: Project) -> dict[str, str]:
    """Field → how well it alone tells the label."""
    assert project.label is not None
    label, known = label_numbers(columns[project.label.field], project)
    fields = [name for name in project.model.inputs if name in columns]
    rows = pa.array(known)
    batch = pa.RecordBatch.from_arrays([columns[name].filter(rows) for name in fields], names=fields)
    return {leak.name: f"{leak.measure} {leak.figure:.3f}" for leak in find_leaks(batch, label[known], project)}
