"""Validate: every row against the contract; what stays goes on with only the columns that are read later."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa

from models.batches import (
    EVENT_TIME,
    IS_HISTORY,
    MARKS,
    POSITION,
    SOURCE,
    SYSTEM_FIELDS,
    as_int64,
    column,
    marks_of,
    partition,
    slice_ends_of,
    system_names,
    times_us,
)
from models.codecs.times import micros_of
from models.dead_letters import make_dead_letters, split_good
from models.faults import RowFaults
from models.project.contract import check_event_time, check_fixed_point
from models.project.project import Project
from transforms.batches import timestamp_of
from transforms.refused import DEAD


@dataclasses.dataclass(eq=False)
class Validate(beam.PTransform):  # type: ignore[misc]
    """Decoded batches → valid batches of one slice of event time each, and dead letters.

    Events before `score_from_us` (microseconds since 1970 UTC) are marked as history.
    """

    project: Project
    score_from_us: int | None = None

    def expand(self, pcoll: beam.PCollection) -> beam.DoOutputsTuple:
        """Main output: valid batches, timestamped with their slice's end; output `dead`: dead letters."""
        return pcoll | "Validate" >> beam.FlatMap(self._validate).with_output_types(
            pa.RecordBatch, dead=pa.RecordBatch
        ).with_outputs(DEAD, main="rows")

    def _validate(self, batch: pa.RecordBatch) -> Iterator[Any]:
        faults = validate_batch(batch, self.project)
        if faults.bad.any():
            dead = make_dead_letters(batch, faults.rows, faults.reasons(), "Validate", self.project.event)
            yield beam.pvalue.TaggedOutput(DEAD, dead)
        valid = carry(split_good(batch, faults.bad), self.project, self.score_from_us)
        for end, part in partition(valid, slice_ends_of(batch, times_us(valid))):
            yield beam.window.TimestampedValue(part, timestamp_of(end))


def validate_batch(batch: pa.RecordBatch, project: Project) -> RowFaults:
    """All that is wrong with each row: presence, domains, finiteness, event time, size of what is summed."""
    faults = RowFaults(batch.num_rows)
    columns = {name: batch.column(batch.schema.get_field_index(name)) for name in project.contract.fields}
    project.contract.check(columns, faults)
    event = project.event
    earliest, latest = micros_of(event.earliest), micros_of(event.latest)
    check_event_time(columns[event.time], event.time, earliest, latest, faults)
    summed = {f.field for f in project.rolling_features if f.field and f.aggregate in ("sum", "mean")}
    check_fixed_point(columns, {name: project.fixed_point.get(name, 0) for name in sorted(summed)}, faults)
    return faults


def carry(batch: pa.RecordBatch, project: Project, score_from_us: int | None) -> pa.RecordBatch:
    """The columns that later steps read, with the event time field as the event time column."""
    names = batch.schema.names
    arrays, fields = [], []
    for name in project.carried_fields:
        arrays.append(batch.column(names.index(name)))
        fields.append(pa.field(name, project.contract.fields[name].arrow_type))
    for name in system_names(batch, EVENT_TIME, SOURCE, POSITION, MARKS):
        values = batch.column(names.index(project.event.time if name == EVENT_TIME else name))
        if name == MARKS and score_from_us is not None:
            past = as_int64(column(batch, project.event.time)) < score_from_us
            values = pa.array(marks_of(batch) | past * np.int8(IS_HISTORY))
        arrays.append(values)
        fields.append(SYSTEM_FIELDS[name])
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))
