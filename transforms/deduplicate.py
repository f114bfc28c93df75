"""Deduplicate: of the events with one id, the first in event time goes on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa

from models.batches import column, without
from models.counts import DEDUPLICATE
from models.dead_letters import make_dead_letters, split_good
from models.faults import RowFaults
from models.features.duplicates import DUPLICATE, Contents, count_earlier
from models.record import (
    CONTENT,
    EARLIER,
    EVENT_TIME,
    MARKS,
    PAYLOAD,
    PAYLOAD_FORMAT,
    RecordType,
)
from models.store.ids import content_column
from transforms.refused import DEAD
from transforms.rolling import RollingWindows
from transforms.state import States

IDS = "ids"


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
    identified_by: tuple[str, ...] | None = None  # fields, where a store takes the ids

    def expand(self, pcoll: beam.PCollection) -> beam.pvalue.DoOutputsTuple:
        """Main output: batches of first events; output `dead`: dead letters; output `ids`: ids as a store has them."""
        kernel = count_earlier(self.records.deduplicate_within_us, self.lateness_us)
        windows = RollingWindows(self.records.id, Contents, kernel, self.shards, self.states, "deduplicate")
        return (
            pcoll
            | "Count earlier" >> windows
            | "Split"
            >> beam.FlatMap(self._split)
            .with_output_types(pa.RecordBatch, **dict.fromkeys(self._outputs, pa.RecordBatch))
            .with_outputs(*self._outputs, main="rows")
        )

    @property
    def _outputs(self) -> tuple[str, ...]:
        return (DEAD,) if self.identified_by is None else (DEAD, IDS)

    def _split(self, batch: pa.RecordBatch) -> Iterator[Any]:
        repeated = column(batch, EARLIER).to_numpy() > 0
        events = without(batch, EARLIER)
        if self.identified_by is not None:
            content = content_column(events, self.identified_by, repeated)
            ids = [column(events, name) for name in (self.records.id, EVENT_TIME, MARKS)]
            names = [self.records.id, EVENT_TIME, MARKS, CONTENT]
            yield beam.pvalue.TaggedOutput(IDS, pa.RecordBatch.from_arrays([*ids, content], names=names))
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
