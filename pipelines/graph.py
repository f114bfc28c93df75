"""The graph: events in, scores and dead letters out. It is the same over files and over streams."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
import pyarrow as pa

from models.counts import count_events, count_refused
from models.features.row import feedback_horizon_us
from models.partitions import EVER, Span
from models.predictors.encoders import NO_ENCODERS, Encoders
from models.project.declarations import Project
from models.quality.incidents import Policy
from models.quality.label_metrics import as_of_us
from models.record import EVENTS, LABELS, RELEASES, Outcome
from models.routes import FALLBACK, LABEL_METRICS, SHADOWS
from models.state import Resume
from models.store.kinds import IDS
from models.totals import period_end_us
from pipelines.monitoring.send import SendAlerts
from pipelines.monitoring.trace_steps import TraceStep
from pipelines.monitoring.traces import Traces
from pipelines.sinks.circuits import NoteCircuits
from pipelines.sinks.store import WriteStore
from pipelines.sources import SLICE_US
from transforms.assign import AssignReleases
from transforms.correct import Correct
from transforms.count import CheckCounts, Count, CountEvents
from transforms.decode import Decode
from transforms.deduplicate import Deduplicate
from transforms.expect import CheckFeatures
from transforms.fallback import Fallback
from transforms.features import ComputeFeatures, CountImpossible
from transforms.feedback import CountFeedback
from transforms.gate import WatchScores
from transforms.incidents import RaiseAlerts
from transforms.join import JoinLabels
from transforms.label_metrics import MeasureLabels
from transforms.refused import DropKnown, Refused
from transforms.score import Score, ScoreShadows
from transforms.standby import StandBy
from transforms.state import CombineSpans, LetterSpans, States
from transforms.tables import JoinTable
from transforms.totals import AddUp
from transforms.validate import Validate


@dataclasses.dataclass(frozen=True)
class GraphConfig:
    """All that the graph is built from."""

    project: Project
    source: beam.PTransform
    score: beam.PTransform
    sink: beam.PTransform
    shards: int = 1  # more are for engines with more than one worker
    span: Span = EVER  # of the events that are scored
    lateness_us: int = 0  # a late event still finds all of its windows if it is no more late than this
    at_arrival: bool = False
    check_slices: bool = False  # of a source that timestamps with the slices' ends: look that none is lost of a slice
    watch: WatchScores | None = None  # where the project declares `quality`
    alert_sinks: tuple[str, ...] = ()
    encoders: Encoders = NO_ENCODERS  # of the model, for the count of values that it has not learned
    states: States | None = None  # where a run starts from a state, and keeps some
    boundary_us: int = SLICE_US  # every multiple of it is an end of a slice
    store: WriteStore | None = None  # that takes what windows read
    circuits: NoteCircuits | None = None  # where changes of the circuit breaker are noted
    traces: Traces | None = None  # which events' way is told, and to where

    @property
    def resume(self) -> Resume | None:
        """How the run goes on from a state, if it starts from one or keeps some."""
        return self.states.resume if self.states else None

    @property
    def cuts_us(self) -> tuple[int, ...]:
        """Times at which slices end, too: those of which a state is kept."""
        return self.states.at_us if self.states else ()


class Labels(NamedTuple):
    """Label records as they came, those that are valid, the same joined with their events, and how many there were."""

    raw: beam.PCollection
    records: beam.PCollection
    joined: beam.PCollection
    counts: tuple[beam.PCollection, ...]
    spans: beam.PCollection


def build(pipeline: beam.Pipeline, config: GraphConfig) -> beam.PCollection:
    """Read → Decode → Validate → Deduplicate → Features → Score (or collect examples) → Write."""
    feeds = pipeline | "Read" >> config.source
    raw, records, refused = feeds[EVENTS], config.project.event_type, Refused(pipeline, config.resume)
    decoded = trace("Wait", refused.rows_of(raw | "Decode" >> Decode(records), unscored=True), config)
    checked = decoded | "Validate" >> Validate(records, config.span, config.cuts_us, config.resume)
    valid = trace("Validate", refused.rows_of(checked, unscored=True), config)
    repeated = config.project.refuses_features
    identified_by = None if config.store is None else config.project.identifying_fields
    deduplicate = Deduplicate(records, config.shards, config.lateness_us, repeated, config.states, identified_by)
    deduplicated = valid | "Deduplicate" >> deduplicate
    unique = trace("Deduplicate", refused.rows_of(deduplicated), config)
    tables, referred = read_tables(feeds, refused, config)
    unique = join_tables(unique, tables, config)
    labels = join_labels(feeds[LABELS], unique, refused, config) if LABELS in feeds else None
    if config.store is not None:
        stored = {EVENTS: unique, IDS: deduplicated.ids, **tables}
        stored | ({LABELS: labels.joined} if labels else {}) | "Store" >> config.store
    featured, unexpected = compute_features(unique, labels, refused, config)
    featured = trace("Features", featured, config)
    released, standby, shadows = assign_releases(feeds, featured, config)
    scored = rows = released | "Score" >> config.score
    measured = measure_labels(scored, labels, config) if isinstance(config.score, Score) else {}
    if config.at_arrival:
        rows = scored | "Correct" >> Correct(config.project, config.shards)
    letters = refused.letters()
    read = raw | "Count read" >> CountEvents(Outcome.READ)
    past = (featured, letters) | "Past" >> beam.Flatten()
    history = past | "Count history" >> CountEvents(Outcome.HISTORY, history_only=True)
    impossible = featured | "Impossible" >> CountImpossible(config.project, config.encoders)
    left = [each | "Count standby" >> CountEvents(Outcome.STANDBY) for each in standby]
    others = (*left_out(checked, config), *left, *referred, *unexpected, *(labels.counts if labels else ()))
    counts = (read, history, impossible, *others) | "Counts" >> beam.Flatten()
    news = letters | "News" >> DropKnown()
    watched = {"scored": scored, "rows": rows} | "Watch" >> config.watch if config.watch else {"scores": rows}
    watched = leave_open(watched | add_up(featured, config) | measured, config.span)
    if "verdicts" in watched:
        send_alerts(watched["verdicts"], config)
        if config.circuits is not None and config.project.breaker is not None:
            watched["verdicts"] | "Circuits" >> config.circuits
    if config.check_slices:
        check_counts(raw, checked.filtered, featured, scored, refused, labels, standby)
    beside = shadows | decide_unscored(refused, config) | keep_states(checked, labels, letters, config)
    written = {"dead_letters": news, "counts": counts, **watched, **beside} | "Write" >> config.sink
    refused.check()
    return written


def trace(step: str, rows: beam.PCollection, config: GraphConfig) -> beam.PCollection:
    """The rows, which have passed a step."""
    return rows if config.traces is None else rows | f"Trace {step}" >> TraceStep(config.traces, step)


def answer(pipeline: beam.Pipeline, config: GraphConfig, spine: beam.PTransform, tables: Sequence[str]) -> None:
    """The same up to Deduplicate; then all events for the rows of a spine, whose keys are looked up in `tables`."""
    past = read_past(pipeline, config)
    asked = join_tables(pipeline | "Spine" >> spine, {name: past.tables[name] for name in tables}, config, "spine to ")
    answers = {**past.rows, "asked": asked} | "Answer" >> config.score
    {"answers": answers, "dead_letters": past.refused.letters(), "counts": past.counts} | "Write" >> config.sink
    past.refused.check()


def fill(pipeline: beam.Pipeline, config: GraphConfig) -> None:
    """The same up to Deduplicate; then all events for a store, which stands in the place of the score."""
    past = read_past(pipeline, config, config.project.identifying_fields)
    {**past.rows, **past.ids, **past.tables} | "Store" >> config.score
    {"dead_letters": past.refused.letters(), "counts": past.counts} | "Write" >> config.sink
    past.refused.check()


class Past(NamedTuple):
    """Unique events, and labels if they are records of their own; the ids of all events, where these are wanted; the
    rows of tables; what was refused; and counts.
    """

    rows: dict[str, beam.PCollection]
    ids: dict[str, beam.PCollection]
    tables: dict[str, beam.PCollection]
    refused: Refused
    counts: beam.PCollection


def read_past(pipeline: beam.Pipeline, config: GraphConfig, identified_by: tuple[str, ...] | None = None) -> Past:
    """Read → Decode → Validate → Deduplicate, where nothing is scored; with ids if there are fields for these."""
    feeds = pipeline | "Read" >> config.source
    raw, records, refused = feeds[EVENTS], config.project.event_type, Refused(pipeline)
    decoded = refused.rows_of(raw | "Decode" >> Decode(records))
    checked = decoded | "Validate" >> Validate(records)
    valid = refused.rows_of(checked)
    deduplicate = Deduplicate(records, config.shards, config.lateness_us, identified_by=identified_by)
    deduplicated = valid | "Deduplicate" >> deduplicate
    unique = refused.rows_of(deduplicated)
    tables, _ = read_tables(feeds, refused, config)
    events = join_tables(unique, tables, config)
    labels = {LABELS: join_labels(feeds[LABELS], events, refused, config).joined} if LABELS in feeds else {}
    read = raw | "Count read" >> CountEvents(Outcome.READ)
    history = unique | "Count history" >> CountEvents(Outcome.HISTORY)
    counts = (read, history, *left_out(checked, config)) | "Counts" >> beam.Flatten()
    ids = {} if identified_by is None else {IDS: deduplicated.ids}
    return Past({EVENTS: events, **labels}, ids, tables, refused, counts)


def left_out(checked: beam.pvalue.DoOutputsTuple, config: GraphConfig, of: str = "") -> list[beam.PCollection]:
    """How many records are left out before they are looked at, by why."""
    left = {"filtered": Outcome.FILTERED}
    left |= {} if config.span.stop_us is None else {"beyond": Outcome.BEYOND}
    left |= {} if config.resume is None else {"known": Outcome.HISTORY}
    return [checked[name] | f"Count {of}{name}" >> CountEvents(outcome) for name, outcome in left.items()]


def send_alerts(verdicts: beam.PCollection, config: GraphConfig) -> None:
    """Alerts of incidents, to where they are wanted."""
    assert config.project.quality is not None
    quality = config.project.quality
    policy = Policy(quality.alert_cool_down, quality.alert_clear_after)
    alerts = verdicts | "Raise alerts" >> RaiseAlerts(config.project.name, policy, config.states)
    alerts | "Send alerts" >> SendAlerts(config.alert_sinks)


def keep_states(
    checked: beam.pvalue.DoOutputsTuple, labels: Labels | None, letters: beam.PCollection, config: GraphConfig
) -> dict[str, beam.PCollection]:
    """What holds keep of their states, and the spans of event time by source, where states are kept."""
    if config.states is None or config.resume is None or not config.states.at_us:
        return {}
    of_letters = letters | "Spans" >> LetterSpans(config.resume)
    spans = [checked.spans, of_letters, *([labels.spans] if labels else [])] | "All spans" >> beam.Flatten()
    return {
        "state": config.states.kept | "Kept" >> beam.Flatten(),
        "source_spans": spans | "Span" >> CombineSpans(),
    }


def compute_features(
    unique: beam.PCollection, labels: Labels | None, refused: Refused, config: GraphConfig
) -> tuple[beam.PCollection, list[beam.PCollection]]:
    """Features → Check; the events with features, and how many have one that is not as expected."""
    events: Any = {"events": unique, "labels": labels.joined} if labels else unique
    featured = events | "Features" >> ComputeFeatures(config.project, config.shards, config.lateness_us, config.states)
    if not config.project.expect:
        return featured, []
    checked = featured | "Check features" >> CheckFeatures(config.project)
    return refused.rows_of(checked, unscored=True), [checked.counts]


def assign_releases(
    feeds: Mapping[str, beam.PCollection], featured: beam.PCollection, config: GraphConfig
) -> tuple[beam.PCollection, list[beam.PCollection], dict[str, beam.PCollection]]:
    """The events with their releases, where there is a log of them; those that another run scores; rows of shadows."""
    if RELEASES not in feeds:
        return featured, [], {}
    assert isinstance(config.score, Score)
    assert config.score.bundles is not None
    inputs = {"events": featured, "releases": feeds[RELEASES]}
    released = inputs | "Assign" >> AssignReleases(config.project, config.shards)
    own = released | "Stand by" >> StandBy(config.score.bundles)
    shadows = released | "Shadows" >> ScoreShadows(config.project, config.score.bundles)
    return own.rows, [own.standby], {SHADOWS: shadows}


def add_up(featured: beam.PCollection, config: GraphConfig) -> dict[str, beam.PCollection]:
    """The rows of the tables of aggregates, if the project declares some."""
    project, ends = config.project, (config.boundary_us, config.lateness_us, config.states)
    steps = {name: AddUp(project, name, *ends) for name in project.aggregates}
    tables = [featured | f"Add up {name}" >> step for name, step in steps.items()]
    return {"aggregates": tables | "Aggregates" >> beam.Flatten()} if tables else {}


def measure_labels(scored: beam.PCollection, labels: Labels | None, config: GraphConfig) -> dict[str, beam.PCollection]:
    """Counts of labels that came for score rows, and the records of label metrics, if the project declares them."""
    project, rows = config.project, {"scores": scored}
    if not project.has_model:
        return {}
    if labels:
        states = config.states if project.label_metrics else None
        feedback = CountFeedback(project, config.shards, config.lateness_us, states)
        rows["labelled"] = {"events": scored, "labels": labels.records} | "Feedback" >> feedback
    if project.label_metrics is None:
        return {}
    assert isinstance(config.score, Score)
    ends = (config.boundary_us, config.lateness_us)
    measure = MeasureLabels(project, *ends, config.score.calibrations, config.states)
    return {LABEL_METRICS: rows | "Measure labels" >> measure}


def decide_unscored(refused: Refused, config: GraphConfig) -> dict[str, beam.PCollection]:
    """The rows with the fallback decision, if the project declares one and events are scored."""
    if config.project.fallback is None or not isinstance(config.score, Score):
        return {}
    news = refused.unscored() | "Unscored news" >> DropKnown()
    return {FALLBACK: news | "Fallback" >> Fallback(config.project, config.span)}


def read_tables(
    feeds: Mapping[str, beam.PCollection], refused: Refused, config: GraphConfig
) -> tuple[dict[str, beam.PCollection], list[beam.PCollection]]:
    """Decode → Validate of each table; its rows by its name, and how many rows there were."""
    tables, counts = {}, []
    for name in config.project.tables:
        records, raw = config.project.table_type(name), feeds[name]
        decoded = refused.rows_of(raw | f"Decode {name}" >> Decode(records), in_slices=False)
        tables[name] = refused.rows_of(decoded | f"Validate {name}" >> Validate(records), in_slices=False)
        counts += [raw | f"Count {name} read" >> CountEvents(Outcome.READ)]
        counts += [tables[name] | f"Count {name}" >> CountEvents(Outcome.REFERENCE)]
    return tables, counts


def join_tables(
    events: beam.PCollection, tables: Mapping[str, beam.PCollection], config: GraphConfig, of: str = ""
) -> beam.PCollection:
    """Join of each table; the events with its fields."""
    for name, rows in tables.items():
        table = config.project.tables[name]
        key, fields = config.project.entities[table.entity], tuple(table.fields)
        records, ends = config.project.table_type(name), (config.shards, config.lateness_us, table.deleted)
        join = JoinTable(records, key, fields, table.until, *ends)
        events = {"events": events, "rows": rows} | f"Join {of}{name}" >> join
    return events


def join_labels(raw: beam.PCollection, events: beam.PCollection, refused: Refused, config: GraphConfig) -> Labels:
    """Decode → Validate → Join, for labels that come as records of their own."""
    project, label, records = config.project, config.project.label, config.project.label_type
    if label is None or records is None:
        raise ValueError("labels come as records of their own, but the project declares no label.events")
    decoded = refused.rows_of(raw | "Decode labels" >> Decode(records))
    until = Span(None, config.span.stop_us)
    checked = decoded | "Validate labels" >> Validate(records, until, config.cuts_us, config.resume)
    valid = refused.rows_of(checked)
    entities = tuple(project.entities.values())
    horizon_us = feedback_horizon_us(project)
    join = JoinLabels(
        records, label.field, entities, horizon_us, config.shards, config.lateness_us, states=config.states
    )
    joined = refused.rows_of({"events": events, "labels": valid} | "Join labels" >> join)
    counts = (
        raw | "Count labels read" >> CountEvents(Outcome.READ),
        joined | "Count labelled" >> beam.Map(_labelled).with_output_types(tuple[str, int]),
        *left_out(checked, config, "labels "),
    )
    return Labels(raw, valid, joined, counts, checked.spans)


def leave_open(watched: dict[str, beam.PCollection], span: Span) -> dict[str, beam.PCollection]:
    """What is written, without records of windows and periods that end, or of labels known, outside of the span."""
    if span.is_all:
        return watched
    ends: dict[str, Callable[[Any], int]] = {
        "statistics": lambda record: record.window_end_us,
        "verdicts": lambda record: record.window_end_us,
        "aggregates": period_end_us,
        LABEL_METRICS: as_of_us,
    }
    return {
        name: pcoll | f"Closed {name}" >> beam.Filter(_ends_in, ends[name], span) if name in ends else pcoll
        for name, pcoll in watched.items()
    }


def _ends_in(record: Any, end_us: Callable[[Any], int], span: Span) -> bool:
    return end_us(record) - 1 in span


def check_counts(
    raw: beam.PCollection,
    filtered: beam.PCollection,
    featured: beam.PCollection,
    scored: beam.PCollection,
    refused: Refused,
    labels: Labels | None,
    standby: Sequence[beam.PCollection],
) -> None:
    """Look at each slice whether every event that was read came out."""
    inputs = {"read": raw, "filtered": filtered, "history": featured, "scored": scored, **refused.parts()}
    read = functools.partial(count_events, outcome=Outcome.READ)
    counts: dict[str, Count] = dict.fromkeys(inputs, count_refused)
    counts |= {"read": read, "scored": functools.partial(count_events, outcome=Outcome.SCORED)}
    counts["filtered"] = functools.partial(count_events, outcome=Outcome.FILTERED)
    counts["history"] = functools.partial(count_events, outcome=Outcome.HISTORY, history_only=True)
    for rows in standby:
        inputs["standby"], counts["standby"] = rows, functools.partial(count_events, outcome=Outcome.STANDBY)
    if labels:
        inputs |= {"labels": labels.raw, "labelled": labels.joined}
        counts |= {"labels": read, "labelled": functools.partial(count_events, outcome=Outcome.LABELLED)}
    inputs | "Check counts" >> CheckCounts(counts)


def _labelled(batch: pa.RecordBatch) -> tuple[str, int]:
    return Outcome.LABELLED, batch.num_rows
