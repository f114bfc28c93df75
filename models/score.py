"""Features to score rows: the model's inputs, its score, and the action by the bands. No Beam is needed."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.batches import as_float64, column, marks_of, same_text, take_rows
from models.dead_letters import split_good
from models.predictors.booster import Scorer
from models.project.declarations import Decision, Project
from models.record import (
    BUNDLE_ID,
    CORRECTION,
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
)

_NOT_COMPARED = (LATE, PUBLISHED_AT, INGESTED_AT, SCORED_AT, MARKS, CORRECTION)


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
    result[BUNDLE_ID] = same_text(bundle_id, batch.num_rows)
    return pa.RecordBatch.from_arrays(list(result.values()), names=list(result))


def stream_columns(batch: pa.RecordBatch) -> dict[str, pa.Array]:
    """Whether an event was late, bool, and when by the clock it was published, ingested and scored."""
    now = pa.array(np.full(batch.num_rows, time.time_ns() // 1000)).cast(pa.timestamp("us", tz="UTC"))
    return {
        LATE: pa.array((marks_of(batch) & IS_LATE) != 0),
        PUBLISHED_AT: column(batch, PUBLISHED),
        INGESTED_AT: column(batch, INGESTED),
        SCORED_AT: now,
    }


def with_columns(batch: pa.RecordBatch, added: dict[str, pa.Array]) -> pa.RecordBatch:
    """The batch with more columns at its end."""
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


def find_changed(rows: pa.RecordBatch, provisional: pa.RecordBatch, event_id: str) -> pa.RecordBatch:
    """Those of `rows` that differ in some bit from the provisional row of their id, or have none."""
    place = pc.index_in(column(rows, event_id), value_set=column(provisional, event_id))
    same = np.asarray(place.is_valid())
    matching = take_rows(provisional, place.fill_null(0).to_numpy())
    for name in rows.schema.names:
        if name not in _NOT_COMPARED:
            same &= _equal_bits(column(rows, name), column(matching, name))
    return split_good(rows, same)


def _equal_bits(ours: pa.Array, theirs: pa.Array) -> Any:
    if pa.types.is_dictionary(ours.type):
        ours, theirs = ours.dictionary_decode(), theirs.dictionary_decode()
    if pa.types.is_floating(ours.type):
        whole = np.int32 if ours.type.bit_width == 32 else np.int64
        bits = [np.ascontiguousarray(values.fill_null(0).to_numpy(zero_copy_only=False)) for values in (ours, theirs)]
        equal = bits[0].view(whole) == bits[1].view(whole)
    else:
        equal = np.asarray(pc.equal(ours, theirs).fill_null(True))
    return equal & (np.asarray(ours.is_valid()) == np.asarray(theirs.is_valid()))
