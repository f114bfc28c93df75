"""Deduplicate: of the events with one id, the first in event time goes on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa

from models.batches import column, hash_keys, marks_of, take_rows, without
from models.counts import DEDUPLICATE
from models.dead_letters import make_dead_letters, split_good
from models.faults import RowFaults
from models.features.windows import RollingKernel
from models.project.sections import RollingFeature
from models.record import (
    EARLIER,
    INGESTED,
    IS_HISTORY,
    MARKS,
    PAYLOAD,
    PAYLOAD_FORMAT,
    POSITION,
    PUBLISHED,
    SOURCE,
    RecordType,
)
from transforms.refused import DEAD
from transforms.rolling import RollingWindows
from transforms.state import States

DUPLICATE = "duplicate event id"


@dataclasses.dataclass(eq=False)
class Deduplicate(beam.PTransform[beam.PCollection[pa.RecordBatch], beam.pvalue.DoOutputsTuple]):
    """Valid batches → batches of first events, and dead letters for the others.

    An event is a duplicate if there is one with its id less than `deduplicate_within_us` earlier in event
    time. That is a rolling window over the entity "event id", so it is computed as one. Events with the same id
    and time are ordered by their content, then those that are history first, then by where they came from.
    An event that comes late, when one with its id has gone on already, is a duplicate of that one even if it is
    itself the earlier in event time: so no id goes on twice.
    """

    records: RecordType
    shards: int
    lateness_us: int = 0
    keeps_payload: bool = False  # a later step may refuse rows
    states: States | None = None  # the ids that came are kept as `deduplicate`

    def expand(self, pcoll: beam.PCollection) -> beam.pvalue.DoOutputsTuple:
        """Main output: batches of first events; output `dead`: dead letters."""
        within = self.records.deduplicate_within_us
        earlier = RollingFeature(EARLIER, "event", "count", None, 2 * within - 1, 1 - within, False, 0.0)
        kernel = RollingKernel((earlier,), {}, self.lateness_us)
        windows = RollingWindows(self.records.id, _Contents, kernel, self.shards, self.states, "deduplicate")
        return (
            pcoll
            | "Count earlier" >> windows
            | "Split"
            >> beam.FlatMap(self._split)
            .with_output_types(pa.RecordBatch, dead=pa.RecordBatch)
            .with_outputs(DEAD, main="rows")
        )

    def _split(self, batch: pa.RecordBatch) -> Iterator[Any]:
        repeated = column(batch, EARLIER).to_numpy() > 0
        events = without(batch, EARLIER)
        if repeated.any():
            rows = np.flatnonzero(repeated)
            event_id = self.records.id
            faults = RowFaults(events.num_rows)
            faults.add(rows, event_id, DUPLICATE, column(events, event_id))
            dead = make_dead_letters(events, rows, faults.reasons(), DEDUPLICATE, self.records)
            yield beam.pvalue.TaggedOutput(DEAD, dead)
        first = split_good(events, repeated)
        first = first if self.keeps_payload else without(first, PAYLOAD, PAYLOAD_FORMAT)
        if first.num_rows:
            yield first


@dataclasses.dataclass(frozen=True)
class _Contents:
    """What orders rows of one id and time: made for these alone."""

    batch: pa.RecordBatch

    def take(self, rows: pa.Array) -> pa.Array:
        """Of each row a hash of its content in the high 32 bits, one bit if it is live, and its origin's hash."""
        batch = take_rows(self.batch, rows)
        content = np.zeros(batch.num_rows, np.uint64)
        for name, values in zip(batch.schema.names, batch.columns, strict=True):
            if name not in (SOURCE, POSITION, MARKS, PUBLISHED, INGESTED, PAYLOAD, PAYLOAD_FORMAT):
                content = hash_keys(values) + content * np.uint64(31)
        origin = hash_keys(column(batch, SOURCE)) + hash_keys(column(batch, POSITION)) * np.uint64(31)
        live = (marks_of(batch) & IS_HISTORY) == 0
        both = (content & np.uint64(0xFFFFFFFF00000000)) | (live * np.uint64(1 << 31)) | (origin >> np.uint64(33))
        return pa.array(both.view(np.int64))
