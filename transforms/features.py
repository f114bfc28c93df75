"""Features: everything a project declares about an event, as columns beside its fields."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import apache_beam as beam
import pyarrow as pa

from models.features.labels import LabelledKernel
from models.features.row import count_impossible, rolling_kernels, with_row_features
from models.metrics import IMPOSSIBLE
from models.project.declarations import Project
from models.project.expressions import NOT_FINITE
from transforms.metrics import count
from transforms.rolling import RollingWindows


@dataclasses.dataclass(eq=False)
class ComputeFeatures(
    beam.PTransform[
        beam.PCollection[pa.RecordBatch] | dict[str, beam.PCollection[pa.RecordBatch]], beam.PCollection[pa.RecordBatch]
    ]
):
    """Batches of unique events → the same rows with a column for each feature at the end.

    Where labels are records of their own, the input is {"events": batches, "labels": their labels, as joined to them}.
    """

    project: Project
    shards: int
    lateness_us: int = 0

    def expand(self, inputs: beam.PCollection | dict[str, beam.PCollection]) -> beam.PCollection:
        """The rolling features of one entity after another, then the row features."""
        pcoll, labels = (inputs["events"], inputs["labels"]) if isinstance(inputs, dict) else (inputs, None)
        for entity, kernel in rolling_kernels(self.project, self.lateness_us).items():
            windows = RollingWindows(self.project.entities[entity], self.project.event.id, kernel, self.shards)
            both = labels is not None and isinstance(kernel, LabelledKernel)
            pcoll = ({"events": pcoll, "labels": labels} if both else pcoll) | f"Windows of {entity}" >> windows
        return pcoll | "Row features" >> beam.Map(with_row_features, self.project).with_output_types(pa.RecordBatch)


@dataclasses.dataclass(eq=False)
class CountImpossible(beam.PTransform[beam.PCollection[pa.RecordBatch], beam.PCollection[tuple[str, int]]]):
    """Batches with features → (NOT_FINITE and a name, events), see `count_impossible`; a Beam counter, too."""

    project: Project

    def expand(self, pcoll: beam.PCollection) -> beam.PCollection:
        """Pairs that add up to the number of events; nothing of features that are all there."""
        return pcoll | "Count impossible" >> beam.FlatMap(self._count).with_output_types(tuple[str, int])

    def _count(self, batch: pa.RecordBatch) -> Iterator[tuple[str, int]]:
        for name, events in count_impossible(batch, self.project).items():
            count(IMPOSSIBLE, events, column=name)
            yield NOT_FINITE + name, events
