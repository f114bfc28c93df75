"""`headrace run`: score the events of files or of a stream."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from models.project.declarations import Project
from models.project.project import load_project
from pipelines.cli.errors import clear_errors
from pipelines.cli.parameters import (
    KafkaConfig,
    Labels,
    ProjectFolder,
    Registry,
    Replace,
    Runner,
    Shards,
    Source,
    SourceFormat,
    Threads,
    own_options,
)
from pipelines.config import RunSpec
from pipelines.prechecks import find_registry, require_version
from pipelines.runners import IN_PROCESS


def run(
    context: typer.Context,
    project: ProjectFolder,
    source: Source,
    sink: Annotated[
        str,
        typer.Option(
            help="Folder, or broker's topic, that the scores go to. A topic needs others beside it: "
            "SINK-dead-letters; SINK-quality, if the project declares quality; SINK-quarantine, if its gate is that."
        ),
    ],
    dead_letters: Annotated[
        str | None, typer.Option(help="Topic of the dead letters; the sink's name and -dead-letters, if not given.")
    ] = None,
    allowance: Annotated[str, typer.Option(help="How far a stream's events may be out of order, such as 10s.")] = "10s",
    lateness: Annotated[
        str, typer.Option(help="How late a stream's event may be and still find all of its windows.")
    ] = "1d",
    order: Annotated[
        str,
        typer.Option(help="event_time: score a stream's event when all before it are there; arrival: at once."),
    ] = "event_time",
    journal: Annotated[
        str | None,
        typer.Option(help="Folder to keep a stream's messages in; a stream that starts anew goes on from there."),
    ] = None,
    history: Annotated[
        list[str] | None, typer.Option(help="Files of earlier events that fill a stream's windows; may be repeated.")
    ] = None,
    labels: Labels = None,
    alert_to: Annotated[
        list[str] | None,
        typer.Option(
            help="Where alerts of the project's quality go: log, file:PATH, webhook, a topic; may be repeated."
        ),
    ] = None,
    values: Annotated[
        str, typer.Option(help="A stream's messages: json, avro:FILE.avsc, or avro:http://REGISTRY[?subject=SUBJECT].")
    ] = "json",
    kafka_config: KafkaConfig = None,
    source_format: SourceFormat = None,
    sink_format: Annotated[str, typer.Option(help="parquet or jsonl.")] = "parquet",
    files: Annotated[int, typer.Option(min=1, max=1024, help="Score files of a month.")] = 1,
    replace: Replace = False,
    model: Annotated[str, typer.Option(help="Version or alias of the registered bundle.")] = "champion",
    score_from: Annotated[
        str | None,
        typer.Option(help="Score events from this time (UTC) on, such as 2018-06-08; earlier ones fill windows."),
    ] = None,
    reason_codes: Annotated[int, typer.Option(min=0, help="Features to name with each score; slow.")] = 0,
    runner: Runner = IN_PROCESS,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Make and check the job for DataflowRunner, offline; run nothing.")
    ] = False,
    registry: Registry = None,
    shards: Shards = 1,
    threads: Threads = 2,
) -> None:
    """Score the events of a source. Options that are not listed go to Beam."""
    with clear_errors():
        formats: Any = sink_format  # the spec checks it
        spec = RunSpec(
            project=load_project(project),
            sources=tuple(source),
            sink=sink,
            labels=tuple(labels or ()),
            source_format=source_format,
            sink_format=formats,
            files=files,
            replace=replace,
            score_from=score_from,
            dead_letters=dead_letters,
            allowance=allowance,
            lateness=lateness,
            order=order,
            journal=journal,
            history=tuple(history or ()),
            values=values,
            kafka_config=kafka_config,
            alert_to=tuple(alert_to or ()),
            reason_codes=reason_codes,
            shards=shards,
            threads=threads,
            runner=runner,
            beam_args=tuple(context.args),
            dry_run=dry_run,
            ours=own_options(context),
        )
        spec.check()
        registry = find_registry(project, registry)
        require_version(spec.project.name, model, registry)
        check_quality(spec.project, spec.alert_to)

        from pipelines.cli.display import console, outcome_table
        from pipelines.cli.outcome import print_scores
        from pipelines.jobs.fitting import load_bundle
        from pipelines.jobs.score import score

        if spec.streams:
            logging.getLogger("headrace").setLevel(logging.INFO)
        bundle = load_bundle(spec.project, project, model, registry)
        result = score(spec, bundle)
        if result is None:
            return
        console.print(outcome_table(result.outcomes, result.seconds))
        if not (result.outcomes.get("scored") or result.outcomes.get("quarantined")):
            console.print("no event was scored")
        if sink_format == "parquet":
            print_scores(sink, spec.project, bundle, spec.labels)
        console.print(f"bundle {bundle.bundle_id}, output in {sink}", soft_wrap=True)


def check_quality(project: Project, alert_to: Sequence[str]) -> None:
    """Fail early on a sink of alerts that can't be, and say what of quality is off here."""
    if project.quality is None:
        return
    from models.quality.backend import why_off
    from pipelines.monitoring.alerts import open_sink

    for uri in alert_to:
        open_sink(uri).close()
    if (reason := why_off()) is not None:
        typer.echo(f"windows are not checked against the schema: {reason}", err=True)
