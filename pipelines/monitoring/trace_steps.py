"""The steps of a graph as spans of events that are traced; where none is, the graph has no such steps."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator

import apache_beam as beam
import pyarrow as pa

from pipelines.monitoring.traces import Traces


@dataclasses.dataclass(eq=False)
class TraceStep(beam.PTransform[beam.PCollection[pa.RecordBatch], beam.PCollection[pa.RecordBatch]]):
    """Batches that have passed a step go on as they are, and of events that are traced that is told."""

    traces: Traces
    step: str

    def expand(self, pcoll: beam.PCollection) -> beam.PCollection:
        """The same batches."""
        return pcoll | "Tell" >> beam.ParDo(_Tell(self.traces, self.step)).with_output_types(pa.RecordBatch)


class _Tell(beam.DoFn):
    def __init__(self, traces: Traces, step: str) -> None:
        self._traces, self._step = traces, step

    def setup(self) -> None:
        self._tracer = self._traces.tracer()

    def process(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        self._tracer.passed(self._step, batch, time.time_ns())
        yield batch

    def teardown(self) -> None:
        self._tracer.flush()
