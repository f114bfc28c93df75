"""`headrace run`: score the events of a source with a registered bundle."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import pathlib
import shlex
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from models.codecs.times import micros_of
from models.predictors import registry
from models.predictors.booster import Scorer
from models.predictors.bundle import Bundle, BundleError
from models.predictors.evaluation import Evaluation, evaluate
from models.predictors.training import DAY_US
from models.project.project import Project
from models.quality.gate import OnStop
from models.quality.parts import make_baseline
from models.quality.records import Verdict
from models.quality.windows import WindowJudge, read_baseline
from models.schemas import REMEDY, SchemaMismatch, VersionError, check_against_bundle, schema_digest
from models.score import DECISION, SCORE
from pipelines.cli.display import working
from pipelines.config import DATAFLOW, DEFAULT_SHARDS, DIRECT, IN_PROCESS, GraphConfig, is_only_made, make_pipeline
from pipelines.graph import build
from pipelines.jobs.identity import identify
from pipelines.jobs.known_labels import with_labels
from pipelines.sinks.files import QUALITY, SCORES, SUCCESS, WriteFiles
from pipelines.sources.files import SLICE_US, ReadFiles, ReadLabelled, SourceError, check_files, format_of, match_files
from pipelines.sources.parquet import start_early
from transforms.gate import WatchScores
from transforms.score import Score

MAX_TRIED = 20  # versions, where one that fits is looked for
MAX_SUCCESS_BYTES = 64 << 20


class RunError(ValueError):
    """A run that can't start as it is asked for."""


@dataclasses.dataclass(frozen=True)
class RunResult:
    """What a finished run left: where, how many events of which outcome, and how long the graph ran."""

    directory: str
    outcomes: dict[str, int]
    seconds: float


def open_source(
    uris: Sequence[str], kind: str | None, labels: Sequence[str] = (), look: bool = True
) -> ReadFiles | ReadLabelled:
    """The source for `uris`, and for those of `labels` if there are.

    With `look`, SourceError if one of them matches nothing or has no known format, JournalError if one is a journal
    that is not whole.
    """
    if look:
        found = [path for uri in uris for path in match_files(uri)]
        check_files([*(uris if kind is None else ()), *labels])
        if any((kind or format_of(path)) == "parquet" for path in found):
            start_early()
    events = ReadFiles(tuple(uris), kind)
    return ReadLabelled(events, tuple(labels)) if labels else events


def load_bundle(project: Project, folder: pathlib.Path, version: str, tracking_uri: str) -> Bundle:
    """The registered bundle; RunError if it was made with other features, or with a schema that is not compatible.

    The error says what to do: promote a newer version that fits, if there is one, or train again.
    """
    bundle = registry.load(project.name, version, tracking_uri)
    fault = _misfit(project, folder, bundle)
    if fault is None:
        return bundle
    named = f"{project.name} {version} (bundle {bundle.bundle_id})"
    fits = next(_fitting(project, folder, tracking_uri), None)
    if fits is None:
        raise RunError(f"{folder}: {named} does not fit: {fault}: {REMEDY}")
    raise RunError(
        f"{folder}: {named} does not fit: {fault}; version {fits} does: "
        f"headrace promote {shlex.quote(str(folder))} {fits}, or run with --model {fits}"
    )


def _misfit(project: Project, folder: pathlib.Path, bundle: Bundle) -> str | None:
    try:
        check_against_bundle(project, folder, bundle.schema)
    except (SchemaMismatch, VersionError) as error:
        lines = str(error).removesuffix(f"\n{REMEDY}").splitlines()
        return "; ".join(lines).replace(":; ", ": ")
    if bundle.feature_definitions != project.feature_definitions():
        return "the features, decisions or event declarations of project.yaml changed since it was trained"
    return None


def _fitting(project: Project, folder: pathlib.Path, tracking_uri: str) -> Iterator[int]:
    """The versions that fit the project as it is, newest first, of the newest MAX_TRIED."""
    for known in reversed(registry.list_versions(project.name, tracking_uri)[-MAX_TRIED:]):
        try:
            bundle = registry.load(project.name, known.version, tracking_uri)
        except (registry.RegistryError, BundleError):  # its files are gone or damaged
            continue
        if _misfit(project, folder, bundle) is None:
            yield known.version


def score(
    project: Project,
    bundle: Bundle,
    source: ReadFiles | ReadLabelled,
    directory: str,
    *,
    runner: str = DIRECT,
    sink_format: Any = "parquet",
    shards: int = DEFAULT_SHARDS,
    files: int = 1,
    reason_codes: int = 0,
    score_from_us: int | None = None,
    alert_sinks: Sequence[str] = (),
    threads: int = 2,
    replace: bool = False,
    beam_args: Sequence[str] = (),
) -> RunResult | None:
    """Run the graph and wait for its end; None if nothing was to run, but to be checked or made a template.

    The output of another run in `directory` is refused, or replaced with `replace`.
    """
    scorer = Scorer.from_bundle(bundle, nthread=threads)
    pipeline = make_pipeline(runner, beam_args)
    only_made = runner == DATAFLOW and is_only_made(pipeline)
    options = {
        "bundle": bundle.bundle_id,
        "format": sink_format,
        "files": files,
        "reason_codes": reason_codes,
        "score_from": score_from_us,
    }
    config = GraphConfig(
        project=project,
        source=source,
        score=Score(project, scorer, bundle.bundle_id, reason_codes),
        sink=WriteFiles(
            directory,
            event_id=project.event.id,
            event_time=project.event.time,
            format=sink_format,
            files=files,
            facts={
                "project": project.name,
                "bundle_id": bundle.bundle_id,
                "schema_digest": schema_digest(project.contract.text),
                **({} if only_made else identify(project, source, options)),
            },
            source_format=source.format,
            replace=replace,
            baseline=bundle.baseline if project.quality else None,
        ),
        shards=shards,
        score_from_us=score_from_us,
        watch=watch_scores(project, bundle, SLICE_US, "fail", shards),
        alert_sinks=tuple(alert_sinks),
    )
    build(pipeline, config)
    if only_made:
        from pipelines.runners.dataflow import make

        make(pipeline)
        return None
    return run_pipeline(pipeline, config.sink, "scoring")


def compute_baseline(
    project: Project,
    bundle: Bundle,
    source: ReadFiles | ReadLabelled,
    from_us: int | None,
    to_us: int | None,
    threads: int,
) -> tuple[bytes, int]:
    """The baseline of a source's score rows of [from, to), microseconds, and how many they are.

    Scores of the events that a model was trained on are too good: they are left out if `from_us` is None.
    """
    if from_us is None and (known := bundle.metadata.get("train_to") or bundle.metadata.get("test_from")):
        from_us = _micros(known)
    if project.quality is None:
        raise RunError(f"{project.name} declares no quality")
    with tempfile.TemporaryDirectory(prefix="headrace-") as scratch:
        scorer = Scorer.from_bundle(bundle, nthread=threads)
        sink = WriteFiles(scratch, project.event.id, project.event.time, source_format=source.format)
        config = GraphConfig(project, source, Score(project, scorer, bundle.bundle_id), sink, score_from_us=from_us)
        run_graph(config, DIRECT, (), "scoring the baseline")
        table = read_kind(scratch, SCORES)
        if to_us is not None and table.num_rows:
            table = table.filter(pa.compute.less(table.column(project.event.time).cast(pa.int64()), to_us))
        if not table.num_rows:
            raise RunError("no event is left for a baseline: of those given, none is later than the model's training")
        return make_baseline(table.to_batches(), project), table.num_rows


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
    pipeline = make_pipeline(runner, beam_args)
    build(pipeline, config)
    return run_pipeline(pipeline, config.sink, title)


def run_pipeline(pipeline: beam.Pipeline, sink: WriteFiles, title: str) -> RunResult:
    """Run a graph to its end, holding its sink, and read what it says of itself."""
    started = time.monotonic()
    with sink.held(), contextlib.ExitStack() as failed:
        if isinstance(pipeline.runner, IN_PROCESS):  # elsewhere a job may still be writing when this process gives up
            failed.callback(sink.discard)
        with working(title):
            pipeline.run().wait_until_finish()
        failed.pop_all()
    seconds = time.monotonic() - started
    return RunResult(sink.directory, read_success(sink.directory)["events"], seconds)


def read_success(directory: str) -> dict[str, Any]:
    """What the sink wrote at the end of a run; RunError if there is none, or it is not what a run writes."""
    from apache_beam.io.filesystem import BeamIOError
    from apache_beam.io.filesystems import FileSystems

    path = FileSystems.join(directory, SUCCESS)
    try:
        with FileSystems.open(path) as file:
            said = json.loads(file.read(MAX_SUCCESS_BYTES))
    except (OSError, BeamIOError):
        raise RunError(f"{directory}: has no {SUCCESS}: it is not the folder of a finished run") from None
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is not what a run writes: {error}") from None
    events, files = (said.get(name) for name in ("events", "files")) if isinstance(said, dict) else (None, None)
    if not (
        isinstance(events, dict)
        and all(type(count) is int for count in events.values())
        and isinstance(files, list)
        and all(isinstance(file, dict) and {"kind", "name", "rows"} <= file.keys() for file in files)
    ):
        raise RunError(f"{path} is not what a run writes: it has no events with their numbers, or no list of files")
    return dict(said)


def read_kind(directory: str, kind: str, columns: Sequence[str] | None = None) -> pa.Table:
    """A run's scores or dead letters, in the files' order, as written to Parquet; of `columns` those there are."""
    try:
        paths = match_files(f"{directory.rstrip('/')}/{kind}/*.parquet")
    except SourceError:
        return pa.table({})
    tables = []
    for path in paths:
        there = set(pq.read_schema(path).names)
        tables.append(pq.read_table(path, columns=None if columns is None else [n for n in columns if n in there]))
    return pa.concat_tables(tables)


def read_verdicts(directory: str) -> list[Verdict]:
    """The verdicts on a run's windows, in their order."""
    from apache_beam.io.filesystems import FileSystems

    path = FileSystems.join(directory, QUALITY, "verdicts.jsonl")
    if not FileSystems.exists(path):
        return []
    with FileSystems.open(path) as file:
        return [Verdict.from_json(line) for line in file.read().decode().splitlines()]


def count_decisions(directory: str, project: Project) -> dict[str, int]:
    """Events by decision, in the order of the bands."""
    table = read_kind(directory, SCORES, [DECISION]) if project.decisions else pa.table({})
    if not table.num_rows:
        return {}
    values = table.column(DECISION).combine_chunks().value_counts().to_pylist()
    counts = {value["values"]: value["counts"] for value in values}
    return {band.action: counts.get(band.action, 0) for band in project.decisions}


def read_evaluated(directory: str, project: Project, labels: Sequence[str] = ()) -> pa.Table | None:
    """A run's score rows whose label is known, with what it takes to evaluate them; None if there are none.

    The label is in the column of its name: as an output field, or by the records of `labels`.
    """
    if project.label is None or not (labels or project.label.field in project.output):
        return None
    group = [project.entities[project.training.group]] if project.training.group else []
    wanted = [SCORE, DECISION, project.event.id, project.event.time]
    wanted += [] if labels else [project.label.field]
    table = read_kind(directory, SCORES, list(dict.fromkeys([*wanted, *group, *project.training.slices])))
    if not {SCORE, project.event.id, project.event.time} <= set(table.schema.names):
        return None
    if labels:
        table = with_labels(table, labels, project)
    if project.label.field not in table.schema.names:
        return None
    table = table.filter(pa.compute.is_valid(table.column(project.label.field)))
    return table if table.num_rows else None


def evaluate_table(table: pa.Table, project: Project) -> Evaluation:
    """How good the scores of `read_evaluated` were; EvaluationError if a declared slice is none."""
    assert project.label is not None
    group = project.entities[project.training.group] if project.training.group else None
    group = group if group in table.schema.names else None
    days = table.column(project.event.time).cast(pa.int64()).to_numpy() // DAY_US
    slices = [name for name in project.training.slices if name in table.schema.names]
    return evaluate(
        table.column(project.label.field).to_numpy(),
        table.column(SCORE).to_numpy(),
        day=days if group else None,
        card=np.asarray(table.column(group).to_numpy()) if group else None,
        slices={name: table.column(name).to_numpy() for name in slices},
    )


def evaluate_scores(directory: str, project: Project, labels: Sequence[str] = ()) -> Evaluation | None:
    """How good the scores of a run were, where labels are known; else None."""
    table = read_evaluated(directory, project, labels)
    return None if table is None else evaluate_table(table, project)


def find_seen(directory: str, project: Project, bundle: Bundle) -> Iterator[str]:
    """A sentence for each part of a run's score rows that the bundle knows: what it learned from, or its baseline."""
    times = read_kind(directory, SCORES, [project.event.time])
    if not times.num_rows:
        return
    time_us = times.column(project.event.time).cast(pa.int64()).to_numpy()
    facts = bundle.metadata
    spans = {}
    if "train_from" in facts and "train_to" in facts:
        spans["that the model was trained on: their scores are too good"] = (
            _micros(facts["train_from"]),
            _micros(facts["train_to"]),
        )
    if bundle.baseline and project.quality:
        baseline = read_baseline(bundle.baseline, project)
        what = "that the baseline was made of: skew and PSI compare them with themselves"
        spans[what] = (baseline.window_start_us, baseline.window_end_us)
    for what, (start, end) in spans.items():
        events = int(np.count_nonzero((time_us >= start) & (time_us < end)))
        if events:
            first, last = (np.datetime64(us, "us").astype("M8[s]") for us in (start, end - 1))
            yield f"{events:,} of the scored events are of the time, {first} to {last}, {what}"


def _micros(text: str) -> int:
    return micros_of(datetime.datetime.fromisoformat(text))
