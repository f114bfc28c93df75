"""Decode: records as a source gives them to columns of the contract's types."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import pyarrow as pa

from models.dead_letters import make_dead_letters, split_good
from models.decode import decode_once
from models.record import FORMAT, RecordType
from transforms.refused import DEAD


@dataclasses.dataclass(eq=False)
class Decode(beam.PTransform[beam.PCollection[pa.RecordBatch], beam.pvalue.DoOutputsTuple]):
    """Batches of records → batches of decoded rows, and dead letters for what is not of its format.

    The format stands in a batch's schema metadata, since it is the source's affair: `json`, `csv` (with the
    header's names), `avro` (with the writer's schema), `rows` (typed columns, with
    the names of others that were not read) or `unreadable` (a part of a
    file that its source could not read; each row of it becomes a dead letter). What its source has decoded already, as
    streams do to learn the times, is not decoded again.
    """

    records: RecordType

    def expand(self, pcoll: beam.PCollection) -> beam.pvalue.DoOutputsTuple:
        """Main output: decoded batches; output `dead`: dead letters."""
        return pcoll | "Decode" >> beam.FlatMap(self._decode).with_output_types(
            pa.RecordBatch, dead=pa.RecordBatch
        ).with_outputs(DEAD, main="rows")

    def _decode(self, batch: pa.RecordBatch) -> Iterator[Any]:
        records = self.records
        decoded, faults = decode_once(batch, records)
        if faults.bad.any():
            reported = batch if batch.schema.metadata[FORMAT] == b"rows" else decoded
            dead = make_dead_letters(reported, faults.rows, faults.reasons(), "Decode", records)
            yield beam.pvalue.TaggedOutput(DEAD, dead)
        good = split_good(decoded, faults.bad)
        if good.num_rows:
            yield good
