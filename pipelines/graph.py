"""The graph: events in, scores and dead letters out. It is the same over files and over streams."""

from __future__ import annotations

from typing import Any, NamedTuple

import apache_beam as beam
import pyarrow as pa

from models.quality.incidents import Policy
from models.record import EVENTS, LABELS, Outcome
from pipelines.config import GraphConfig
from pipelines.monitoring.alerts import SendAlerts
from transforms.correct import Correct
from transforms.count import CountEvents
from transforms.dead_letters import DropKnown
from transforms.decode import DEAD, Decode
from transforms.deduplicate import Deduplicate
from transforms.features import ComputeFeatures, CountImpossible, feedback_horizon_us
from transforms.feedback import CountFeedback
from transforms.incidents import RaiseAlerts
from transforms.labels import JoinLabels, MoveLater
from transforms.score import Score
from transforms.validate import Validate


class Labels(NamedTuple):
    """Label records, the same joined with their events, how many there were, and dead letters."""

    records: beam.PCollection
    joined: beam.PCollection
    counts: tuple[beam.PCollection, ...]
    dead: tuple[beam.PCollection, ...]


def build(pipeline: beam.Pipeline, config: GraphConfig) -> beam.PCollection:
    """Read → Decode → Validate → Deduplicate → Features → Score (or collect examples) → Write."""
    feeds = pipeline | "Read" >> config.source
    raw = feeds[EVENTS]
    decoded = raw | "Decode" >> Decode(config.project.event_type)
    valid = decoded.rows | "Validate" >> Validate(config.project.event_type, config.score_from_us)
    unique = valid.rows | "Deduplicate" >> Deduplicate(config.project.event_type, config.shards, config.lateness_us)
    labels = join_labels(feeds[LABELS], unique.rows, config) if LABELS in feeds else None
    events: Any = {"events": unique.rows, "labels": labels.joined} if labels else unique.rows
    featured = events | "Features" >> ComputeFeatures(config.project, config.shards, config.lateness_us)
    scored = rows = featured | "Score" >> config.score
    if labels and isinstance(config.score, Score):
        feedback = CountFeedback(config.project, config.shards, config.lateness_us)
        {"events": rows, "labels": labels.records} | "Feedback" >> feedback
    if config.at_arrival:
        rows = scored | "Correct" >> Correct(config.project, config.shards)
    dead = (decoded[DEAD], valid[DEAD], unique[DEAD], *(labels.dead if labels else ()))
    refused = dead | "Dead letters" >> beam.Flatten()
    read = raw | "Count read" >> CountEvents(Outcome.READ)
    past = (featured, refused) | "Past" >> beam.Flatten()
    history = past | "Count history" >> CountEvents(Outcome.HISTORY, history_only=True)
    impossible = featured | "Impossible" >> CountImpossible(config.project)
    counts = (read, history, impossible, *(labels.counts if labels else ())) | "Counts" >> beam.Flatten()
    news = refused | "News" >> DropKnown()
    watched = {"scored": scored, "rows": rows} | "Watch" >> config.watch if config.watch else {"scores": rows}
    if config.watch and config.project.quality:
        quality = config.project.quality
        policy = Policy(quality.alert_cool_down, quality.alert_clear_after)
        alerts = watched["verdicts"] | "Raise alerts" >> RaiseAlerts(config.project.name, policy)
        alerts | "Send alerts" >> SendAlerts(config.alert_sinks)
    return {"dead_letters": news, "counts": counts, **watched} | "Write" >> config.sink


def join_labels(raw: beam.PCollection, events: beam.PCollection, config: GraphConfig) -> Labels:
    """Decode → Validate → Join, for labels that come as records of their own."""
    project, records = config.project, config.project.label_type
    if records is None:
        raise ValueError("labels come as records of their own, but the project declares no label.events")
    decoded = raw | "Decode labels" >> Decode(records)
    valid = decoded.rows | "Validate labels" >> Validate(records)
    waiting = valid.rows | "Meet unique events" >> MoveLater()
    entities = tuple(project.entities.values())
    join = JoinLabels(project, entities, feedback_horizon_us(project), config.shards, config.lateness_us)
    joined = {"events": events, "labels": waiting} | "Join labels" >> join
    counts = (
        raw | "Count labels read" >> CountEvents(Outcome.READ),
        joined.rows | "Count labelled" >> beam.Map(_labelled).with_output_types(tuple[str, int]),
    )
    return Labels(valid.rows, joined.rows, counts, (decoded[DEAD], valid[DEAD], joined[DEAD]))


def _labelled(batch: pa.RecordBatch) -> tuple[str, int]:
    return Outcome.LABELLED, batch.num_rows
