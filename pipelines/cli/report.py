"""`headrace report`: a run as one HTML page."""

from __future__ import annotations

import pathlib
from typing import Annotated

import typer

from pipelines.cli.errors import clear_errors
from pipelines.cli.parameters import Labels, ProjectFolder


def report(
    project: ProjectFolder,
    run: Annotated[str, typer.Option(help="Folder that a run's scores went to.")],
    labels: Labels = None,
    output: Annotated[
        pathlib.Path | None, typer.Option(help="HTML file to write; report.html in the run's folder, if not given.")
    ] = None,
) -> None:
    """Write what a run was like as one HTML file: outcomes, decisions, performance, drift, distributions, latency."""
    with clear_errors():
        from models.project.project import load_project
        from pipelines.prechecks import require, require_file_system, require_model

        declared = load_project(project)
        require_model(declared, "report on")
        require_file_system(run)
        require("://" in run or pathlib.Path(run).is_dir(), f"{run}: no such folder")

        from pipelines.report import report as write_report
        from pipelines.terminal import working

        require(declared.label_type is not None or not labels, "--labels are for a project that declares label.events")
        with working("writing the report"):
            written = write_report(declared, run, output, labels or ())
        typer.echo(f"report in {written}")
