"""`headrace parity`: stream and batch, and every bit compared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli.errors import clear_errors
from pipelines.cli.parameters import ProjectFolder, Registry, Source, Tables, Threads

if TYPE_CHECKING:
    from pipelines.jobs.parity import Proof


def parity(
    project: ProjectFolder,
    source: Source,
    table: Tables = None,
    allowance: Annotated[str, typer.Option(help="How far events may be out of order, such as 10m.")] = "10m",
    duplicates: Annotated[float, typer.Option(min=0, max=1, help="Share of the events that comes twice.")] = 0.02,
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives another order of arrival.")] = 0,
    model: Annotated[
        str | None,
        typer.Option(help="Version or alias of the registered bundle; the champion, if not given, nor --releases."),
    ] = None,
    registry: Registry = None,
    releases: Annotated[
        str | None, typer.Option(help="Follow a log of releases: a database, or a file that one was exported to.")
    ] = None,
    threads: Threads = 2,
    serve: Annotated[
        bool, typer.Option("--serve", help="Send the events to an endpoint, one by one, in place of streaming them.")
    ] = False,
) -> None:
    """Stream the events of files through an embedded Pub/Sub, score them in batch too, and compare every bit."""
    with clear_errors():
        from models.project.project import load_project
        from pipelines.prechecks import (
            check_duration,
            find_registry,
            find_version,
            require,
            require_files,
        )
        from pipelines.release_store import find_log

        declared = load_project(project)
        check_duration("--allowance", allowance)
        require_files(source)
        require(not (model and releases), "--model is one bundle, and --releases says which of several: name one")
        model = model or "champion"
        if releases is not None:
            registry = find_registry(project, registry)
            find_log(declared, registry, releases)
        elif declared.has_model:
            registry = find_version(project, declared.name, model, registry)

        if serve:
            require(
                bool(declared.rolling_features),
                f"--serve: {declared.name} declares no rolling features, whose bits are compared",
            )
            require(
                declared.label_type is None, f"--serve: {declared.name} has labels of their own: events alone are sent"
            )

        from pipelines.jobs.fitting import load_bundle

        bundle = scorer = released = None
        if releases is not None:
            from pipelines.jobs.registered import RegisteredBundles
            from pipelines.jobs.released import Released

            bundles = RegisteredBundles(declared, project, str(registry), threads, log=releases)
            released = Released(releases, declared, bundles)
            bundle = released.first_bundle()
        elif declared.has_model:
            from models.predictors.booster import Scorer

            bundle = load_bundle(declared, project, model, str(registry))
            scorer = Scorer.from_bundle(bundle, nthread=threads)
        found: Proof
        if serve:
            from pipelines.jobs.serve_parity import check_served

            found = served = check_served(declared, bundle, scorer, source, tuple(table or ()), released)
        else:
            from pipelines.jobs.parity import check_parity

            found = check_parity(
                declared, bundle, scorer, source, allowance, seed, duplicates, tuple(table or ()), released
            )
        show(found)
        if serve:
            typer.echo(f"served: {served.complete:,} answers say that they are complete")
        if not found.scored:
            typer.echo("no event was scored, so this proves nothing: see the reasons of the dead letters above")
        elif found.blind:
            typer.echo("a control is equal, so this proves nothing: give more events, or a longer --allowance")
        typer.echo("equal" if found.equal else "NOT EQUAL")
        if not found.equal:
            raise typer.Exit(1)


def show(found: Proof) -> None:
    """Print what was found."""
    from rich.table import Table

    from pipelines.terminal import console

    table = Table("compared", "rows", "different", "first difference")
    for told in table.columns[:3]:
        told.no_wrap = True
    for c in (*found.comparisons, *found.controls):
        table.add_row(c.what, f"{c.rows:,}", f"{c.different:,}", c.first)
    console.print(table)
    for name, result in found.runs.items():
        console.print(f"{name}: {result.outcomes} in {result.seconds:.1f} s")
