"""`headrace models` and `promote`: the registered bundles of a project."""

from __future__ import annotations

from typing import Annotated

import typer

from models.project.project import load_project
from pipelines.cli.errors import clear_errors
from pipelines.cli.parameters import ProjectFolder, Registry
from pipelines.prechecks import find_registry, require_version


def models(project: ProjectFolder, registry: Registry = None) -> None:
    """List the registered bundles of a project: aliases, date, metrics of the test, spans of the data."""
    with clear_errors():
        name = load_project(project).name
        registry = find_registry(project, registry)

        from models.predictors.registry import list_versions
        from pipelines.cli.display import version_lines

        for version in list_versions(name, registry):
            typer.echo("\n".join(version_lines(version)))


def promote(
    project: ProjectFolder,
    version: Annotated[str, typer.Argument(help="Version or alias of the bundle.")] = "challenger",
    registry: Registry = None,
) -> None:
    """Make a bundle champion; promoting an earlier version rolls back."""
    with clear_errors():
        name = load_project(project).name
        registry = find_registry(project, registry)
        require_version(name, version, registry)

        from models.predictors.registry import CHAMPION, set_alias

        number = set_alias(name, CHAMPION, version, registry)
        typer.echo(f"{name}: version {number} is champion")
