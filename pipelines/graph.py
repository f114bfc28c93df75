"""The graph: events in, scores and dead letters out. It is the same over files and over streams."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import apache_beam as beam
import pyarrow as pa

from models.counts import count_events, count_refused
from models.features.row import feedback_horizon_us
from models.quality.incidents import Policy
from models.record import EVENTS, LABELS, Outcome
from pipelines.config import GraphConfig
from pipelines.monitoring.alerts import SendAlerts
from transforms.correct import Correct
from transforms.count import CheckCounts, Count, CountEvents
from transforms.decode import Decode
from transforms.deduplicate import Deduplicate
from transforms.features import ComputeFeatures, CountImpossible
from transforms.feedback import CountFeedback
from transforms.incidents import RaiseAlerts
from transforms.labels import JoinLabels
from transforms.refused import DropKnown, Refused
from transforms.score import Score
from transforms.validate import Validate


class Labels(NamedTuple):
    """Label records as they came, those that are valid, the same joined with their events, and how many there were."""

    raw: beam.PCollection
    records: beam.PCollection
    joined: beam.PCollection
    counts: tuple[beam.PCollection, ...]


def build(pipeline: beam.Pipeline, config: GraphConfig) -> beam.PCollection:
    """Read → Decode → Validate → Deduplicate → Features → Score (or collect examples) → Write."""
    feeds = pipeline | "Read" >> config.source
    raw, records, refused = feeds[EVENTS], config.project.event_type, Refused(pipeline)
    decoded = refused.rows_of(raw | "Decode" >> Decode(records))
    valid = refused.rows_of(decoded | "Validate" >> Validate(records, config.score_from_us))
    unique = refused.rows_of(valid | "Deduplicate" >> Deduplicate(records, config.shards, config.lateness_us))
    labels = join_labels(feeds[LABELS], unique, refused, config) if LABELS in feeds else None
    events: Any = {"events": unique, "labels": labels.joined} if labels else unique
    featured = events | "Features" >> ComputeFeatures(config.project, config.shards, config.lateness_us)
    scored = rows = featured | "Score" >> config.score
    if labels and isinstance(config.score, Score):
        feedback = CountFeedback(config.project, config.shards, config.lateness_us)
        {"events": rows, "labels": labels.records} | "Feedback" >> feedback
    if config.at_arrival:
        rows = scored | "Correct" >> Correct(config.project, config.shards)
    letters = refused.letters()
    read = raw | "Count read" >> CountEvents(Outcome.READ)
    past = (featured, letters) | "Past" >> beam.Flatten()
    history = past | "Count history" >> CountEvents(Outcome.HISTORY, history_only=True)
    impossible = featured | "Impossible" >> CountImpossible(config.project)
    counts = (read, history, impossible, *(labels.counts if labels else ())) | "Counts" >> beam.Flatten()
    news = letters | "News" >> DropKnown()
    watched = {"scored": scored, "rows": rows} | "Watch" >> config.watch if config.watch else {"scores": rows}
    if config.watch and config.project.quality:
        quality = config.project.quality
        policy = Policy(quality.alert_cool_down, quality.alert_clear_after)
        alerts = watched["verdicts"] | "Raise alerts" >> RaiseAlerts(config.project.name, policy)
        alerts | "Send alerts" >> SendAlerts(config.alert_sinks)
    if config.check_slices:
        check_counts(raw, featured, scored, refused, labels)
    written = {"dead_letters": news, "counts": counts, **watched} | "Write" >> config.sink
    refused.check()
    return written


def join_labels(raw: beam.PCollection, events: beam.PCollection, refused: Refused, config: GraphConfig) -> Labels:
    """Decode → Validate → Join, for labels that come as records of their own."""
    project, records = config.project, config.project.label_type
    if records is None:
        raise ValueError("labels come as records of their own, but the project declares no label.events")
    decoded = refused.rows_of(raw | "Decode labels" >> Decode(records))
    valid = refused.rows_of(decoded | "Validate labels" >> Validate(records))
    entities = tuple(project.entities.values())
    join = JoinLabels(project, entities, feedback_horizon_us(project), config.shards, config.lateness_us)
    joined = refused.rows_of({"events": events, "labels": valid} | "Join labels" >> join)
    counts = (
        raw | "Count labels read" >> CountEvents(Outcome.READ),
        joined | "Count labelled" >> beam.Map(_labelled).with_output_types(tuple[str, int]),
    )
    return Labels(raw, valid, joined, counts)


def check_counts(
    raw: beam.PCollection, featured: beam.PCollection, scored: beam.PCollection, refused: Refused, labels: Labels | None
) -> None:
    """Look at each slice whether every event that was read came out."""
    inputs = {"read": raw, "history": featured, "scored": scored, **refused.parts()}
    read = functools.partial(count_events, outcome=Outcome.READ)
    counts: dict[str, Count] = dict.fromkeys(inputs, count_refused)
    counts |= {"read": read, "scored": functools.partial(count_events, outcome=Outcome.SCORED)}
    counts["history"] = functools.partial(count_events, outcome=Outcome.HISTORY, history_only=True)
    if labels:
        inputs |= {"labels": labels.raw, "labelled": labels.joined}
        counts |= {"labels": read, "labelled": functools.partial(count_events, outcome=Outcome.LABELLED)}
    inputs | "Check counts" >> CheckCounts(counts)


def _labelled(batch: pa.RecordBatch) -> tuple[str, int]:
    return Outcome.LABELLED, batch.num_rows
