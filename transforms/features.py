"""Features: everything a project declares about an event, as columns beside its fields."""

from __future__ import annotations

import dataclasses

import apache_beam as beam
import numpy as np
import pyarrow as pa

from models.labels import LabelledKernel
from models.project import Project
from models.windows import RollingKernel
from transforms.batches import as_float64, as_int64, column, times_us
from transforms.labels import MoveLater
from transforms.rolling import RollingWindows

FEEDBACK_US = 30 * 86_400_000_000


@dataclasses.dataclass(eq=False)
class ComputeFeatures(beam.PTransform):  # type: ignore[misc]
    """Batches of unique events → the same rows with a column for each feature at the end.

    Where labels are records of their own, the input is {"events": batches, "labels": their labels, as joined to them}.
    """

    project: Project
    shards: int
    lateness_us: int = 0

    def expand(self, inputs: beam.PCollection | dict[str, beam.PCollection]) -> beam.PCollection:
        """The rolling features of one entity after another, then the row features."""
        pcoll, labels = inputs, None
        if isinstance(inputs, dict):
            # The labels have gone through the step that joined them.
            pcoll, labels = inputs["events"] | "Meet labels" >> MoveLater(), inputs["labels"]
        for entity, kernel in rolling_kernels(self.project, self.lateness_us).items():
            windows = RollingWindows(self.project.entities[entity], self.project.event.id, kernel, self.shards)
            both = labels is not None and isinstance(kernel, LabelledKernel)
            pcoll = ({"events": pcoll, "labels": labels} if both else pcoll) | f"Windows of {entity}" >> windows
            labels = labels and labels | f"Labels after {entity}" >> MoveLater()
        return pcoll | "Row features" >> beam.Map(with_row_features, self.project).with_output_types(pa.RecordBatch)


def rolling_kernels(project: Project, lateness_us: int = 0) -> dict[str, RollingKernel]:
    """Entity → its kernel, for entities that have rolling features."""
    label = project.label.field if project.label and project.label.events else None
    by_entity = {e: tuple(f for f in project.rolling_features if f.entity == e) for e in project.entities}
    return {
        e: LabelledKernel(features, project.fixed_point, lateness_us, label)
        if label and any(f.field == label for f in features)
        else RollingKernel(features, project.fixed_point, lateness_us)
        for e, features in by_entity.items()
        if features
    }


def label_horizon_us(project: Project) -> int:
    """How long after its event a label can still change a feature, in microseconds; 0 if none reads labels."""
    kernels = rolling_kernels(project).values()
    return max((kernel.label_horizon_us for kernel in kernels if isinstance(kernel, LabelledKernel)), default=0)


def feedback_horizon_us(project: Project) -> int:
    """How long after its event a label is waited for, microseconds: as long as a feature reads it, at least 30 days."""
    assert project.label is not None
    return max(label_horizon_us(project), FEEDBACK_US)


def horizon_us(project: Project, lateness_us: int) -> int:
    """How much older than the newest event one is that changes no feature and no duplicate any more, microseconds."""
    horizons = [kernel.horizon_us for kernel in rolling_kernels(project, lateness_us).values()]
    return max([*horizons, 2 * project.event.deduplicate_within + lateness_us])


def with_row_features(batch: pa.RecordBatch, project: Project) -> pa.RecordBatch:
    """The batch with its row features added: int64 or float64."""
    added: dict[str, pa.Array] = {}
    for name, expression in project.row_features.items():
        columns = {n: _operand(batch, n, project) for n in expression.names or {project.event.time}}
        added[name] = pa.array(np.ascontiguousarray(expression.evaluate(columns)))
    fields = [pa.field(name, values.type) for name, values in added.items()]
    schema = pa.schema([*batch.schema, *fields])
    return pa.RecordBatch.from_arrays([*batch.columns, *added.values()], schema=schema)


def _operand(batch: pa.RecordBatch, name: str, project: Project) -> np.ndarray:  # type: ignore[type-arg]
    if name == project.event.time:
        return times_us(batch)
    values, field = column(batch, name), project.contract.fields[name]
    # By what is declared, not by whether a value happens to be missing: all batches have one schema.
    return as_int64(values) if field.required and field.kind == "int" else as_float64(values)
