"""Features as of the times of a spine's rows, which read what events leave in windows and add nothing to it."""

from __future__ import annotations

import dataclasses

import apache_beam as beam
import pyarrow as pa

from models.features.labels import LabelledKernel
from models.features.row import before_windows, rolling_kernels
from models.features.spine import Answerable, complete
from transforms.rolling import RollingWindows


@dataclasses.dataclass(eq=False)
class AnswerFeatures(beam.PTransform[dict[str, beam.PCollection[pa.RecordBatch]], beam.PCollection[pa.RecordBatch]]):
    """{"events": unique events, "asked": rows of `to_asked`, "labels": of events, if any} → what `complete` gives.

    Events and rows of one slice are looked at together, so that a row is as late as a slice is long: `lateness_us`.
    """

    answerable: Answerable
    shards: int
    lateness_us: int

    def expand(self, inputs: dict[str, beam.PCollection]) -> beam.PCollection:
        """The rolling features of one entity after another, of all events, then the row features."""
        project, inputs = self.answerable.project, dict(inputs)
        labels = inputs.pop("labels", None)
        if project.before_windows or project.windows_only:
            ready = beam.Map(before_windows, project).with_output_types(pa.RecordBatch)
            inputs["events"] |= "Before windows" >> ready
        for entity, kernel in rolling_kernels(project, self.lateness_us).items():
            if entity in self.answerable.windows:
                both = {"labels": labels} if labels is not None and isinstance(kernel, LabelledKernel) else {}
                windows = RollingWindows(project.key_fields[entity], project.event.id, kernel, self.shards)
                inputs["asked"] = {**inputs, **both} | f"Windows of {entity}" >> windows
        return inputs["asked"] | "Complete" >> beam.Map(complete, self.answerable).with_output_types(pa.RecordBatch)
