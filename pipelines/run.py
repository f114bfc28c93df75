"""`headrace run`: score the events of a source with a registered bundle."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from models import registry
from models.booster import Scorer
from models.bundle import Bundle
from models.evaluation import Evaluation, evaluate
from models.project import Project
from models.quality.records import Verdict
from models.quality.windows import WindowJudge, read_baseline
from models.schemas import SchemaMismatch, VersionError, check_against_bundle, schema_digest
from models.training import DAY_US
from pipelines.display import working
from pipelines.identity import identify
from pipelines.options import DATAFLOW, DEFAULT_SHARDS, DIRECT, IN_PROCESS, GraphConfig, is_only_made, make_pipeline
from pipelines.score import build
from pipelines.sinks.files import QUALITY, SCORES, SUCCESS, WriteFiles
from pipelines.sources.files import SLICE_US, ReadFiles, ReadLabelled, SourceError, format_of, match_files
from transforms.gate import OnStop, WatchScores
from transforms.score import DECISION, SCORE, Score
from transforms.statistics import make_baseline


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

    With `look`, SourceError if one of them matches nothing or has no known format.
    """
    for uri in [*uris, *labels] if look else ():
        for path in match_files(uri):
            if kind is None:
                format_of(path)
    events = ReadFiles(tuple(uris), kind)
    return ReadLabelled(events, tuple(labels)) if labels else events


def load_bundle(project: Project, folder: pathlib.Path, version: str, tracking_uri: str) -> Bundle:
    """The registered bundle; RunError if it was made with other features, or with a schema that is not compatible."""
    bundle = registry.load(project.name, int(version) if version.isdigit() else version, tracking_uri)
    try:
        check_against_bundle(project, folder, bundle.schema)
    except (SchemaMismatch, VersionError) as error:
        raise RunError(f"{project.name} {version} (bundle {bundle.bundle_id}): {error}") from None
    if bundle.feature_definitions != project.feature_definitions():
        raise RunError(
            f"{folder}: the features, decisions or event declarations of project.yaml changed since {project.name} "
            f"{version} (bundle {bundle.bundle_id}) was trained: train again, or take the changes back"
        )
    return bundle


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
        from pipelines.dataflow import make

        make(pipeline)
        return None
    return run_pipeline(pipeline, config.sink, "scoring")


def compute_baseline(
    project: Project, bundle: Bundle, source: ReadFiles | ReadLabelled, from_us: int | None, threads: int
) -> tuple[bytes, int]:
    """The baseline of a source's score rows from a time on, and how many they are.

    Scores of the events that a model was trained on are too good: leave them out.
    """
    if project.quality is None:
        raise RunError(f"{project.name} declares no quality")
    with tempfile.TemporaryDirectory(prefix="headrace-") as scratch:
        scorer = Scorer.from_bundle(bundle, nthread=threads)
        sink = WriteFiles(scratch, project.event.id, project.event.time)
        config = GraphConfig(project, source, Score(project, scorer, bundle.bundle_id), sink, score_from_us=from_us)
        run_graph(config, DIRECT, (), "scoring the baseline")
        table = read_kind(scratch, SCORES)
        if not table.num_rows:
            raise RunError("no event is left for a baseline")
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
    """What the sink wrote at the end of a run."""
    from apache_beam.io.filesystems import FileSystems

    with FileSystems.open(FileSystems.join(directory, SUCCESS)) as file:
        return dict(json.loads(file.read()))


def read_kind(directory: str, kind: str, columns: Sequence[str] | None = None) -> pa.Table:
    """A run's scores or dead letters, in the files' order, as they were written to Parquet."""
    try:
        paths = match_files(f"{directory.rstrip('/')}/{kind}/*.parquet")
    except SourceError:
        return pa.table({})
    return pa.concat_tables([pq.read_table(path, columns=columns and list(columns)) for path in paths])


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


def evaluate_scores(directory: str, project: Project) -> Evaluation | None:
    """How good the scores were, where the label is among the output fields and known; else None."""
    label = project.label.field if project.label else None
    if label not in project.output:
        return None
    group = project.entities[project.training.group] if project.training.group else None
    names = [label, SCORE, project.event.time, *([group] if group else []), *project.training.slices]
    table = read_kind(directory, SCORES, list(dict.fromkeys(names)))
    if not table.num_rows:
        return None
    table = table.filter(pa.compute.is_valid(table.column(label)))
    if not table.num_rows:
        return None
    days = table.column(project.event.time).cast(pa.int64()).to_numpy() // DAY_US
    return evaluate(
        table.column(label).to_numpy(),
        table.column(SCORE).to_numpy(),
        day=days if group else None,
        card=np.asarray(table.column(group).to_numpy()) if group else None,
        slices={name: table.column(name).to_numpy() for name in project.training.slices},
    )
