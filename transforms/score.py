"""Score and Decide: features to a score by the bundle's model, and the score to an action by the bands."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Sequence

import apache_beam as beam
import numpy as np
import pyarrow as pa

from models import progress
from models.batches import as_float64, column, marks_of, take_rows
from models.predictors.booster import Scorer
from models.project.project import Decision, Project
from models.record import (
    BUNDLE_ID,
    DECISION,
    EVENT_TIME,
    INGESTED,
    INGESTED_AT,
    IS_HISTORY,
    IS_LATE,
    LATE,
    MARKS,
    PUBLISHED,
    PUBLISHED_AT,
    REASONS,
    SCORE,
    SCORED_AT,
    TIMESTAMP,
)


@dataclasses.dataclass(eq=False)
class Score(beam.PTransform):  # type: ignore[misc]
    """Batches with features → score rows; events that are history only are left out.

    `reason_codes` is how many of the features that moved a score most are named with it; 0 for none.
    With `keep_marks`, rows keep their marks, for transforms.correct.
    """

    project: Project
    scorer: Scorer
    bundle_id: str
    reason_codes: int = 0
    keep_marks: bool = False

    def expand(self, pcoll: beam.PCollection) -> beam.PCollection:
        """Batches of score rows, see `score_batch`."""
        return pcoll | "Score" >> beam.FlatMap(self._score).with_output_types(pa.RecordBatch)

    def _score(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        current = live_rows(batch)
        if current.num_rows:
            progress.advance("scored", current.num_rows)
            rows = score_batch(current, self.project, self.scorer, self.bundle_id, self.reason_codes)
            if PUBLISHED in current.schema.names:
                rows = _with_columns(rows, stream_columns(current))
            if self.keep_marks:
                rows = _with_columns(rows, {MARKS: column(current, MARKS)})
            yield rows


def live_rows(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The rows that are to be scored: those that are not history."""
    past = (marks_of(batch) & IS_HISTORY) != 0
    return take_rows(batch, np.flatnonzero(~past)) if past.any() else batch


def score_batch(
    batch: pa.RecordBatch, project: Project, scorer: Scorer, bundle_id: str, reason_codes: int
) -> pa.RecordBatch:
    """Score rows: id, event time, entities, output fields, features, score float32, decision, bundle id."""
    inputs = model_inputs(batch, project.model.inputs)
    scores = scorer.score(inputs)
    result = output_columns(batch, project)
    result[SCORE] = pa.array(scores)
    if project.decisions:
        result[DECISION] = decide(scores, project.decisions)
    if reason_codes:
        result[REASONS] = _reasons(scorer, inputs, reason_codes)
    same = pa.array(np.zeros(batch.num_rows, np.int32))
    result[BUNDLE_ID] = pa.DictionaryArray.from_arrays(same, pa.array([bundle_id]))
    return pa.RecordBatch.from_arrays(list(result.values()), names=list(result))


def stream_columns(batch: pa.RecordBatch) -> dict[str, pa.Array]:
    """Whether an event was late, bool, and when by the clock it was published, ingested and scored."""
    now = pa.array(np.full(batch.num_rows, time.time_ns() // 1000)).cast(TIMESTAMP)
    return {
        LATE: pa.array((marks_of(batch) & IS_LATE) != 0),
        PUBLISHED_AT: column(batch, PUBLISHED),
        INGESTED_AT: column(batch, INGESTED),
        SCORED_AT: now,
    }


def _with_columns(batch: pa.RecordBatch, added: dict[str, pa.Array]) -> pa.RecordBatch:
    names = [*batch.schema.names, *added]
    return pa.RecordBatch.from_arrays([*batch.columns, *added.values()], names=names)


def output_columns(batch: pa.RecordBatch, project: Project) -> dict[str, pa.Array]:
    """What of an event goes out: its id, event time, entities, declared output fields and features."""
    result = {project.event.id: column(batch, project.event.id)}
    result[project.event.time] = column(batch, EVENT_TIME)
    watched = project.watched_columns if project.quality else ()
    for name in (*project.entities.values(), *project.output, *project.feature_names, *watched):
        result[name] = column(batch, name)
    return result


def model_inputs(batch: pa.RecordBatch, names: Sequence[str]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """The model's inputs float32[n, k] in the model's order; NaN where missing, or beyond what float32 holds."""
    matrix = np.empty((batch.num_rows, len(names)), np.float32)
    with np.errstate(over="ignore"):
        for place, name in enumerate(names):
            values = column(batch, name)
            matrix[:, place] = as_float64(values) if values.null_count else values.to_numpy()
    impossible = np.isinf(matrix)
    if impossible.any():
        matrix[impossible] = np.nan
    return matrix


def decide(scores: np.ndarray[tuple[int], np.dtype[np.float32]], bands: Sequence[Decision]) -> pa.DictionaryArray:
    """The action of the first band whose bound a score reaches; bands stand from the highest bound down."""
    rising = np.array([band.at_least for band in reversed(bands)], np.float32)
    reached = np.maximum(np.searchsorted(rising, scores, side="right") - 1, 0)
    actions = pa.array([band.action for band in reversed(bands)])
    return pa.DictionaryArray.from_arrays(pa.array(reached.astype(np.int32)), actions)


def _reasons(scorer: Scorer, inputs: np.ndarray[tuple[int, int], np.dtype[np.float32]], top_k: int) -> pa.Array:
    """For each row a JSON list of [feature, contribution in log-odds], strongest first."""
    contributions = scorer.contributions(inputs, top_k)
    names = np.array(scorer.feature_names, object)[contributions.feature]
    rows = zip(names.tolist(), contributions.value.tolist(), strict=True)
    return pa.array([json.dumps(list(zip(n, v, strict=True))) for n, v in rows], pa.string())
