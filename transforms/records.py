"""BatchRecords: messages or lines of any source, in batches as the other transforms take them."""

from __future__ import annotations

import dataclasses

import apache_beam as beam
import pyarrow as pa

from models.raw import raw_records

SLICE_US = 30 * 86_400_000_000  # of event time; whoever holds rows over files holds them for so long


@dataclasses.dataclass(eq=False)
class BatchRecords(beam.PTransform[beam.PCollection[bytes], beam.PCollection[pa.RecordBatch]]):
    """JSON records as bytes → batches of raw records for `Decode`.

    `source` names where they come from, for dead letters. `slice_us` is the length of the slices of event time that
    the steps behind work on, whole milliseconds: about as long as the watermark's steps are in a stream.
    """

    source: str
    slice_us: int = SLICE_US
    max_batch: int = 10_000

    def expand(self, pcoll: beam.PCollection) -> beam.PCollection:
        """Batches of at most `max_batch` records."""
        return (
            pcoll
            | "Gather" >> beam.BatchElements(min_batch_size=min(1000, self.max_batch), max_batch_size=self.max_batch)
            | "Batch" >> beam.Map(raw_records, self.source, self.slice_us).with_output_types(pa.RecordBatch)
        )
