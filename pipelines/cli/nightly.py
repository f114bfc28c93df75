"""`headrace nightly`: score the days that are missing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.cli.errors import clear_errors
from pipelines.cli.parameters import (
    Labels,
    MetricsHost,
    MetricsPort,
    OneModel,
    ProjectFolder,
    Registry,
    Releases,
    Runner,
    ScoreThreads,
    Shards,
    Source,
    SourceFormat,
    Tables,
    own_options,
)
from pipelines.runners import IN_PROCESS

if TYPE_CHECKING:
    from pipelines.jobs.nightly import Night


def nightly(
    context: typer.Context,
    project: ProjectFolder,
    source: Source,
    sink: Annotated[
        list[str],
        typer.Option(help="Folder that the scores go to, a partition a day, and databases, as in headrace run."),
    ],
    state: Annotated[str, typer.Option(help="Folder of states, from which each day starts.")],
    first: Annotated[
        str | None, typer.Option("--from", help="The first day; that of the sink's first run, if not given.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="The day after the last one; today, if not given.")] = None,
    lateness: Annotated[str, typer.Option(help="How late a file's event may be and still find its windows.")] = "1d",
    labels: Labels = None,
    table: Tables = None,
    alert_to: Annotated[list[str] | None, typer.Option(help="Where alerts go, as in headrace run.")] = None,
    source_format: SourceFormat = None,
    sink_format: Annotated[
        str, typer.Option(help="parquet, jsonl, or delta: score rows as a Delta table.")
    ] = "parquet",
    model: OneModel = None,
    releases: Releases = None,
    runner: Runner = IN_PROCESS,
    registry: Registry = None,
    shards: Shards = None,
    threads: ScoreThreads = None,
    metrics_port: MetricsPort = None,
    metrics_host: MetricsHost = "127.0.0.1",
) -> None:
    """Score each day (hour) that the sink lacks; again, it does nothing. It is no scheduler: let cron call it.

    Where the project declares retrain, it then trains, and registers a bundle that passes the gate. A day that can't
    be scored is said, and does not keep the next from it; the command then ends with 1. Options that are not listed go
    to Beam.
    """
    with clear_errors():
        from models.project.project import load_project
        from pipelines.config import RunSpec
        from pipelines.prechecks import find_registry, find_version, registry_of, split_sinks, time_us
        from pipelines.release_store import find_log

        declared = load_project(project)
        log = None
        if declared.has_model and model is None:
            log = find_log(declared, registry_of(project, registry), releases)
        folder, databases = split_sinks(sink, project)
        formats: Any = sink_format  # the spec checks it
        spec = RunSpec(
            project=declared,
            sources=tuple(source),
            sink=folder,
            databases=databases,
            labels=tuple(labels or ()),
            tables=tuple(table or ()),
            source_format=source_format,
            sink_format=formats,
            score_from=first,
            score_to=until or "2100-01-01",
            state=state,
            lateness=lateness,
            alert_to=tuple(alert_to or ()),
            shards=shards,
            threads=threads,
            runner=runner,
            beam_args=tuple(context.args),
            metrics_host=metrics_host,
            metrics_port=metrics_port,
            releases=log,
            ours=own_options(context),
        )
        spec.check()
        model = model or "champion"
        if log is not None:
            registry = find_registry(project, registry)
        elif spec.project.has_model:
            registry = find_version(project, spec.project.name, model, registry)
        partitions = spec.project.partitions
        bounds = [None if text is None else time_us(name, text, partitions) for name, text in _named(first, until)]

        from pipelines.lean import import_libraries

        import_libraries(local=spec.local)

        from models.predictors.booster import Scorer
        from pipelines.cli.run import check_quality
        from pipelines.jobs.fitting import load_bundle
        from pipelines.jobs.nightly import find_missing, run_nights
        from pipelines.jobs.released import follow_log
        from pipelines.jobs.retrain import Retrainer

        check_quality(spec.project, spec.alert_to)
        missing = find_missing(spec, *bounds)
        if not missing:
            typer.echo(f"{folder}: no day is missing")
            if spec.project.retrain is None:
                return
        bundle = scorer = released = None
        if log is not None:
            released = follow_log(spec, project, str(registry))
            bundle = released.first_bundle()
        elif spec.project.has_model:
            bundle = load_bundle(spec.project, project, model, str(registry))
            scorer = Scorer.from_bundle(bundle, nthread=spec.threads_of_call)
        retrainer = Retrainer(spec, project, str(registry), model) if spec.project.retrain else None
        failed = 0
        for night in run_nights(spec, missing, bundle, scorer, retrainer, released):
            failed += night.error is not None
            typer.echo(describe(night), err=night.error is not None)
        if missing and spec.project.breaker is not None:
            print_changes(folder, missing[0].start_us or 0)
        if failed:
            typer.echo(f"{failed} nights were not done: call this again once it is mended", err=True)
            raise typer.Exit(1)


def describe(night: Night) -> str:
    """What became of a night, in a line."""
    if night.result is None:
        return f"{night.name}  {night.retraining or f'not done: {night.error}'}"
    counts = night.result.outcomes
    others = [f"{counts[name]:,} {name}" for name in ("dead-lettered", "duplicate", "late") if counts.get(name)]
    said = ", ".join([f"{counts.get('scored', 0):,} scored", *others])
    return f"{night.name}  {said}, {night.result.seconds:.1f} s"


def print_changes(folder: str, since_us: int) -> None:
    """Print what the circuit breaker did in the windows that end after a time, in microseconds since 1970 UTC."""
    from models.quality.circuit import change_line, noted_of
    from pipelines.results import read_verdicts

    for noted in filter(None, map(noted_of, read_verdicts(folder))):
        if (noted.circuit.from_us or 0) > since_us:
            typer.echo(change_line(noted))


def _named(first: str | None, until: str | None) -> list[tuple[str, str | None]]:
    return [("from", first), ("until", until)]
