"""`headrace parity`: stream and batch, and every bit compared."""

from __future__ import annotations

from typing import Annotated

import typer

from models.project.project import load_project
from pipelines.cli.errors import clear_errors
from pipelines.cli.parameters import ProjectFolder, Registry, Source, Threads
from pipelines.prechecks import check_duration, find_registry, require_files, require_version


def parity(
    project: ProjectFolder,
    source: Source,
    allowance: Annotated[str, typer.Option(help="How far events may be out of order, such as 10m.")] = "10m",
    duplicates: Annotated[float, typer.Option(min=0, max=1, help="Share of the events that comes twice.")] = 0.02,
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives another order of arrival.")] = 0,
    model: Annotated[str, typer.Option(help="Version or alias of the registered bundle.")] = "champion",
    registry: Registry = None,
    threads: Threads = 2,
) -> None:
    """Stream the events of files through an embedded Pub/Sub, score them in batch too, and compare every bit."""
    with clear_errors():
        declared = load_project(project)
        check_duration("--allowance", allowance)
        require_files(source)
        registry = find_registry(project, registry)
        require_version(declared.name, model, registry)

        from models.predictors.booster import Scorer
        from pipelines.jobs.fitting import load_bundle
        from pipelines.jobs.parity import check_parity, show

        bundle = load_bundle(declared, project, model, registry)
        scorer = Scorer.from_bundle(bundle, nthread=threads)
        found = check_parity(declared, bundle, scorer, source, allowance, seed, duplicates)
        show(found)
        if found.blind:
            typer.echo("the events arrived in their order, so this proves nothing: give more, or a longer --allowance")
        typer.echo("equal" if found.equal else "NOT EQUAL")
        if not found.equal:
            raise typer.Exit(1)
