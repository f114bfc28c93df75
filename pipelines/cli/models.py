"""`headrace models`: the registered bundles of a project, and models from elsewhere."""

from __future__ import annotations

import pathlib
from typing import Annotated

import typer

from pipelines.cli.errors import clear_errors
from pipelines.cli.parameters import DefaultGroup, ProjectFolder, Registry

_LIST = "list"


class _ListByDefault(DefaultGroup):
    """`headrace models PROJECT` is `headrace models list PROJECT`."""

    default = _LIST


app = typer.Typer(
    cls=_ListByDefault,
    help="List the registered bundles of a project (models PROJECT), or import a model.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command(_LIST)
def models(project: ProjectFolder, registry: Registry = None) -> None:
    """List the registered bundles of a project: aliases, date, metrics of the test, spans of the data."""
    with clear_errors():
        from models.predictors.registry import list_versions
        from models.project.project import load_project
        from pipelines.cli.display import version_lines
        from pipelines.prechecks import find_registry, require_model

        declared = load_project(project)
        require_model(declared, "list")
        name = declared.name
        registry = find_registry(project, registry)

        for version in list_versions(name, registry):
            typer.echo("\n".join(version_lines(version)))


@app.command("import")
def import_(
    project: ProjectFolder,
    model: Annotated[pathlib.Path, typer.Argument(help="FILE.ubj or .json (XGBoost), .txt (LightGBM), .onnx, .skops.")],
    golden: Annotated[
        pathlib.Path,
        typer.Option(help="Rows of the model's inputs and its scores for them: *.parquet, *.csv or *.jsonl."),
    ],
    encoders: Annotated[
        pathlib.Path | None, typer.Option(help="encoders.json of inputs that are but names, as in a bundle.")
    ] = None,
    promote: Annotated[bool, typer.Option(help="Make the new bundle champion.")] = False,
    registry: Registry = None,
) -> None:
    """Register a model that was trained elsewhere, once its features, scores and independence of rows are proven."""
    with clear_errors():
        from models.project.project import load_project
        from pipelines.prechecks import find_registry

        declared = load_project(project)
        registry = find_registry(project, registry, create=True)

        from models.predictors.registry import register
        from pipelines.jobs.importing import import_model
        from pipelines.jobs.releasing import release_promoted

        bundle = import_model(declared, project, model, golden, encoders)
        version = register(bundle, declared.name, registry, promote=promote)
        if promote:
            release_promoted(declared, project, registry, version, f"promoted when {model.name} was imported")
        rows = bundle.metadata["imported"]["golden_rows"]
        typer.echo(f"{declared.name}: version {version}, bundle {bundle.bundle_id}, proven on {rows:,} golden rows")
        if names := bundle.metadata["imported"].get("names"):
            typer.echo(f"feature names in the model: {names}, and golden scores alone prove it")
        if declared.quality:
            typer.echo("no baseline: `headrace baseline` makes one")
        elif declared.label_metrics and declared.label_metrics.estimate:
            typer.echo("no calibration: `headrace baseline` makes one of events with labels")
