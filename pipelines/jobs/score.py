"""`headrace run`: score the events of files or of a stream with a registered bundle."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import apache_beam as beam

from models.features.row import horizon_us
from models.predictors.booster import Scorer
from models.predictors.bundle import Bundle, library_versions
from models.project.declarations import Project, parse_duration
from models.quality.gate import OnStop
from models.quality.windows import WindowJudge, read_baseline
from models.record import EVENTS, LABELS
from models.redact import redact
from models.schemas import schema_digest
from pipelines.brokers import Broker, is_broker, open_broker
from pipelines.cli.display import working
from pipelines.config import GraphConfig, RunSpec
from pipelines.graph import build
from pipelines.jobs.identity import identify
from pipelines.jobs.status import Status, say_status, stopped_by_signals
from pipelines.results import read_success
from pipelines.runners import Job, Profile, Reading, make_pipeline, profile_of
from pipelines.runners.profile import split_options
from pipelines.sinks.files import WriteFiles
from pipelines.sinks.topics import PublishRows
from pipelines.sources.acknowledge import Acknowledge, AfterBundle, AfterCheckpoint, AfterJournal
from pipelines.sources.feeds import Topic, feeds_of
from pipelines.sources.files import SLICE_US, ReadFiles, check_files
from pipelines.sources.listing import Files
from pipelines.sources.native_pubsub import ReadNativePubsub
from pipelines.sources.parquet import start_early
from pipelines.sources.stream import ReadStream
from pipelines.sources.values import open_values
from transforms.gate import WatchScores
from transforms.score import Score


@dataclasses.dataclass(frozen=True)
class RunResult:
    """What a finished run left: where, how many events of which outcome, and how long the graph ran."""

    directory: str
    outcomes: dict[str, int]
    seconds: float


def score(spec: RunSpec, bundle: Bundle, scorer: Scorer | None = None) -> RunResult | None:
    """Run the graph to its end, or a stream until SIGINT or SIGTERM; `scorer` is the bundle's, if not given.

    None if the run leaves no folder, or nothing was to run, but to be checked or made a template.
    """
    profile = spec.profile
    args = profile.dry_run(spec.beam_args) if spec.dry_run and profile.dry_run else spec.beam_args
    pipeline = make_pipeline(spec.runner, args, spec.job)
    only_made = profile.makes_only(pipeline)
    config = assemble(spec, bundle, scorer or Scorer.from_bundle(bundle, nthread=spec.threads), look=not only_made)
    build(pipeline, config)
    if only_made and profile.make_job:
        profile.make_job(pipeline)
        return None
    if isinstance(config.sink, WriteFiles):
        return _run_to_end(pipeline, profile, config.sink, "scoring")
    status = Status(pipeline.runner)
    stopped = stopped_by_signals(pipeline.runner, profile)
    with working("scoring", status.rows), say_status(status), stopped, profile.failures():
        pipeline.run().wait_until_finish()
    return None


def assemble(spec: RunSpec, bundle: Bundle, scorer: Scorer, look: bool = True) -> GraphConfig:
    """What the graph of a run is built from. With `look`, files must be there; see `open_files`."""
    project = spec.project
    source = _open_stream(spec) if spec.streams else open_files(spec, look)
    sink = _open_topics(spec) if is_broker(spec.sink) else _open_folder(spec, bundle, source, look)
    window_us = project.quality.window if project.quality else 0
    # What was published can't be taken back, and what both ways are compared by must go on in both.
    on_stop: OnStop = "fallback" if spec.streams or spec.until_idle else "fail"
    return GraphConfig(
        project=project,
        source=source,
        score=Score(project, scorer, bundle.bundle_id, spec.reason_codes, keep_marks=spec.at_arrival),
        sink=sink,
        shards=spec.shards,
        score_from_us=spec.score_from_us,
        lateness_us=parse_duration(spec.lateness) if spec.streams else 0,
        at_arrival=spec.at_arrival,
        check_slices=spec.streams and spec.profile.reading is not Reading.NATIVE,
        watch=watch_scores(project, bundle, window_us if spec.streams else SLICE_US, on_stop, spec.shards),
        alert_sinks=spec.alert_to,
    )


def open_files(spec: RunSpec, look: bool = True) -> ReadFiles:
    """The files of a run, and those of its labels if there are.

    With `look`, SourceError if one of them matches nothing or has no known format, JournalError if one is a journal
    that is not whole.
    """
    sources = {EVENTS: Files(spec.sources, spec.source_format)}
    if spec.labels:
        sources[LABELS] = Files(spec.labels)
    for files in sources.values() if look else ():
        check_files(files)
        if any(files.format_of(path) == "parquet" for path in files.paths):
            start_early()
    return ReadFiles(feeds_of(spec.project, sources))


def _open_stream(spec: RunSpec) -> ReadStream | ReadNativePubsub:
    """The messages of a subscription, read as the engine needs it."""
    project = spec.project
    history = Files(spec.history)
    check_files(history)
    broker = _broker(spec, spec.sources[0])
    values = open_values(spec.values, getattr(broker, "topic", None))
    values.check(project.contract)
    topics = {EVENTS: Topic(broker, values)}
    if spec.labels:
        topics[LABELS] = Topic(_broker(spec, spec.labels[0]))
    feeds = feeds_of(project, topics)
    if spec.profile.reading is Reading.NATIVE:
        return ReadNativePubsub(feeds[0])
    window_us = project.quality.window if project.quality else None
    held_back = project.quality is not None and project.quality.gate == "quarantine"
    ends: dict[str, Any] = {"idle_us": parse_duration(spec.until_idle), "until_idle": True} if spec.until_idle else {}
    return ReadStream(
        feeds,
        parse_duration(spec.allowance),
        acknowledge=_acknowledge(spec),
        history=feeds_of(project, {EVENTS: history}) if spec.history else (),
        at_arrival=spec.at_arrival,
        cut_us=window_us,
        held_us=window_us if held_back else None,
        **ends,
    )


def _acknowledge(spec: RunSpec) -> Acknowledge:
    """When messages are acknowledged; where an engine has checkpoints, they take the place of a journal."""
    if spec.profile.reading is Reading.CHECKPOINTED:
        return AfterCheckpoint()
    if spec.journal is None:
        return AfterBundle()
    return AfterJournal(spec.journal, horizon_us(spec.project, parse_duration(spec.lateness)))


def _open_topics(spec: RunSpec) -> PublishRows:
    quality = spec.project.quality
    return PublishRows(
        _broker(spec, spec.sink),
        _broker(spec, spec.dead_letters or f"{spec.sink}-dead-letters"),
        next(iter(spec.project.entities.values()), None),
        _broker(spec, f"{spec.sink}-quality") if quality else None,
        _broker(spec, f"{spec.sink}-quarantine") if quality and quality.gate == "quarantine" else None,
    )


def _open_folder(spec: RunSpec, bundle: Bundle, source: Any, identified: bool) -> WriteFiles:
    project = spec.project
    options = {
        "bundle": bundle.bundle_id,
        "format": spec.sink_format,
        "files": spec.files,
        "reason_codes": spec.reason_codes,
        "score_from": spec.score_from_us,
    }
    known = identified and not spec.streams
    return WriteFiles(
        spec.sink,
        event_id=project.event.id,
        event_time=project.event.time,
        format=spec.sink_format,
        files=spec.files,
        facts={
            "project": project.name,
            "bundle_id": bundle.bundle_id,
            "schema_digest": schema_digest(project.contract.text),
            **describe(spec),
            **(identify(project, source, options) if known else {}),
        },
        source_format=spec.source_format,
        replace=spec.replace,
        baseline=bundle.baseline if project.quality else None,
    )


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


def watch_scores(
    project: Project, bundle: Bundle, boundary_us: int, on_stop: OnStop, shards: int
) -> WatchScores | None:
    """What watches windows of score rows, where the project declares `quality`; windows end at multiples of a slice."""
    if project.quality is None:
        return None
    baseline = read_baseline(bundle.baseline, project) if bundle.baseline else None
    return WatchScores(WindowJudge(project, baseline), boundary_us, on_stop, shards)


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
