"""Validate: every row against its record type; see models.validate."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import pyarrow as pa

from models.batches import partition, slice_ends_of, times_us
from models.dead_letters import make_dead_letters, split_good
from models.record import RecordType
from models.validate import carry, validate_batch
from transforms.batches import timestamp_of
from transforms.refused import DEAD


@dataclasses.dataclass(eq=False)
class Validate(beam.PTransform[beam.PCollection[pa.RecordBatch], beam.pvalue.DoOutputsTuple]):
    """Decoded batches → valid batches of one slice of event time each, and dead letters.

    Records before `score_from_us` (microseconds since 1970 UTC) are marked as history.
    """

    records: RecordType
    score_from_us: int | None = None

    def expand(self, pcoll: beam.PCollection) -> beam.pvalue.DoOutputsTuple:
        """Main output: valid batches, timestamped with their slice's end; output `dead`: dead letters."""
        return pcoll | "Validate" >> beam.FlatMap(self._validate).with_output_types(
            pa.RecordBatch, dead=pa.RecordBatch
        ).with_outputs(DEAD, main="rows")

    def _validate(self, batch: pa.RecordBatch) -> Iterator[Any]:
        faults = validate_batch(batch, self.records)
        if faults.bad.any():
            dead = make_dead_letters(batch, faults.rows, faults.reasons(), "Validate", self.records)
            yield beam.pvalue.TaggedOutput(DEAD, dead)
        valid = carry(split_good(batch, faults.bad), self.records, self.score_from_us)
        for end, part in partition(valid, slice_ends_of(batch, times_us(valid))):
            yield beam.window.TimestampedValue(part, timestamp_of(end))
