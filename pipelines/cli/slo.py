"""`headrace slo` and `headrace monitoring`: what a project promises, and what watches over it from outside."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli.errors import clear_errors
from pipelines.cli.parameters import ProjectFolder

if TYPE_CHECKING:
    from models.objectives import Least, Ratio
    from models.project.declarations import Project

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
    at: Annotated[
        str | None, typer.Option(help="The time by which slo.done_within is judged; now, if not given.")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Go on until Ctrl-C, and tell of error budgets that burn too fast.")
    ] = False,
    every: Annotated[str, typer.Option(help="How often --watch looks.")] = "15s",
    alert_to: Annotated[
        list[str] | None, typer.Option(help="Where --watch tells it, as in headrace run; the log, if not given.")
    ] = None,
) -> None:
    """Tell whether the project's objectives are met; exit code 1 if one is not."""
    with clear_errors():
        from models.objectives import of_run
        from models.project.objectives import Objectives
        from models.project.project import load_project
        from pipelines.prechecks import require, require_file_system, time_us

        declared = load_project(project)
        slo, serving = declared.slo, declared.serving
        nothing = "there is nothing to tell"
        require(slo is not None or serving is not None, f"{declared.name} declares no slo and no serving: {nothing}")
        require(
            (run is None) != (metrics is None), "name one: --run of a finished run, or --metrics of one that goes on"
        )
        require(not watch or metrics is not None, "--watch is of --metrics of a run that goes on, or of an endpoint")
        found: list[Ratio | Least] = []
        if metrics is not None:
            if watch:
                watch_budgets(declared, metrics, alert_to, every)
                return
            found += read_metrics(declared, metrics)
        else:
            assert run is not None
            require(slo is not None, f"{declared.name} has no slo, which is of runs: {nothing}")
            require_file_system(run)

            from pipelines.report.labels import read_windows
            from pipelines.results import days_done, read_success, read_verdicts

            statuses = [verdict.status for verdict in read_verdicts(run) if verdict.judged]
            now_us = time.time_ns() // 1000 if at is None else time_us("at", at, declared.partitions)
            done = days_done(run, declared, now_us) if slo and slo.done_within is not None else None
            windows = read_windows(run) if slo and (slo.labels or slo.performance) else ()
            found += of_run(slo or Objectives(), read_success(run)["events"], statuses, done, windows)

        from pipelines.cli.display import objectives_table
        from pipelines.terminal import console

        console.print(objectives_table(found))
        if any(each.met is False for each in found):
            raise typer.Exit(1)


def read_metrics(declared: Project, url: str) -> Iterable[Ratio | Least]:
    """The objectives of a run that goes on, or of an endpoint, by the metrics that it shows."""
    from models.objectives import is_of_endpoint, of_metrics, promises_of_serving
    from models.project.objectives import Objectives, Serving
    from pipelines.monitoring.scrape import scrape
    from pipelines.prechecks import require

    slo, serving, nothing = declared.slo, declared.serving, "there is nothing to tell"
    told = scrape(url)
    if is_of_endpoint(told):
        require(serving is not None, f"{url} is an endpoint's, and {declared.name} has no serving: {nothing}")
        return [promise.kept(told) for promise in promises_of_serving(serving or Serving())]
    require(slo is not None, f"{url} is a run's, and {declared.name} has no slo: {nothing}")
    return of_metrics(slo or Objectives(), told)


def watch_budgets(declared: Project, url: str, alert_to: Sequence[str] | None, every: str) -> None:
    """Look at what objectives are found to be, until Ctrl-C."""
    import logging

    from models.project.sections import parse_duration
    from pipelines.jobs.slo_watch import watch
    from pipelines.prechecks import check_duration
    from pipelines.process import told_to_stop

    check_duration("--every", every)
    logging.getLogger("headrace").setLevel(logging.INFO)
    with told_to_stop() as stopped:
        seconds = parse_duration(every) / 1e6
        watch(declared, lambda: read_metrics(declared, url), alert_to or ("log",), seconds, stopped)


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
