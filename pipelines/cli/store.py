"""`headrace store`: the online store that a run writes and an endpoint reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli.errors import clear_errors
from pipelines.cli.parameters import Labels, ProjectFolder, Shards, Source, SourceFormat, Tables, TheStore

if TYPE_CHECKING:
    from pipelines.config import RunSpec

app = typer.Typer(
    help="Fill an online store from files, or compare one with them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Lateness = Annotated[
    str,
    typer.Option(help="How late an event may be and still find its windows, as the run that writes the store has it."),
]


@app.command()
def fill(
    project: ProjectFolder,
    source: Source,
    store: TheStore,
    labels: Labels = None,
    table: Tables = None,
    lateness: Lateness = "1d",
    source_format: SourceFormat = None,
    shards: Shards = None,
) -> None:
    """Write what features need of the past into a store; what is there already stays, and again, nothing changes."""
    with clear_errors():
        from models.redact import redact
        from pipelines.jobs.store import fill_store

        spec = _spec_of(project, source, store, labels, table, lateness, source_format, shards)
        for name, count in sorted(fill_store(spec).items()):
            typer.echo(f"events {name}: {count:,}")
        typer.echo(f"feature set {spec.project.feature_set} in {redact(store)}")


@app.command()
def check(
    project: ProjectFolder,
    source: Source,
    store: TheStore,
    mend: Annotated[bool, typer.Option("--mend", help="Put right what is missing, stale or wrong.")] = False,
    labels: Labels = None,
    table: Tables = None,
    lateness: Lateness = "1d",
    source_format: SourceFormat = None,
    shards: Shards = None,
) -> None:
    """Compare a store with what its files or its stream's journal say, and name what is missing, stale or wrong.

    Exit code 1 if something is, and was not mended.
    """
    with clear_errors():
        from pipelines.jobs.store import check_store, name_entities, time_text

        checked = check_store(_spec_of(project, source, store, labels, table, lateness, source_format, shards), mend)
        for line in name_entities(checked):
            typer.echo(line)
        counts = ", ".join(f"{len(places):,} {fault}" for fault, places in checked.faults.items())
        typer.echo(f"compared until {time_text(checked.until_us)}: {counts or 'all tiles are as they should be'}")
        if checked.is_behind:
            typer.echo(
                f"the store goes to {time_text(checked.store.newest_us)}, and files to "
                f"{time_text(checked.files.newest_us)}"
            )
        if mend and checked.faults:
            typer.echo(f"mended, but for {len(checked.left):,}: look again" if checked.left else "mended")
        if checked.left or (checked.faults and not mend):
            raise typer.Exit(1)


def _spec_of(
    project: ProjectFolder,
    source: list[str],
    store: str,
    labels: list[str] | None,
    table: list[str] | None,
    lateness: str,
    source_format: str | None,
    shards: int | None,
) -> RunSpec:
    """The spec of what is read, checked, and what takes long to import."""
    from models.project.project import load_project
    from pipelines.config import RunSpec

    spec = RunSpec(
        load_project(project),
        tuple(source),
        "",
        labels=tuple(labels or ()),
        tables=tuple(table or ()),
        lateness=lateness,
        source_format=source_format,
        shards=shards,
        store=store,
    )
    spec.check(keeps=False)

    from pipelines.lean import import_libraries

    import_libraries(local=spec.local)
    return spec
