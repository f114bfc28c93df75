"""Features to score rows: the model's inputs, its score, and the action by the bands. No Beam is needed."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.batches import as_dictionary, as_float64, column, marks_of, same_text, take_rows
from models.dead_letters import split_good
from models.predictors.booster import Scorer
from models.predictors.encoders import NO_ENCODERS, Encoders
from models.project.declarations import Project
from models.project.learned import Decision
from models.project.targets import output_text
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
    PREDICTED,
    PUBLISHED,
    PUBLISHED_AT,
    REASONS,
    SCORE,
    SCORED_AT,
    UNEXPECTED,
    WEIGHT,
)

Scores = np.ndarray[Any, np.dtype[np.float32]]

_NOT_COMPARED = (LATE, PUBLISHED_AT, INGESTED_AT, SCORED_AT, MARKS, CORRECTION)


def live_rows(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The rows that are to be scored: those that are not history."""
    past = (marks_of(batch) & IS_HISTORY) != 0
    return take_rows(batch, np.flatnonzero(~past)) if past.any() else batch


def score_batch(
    batch: pa.RecordBatch, project: Project, scorer: Scorer | None, bundle_id: str, reason_codes: int
) -> pa.RecordBatch:
    """Score rows: id, event time, entities, output fields, features, what is said, decision, bundle id.

    Without a scorer, what stands up to the features. Where decisions block, a weight stands at the end, unknown.
    """
    rows = output_columns(batch, project)
    if scorer is None:
        return rows
    inputs = model_inputs(batch, project.model.inputs, scorer.encoders)
    outputs = scorer.score(inputs)
    result = columns_of_outputs(outputs, project)
    if reason_codes:
        result[REASONS] = _reasons(scorer, inputs, reason_codes, main_outputs(outputs, project))
    result[BUNDLE_ID] = same_text(bundle_id, batch.num_rows)
    if project.rollout.blocks:  # known where a release log has a holdout
        result[WEIGHT] = pa.nulls(batch.num_rows, pa.float64())
    return with_columns(rows, result)


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
    for name, values in added.items():
        batch = batch.append_column(name, values)
    return batch


def output_columns(batch: pa.RecordBatch, project: Project) -> pa.RecordBatch:
    """What of an event goes out: its id, event time, entities, declared output fields and features."""
    watched = project.watched_columns if project.quality else ()
    marks = [UNEXPECTED] if project.marks_rows else []
    more = (*project.entities.values(), *project.output, *project.feature_names, *watched, *marks)
    names = list(dict.fromkeys([project.event.id, EVENT_TIME, *more]))
    return batch.select(names).rename_columns([project.event.time if n == EVENT_TIME else n for n in names])


def model_inputs(
    batch: pa.RecordBatch, names: Sequence[str], encoders: Encoders = NO_ENCODERS
) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """The model's columns float32[n, k] in the model's order; NaN where missing, or beyond what float32 holds."""
    matrix = np.empty((batch.num_rows, len(encoders.feature_names(names))), np.float32)
    place = 0
    with np.errstate(over="ignore"):
        for name in names:
            values, encoder = column(batch, name), encoders.by_name.get(name)
            if encoder is None:
                matrix[:, place] = as_float64(values) if values.null_count else values.to_numpy()
                place += 1
            else:
                matrix[:, place : place + len(encoder.columns)] = encoder.encode(values)
                place += len(encoder.columns)
    impossible = np.isinf(matrix)
    if impossible.any():
        matrix[impossible] = np.nan
    return matrix


def columns_of_outputs(outputs: Scores, project: Project) -> dict[str, pa.Array]:
    """What a model says of rows, as columns: the score float32, one for each of several outputs, class and decision.

    `outputs` is float32[n] or, of several outputs, float32[n, o]. The score is that of the predicted class, or of the
    quantile that is nearest to the median.
    """
    result: dict[str, pa.Array] = {}
    main = main_outputs(outputs, project)
    scores = outputs if outputs.ndim == 1 else outputs[np.arange(len(outputs)), main]
    result[SCORE] = pa.array(scores)
    every = outputs if outputs.ndim > 1 else outputs[:, np.newaxis]
    for place, name in enumerate(project.score_columns[1:]):
        result[name] = pa.array(np.ascontiguousarray(every[:, place]))
    if project.classes:
        names = pa.array(project.classes)
        predicted = pa.DictionaryArray.from_arrays(pa.array(main.astype(np.int32)), names)
        result[PREDICTED] = predicted if pa.types.is_string(names.type) else predicted.dictionary_decode()
    if any(band.of is not None for band in project.decisions):
        result[DECISION] = _decide_by_output(scores, every, project)
    elif project.decisions:
        result[DECISION] = decide(scores, project.decisions)
    return result


def decided(rows: pa.RecordBatch) -> Iterator[tuple[tuple[str, str], int]]:
    """How many score rows have each decision and model bundle; of a project that decides nothing, the decision ""."""
    names = [name for name in (DECISION, BUNDLE_ID) if name in rows.schema.names]
    if BUNDLE_ID not in names:
        return
    coded = [as_dictionary(column(rows, name)) for name in names]
    texts = [[*each.dictionary.to_pylist(), ""] for each in coded]
    places = [each.indices.fill_null(len(text) - 1).to_numpy() for each, text in zip(coded, texts, strict=True)]
    lengths = tuple(map(len, texts))
    numbers = np.bincount(np.ravel_multi_index(tuple(places), lengths), minlength=math.prod(lengths))
    for place in np.flatnonzero(numbers):
        values = [text[at] for text, at in zip(texts, np.unravel_index(place, lengths), strict=True)]
        yield (values[0] if len(values) > 1 else "", values[-1]), int(numbers[place])


def take_decided(batch: pa.RecordBatch, decisions: Sequence[str], others: bool = False) -> pa.RecordBatch:
    """The rows of score rows that have one of the decisions, or with `others` none of them.

    A correction is among both, as it may take back what was decided before.
    """
    named = pa.array(list(decisions), pa.string())
    taken = np.asarray(pc.is_in(column(batch, DECISION).cast(pa.string()), named)) != others
    if CORRECTION in batch.schema.names:
        taken |= np.asarray(column(batch, CORRECTION))
    return split_good(batch, ~taken)


def main_outputs(outputs: Scores, project: Project) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Which output int64[n] is each row's score; of equally probable classes the first."""
    if project.classes:
        return np.asarray(np.argmax(outputs, axis=1))
    far = [abs(quantile - 0.5) for quantile in project.target.quantiles]
    return np.full(len(outputs), far.index(min(far)) if far else 0)


def decide(scores: Scores, bands: Sequence[Decision]) -> pa.DictionaryArray:
    """The action of the first band whose bound a score reaches, or else of the last; bounds fall from band to band."""
    rising = np.array([band.at_least for band in reversed(bands[:-1])], np.float32)
    reached = np.searchsorted(rising, scores, side="right")
    actions = pa.array([band.action for band in reversed(bands)])
    return pa.DictionaryArray.from_arrays(pa.array(reached.astype(np.int32)), actions)


def _decide_by_output(scores: Scores, every: Scores, project: Project) -> pa.DictionaryArray:
    """The action of the first band whose bound its output reaches, or else of the last."""
    bands = project.decisions
    chosen = np.full(len(scores), len(bands) - 1, np.int32)
    for place, band in reversed(list(enumerate(bands[:-1]))):
        values = scores if band.of is None else every[:, project.outputs.index(output_text(band.of))]
        chosen[values >= np.float32(band.at_least or 0)] = place
    actions = pa.array([band.action for band in bands])
    return actions.take(pa.array(chosen)).dictionary_encode()


def _reasons(scorer: Scorer, inputs: Scores, top_k: int, main: np.ndarray[Any, np.dtype[np.int64]]) -> pa.Array:
    """For each row a JSON list of [feature, contribution to the score's margin], strongest first."""
    contributions = scorer.contributions(inputs, top_k, main)
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
