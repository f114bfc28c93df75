"""Feedback: how good the scores of a running job are, as far as labels have come."""

from __future__ import annotations

import dataclasses

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc

from models.batches import column, same_text, with_column
from models.features.row import feedback_horizon_us
from models.metrics import FEEDBACK, LABELLED, Metric
from models.project.declarations import Project
from models.quality.label_metrics import carried_columns
from models.record import BUNDLE_ID, DECISION, RELEASE
from transforms.join import JoinLabels
from transforms.metrics import count
from transforms.state import States


@dataclasses.dataclass(eq=False)
class CountFeedback(beam.PTransform):
    """{"events": score rows, "labels": valid label records} → score rows whose label became known, counted.

    The counters are those of models.metrics.FEEDBACK. Where labels are no classes, they are counted by decision alone.
    Labels of events that were not scored here, such as history, are not counted. With label metrics, the rows have what
    these are of. Where a breaker goes by labels, rows say who made them, for models.metrics.LABELLED.
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
        if _by_maker(self.project):
            carried = tuple(dict.fromkeys([*carried, BUNDLE_ID, RELEASE]))
            inputs = {**inputs, "events": inputs["events"] | "Say release" >> beam.Map(_with_release)}
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


def _by_maker(project: Project) -> bool:
    """Whether labels are counted by who made the scores, too."""
    breaker = project.breaker
    return breaker is not None and breaker.clock is not None and bool(breaker.clock.labels)


def _with_release(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Rows of a run without a log of releases have none."""
    return rows if RELEASE in rows.schema.names else with_column(rows, RELEASE, pa.nulls(rows.num_rows, pa.int32()))


def _count(batch: pa.RecordBatch, project: Project) -> None:
    assert project.label is not None
    none = same_text("", batch.num_rows)
    label = column(batch, project.label.field) if project.label_texts else none
    decided = column(batch, DECISION) if project.decisions else none
    of_scores = {"decision": decided, "label": label}
    _count_by(FEEDBACK, of_scores)
    if _by_maker(project):
        release = pc.fill_null(column(batch, RELEASE).cast(pa.string()), "none")
        _count_by(LABELLED, {"release": release, "bundle": column(batch, BUNDLE_ID), **of_scores})


def _count_by(metric: Metric, columns: dict[str, pa.Array]) -> None:
    """Count rows by the texts that they have in columns."""
    texts = pa.table({name: texts.cast(pa.string()) for name, texts in columns.items()})
    for row in texts.group_by(list(columns), use_threads=False).aggregate([([], "count_all")]).to_pylist():
        count(metric, row.pop("count_all"), **row)
