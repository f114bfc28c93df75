"""Examples for training: what a model learns from, taken from the same features that it will score."""

from __future__ import annotations

import dataclasses

import apache_beam as beam
import pyarrow as pa

from models.batches import column
from models.project.declarations import Project
from models.score import output_columns, with_columns


@dataclasses.dataclass(eq=False)
class CollectExamples(beam.PTransform[beam.PCollection[pa.RecordBatch], beam.PCollection[pa.RecordBatch]]):
    """Batches with features → the same events with id, time, entities, features, label and model inputs."""

    project: Project

    def expand(self, pcoll: beam.PCollection) -> beam.PCollection:
        """Batches of examples."""
        return pcoll | "Examples" >> beam.Map(self._examples).with_output_types(pa.RecordBatch)

    def _examples(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        project = self.project
        rows = output_columns(batch, project)
        label = [project.label.field] if project.label else []
        more = dict.fromkeys([*label, *project.model.inputs, *project.training.slices])
        return with_columns(rows, {n: column(batch, n) for n in more if n not in rows.schema.names})
