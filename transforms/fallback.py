"""Fallback: events that can't be scored get the decision that is declared for them; see models.fallback."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import apache_beam as beam
import pyarrow as pa

from models.fallback import fallback_rows
from models.metrics import FALLBACKS
from models.partitions import EVER, Span
from models.project.declarations import Project
from transforms.metrics import count


@dataclasses.dataclass(eq=False)
class Fallback(beam.PTransform[beam.PCollection[pa.RecordBatch], beam.PCollection[pa.RecordBatch]]):
    """Dead letters of events that are news → their rows with the fallback decision, of those whose id is known.

    Events of times outside the `span` have none.
    """

    project: Project
    span: Span = EVER

    def expand(self, pcoll: beam.PCollection) -> beam.PCollection:
        """Batches of rows, see `fallback_rows`."""
        return pcoll | "Decide" >> beam.FlatMap(self._decide).with_output_types(pa.RecordBatch)

    def _decide(self, letters: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        rows = fallback_rows(letters, self.project, self.span)
        if rows.num_rows:
            count(FALLBACKS, rows.num_rows)
            yield rows
