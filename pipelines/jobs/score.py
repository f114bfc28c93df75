"""`headrace run`: score the events of files or of a stream with a registered bundle."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeVar

import apache_beam as beam

from models.features.row import horizon_us
from models.partitions import Span
from models.predictors.booster import Scorer
from models.predictors.bundle import Bundle, library_versions
from models.predictors.encoders import NO_ENCODERS
from models.project.declarations import Project
from models.project.sections import parse_duration
from models.quality.gate import OnStop
from models.quality.window_statistics import WindowJudge, read_baseline
from models.record import EVENTS, LABELS
from models.redact import redact
from models.schemas import schema_digest
from pipelines.brokers import Broker, is_broker, open_broker
from pipelines.config import GraphConfig, RunSpec
from pipelines.graph import build
from pipelines.jobs.identity import identify
from pipelines.jobs.resume import Start, find_start, from_earlier, restore
from pipelines.jobs.status import Status, say_status, stopped_by_signals
from pipelines.results import RunError, read_success
from pipelines.runners import Job, Profile, Reading, make_pipeline, profile_of
from pipelines.runners.profile import split_options
from pipelines.sinks.database import DatabaseTable
from pipelines.sinks.delta import Delta
from pipelines.sinks.files import Closes, WriteFiles
from pipelines.sinks.publish import FEATURE_SET
from pipelines.sinks.state import LateInputError
from pipelines.sinks.tables import Table
from pipelines.sources.delta import check_partitions
from pipelines.sources.feeds import ReadBeside, Topic, feeds_of
from pipelines.sources.files import SLICE_US, ReadFiles, check_files
from pipelines.sources.in_order import DisorderError, order_of
from pipelines.sources.listing import Files
from pipelines.sources.parquet import start_early
from pipelines.sources.runs import Runs
from pipelines.terminal import console, working
from transforms.gate import WatchScores
from transforms.score import Score
from transforms.state import States

if TYPE_CHECKING:  # streams import the brokers' clients, which files do without
    from pipelines.sinks.topics import PublishRows
    from pipelines.sources.acknowledge import Acknowledge
    from pipelines.sources.native_pubsub import ReadNativePubsub
    from pipelines.sources.stream import ReadStream


DAY_US = 86_400_000_000  # all periods of aggregates end at the end of a day


T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class RunResult:
    """What a finished run left: where, how many events of which outcome, and how long the graph ran."""

    directory: str
    outcomes: dict[str, int]
    seconds: float


def score(spec: RunSpec, bundle: Bundle | None, scorer: Scorer | None = None) -> RunResult | None:
    """Run the graph to its end, or a stream until SIGINT or SIGTERM; `scorer` is the bundle's, if not given.

    Without a bundle, as of a project without a model, rows have features and no score.

    None if the run leaves no folder, or nothing was to run, but to be checked or made a template.
    """
    return in_any_order(lambda sort: _score(spec, bundle, scorer, sort))


def _score(spec: RunSpec, bundle: Bundle | None, scorer: Scorer | None, sort: bool) -> RunResult | None:
    profile = spec.profile
    args = profile.dry_run(spec.beam_args) if spec.dry_run and profile.dry_run else spec.beam_args
    pipeline = make_pipeline(spec.runner, args, spec.job)
    only_made = profile.makes_only(pipeline)
    if bundle is not None:
        scorer = scorer or Scorer.from_bundle(bundle, nthread=spec.threads_of_call)
        if spec.reason_codes and not scorer.explains:
            raise RunError("--reason-codes are of trees, and the bundle's model is none of xgboost's: leave them out")
    config = assemble(spec, bundle, scorer, look=not only_made, sort=sort)
    build(pipeline, config)
    if only_made and profile.make_job:
        profile.make_job(pipeline)
        return None
    if isinstance(config.sink, WriteFiles):
        try:
            return _run_to_end(pipeline, profile, config.sink, "scoring")
        except LateInputError as late:
            earlier = from_earlier(spec, late.first_us)
            console.print(f"{late.source} holds late events: scoring from {earlier.score_from} on", soft_wrap=True)
            return _score(earlier, bundle, scorer, sort)
    status = Status(pipeline.runner)
    stopped = stopped_by_signals(pipeline.runner, profile)
    with working("scoring", status.rows), say_status(status), stopped, profile.failures():
        pipeline.run().wait_until_finish()
    return None


def in_any_order(run: Callable[[bool], T]) -> T:
    """Do what reads files, and again with them sorted first where their statistics turn out to be wrong."""
    try:
        return run(False)
    except DisorderError as disorder:
        console.print(str(disorder), soft_wrap=True)
        return run(True)


def score_files(spec: RunSpec, bundle: Bundle | None, scorer: Scorer | None = None) -> RunResult:
    """`score` into a folder, and what it left there."""
    result = score(spec, bundle, scorer)
    if result is None:
        raise AssertionError(f"the run has left nothing in {spec.sink}")
    return result


def assemble(
    spec: RunSpec, bundle: Bundle | None, scorer: Scorer | None, look: bool = True, sort: bool = False
) -> GraphConfig:
    """What the graph of a run is built from. With `look`, files must be there; see `open_files`."""
    project = spec.project
    window_us = project.quality.window if project.quality else 0
    source = _open_stream(spec) if spec.streams else open_files(spec, look, sort)
    slice_us = source.slice_us if isinstance(source, ReadFiles) else SLICE_US
    start = None
    if spec.state and isinstance(source, ReadFiles):
        start = find_start(spec, {feed.name: feed.source for feed in source.feeds if feed.name in (EVENTS, LABELS)})
        source = source.with_files(start.files)
    states = start.states if start else restore(spec) if spec.history_state else None
    sink = _open_topics(spec) if is_broker(spec.sink) else _open_folder(spec, bundle, source, look, start)
    # What was published can't be taken back, and what both ways are compared by must go on in both.
    on_stop: OnStop = "fallback" if spec.streams or spec.until_idle else "fail"
    return GraphConfig(
        project=project,
        source=source,
        score=Score(project, scorer, bundle.bundle_id if bundle else "", spec.reason_codes, keep_marks=spec.at_arrival),
        sink=sink,
        shards=spec.shard_count,
        span=spec.span,
        lateness_us=parse_duration(spec.lateness) if spec.streams else 0,
        at_arrival=spec.at_arrival,
        check_slices=spec.streams and spec.profile.reading is not Reading.NATIVE,
        watch=watch_scores(project, bundle, window_us if spec.streams else slice_us, on_stop, spec.shard_count, states),
        alert_sinks=spec.alert_to,
        encoders=scorer.encoders if scorer else NO_ENCODERS,
        boundary_us=DAY_US if spec.streams else slice_us,
        states=states,
    )


def open_files(spec: RunSpec, look: bool = True, sort: bool = False) -> ReadFiles:
    """The files of a run, and those of its labels and tables if there are, sorted if need be, or told by `sort`.

    With `look`, SourceError if one of them matches nothing or has no known format, JournalError if one is a journal
    that is not whole.
    """
    sources = {EVENTS: Files(spec.sources, spec.source_format)}
    if spec.labels:
        sources[LABELS] = Files(spec.labels)
    sources |= {name: Files(uris) for name, uris in spec.table_uris.items()}
    for files in sources.values() if look else ():
        check_files(files)
        if any(files.format_of(path) == "parquet" for path in files.paths):
            start_early()
    feeds = feeds_of(spec.project, sources)
    for feed in feeds if look else ():
        check_partitions(feed.source.patterns, feed.record_type.read.fields)
    if not spec.profile.in_order or not look:
        return ReadFiles(feeds, _state_slice_us(spec) if spec.state else SLICE_US)
    order = order_of(feeds[0])
    if sort or order.sort:
        console.print("events are in no order of time, or do not tell it: sorting them on disk first", soft_wrap=True)
    slice_us = _state_slice_us(spec) if spec.state else order.slice_us
    return ReadFiles(feeds, slice_us, in_order=True, runs=Runs() if sort or order.sort else None)


def _state_slice_us(spec: RunSpec) -> int:
    """Slices of which each that ends with a partition may be the last one."""
    return math.gcd(spec.project.quality.window if spec.project.quality else DAY_US, DAY_US)


def _open_stream(spec: RunSpec) -> beam.PTransform:
    """The messages of a subscription, read as the engine needs it; tables of files are read beside it."""
    files = {name: Files(uris) for name, uris in spec.table_uris.items() if not any(map(is_broker, uris))}
    for each in files.values():
        check_files(each)
    stream = _open_feeds(spec, [name for name in spec.table_uris if name not in files])
    return ReadBeside(stream, ReadFiles(feeds_of(spec.project, files))) if files else stream


def _open_feeds(spec: RunSpec, tables: Sequence[str]) -> ReadStream | ReadNativePubsub:
    from pipelines.sources.native_pubsub import ReadNativePubsub
    from pipelines.sources.stream import ReadStream
    from pipelines.sources.values import BrokerValues, Values, open_values

    project = spec.project
    history = Files(() if spec.history_state else spec.history)
    check_files(history)
    broker: Any = _broker(spec, spec.sources[0])
    if spec.values == "pulsar":
        broker = dataclasses.replace(broker, schemas=True)
        values: Values = BrokerValues(broker.schema_versions, broker.uri)
    else:
        values = open_values(spec.values, getattr(broker, "topic", None))
    values.check(project.event_type.read)
    topics = {EVENTS: Topic(broker, values)}
    if spec.labels:
        topics[LABELS] = Topic(_broker(spec, spec.labels[0]))
    topics |= {name: Topic(_broker(spec, *spec.table_uris[name])) for name in tables}
    feeds = feeds_of(project, topics)
    if spec.profile.reading is Reading.NATIVE:
        return ReadNativePubsub(feeds[0])
    window_us = project.quality.window if project.quality else None
    periods = tuple(dict.fromkeys(table.period for table in project.aggregates.values()))
    cut_us = math.gcd(window_us or DAY_US, DAY_US) if periods or project.label_metrics else window_us
    held_back = project.quality is not None and project.quality.gate == "quarantine"
    ends: dict[str, Any] = {"idle_us": parse_duration(spec.until_idle), "until_idle": True} if spec.until_idle else {}
    return ReadStream(
        feeds,
        parse_duration(spec.allowance),
        acknowledge=acknowledge(spec),
        history=feeds_of(project, {EVENTS: history}) if history.patterns else (),
        at_arrival=spec.at_arrival,
        cut_us=cut_us,
        held_us=window_us if held_back else None,
        periods=periods,
        **ends,
    )


def acknowledge(spec: RunSpec) -> Acknowledge:
    """When messages are acknowledged; where an engine has checkpoints, they take the place of a journal."""
    from pipelines.sources.acknowledge import NEVER_US, AfterBundle, AfterCheckpoint, AfterJournal

    if spec.profile.reading is Reading.CHECKPOINTED:
        return AfterCheckpoint()
    if spec.journal is None:
        return AfterBundle()
    forever = any(is_broker(uri) for uris in spec.table_uris.values() for uri in uris)  # as a table's row may be needed
    horizon = NEVER_US if forever else horizon_us(spec.project, parse_duration(spec.lateness))
    return AfterJournal(spec.journal, horizon, _sink_broker(spec, spec.sink) if spec.transactional else None)


def _open_topics(spec: RunSpec) -> PublishRows:
    from pipelines.sinks.topics import PublishRows, routed_topics, sink_topics

    uris = sink_topics(spec.project, spec.sink, spec.dead_letters)
    topics = {kind: _sink_broker(spec, uri) for kind, uri in uris.items()}
    routed = {decision: _sink_broker(spec, uri) for decision, uri in routed_topics(spec.project, spec.sink).items()}
    key = next(iter(spec.project.entities.values()), None)
    fallback = routed.get(spec.project.fallback.action) if spec.project.fallback else None
    return PublishRows(**topics, key=key, project=spec.project.name, fallback=fallback, routed=routed)


def _open_folder(
    spec: RunSpec, bundle: Bundle | None, source: Any, identified: bool, start: Start | None = None
) -> WriteFiles:
    project = spec.project
    bundle_id = bundle.bundle_id if bundle else None
    options = {
        "bundle": bundle_id,
        "format": spec.sink_format,
        "files": spec.files,
        "reason_codes": spec.reason_codes,
        "score_from": spec.span.start_us,
    } | ({} if spec.span.stop_us is None else {"score_to": spec.span.stop_us})
    known = identified and not spec.streams
    return WriteFiles(
        spec.sink,
        event_id=project.event.id,
        event_time=project.event.time,
        format="jsonl" if spec.sink_format == "jsonl" else "parquet",
        files=spec.files,
        facts={
            "project": project.name,
            "bundle_id": bundle_id,
            "schema_digest": schema_digest(project.contract.text),
            FEATURE_SET: project.feature_set,
            **describe(spec),
            **(identify(project, source, options) if known else {}),
            **(start.keep.began if start else {}),
        },
        source_format=spec.source_format,
        replace=spec.replace,
        partitions=project.partitions,
        span=spec.span,
        times=_times_of(project, start),
        keep=start.keep if start else None,
        closes=_closes(project, source),
        tables=_tables_of(spec),
        versioned=spec.sink_format == "delta",
        baseline=bundle.baseline if bundle and project.quality else None,
        routed=spec.folders,
    )


def _tables_of(spec: RunSpec) -> tuple[Table, ...]:
    """The tables that score rows are in, beside their files."""
    event = spec.project.event
    delta = (Delta(spec.project.name, spec.project.partitions),) if spec.sink_format == "delta" else ()
    return (*delta, *(DatabaseTable(uri, spec.project.name, event.id, event.time) for uri in spec.databases))


def _times_of(project: Project, start: Start | None) -> Span:
    """The times that an event can have, as far as a state is old enough for them."""
    oldest_us = (start and start.states.resume.oldest_us) or project.event_type.earliest_us
    return Span(max(oldest_us, project.event_type.earliest_us), project.event_type.latest_us)


def _closes(project: Project, source: Any) -> Closes | None:
    """When a partition's rows are all there; None where they come in no order."""
    if not isinstance(source, ReadFiles) or not source.in_order:
        return None
    held_back = project.quality is not None and project.quality.gate == "quarantine"
    return Closes(source.slice_us, project.quality.window if held_back and project.quality else 0)


def describe(spec: RunSpec) -> dict[str, Any]:
    """How a run is done, for those who read of it later; no result depends on it."""
    profile = spec.profile
    given = [f"--{name}" if value is None else f"--{name}={value}" for name, value in split_options(spec.beam_args)]
    return {
        "engine": {"name": profile.name, "options": [redact(each) for each in given]},
        "versions": {"headrace": version("headrace"), **library_versions()},
        "options": spec.options(),
    }


def _broker(spec: RunSpec, uri: str) -> Broker:
    return open_broker(uri, kafka_config=spec.kafka_config)


def _sink_broker(spec: RunSpec, uri: str) -> Any:
    """A topic that is written to; with --transactional by this process's transactions, which the journal names."""
    options: dict[str, Any] = {"outbox": spec.journal} if spec.transactional else {}
    return open_broker(uri, kafka_config=spec.kafka_config, **options)


def watch_scores(
    project: Project,
    bundle: Bundle | None,
    boundary_us: int,
    on_stop: OnStop,
    shards: int,
    states: States | None = None,
) -> WatchScores | None:
    """What watches windows of score rows, where the project declares `quality`; windows end at multiples of a slice."""
    if project.quality is None:
        return None
    baseline = read_baseline(bundle.baseline, project) if bundle and bundle.baseline else None
    return WatchScores(WindowJudge(project, baseline), boundary_us, on_stop, shards, states)


def run_graph(config: GraphConfig, runner: str, beam_args: Sequence[str], title: str) -> RunResult:
    """Build the graph, run it to its end, and read what it says of itself."""
    pipeline = make_pipeline(runner, beam_args, Job(shards=config.shards))
    build(pipeline, config)
    return _run_to_end(pipeline, profile_of(runner), config.sink, title)


def _run_to_end(pipeline: beam.Pipeline, profile: Profile, sink: WriteFiles, title: str) -> RunResult:
    """Run a graph to its end, holding its sink, and read what it says of itself."""
    started = time.monotonic()
    with sink.held(), contextlib.ExitStack() as failed:
        if profile.ends_here:
            failed.callback(sink.discard)
        with working(title, Status(pipeline.runner).rows), profile.failures():
            pipeline.run().wait_until_finish()
        failed.pop_all()
    seconds = time.monotonic() - started
    return RunResult(sink.directory, read_success(sink.directory)["events"], seconds)
