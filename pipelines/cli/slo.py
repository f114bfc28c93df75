"""`headrace slo` and `headrace monitoring`: what a project promises, and what watches over it from outside."""

from __future__ import annotations

import pathlib
from typing import Annotated

import typer

from pipelines.cli.errors import clear_errors
from pipelines.cli.parameters import ProjectFolder

monitoring = typer.Typer(
    help="Rules of Prometheus's and a dashboard of Grafana's for a project.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def slo(
    project: ProjectFolder,
    run: Annotated[str | None, typer.Option(help="Folder that a finished run's scores went to.")] = None,
    metrics: Annotated[
        str | None,
        typer.Option(help="Where a run that goes on, or an endpoint, shows its metrics: http://HOST:PORT/metrics."),
    ] = None,
) -> None:
    """Tell whether the project's objectives are met; exit code 1 if one is not."""
    with clear_errors():
        from models.objectives import Least, Ratio, is_of_endpoint, of_metrics, of_run, promises_of_serving
        from models.project.objectives import Objectives, Serving
        from models.project.project import load_project
        from pipelines.prechecks import require, require_file_system

        declared = load_project(project)
        slo, serving = declared.slo, declared.serving
        nothing = "there is nothing to tell"
        require(slo is not None or serving is not None, f"{declared.name} declares no slo and no serving: {nothing}")
        require(
            (run is None) != (metrics is None), "name one: --run of a finished run, or --metrics of one that goes on"
        )
        found: list[Ratio | Least] = []
        if metrics is not None:
            from pipelines.monitoring.scrape import scrape

            told = scrape(metrics)
            if is_of_endpoint(told):
                require(
                    serving is not None, f"{metrics} is an endpoint's, and {declared.name} has no serving: {nothing}"
                )
                found += [promise.kept(told) for promise in promises_of_serving(serving or Serving())]
            else:
                require(slo is not None, f"{metrics} is a run's, and {declared.name} has no slo: {nothing}")
                found += of_metrics(slo or Objectives(), told)
        else:
            assert run is not None
            require(slo is not None, f"{declared.name} has no slo, which is of runs: {nothing}")
            require_file_system(run)

            from pipelines.results import read_success, read_verdicts

            statuses = [verdict.status for verdict in read_verdicts(run) if verdict.judged]
            found += of_run(slo or Objectives(), read_success(run)["events"], statuses)

        from pipelines.cli.display import objectives_table
        from pipelines.terminal import console

        console.print(objectives_table(found))
        if any(each.met is False for each in found):
            raise typer.Exit(1)


@monitoring.command("export")
def export(
    project: ProjectFolder,
    folder: Annotated[pathlib.Path, typer.Argument(help="Folder to write rules.yml and dashboard.json to.")],
) -> None:
    """Write Prometheus's rules of the project's objectives, and a dashboard of Grafana's."""
    with clear_errors():
        from models.project.project import load_project
        from pipelines.monitoring.rules import dashboard, rules

        declared = load_project(project)
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in (("rules.yml", rules(declared)), ("dashboard.json", dashboard(declared))):
            (folder / name).write_text(text)
            typer.echo(f"{folder / name}")
