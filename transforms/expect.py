"""Check features: rows whose features are not as expected are marked, mended or refused; see models.features.expect."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import pyarrow as pa

from models.batches import without
from models.dead_letters import make_dead_letters, split_good
from models.features.expect import check_features
from models.metrics import NOT_EXPECTED
from models.project.declarations import Project
from models.project.expressions import NOT_EXPECTED as COUNTED
from models.record import PAYLOAD, PAYLOAD_FORMAT
from transforms.metrics import count
from transforms.refused import DEAD

COUNTS = "counts"
CHECK = "CheckFeatures"


@dataclasses.dataclass(eq=False)
class CheckFeatures(beam.PTransform[beam.PCollection[pa.RecordBatch], beam.pvalue.DoOutputsTuple]):
    """Batches with features → the same, dead letters, and (a name, rows), which add up to those not as expected."""

    project: Project

    def expand(self, pcoll: beam.PCollection) -> beam.pvalue.DoOutputsTuple:
        """Main output: batches; `dead`; `counts`."""
        return pcoll | "Check" >> beam.FlatMap(self._check).with_output_types(
            pa.RecordBatch, dead=pa.RecordBatch, counts=tuple[str, int]
        ).with_outputs(DEAD, COUNTS, main="rows")

    def _check(self, batch: pa.RecordBatch) -> Iterator[Any]:
        checked, faults, found = check_features(batch, self.project)
        for name, rows in found.items():
            count(NOT_EXPECTED, rows, column=name, otherwise=self.project.expect[name].otherwise)
            yield beam.pvalue.TaggedOutput(COUNTS, (COUNTED + name, rows))
        if faults.bad.any():
            features = [name for name in self.project.feature_names if name in batch.schema.names]
            bare = without(batch, *features)  # a dead letter is the event as it came
            records = self.project.event_type
            dead = make_dead_letters(bare, faults.rows, faults.reasons(), CHECK, records)
            yield beam.pvalue.TaggedOutput(DEAD, dead)
        good = without(split_good(checked, faults.bad), PAYLOAD, PAYLOAD_FORMAT)
        if good.num_rows:
            yield good
