"""Feedback: how good the scores of a running job are, as far as labels have come."""

from __future__ import annotations

import dataclasses

import apache_beam as beam
import numpy as np
import pyarrow as pa

from models.batches import column
from models.features.row import feedback_horizon_us
from models.metrics import FEEDBACK
from models.project.declarations import Project
from models.quality.label_metrics import carried_columns
from models.record import DECISION
from transforms.join import JoinLabels
from transforms.metrics import count
from transforms.state import States


@dataclasses.dataclass(eq=False)
class CountFeedback(beam.PTransform):
    """{"events": score rows, "labels": valid label records} → score rows whose label became known, counted.

    The counters are those of models.metrics.FEEDBACK. Where labels are no classes, they are counted by decision alone.
    Labels of events that were not scored here, such as history, are not counted. With label metrics, the rows have what
    these are of.
    """

    project: Project
    shards: int
    lateness_us: int = 0
    states: States | None = None  # rows that wait for a label are kept as `feedback`

    def expand(self, inputs: dict[str, beam.PCollection]) -> beam.PCollection:
        """See JoinLabels."""
        label, records = self.project.label, self.project.label_type
        assert label is not None
        assert records is not None
        decided = (DECISION,) if self.project.decisions else ()
        carried = carried_columns(self.project) if self.project.label_metrics else decided
        join = JoinLabels(
            records,
            label.field,
            carried,
            feedback_horizon_us(self.project),
            self.shards,
            self.lateness_us,
            event_time=self.project.event.time,
            states=self.states,
            name="feedback",
            refuse=False,
        )
        joined = inputs | "Join scores" >> join
        joined | "Count" >> beam.Map(_count, self.project)
        return joined


def _count(batch: pa.RecordBatch, project: Project) -> None:
    assert project.label is not None
    labels = column(batch, project.label.field)
    names = ["0", "1"] if project.has_positives else list(project.outputs if project.classes else [""])
    texts = labels.cast(pa.string()).to_numpy(zero_copy_only=False) if names != [""] else np.full(len(labels), "")
    decisions = (
        column(batch, DECISION).to_numpy(zero_copy_only=False) if project.decisions else np.full(len(labels), "")
    )
    for decision in np.unique(decisions.astype(str)).tolist():
        for name in names:
            number = int(np.count_nonzero((decisions == decision) & (texts == name)))
            if number:
                count(FEEDBACK, number, decision=decision, label=name)
