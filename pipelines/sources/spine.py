"""The rows of a spine, as batches of one slice of event time each."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import pyarrow as pa

from models.batches import partition, slice_ends, times_us
from transforms.batches import timestamp_of


@dataclasses.dataclass(eq=False)
class ReadSpine(beam.PTransform):
    """What `to_asked` made of a spine, from an Arrow IPC file on this machine, timestamped with the slices' ends."""

    path: str
    slice_us: int

    def expand(self, pbegin: Any) -> beam.PCollection:
        """Batches of one slice each."""
        return pbegin | "Start" >> beam.Impulse() | "Read" >> beam.FlatMap(self._read).with_output_types(pa.RecordBatch)

    def _read(self, _: bytes) -> Iterator[Any]:
        with pa.ipc.open_file(pa.memory_map(self.path)) as file:
            for number in range(file.num_record_batches):
                batch = file.get_batch(number)
                for end, part in partition(batch, slice_ends(times_us(batch), self.slice_us)):
                    yield beam.window.TimestampedValue(part, timestamp_of(end))
