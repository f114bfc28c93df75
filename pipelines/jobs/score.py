"""`headrace run`: score the events of files or of a stream with a registered bundle."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import apache_beam as beam

from models.predictors.booster import Scorer
from models.predictors.bundle import Bundle
from models.predictors.encoders import NO_ENCODERS
from models.project.declarations import Project
from models.project.sections import parse_duration
from models.quality.circuit import Circuit
from models.quality.expectations import Calibrations, no_calibration
from models.quality.gate import OnStop
from models.quality.window_statistics import WindowJudge, read_baseline
from models.record import EVENTS, LABELS
from models.rollout.apply import Bundles
from pipelines.brokers import is_broker
from pipelines.config import RunSpec
from pipelines.graph import GraphConfig, build
from pipelines.jobs.files import open_files, open_folder
from pipelines.jobs.registered import RegisteredBundles
from pipelines.jobs.released import Released, check_columns, check_unscored
from pipelines.jobs.releasing import Desk
from pipelines.jobs.resume import find_start, from_earlier, restore
from pipelines.jobs.status import Status, say_status, stopped_by_signals
from pipelines.jobs.topics import open_stream, open_topics
from pipelines.monitoring.breaker import ClockBreaker, watching
from pipelines.monitoring.exposition import exposed
from pipelines.monitoring.traces import Traces
from pipelines.results import RunError, read_success
from pipelines.runners import Job, Profile, Reading, make_pipeline, profile_of
from pipelines.sinks.circuits import NoteCircuits
from pipelines.sinks.files import WriteFiles
from pipelines.sinks.state import LateInputError
from pipelines.sinks.store import WriteStore
from pipelines.sources import DAY_US, SLICE_US
from pipelines.sources.files import ReadFiles
from pipelines.sources.in_order import DisorderError
from pipelines.sources.release_feed import WithReleases
from pipelines.terminal import console, working
from transforms.gate import WatchScores
from transforms.score import Score
from transforms.state import States

if TYPE_CHECKING:
    from pipelines.sinks.topics import PublishRows

_LOG = logging.getLogger("headrace")
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class RunResult:
    """What a finished run left: where, how many events of which outcome, and how long the graph ran."""

    directory: str
    outcomes: dict[str, int]
    seconds: float


def score(
    spec: RunSpec, bundle: Bundle | None, scorer: Scorer | None = None, released: Released | None = None
) -> RunResult | None:
    """Run the graph to its end, or a stream until SIGINT or SIGTERM; `scorer` is the bundle's, if not given.

    Without a bundle, as of a project without a model, rows have features and no score. With a log of releases each
    event is scored by the bundle of its release; `bundle` is then that of record 0, whose baseline is looked at.

    None if the run leaves no folder, or nothing was to run, but to be checked or made a template.
    """
    return in_any_order(lambda sort: _score(spec, bundle, scorer, released, sort))


def _score(
    spec: RunSpec, bundle: Bundle | None, scorer: Scorer | None, released: Released | None, sort: bool
) -> RunResult | None:
    profile = spec.profile
    args = profile.dry_run(spec.beam_args) if spec.dry_run and profile.dry_run else spec.beam_args
    pipeline = make_pipeline(spec.runner, args, spec.job)
    only_made = profile.makes_only(pipeline)
    if bundle is not None and released is None:
        scorer = scorer or Scorer.from_bundle(bundle, nthread=spec.threads_of_call)
        if spec.reason_codes and not scorer.explains:
            raise RunError("--reason-codes are of trees, and the bundle's model is none of xgboost's: leave them out")
    config = assemble(spec, bundle, scorer, look=not only_made, sort=sort, released=released)
    build(pipeline, config)
    if only_made and profile.make_job:
        profile.make_job(pipeline)
        return None
    if isinstance(config.sink, WriteFiles):
        try:
            with exposed(Status(pipeline.runner).read, spec.metrics_host, spec.metrics_port):
                return _run_to_end(pipeline, profile, config.sink, "scoring")
        except LateInputError as late:
            earlier = from_earlier(spec, late.first_us)
            console.print(f"{late.source} holds late events: scoring from {earlier.score_from} on", soft_wrap=True)
            return _score(earlier, bundle, scorer, released, sort)
    status = Status(pipeline.runner)
    stopped = stopped_by_signals(pipeline.runner, profile)
    shown = exposed(status.read, spec.metrics_host, spec.metrics_port)
    watched = watching(_clock_breaker(spec, released, status))
    with shown, watched, working("scoring", status.rows), say_status(status), stopped, profile.failures():
        pipeline.run().wait_until_finish()
    return None


def _clock_breaker(spec: RunSpec, released: Released | None, status: Status) -> ClockBreaker | None:
    """What watches a stream by the clock, where that is declared, and a log that it can write to is followed."""
    breaker = spec.project.breaker
    if breaker is None or breaker.clock is None or released is None:
        return None
    if not (spec.profile.ours and released.grows and isinstance(released.bundles, RegisteredBundles)):
        _LOG.warning(
            "breaker.clock is not watched: that needs the in-process engine, whose metrics are known while it runs, "
            "and a release log in a database"
        )
        return None
    bundles = released.bundles
    return ClockBreaker(Desk(spec.project, bundles.folder, bundles.registry, released.place), status.read)


def in_any_order(run: Callable[[bool], T]) -> T:
    """Do what reads files, and again with them sorted first where their statistics turn out to be wrong."""
    try:
        return run(False)
    except DisorderError as disorder:
        console.print(str(disorder), soft_wrap=True)
        return run(True)


def score_files(
    spec: RunSpec, bundle: Bundle | None, scorer: Scorer | None = None, released: Released | None = None
) -> RunResult:
    """`score` into a folder, and what it left there."""
    result = score(spec, bundle, scorer, released)
    if result is None:
        raise AssertionError(f"the run has left nothing in {spec.sink}")
    return result


def assemble(
    spec: RunSpec,
    bundle: Bundle | None,
    scorer: Scorer | None,
    look: bool = True,
    sort: bool = False,
    released: Released | None = None,
) -> GraphConfig:
    """What the graph of a run is built from. With `look`, files must be there; see `open_files`."""
    project = spec.project
    window_us = project.quality.window if project.quality else 0
    if released is not None:
        check_columns(project)
        released = dataclasses.replace(released, notes=spec.streams)
    log = released.read() if released else None
    noted = released.circuits() if released else ()
    if released and log:
        check_unscored(released, log)
    traces = None if spec.traces is None else Traces.of_environment(spec.traces, project)
    source = open_stream(spec, released, traces) if spec.streams else open_files(spec, look, sort)
    slice_us = source.slice_us if isinstance(source, ReadFiles) else SLICE_US
    start = None
    if spec.state and isinstance(source, ReadFiles):
        start = find_start(spec, {feed.name: feed.source for feed in source.feeds if feed.name in (EVENTS, LABELS)})
        source = source.with_files(start.files)
    states = start.states if start else restore(spec) if spec.history_state else None
    if is_broker(spec.sink):
        sink: PublishRows | WriteFiles = open_topics(spec, released is not None, traces)
    else:
        sink = open_folder(spec, bundle, source, look, start, log)
    # What was published can't be taken back, and what both ways are compared by must go on in both.
    on_stop: OnStop = "fallback" if spec.streams or spec.until_idle else "fail"
    feeds: beam.PTransform = source
    bundles: Bundles | None = released.bundles if released else None
    if released and log and not spec.streams:
        releases = released.in_effect(log, spec.span)
        feeds = WithReleases(source, releases)
        if not spec.profile.ends_here:  # its workers may know no registry
            bundles = released.load_all(releases)
    bundle_id = bundle.bundle_id if bundle else ""
    scored = Score(project, scorer, bundle_id, spec.reason_codes, spec.at_arrival, bundles)
    ends_us = window_us if spec.streams else slice_us
    return GraphConfig(
        project=project,
        source=feeds,
        score=scored,
        sink=sink,
        shards=spec.shard_count,
        span=spec.span,
        lateness_us=parse_duration(spec.lateness) if spec.streams else 0,
        at_arrival=spec.at_arrival,
        check_slices=spec.streams and spec.profile.reading is not Reading.NATIVE,
        watch=watch_scores(project, bundle, ends_us, on_stop, spec.shard_count, states, scored.calibrations, noted),
        circuits=NoteCircuits(released.place, project.name) if released and released.notes and released.grows else None,
        alert_sinks=spec.alert_to,
        encoders=scorer.encoders if scorer else NO_ENCODERS,
        boundary_us=DAY_US if spec.streams else slice_us,
        states=states,
        traces=traces,
        store=WriteStore(spec.store, project, parse_duration(spec.lateness)) if spec.store else None,
    )


def watch_scores(
    project: Project,
    bundle: Bundle | None,
    boundary_us: int,
    on_stop: OnStop,
    shards: int,
    states: States | None = None,
    calibrations: Calibrations = no_calibration,
    noted: tuple[Circuit, ...] = (),
) -> WatchScores | None:
    """What watches windows of score rows, where the project declares `quality`; windows end at multiples of a slice."""
    if project.quality is None:
        return None
    baseline = read_baseline(bundle.baseline, project) if bundle and bundle.baseline else None
    return WatchScores(WindowJudge(project, baseline, calibrations, noted), boundary_us, on_stop, shards, states)


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
