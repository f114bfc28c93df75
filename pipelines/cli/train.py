"""`headrace train` and `headrace baseline`: a model, and what windows are compared with."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.cli.errors import clear_errors
from pipelines.cli.parameters import (
    Labels,
    ProjectFolder,
    Registry,
    Replace,
    Runner,
    Shards,
    Source,
    SourceFormat,
    Tables,
    Threads,
    own_options,
)
from pipelines.runners import IN_PROCESS


def train(
    context: typer.Context,
    project: ProjectFolder,
    source: Source,
    labels: Labels = None,
    table: Tables = None,
    source_format: SourceFormat = None,
    start: Annotated[str | None, typer.Option(help="First day of training (UTC), such as 2018-05-24.")] = None,
    examples: Annotated[
        str | None,
        typer.Option(help="Folder to keep the examples and dead letters in; else dead letters are in .headrace."),
    ] = None,
    scores: Annotated[
        str | None,
        typer.Option(help="Folder of a run whose score rows say how much an event counts (rollout.blocks)."),
    ] = None,
    replace: Replace = False,
    promote: Annotated[bool, typer.Option(help="Make the new bundle champion.")] = False,
    runner: Runner = IN_PROCESS,
    registry: Registry = None,
    shards: Shards = None,
    threads: Threads = 2,
) -> None:
    """Compute features, train and test a model, and register it. Options that are not listed go to Beam."""
    with clear_errors():
        from models.predictors.registry_store import database_of
        from models.project.project import load_project
        from pipelines.config import RunSpec
        from pipelines.prechecks import find_registry, parse_time, require, require_model

        declared = load_project(project)
        require_model(declared, "train")
        spec = RunSpec(
            project=declared,
            sources=tuple(source),
            sink=examples or "",
            labels=tuple(labels or ()),
            tables=tuple(table or ()),
            source_format=source_format,
            replace=replace,
            shards=shards,
            threads=threads,
            runner=runner,
            beam_args=tuple(context.args),
            ours=own_options(context),
        )
        first = parse_time("--start", start)
        require(bool(examples) or not replace, "--replace is for the output of another run in --examples")
        require(
            scores is None or bool(declared.rollout.blocks), "--scores are for a project that declares rollout.blocks"
        )
        spec.check(keeps=bool(examples))
        dead_letters = project / ".headrace" / "training"
        if not examples:
            from pipelines.sinks.publish import look_at

            look_at(str(dead_letters), True)
        registry = find_registry(project, registry, create=True)
        if database_of(registry) is None:  # of a server, that it is there is worth knowing before the training
            from models.predictors.registry import reach

            reach(registry)

        from pipelines.lean import import_libraries

        import_libraries(local=spec.local)

        from pipelines.cli.outcome import print_training
        from pipelines.jobs import train as training

        trained = training.train(spec, project, start=first, dead_letters=dead_letters, scores=scores)
        registered = training.register(trained, spec.project, registry, promote)
        print_training(trained, spec.project, registered, registry, project)
        if promote:
            from pipelines.jobs.releasing import release_promoted

            release_promoted(spec.project, project, registry, registered.version, "promoted when it was trained")


def baseline(
    project: ProjectFolder,
    source: Source,
    labels: Labels = None,
    table: Tables = None,
    source_format: SourceFormat = None,
    start: Annotated[
        str | None,
        typer.Option(help="Take events from this time (UTC) on; from the end of the model's training, if not given."),
    ] = None,
    end: Annotated[str | None, typer.Option(help="Take events before this time (UTC).")] = None,
    model: Annotated[str, typer.Option(help="Version or alias of the registered bundle.")] = "champion",
    registry: Registry = None,
    threads: Threads = 2,
) -> None:
    """Write into a bundle what windows are compared with: statistics of features and scores, and what scores mean.

    Take events that no run is to score: else they are compared with themselves.
    """
    with clear_errors():
        from models.project.project import load_project
        from pipelines.config import RunSpec
        from pipelines.prechecks import find_version, require, require_model

        declared = load_project(project)
        require_model(declared, "make a baseline for")
        estimated = declared.label_metrics is not None and declared.label_metrics.estimate
        nothing = "the project declares neither quality nor label_metrics.estimate: there is nothing to compare"
        require(declared.quality is not None or estimated, nothing)
        spec = RunSpec(
            declared,
            tuple(source),
            "",
            labels=tuple(labels or ()),
            tables=tuple(table or ()),
            source_format=source_format,
            score_from=start,
            score_to=end,
            threads=threads,
        )
        spec.check(keeps=False)
        registry = find_version(project, declared.name, model, registry)

        from models.predictors.registry import set_baseline
        from pipelines.jobs.baseline import compute_baseline
        from pipelines.jobs.fitting import load_bundle

        bundle = load_bundle(declared, project, model, registry)
        made = compute_baseline(spec, bundle)
        set_baseline(declared.name, model, made.baseline, registry, made.calibration)
        if made.baseline:
            typer.echo(f"baseline of {made.rows:,} scored events in bundle {bundle.bundle_id}")
        if made.calibration:
            typer.echo(f"calibration of {made.labelled:,} events with a label in bundle {bundle.bundle_id}")
        elif estimated:
            typer.echo(f"no calibration: of {made.rows:,} scored events {made.labelled:,} have a label, too few")
