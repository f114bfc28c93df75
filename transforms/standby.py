"""Stand by: events that another run scores, as the release log gives them to bundles of other features."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import TaggedOutput

from models.rollout.apply import Bundles, split_own

STANDBY = "standby"


@dataclasses.dataclass(eq=False)
class StandBy(beam.PTransform[beam.PCollection[pa.RecordBatch], beam.pvalue.DoOutputsTuple]):
    """Events with their releases → main output: those that this run scores; `standby`: those that another one does."""

    bundles: Bundles

    def expand(self, pcoll: beam.PCollection) -> beam.pvalue.DoOutputsTuple:
        """Batches of one slice in and out."""
        split = beam.FlatMap(self._split).with_output_types(pa.RecordBatch, **{STANDBY: pa.RecordBatch})
        return pcoll | "Split" >> split.with_outputs(STANDBY, main="rows")

    def _split(self, batch: pa.RecordBatch) -> Iterator[Any]:
        own, others = split_own(batch, self.bundles)
        if own.num_rows:
            yield own
        if others.num_rows:
            yield TaggedOutput(STANDBY, others)
