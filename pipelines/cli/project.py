"""`headrace check`, `init` and `sample`: a project, and events to try it with."""

from __future__ import annotations

import pathlib
import re
import shutil
from typing import Annotated, Any

import typer

from models.errors import HeadraceError
from models.project.declarations import Project
from models.project.project import PROJECT_FILE, check_project
from pipelines.cli.errors import clear_errors
from pipelines.cli.parameters import ProjectFolder, Registry
from pipelines.prechecks import find_registry, require

FORMATS = ("parquet", "csv", "jsonl", "avro")


def check(project: ProjectFolder, registry: Registry = None) -> None:
    """List all faults of a project, and say whether its champion still fits it; nothing is run."""
    declared, faults = check_project(project)
    for fault in faults:
        typer.echo(str(fault), err=True)
    if faults or declared is None:
        raise typer.Exit(1)
    features = len(declared.feature_names)
    typer.echo(f"{project / PROJECT_FILE}: no fault; {len(declared.contract.fields)} fields, {features} features")
    if (note := _champions_fault(declared, project, registry)) is not None:
        typer.echo(note, err=True)


def _champions_fault(declared: Project, folder: pathlib.Path, registry: str | None) -> str | None:
    """Why the champion can't score for the project as it is; None if it can, or there is none yet."""
    try:
        uri = find_registry(folder, registry)
    except HeadraceError:
        return None
    from pipelines.jobs.fitting import load_bundle

    try:
        load_bundle(declared, folder, "champion", uri)
    except HeadraceError as error:
        return str(error)
    return None


def init(directory: Annotated[pathlib.Path, typer.Argument(help="Folder to make.")]) -> None:
    """Make a new project that runs: card fraud, to be changed into your own."""
    with clear_errors():
        name = re.sub(r"\W+", "_", directory.resolve().name.lower()).strip("_")
        require(
            re.fullmatch(r"[a-z][a-z0-9_]*", name) is not None,
            f"{directory}: a project's name starts with a letter",
        )
        require(not directory.exists() or not any(directory.iterdir()), f"{directory}: is there and not empty")
        template = pathlib.Path(__file__).parent / "template"
        directory.mkdir(parents=True, exist_ok=True)
        for file in sorted(path for path in template.iterdir() if path.is_file()):
            shutil.copyfile(file, directory / file.name)
        path = directory / PROJECT_FILE
        path.write_text(
            re.sub(r"(?m)^name: .*$", f"name: {name}", path.read_text()).replace("examples/card_fraud", str(directory))
        )
        typer.echo(f"{directory}: made. Next: headrace sample {directory}/data --rows 100000")


def sample(
    directory: Annotated[pathlib.Path, typer.Argument(help="Folder to write to.")],
    rows: Annotated[int, typer.Option(min=0, help="Transactions to make.")] = 300_000,
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives other transactions.")] = 0,
    days: Annotated[int, typer.Option(min=1, max=3650, help="Days that they spread over, a file each.")] = 75,
    format: Annotated[str, typer.Option(help="parquet, csv, jsonl or avro.")] = "parquet",
) -> None:
    """Write card transactions with three patterns of fraud, the same for the same seed."""
    with clear_errors():
        require(
            format in FORMATS,
            f"--format is parquet, csv, jsonl or avro, not {format}",
        )
        write_events(directory, rows, seed, days, format)


def write_events(directory: pathlib.Path, rows: int, seed: int, days: int, format: Any) -> None:
    """Make card transactions, and say how many and where."""
    from models.sample import write_sample
    from pipelines.cli.display import console, working

    with working(f"writing {rows:,} transactions") as done:
        paths = write_sample(directory, rows, seed, days, format=format, on_rows=lambda n: done.update(written=n))
    console.print(f"{rows:,} transactions of {days} days in {directory} ({len(paths)} files)")
