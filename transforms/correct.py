"""Correct: of scores given at an event's arrival, say again those that its true order changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.transforms.userstate import BagStateSpec

from models.batches import (
    as_int64,
    column,
    concat_batches,
    is_provisional,
    partition,
    shard_of,
    take_rows,
    with_column,
    without,
)
from models.metrics import CORRECTED
from models.project.declarations import Project
from models.record import CORRECTION, MARKS
from models.score import find_changed
from transforms.batches import RecordBatchCoder
from transforms.metrics import count


@dataclasses.dataclass(eq=False)
class Correct(beam.PTransform[beam.PCollection[pa.RecordBatch], beam.PCollection[pa.RecordBatch]]):
    """Score rows with their marks → score rows with a column `correction`, bool.

    A provisional row goes on at once. When the row comes once more, with all events before it known, it goes on,
    as a correction, only if some bit of it has changed, or if its provisional row was not seen here: after a
    restart, it may have been.
    """

    project: Project
    shards: int

    def expand(self, pcoll: beam.PCollection) -> beam.PCollection:
        """Batches without marks."""
        event = self.project.event
        return (
            pcoll
            | "Route" >> beam.FlatMap(self._route).with_output_types(tuple[int, pa.RecordBatch])
            | "Regroup" >> beam.Reshuffle().with_output_types(tuple[int, pa.RecordBatch])
            | "Compare" >> beam.ParDo(_Compare(event.id, event.time)).with_output_types(pa.RecordBatch)
        )

    def _route(self, batch: pa.RecordBatch) -> Iterator[tuple[int, pa.RecordBatch]]:
        yield from partition(batch, shard_of(column(batch, self.project.event.id), self.shards))


class _Compare(beam.DoFn):
    SAID = BagStateSpec("said", RecordBatchCoder())

    def __init__(self, event_id: str, event_time: str) -> None:
        self._id = event_id
        self._time = event_time

    def process(
        self, element: tuple[int, pa.RecordBatch], said: Any = beam.DoFn.StateParam(SAID)
    ) -> Iterator[pa.RecordBatch]:
        _, batch = element
        rows = with_column(without(batch, MARKS), CORRECTION, pa.array(np.zeros(batch.num_rows, bool)))
        if is_provisional(batch):
            said.add(rows)
            yield rows
            return
        before = list(said.read())
        changed = rows
        if before:
            provisional = concat_batches(before)
            changed = find_changed(rows, provisional, self._id)
            # What the watermark has not passed stays.
            reached = int(as_int64(column(rows, self._time)).max())
            said.clear()
            later = np.flatnonzero(as_int64(column(provisional, self._time)) > reached)
            if len(later):
                said.add(take_rows(provisional, later))
        if changed.num_rows:
            count(CORRECTED, changed.num_rows)
            yield with_column(changed, CORRECTION, pa.array(np.ones(changed.num_rows, bool)))
