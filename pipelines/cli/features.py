"""`headrace features`: features as of any time, and what a feature store reads them by."""

from __future__ import annotations

import collections
import pathlib
from typing import Annotated

import typer

from pipelines.cli.errors import clear_errors
from pipelines.cli.parameters import DefaultGroup, Labels, ProjectFolder, Shards, Source, SourceFormat, Tables


class _AnswerByDefault(DefaultGroup):
    """`headrace features PROJECT` is `headrace features answer PROJECT`."""

    default = "answer"


app = typer.Typer(
    cls=_AnswerByDefault,
    help="Give rows of keys and times their features as of then (features PROJECT --spine FILE), or export a table.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command()
def answer(
    project: ProjectFolder,
    spine: Annotated[
        pathlib.Path, typer.Option(help="Rows of keys and times, in columns named as in events: *.parquet or *.csv.")
    ],
    source: Source,
    out: Annotated[pathlib.Path, typer.Option(help="The same rows with their features: *.parquet or *.csv.")],
    labels: Labels = None,
    table: Tables = None,
    source_format: SourceFormat = None,
    shards: Shards = None,
) -> None:
    """Add to each row of a spine the features of its keys as of its time, of all events of the source up to then."""
    with clear_errors():
        from models.project.project import load_project
        from pipelines.config import RunSpec

        spec = RunSpec(
            load_project(project),
            tuple(source),
            "",
            labels=tuple(labels or ()),
            tables=tuple(table or ()),
            source_format=source_format,
            shards=shards,
        )
        spec.check(keeps=False)

        from pipelines.lean import import_libraries

        import_libraries(local=spec.local)

        from pipelines.jobs.features import answer_spine

        answered = answer_spine(spec, spine, out)
        left_out: dict[tuple[str, ...], list[str]] = collections.defaultdict(list)
        for name, missing in answered.answerable.lacking.items():
            left_out[missing].append(name)
        for missing, names in left_out.items():
            typer.echo(f"the spine has no {' or '.join(missing)}: without {', '.join(names)}")
        for name, count in sorted(answered.outcomes.items()):
            typer.echo(f"events {name}: {count:,}")
        given = len(answered.answerable.names)
        typer.echo(f"{answered.rows:,} rows with {given} columns of feature set {spec.project.feature_set} in {out}")


@app.command()
def export(
    project: ProjectFolder,
    sink: Annotated[str, typer.Option(help="Folder that runs have written features to.")],
    feast: Annotated[pathlib.Path, typer.Option(help="Folder to make a Feast repository in.")],
) -> None:
    """Write a Feast repository over the features of a sink: entities, and a view for each key of rolling features."""
    with clear_errors():
        from models.project.project import load_project
        from pipelines.jobs.feast_export import export_feast

        declared = load_project(project)
        export_feast(declared, sink, feast)
        typer.echo(f"feature set {declared.feature_set} of {sink} in {feast}: go on there with `feast apply`")
