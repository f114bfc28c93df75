"""Features: everything a project declares about an event, as columns beside its fields."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import apache_beam as beam
import pyarrow as pa

from models.features.labels import LabelledKernel
from models.features.row import (
    before_windows,
    count_impossible,
    count_rounded,
    count_unknown,
    rolling_kernels,
    with_row_features,
)
from models.metrics import IMPOSSIBLE, UNKNOWN_VALUES
from models.metrics import ROUNDED as ROUNDED_VALUES
from models.predictors.encoders import NO_ENCODERS, Encoders
from models.project.declarations import Project
from models.project.expressions import NOT_FINITE, ROUNDED, UNKNOWN
from transforms.metrics import count
from transforms.rolling import RollingWindows
from transforms.state import States


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
    states: States | None = None  # windows are kept as `windows of ENTITY`

    def expand(self, inputs: beam.PCollection | dict[str, beam.PCollection]) -> beam.PCollection:
        """The rolling features of one entity after another, then the row features, but for those that windows read."""
        pcoll, labels = (inputs["events"], inputs["labels"]) if isinstance(inputs, dict) else (inputs, None)
        if self.project.before_windows or self.project.windows_only:
            pcoll |= "Before windows" >> beam.Map(before_windows, self.project).with_output_types(pa.RecordBatch)
        for entity, kernel in rolling_kernels(self.project, self.lateness_us).items():
            keys, name = self.project.key_fields[entity], f"windows of {entity}"
            windows = RollingWindows(keys, self.project.event.id, kernel, self.shards, self.states, name)
            both = labels is not None and isinstance(kernel, LabelledKernel)
            pcoll = ({"events": pcoll, "labels": labels} if both else pcoll) | f"Windows of {entity}" >> windows
        return pcoll | "Row features" >> beam.Map(with_row_features, self.project).with_output_types(pa.RecordBatch)


@dataclasses.dataclass(eq=False)
class CountImpossible(beam.PTransform[beam.PCollection[pa.RecordBatch], beam.PCollection[tuple[str, int]]]):
    """Batches with features → (NOT_FINITE, UNKNOWN or ROUNDED and a name, events); Beam counters, too.

    See `count_impossible`, `count_unknown` of values that the model's `encoders` do not know, and `count_rounded`,
    which tells of columns under `more_places` alone.
    """

    project: Project
    encoders: Encoders = NO_ENCODERS

    def expand(self, pcoll: beam.PCollection) -> beam.PCollection:
        """Pairs that add up to the number of events; nothing of features that are all there."""
        return pcoll | "Count impossible" >> beam.FlatMap(self._count).with_output_types(tuple[str, int])

    def _count(self, batch: pa.RecordBatch) -> Iterator[tuple[str, int]]:
        for name, events in count_impossible(batch, self.project).items():
            count(IMPOSSIBLE, events, column=name)
            yield NOT_FINITE + name, events
        for name, events in count_unknown(batch, self.encoders).items():
            count(UNKNOWN_VALUES, events, column=name)
            yield UNKNOWN + name, events
        for name, events in count_rounded(batch, self.project).items():
            count(ROUNDED_VALUES, events, column=name)
            if name in self.project.more_places:
                yield ROUNDED + name, events
