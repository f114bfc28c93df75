"""Counts of events by outcome, for the check that none was lost."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import apache_beam as beam
import numpy as np
import pyarrow as pa

from models.batches import marks_of
from models.record import IS_HISTORY, IS_PROVISIONAL, Outcome


@dataclasses.dataclass(eq=False)
class CountEvents(beam.PTransform):  # type: ignore[misc]
    """Batches → (outcome, events), one a batch; of `history_only`, just the events that are history.

    What is provisional is not counted: it comes once more."""

    outcome: Outcome
    history_only: bool = False

    def expand(self, pcoll: beam.PCollection) -> beam.PCollection:
        """Pairs that add up to the number of events."""
        return pcoll | "Count" >> beam.FlatMap(self._count).with_output_types(tuple[str, int])

    def _count(self, batch: pa.RecordBatch) -> Iterator[tuple[str, int]]:
        marks = marks_of(batch)
        counted = IS_HISTORY | IS_PROVISIONAL if self.history_only else IS_PROVISIONAL
        events = int(np.count_nonzero((marks & counted) == (IS_HISTORY if self.history_only else 0)))
        if events:
            yield self.outcome, events
