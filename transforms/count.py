"""Counts of events by outcome, for the check that none was lost."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc

from transforms.batches import HISTORY, column


@dataclasses.dataclass(eq=False)
class CountEvents(beam.PTransform):  # type: ignore[misc]
    """Batches → (outcome, events), one a batch; of `history_only`, just the events that are history."""

    outcome: str
    history_only: bool = False

    def expand(self, pcoll: beam.PCollection) -> beam.PCollection:
        """Pairs that add up to the number of events."""
        return pcoll | "Count" >> beam.FlatMap(self._count).with_output_types(tuple[str, int])

    def _count(self, batch: pa.RecordBatch) -> Iterator[tuple[str, int]]:
        events = (pc.sum(column(batch, HISTORY)).as_py() or 0) if self.history_only else batch.num_rows
        if events:
            yield self.outcome, events
