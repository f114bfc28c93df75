"""`headrace run`: score the events of files or of a stream."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.cli.errors import clear_errors
from pipelines.cli.parameters import (
    KafkaConfig,
    Labels,
    MetricsHost,
    MetricsPort,
    OneModel,
    ProjectFolder,
    Registry,
    Releases,
    Replace,
    Runner,
    ScoreThreads,
    Shards,
    Source,
    SourceFormat,
    StoreUri,
    Tables,
    TraceShare,
    own_options,
)
from pipelines.runners import IN_PROCESS

if TYPE_CHECKING:
    from models.project.declarations import Project


def run(
    context: typer.Context,
    project: ProjectFolder,
    source: Source,
    sink: Annotated[
        list[str],
        typer.Option(
            help="Folder, or broker's topic, that the scores go to; a database beside a folder, or alone, takes score "
            "rows, too: postgresql://USER:$NAME@HOST/DATABASE or sqlite:///FILE. A topic needs others beside it: "
            "SINK-dead-letters; SINK-quality, if the project declares quality; SINK-quarantine, if its gate is that; "
            "SINK-aggregates, if it declares aggregates; SINK-label-metrics, if it declares label_metrics; "
            "SINK-shadow, once a release that it follows names a shadow."
        ),
    ],
    dead_letters: Annotated[
        str | None, typer.Option(help="Topic of the dead letters; the sink's name and -dead-letters, if not given.")
    ] = None,
    allowance: Annotated[str, typer.Option(help="Bounded out-of-orderness of a stream's events, such as 10s.")] = "10s",
    lateness: Annotated[
        str,
        typer.Option(help="How late an event of a stream, or with --state, may be and still find its windows."),
    ] = "1d",
    order: Annotated[
        str,
        typer.Option(help="event_time: score a stream's event when all before it are there; arrival: at once."),
    ] = "event_time",
    journal: Annotated[
        str | None,
        typer.Option(help="Folder to keep a stream's messages in; a stream that starts anew goes on from there."),
    ] = None,
    transactional: Annotated[
        bool,
        typer.Option(
            "--transactional",
            help="Publish to Kafka so that readers of committed messages get each row exactly once; needs a journal.",
        ),
    ] = False,
    history: Annotated[
        list[str] | None,
        typer.Option(
            help="Files of earlier events that fill a stream's windows (may be repeated), or a state of --state."
        ),
    ] = None,
    labels: Labels = None,
    table: Tables = None,
    alert_to: Annotated[
        list[str] | None,
        typer.Option(
            help="Where alerts of the project's quality go: log, file:PATH, webhook, a topic; may be repeated."
        ),
    ] = None,
    values: Annotated[
        str,
        typer.Option(
            help="A stream's messages: json, avro:FILE.avsc, avro: or json:http://REGISTRY[?subject=SUBJECT], or "
            "pulsar, by the schemas of the topic."
        ),
    ] = "json",
    kafka_config: KafkaConfig = None,
    source_format: SourceFormat = None,
    sink_format: Annotated[
        str, typer.Option(help="parquet, jsonl, or delta: score rows as a Delta table.")
    ] = "parquet",
    files: Annotated[int, typer.Option(min=1, max=1024, help="Score files of a day.")] = 1,
    replace: Replace = False,
    model: OneModel = None,
    releases: Releases = None,
    score_from: Annotated[
        str | None,
        typer.Option(
            help="Score events from this time on, such as 2018-06-08, UTC unless the project says another time zone; "
            "earlier ones fill windows. Of what the sink holds, days of that time alone are replaced."
        ),
    ] = None,
    score_to: Annotated[str | None, typer.Option(help="Score events before this time.")] = None,
    day: Annotated[str | None, typer.Option(help="Score this day, as --score-from and --score-to.")] = None,
    hour: Annotated[str | None, typer.Option(help="Score this hour, such as 2018-06-08T13.")] = None,
    state: Annotated[
        str | None,
        typer.Option(
            help="Folder of states: start from the one before the time that is scored, read only files that are new, "
            "and keep one of its end. Late files are scored with the days that they touch, up to --lateness."
        ),
    ] = None,
    store: StoreUri = None,
    reason_codes: Annotated[int, typer.Option(min=0, help="Features to name with each score; slow.")] = 0,
    runner: Runner = IN_PROCESS,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Make and check the job for DataflowRunner, offline; run nothing.")
    ] = False,
    registry: Registry = None,
    shards: Shards = None,
    threads: ScoreThreads = None,
    metrics_port: MetricsPort = None,
    metrics_host: MetricsHost = "127.0.0.1",
    traces: TraceShare = None,
) -> None:
    """Score the events of a source. Options that are not listed go to Beam."""
    with clear_errors():
        from models.project.project import load_project
        from models.redact import redact
        from pipelines.config import RunSpec
        from pipelines.prechecks import find_registry, find_version, registry_of, split_sinks
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
            files=files,
            replace=replace,
            score_from=score_from,
            score_to=score_to,
            day=day,
            hour=hour,
            state=state,
            dead_letters=dead_letters,
            allowance=allowance,
            lateness=lateness,
            order=order,
            journal=journal,
            transactional=transactional,
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
            metrics_host=metrics_host,
            metrics_port=metrics_port,
            traces=traces,
            releases=log,
            store=store,
            ours=own_options(context),
        )
        spec.check()
        model = model or "champion"
        if log is not None:
            registry = find_registry(project, registry)
        elif spec.project.has_model:
            registry = find_version(project, spec.project.name, model, registry)

        from pipelines.lean import import_libraries

        import_libraries(local=spec.local)
        check_quality(spec.project, spec.alert_to)

        from pipelines.cli.display import outcome_table
        from pipelines.cli.outcome import print_scores
        from pipelines.jobs.fitting import load_bundle
        from pipelines.jobs.score import score
        from pipelines.terminal import console

        if spec.streams:
            logging.getLogger("headrace").setLevel(logging.INFO)
        bundle = released = None
        if log is not None:
            from pipelines.jobs.released import follow_log

            released = follow_log(spec, project, str(registry))
            bundle = released.first_bundle()
        elif spec.project.has_model:
            bundle = load_bundle(spec.project, project, model, str(registry))
        result = score(spec, bundle, released=released)
        if result is None:
            return
        console.print(outcome_table(result.outcomes, result.seconds))
        for uri in databases:
            console.print(f"score rows also in the table {spec.project.name} of {redact(uri)}", soft_wrap=True)
        if not (result.outcomes.get("scored") or result.outcomes.get("quarantined")):
            console.print("no event was scored")
        if bundle is None:
            console.print(f"no model: features alone; output in {folder}", soft_wrap=True)
            return
        if sink_format != "jsonl":
            print_scores(folder, spec.project, bundle, spec.labels)
        what = f"bundle {bundle.bundle_id}" if log is None else f"releases of {redact(log)}"
        console.print(f"{what}, output in {folder}", soft_wrap=True)


def check_quality(project: Project, alert_to: Sequence[str]) -> None:
    """Fail early on a sink of alerts that can't be, and say what of quality is off here."""
    if project.quality is None:
        return
    from models.quality.backend import why_off
    from pipelines.monitoring.alerts import open_sink

    for uri in alert_to:
        open_sink(uri).close()
    if (reason := why_off()) is not None:
        typer.echo(f"headrace: {reason}", err=True)
