"""`headrace check`, `init` and `sample`: a project, and events to try it with."""

from __future__ import annotations

import pathlib
import re
import shlex
import shutil
from typing import TYPE_CHECKING, Annotated, Any

import typer

from models.errors import HeadraceError
from pipelines.cli.errors import clear_errors
from pipelines.cli.parameters import ProjectFolder, Registry

if TYPE_CHECKING:
    from models.project.declarations import Project
    from models.schemas.guess import Roles

FORMATS = ("parquet", "csv", "jsonl", "avro")


def check(project: ProjectFolder, registry: Registry = None) -> None:
    """List all faults of a project, and say whether its champion still fits it; nothing is run."""
    from models.project.project import PROJECT_FILE, check_project

    declared, faults = check_project(project)
    for fault in faults:
        typer.echo(str(fault), err=True)
    if faults or declared is None:
        raise typer.Exit(1)
    features = len(declared.feature_names)
    typer.echo(f"{project / PROJECT_FILE}: no fault; {len(declared.contract.fields)} fields, {features} features")
    if declared.has_model and (note := _champions_fault(declared, project, registry)) is not None:
        typer.echo(note, err=True)


def _champions_fault(declared: Project, folder: pathlib.Path, registry: str | None) -> str | None:
    """Why the champion can't score for the project as it is; None if it can, or there is none yet."""
    from pipelines.jobs.fitting import load_bundle
    from pipelines.prechecks import find_registry

    try:
        uri = find_registry(folder, registry)
    except HeadraceError:
        return None

    try:
        load_bundle(declared, folder, "champion", uri)
    except HeadraceError as error:
        return str(error)
    return None


def init(
    directory: Annotated[pathlib.Path, typer.Argument(help="Folder to make.")],
    source: Annotated[
        list[str] | None,
        typer.Option("--from", help="Path or glob of your own event files, to make a project for; may stand often."),
    ] = None,
    id: Annotated[str | None, typer.Option(help="With --from: the field that tells events apart.")] = None,
    time: Annotated[str | None, typer.Option(help="With --from: the field of the event's time.")] = None,
    label: Annotated[str | None, typer.Option(help="With --from: the field that is to be predicted.")] = None,
    entity: Annotated[
        list[str] | None, typer.Option(help="With --from: a field of keys to compute windows over; may stand often.")
    ] = None,
    rows: Annotated[int, typer.Option(min=100, max=1_000_000, help="With --from: rows to read at most.")] = 100_000,
) -> None:
    """Make a new project that runs: for your own data with --from, else card fraud, to be changed into your own."""
    with clear_errors():
        from pipelines.prechecks import require

        name = re.sub(r"\W+", "_", directory.resolve().name.lower()).strip("_")
        require(
            re.fullmatch(r"[a-z][a-z0-9_]*", name) is not None,
            f"{directory}: a project's name starts with a letter",
        )
        require(not directory.exists() or not any(directory.iterdir()), f"{directory}: is there and not empty")
        if source:
            from models.schemas.guess import Roles

            _init_from(directory, name, source, Roles(id, time, label, tuple(entity or ())), rows)
            return
        require(not (id or time or label or entity), "--id, --time, --label and --entity go with --from")
        _init_example(directory, name)


def _init_example(directory: pathlib.Path, name: str) -> None:
    from models.project.project import PROJECT_FILE

    template = pathlib.Path(__file__).parent / "template"
    directory.mkdir(parents=True, exist_ok=True)
    for file in sorted(path for path in template.iterdir() if path.is_file()):
        shutil.copyfile(file, directory / file.name)
    path = directory / PROJECT_FILE
    path.write_text(
        re.sub(r"(?m)^name: .*$", f"name: {name}", path.read_text()).replace("examples/card_fraud", str(directory))
    )
    typer.echo(f"{directory}: made. Next: headrace sample {directory}/data --rows 100000")


def _init_from(directory: pathlib.Path, name: str, source: list[str], told: Roles, rows: int) -> None:
    from models.project.project import PROJECT_FILE
    from pipelines.cli.schema import prepare_tfdv, sample_events
    from pipelines.terminal import working

    sample = sample_events(source, None, rows)
    with working("guessing"):
        prepare_tfdv()
        from models.schemas.guess import render
        from models.schemas.made import make_project

        made = make_project(name, sample.columns, told)
    origin = f"Made by `headrace init --from`: {sample.describe()}"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "schema.pbtxt").write_bytes(made.schema.text(origin))
    (directory / PROJECT_FILE).write_text("\n".join([*render(made.guess, origin), ""]))
    typer.echo(sample.describe())
    for note in (*made.guess.notes, *made.schema.notes):
        typer.echo(f"- {note}")
    next_step = "train" if "model" in made.guess.declarations else "run"
    shown_source = " ".join(f"--source {shlex.quote(path)}" for path in source)
    sink = "" if next_step == "train" else f" --sink {directory}/features"
    typer.echo(f"{directory}: made. Look through it, then: headrace {next_step} {directory} {shown_source}{sink}")


def sample(
    directory: Annotated[pathlib.Path, typer.Argument(help="Folder to write to.")],
    rows: Annotated[int, typer.Option(min=0, help="Transactions to make.")] = 300_000,
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives other transactions.")] = 0,
    days: Annotated[int, typer.Option(min=1, max=3650, help="Days that they spread over, a file each.")] = 75,
    format: Annotated[str, typer.Option(help="parquet, csv, jsonl or avro.")] = "parquet",
) -> None:
    """Write card transactions with three patterns of fraud, the same for the same seed."""
    with clear_errors():
        from pipelines.prechecks import require

        require(
            format in FORMATS,
            f"--format is parquet, csv, jsonl or avro, not {format}",
        )
        write_events(directory, rows, seed, days, format)


def write_events(directory: pathlib.Path, rows: int, seed: int, days: int, format: Any) -> None:
    """Make card transactions, and say how many and where."""
    from models.sample import write_sample
    from pipelines.terminal import console, working

    with working(f"writing {rows:,} transactions") as done:
        paths = write_sample(directory, rows, seed, days, format=format, on_rows=lambda n: done.update(written=n))
    console.print(f"{rows:,} transactions of {days} days in {directory} ({len(paths)} files)")
