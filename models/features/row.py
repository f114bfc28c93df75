"""What a project declares about an event: its row features, the kernels of its rolling ones, and how far they look."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.batches import as_float64, as_int64, column, marks_of, take_rows, times_us, with_column, without
from models.features.labels import LabelledKernel
from models.features.windows import RollingKernel
from models.fixed_point import has_more_places
from models.predictors.encoders import Encoders
from models.project.aggregates import AGGREGATES, PERIODS
from models.project.contract import Field
from models.project.declarations import Project
from models.project.functions import Column, missing, truth
from models.project.sections import RollingFeature
from models.record import IS_HISTORY, IS_PROVISIONAL

FEEDBACK_US = 30 * 86_400_000_000
_LARGEST_INPUT = float(np.finfo(np.float32).max)  # models read float32


def rolling_kernels(project: Project, lateness_us: int = 0) -> dict[str, RollingKernel]:
    """Entity, or several, as `RollingFeature.entity` → its kernel, for those that have rolling features."""
    label = project.label.field if project.label and project.label.events else None
    names = dict.fromkeys([*project.entities, *(f.entity for f in project.rolling_features)])
    by_entity = {e: tuple(f for f in project.rolling_features if f.entity == e) for e in names}
    summed = [f for f in project.rolling_features if f.column and f.field in project.fixed_point]
    decimals = {str(f.column): project.fixed_point[str(f.field)] for f in summed}
    return {
        e: LabelledKernel(features, decimals, lateness_us, label)
        if label and any(f.field == label for f in features)
        else RollingKernel(features, decimals, lateness_us)
        for e, features in by_entity.items()
        if features
    }


def label_horizon_us(project: Project) -> int:
    """How long after its event a label can still change a feature, in microseconds; 0 if none reads labels."""
    kernels = rolling_kernels(project).values()
    return max((kernel.label_horizon_us for kernel in kernels if isinstance(kernel, LabelledKernel)), default=0)


def feedback_horizon_us(project: Project) -> int:
    """How long after its event a label is waited for, microseconds: as long as a feature reads it, at least 30 days."""
    assert project.label is not None
    return max(label_horizon_us(project), FEEDBACK_US)


def horizon_us(project: Project, lateness_us: int) -> int:
    """How much older than the newest event one is that changes no feature and no duplicate any more, microseconds."""
    horizons = [kernel.horizon_us for kernel in rolling_kernels(project, lateness_us).values()]
    horizons += [PERIODS[table.period] + lateness_us for table in project.aggregates.values()]
    return max([*horizons, 2 * project.event.deduplicate_within + lateness_us])


def reach_us(project: Project) -> int:
    """How far before an event others can change its features, or make it a duplicate, in microseconds."""
    horizons = [kernel.horizon_us for kernel in rolling_kernels(project).values()]
    return max([*horizons, project.event.deduplicate_within])


def count_impossible(batch: pa.RecordBatch, project: Project) -> dict[str, int]:
    """How many of the events to be scored have, by name, a feature or input without a finite number.

    That is a row feature such as a quotient by zero, or a model's input beyond the numbers of 32 bits that it
    reads; the model takes it as missing. What is missing because a field is, is not counted, nor is what is
    provisional: it comes once more.
    """
    live = (marks_of(batch) & (IS_HISTORY | IS_PROVISIONAL)) == 0
    found: dict[str, int] = {}
    large = _may_be_too_large(project)
    for name in dict.fromkeys([*project.row_features, *large]):
        values = column(batch, name)
        if not pa.types.is_floating(values.type):
            continue
        numbers = as_float64(values)
        events = int(np.count_nonzero(live & (np.abs(numbers) > _LARGEST_INPUT))) if name in large else 0
        if name in project.row_features and (missing := np.flatnonzero(np.isnan(numbers) & live)).size:
            events += int(np.count_nonzero(find_impossible(take_rows(batch, missing), name, project)))
        if events:
            found[name] = events
    return found


def count_unknown(batch: pa.RecordBatch, encoders: Encoders) -> dict[str, int]:
    """How many of the events to be scored have, by the input's name, a value that the model has not learned."""
    live = (marks_of(batch) & (IS_HISTORY | IS_PROVISIONAL)) == 0
    found = {name: int(np.count_nonzero(live & unknown)) for name, unknown in encoders.find_unknown(batch).items()}
    return {name: events for name, events in found.items() if events}


def find_impossible(batch: pa.RecordBatch, name: str, project: Project) -> Column:
    """Which rows, bool[n], lack a row feature for want of a finite number, and not for that of a field."""
    return project.row_features[name].find_impossible(_operands(batch, name, project))


def count_rounded(batch: pa.RecordBatch, project: Project) -> dict[str, int]:
    """How many of the events to be scored have, by name, a value that is summed and has more places than declared."""
    live = (marks_of(batch) & (IS_HISTORY | IS_PROVISIONAL)) == 0
    found: dict[str, int] = {}
    for name, places in project.summed_places.items():
        if pa.types.is_floating((values := column(batch, name)).type):
            found[name] = int(np.count_nonzero(live & has_more_places(as_float64(values), places)))
    return {name: events for name, events in found.items() if events}


def _may_be_too_large(project: Project) -> list[str]:
    """The model's inputs that may be beyond 32 bits: neither within a declared domain, nor counted, nor summed."""
    within = {name for name, field in project.contract.fields.items() if _is_bounded(field)}
    within |= {f.name for f in project.rolling_features if not AGGREGATES[f.aggregate].alike or f.field in within}
    return [name for name in project.model.inputs if name not in within]


def _is_bounded(field: Field) -> bool:
    """Whether 32 bits hold all numbers that a field may have."""
    low, high = field.minimum, field.maximum
    return field.kind == "int" or (
        low is not None and high is not None and -_LARGEST_INPUT <= low <= high <= _LARGEST_INPUT
    )


def with_row_features(batch: pa.RecordBatch, project: Project) -> pa.RecordBatch:
    """The batch with its row features added: int64 or float64; without what only windows read."""
    batch = without(batch, *project.windows_only) if project.windows_only else batch
    return with_features(batch, [n for n in project.row_features if n not in project.before_windows], project)


def before_windows(batch: pa.RecordBatch, project: Project) -> pa.RecordBatch:
    """The batch with what windows read of it beside fields: row features, and fields where conditions hold."""
    batch = with_features(batch, project.before_windows, project)
    return with_conditions(batch, project.windows_only.values(), project)


def with_conditions(batch: pa.RecordBatch, features: Iterable[RollingFeature], project: Project) -> pa.RecordBatch:
    """The batch with the column of each feature with a condition: the field where it holds, else null."""
    for feature in features:
        if feature.where is None or feature.column is None:
            continue
        condition = feature.where.evaluate({n: _operand(batch, n, project) for n in feature.where.names})
        holds = pa.array(truth(condition) & ~missing(condition))
        values = pa.array(np.ones(batch.num_rows, np.int8)) if feature.field is None else column(batch, feature.field)
        if feature.aggregate == "rate":
            values = values.fill_null(0)
        batch = with_column(batch, feature.column, pc.if_else(holds, values, None))
    return batch


def with_features(batch: pa.RecordBatch, names: Sequence[str], project: Project) -> pa.RecordBatch:
    """The batch with some of the row features added."""
    added: dict[str, pa.Array] = {}
    for name in names:
        expression = project.row_features[name]
        added[name] = pa.array(np.ascontiguousarray(expression.evaluate(_operands(batch, name, project))))
    fields = [pa.field(name, values.type) for name, values in added.items()]
    schema = pa.schema([*batch.schema, *fields])
    return pa.RecordBatch.from_arrays([*batch.columns, *added.values()], schema=schema)


def _operands(batch: pa.RecordBatch, name: str, project: Project) -> dict[str, Column]:
    """The columns that a row feature reads; at least one, as it tells how many rows there are."""
    return {n: _operand(batch, n, project) for n in project.row_features[name].names or {project.event.time}}


def _operand(batch: pa.RecordBatch, name: str, project: Project) -> Column:
    if name == project.event.time:
        return times_us(batch)
    values = column(batch, name)
    if name in project.row_features or name in project.rolling_kinds:
        return values.to_numpy()
    field = project.contract.fields[name]
    if field.kind == "string":
        return values
    # By what is declared, not by whether a value happens to be missing: all batches have one schema.
    return as_int64(values) if field.required and field.kind != "float" else as_float64(values)
