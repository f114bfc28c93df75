"""`headrace schema …`: propose a schema from data, compare two, and keep versions of a project's."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import io
import json
import os
import pathlib
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.cli.errors import clear_errors

if TYPE_CHECKING:
    from models.project.contract import Contract
    from models.schemas.sampled import SampledColumns

MAX_FILES = 64  # that a sample is taken of
MAX_ROWS = 1_000_000
MAX_BYTES = 256 << 20  # of rows, as they are in memory
CURRENT = "current"

app = typer.Typer(
    help="Propose a schema from data, compare schemas, keep versions.", no_args_is_help=True, rich_markup_mode=None
)

ProjectFolder = Annotated[pathlib.Path, typer.Argument(metavar="PROJECT", help="Folder of a use case's declarations.")]


@app.command()
def infer(
    project: ProjectFolder,
    source: Annotated[
        list[str], typer.Option("--source", help="Path or glob of event files; may stand more than once.")
    ],
    source_format: Annotated[
        str | None, typer.Option(help="parquet, csv, json or avro, where a file's name does not tell.")
    ] = None,
    rows: Annotated[
        int, typer.Option(min=1, max=MAX_ROWS, help="Rows to read at most, spread over the files.")
    ] = 100_000,
    output: Annotated[pathlib.Path | None, typer.Option(help="File to write; printed, if not given.")] = None,
    force: Annotated[bool, typer.Option(help="Write over a file that is there.")] = False,
) -> None:
    """Propose a schema for the events of files, with TFDV; project.yaml says which field is the event time."""
    with clear_errors():
        from models.schemas.needs import read_declarations
        from pipelines.prechecks import require

        require(
            source_format in (None, "parquet", "csv", "json", "avro"),
            f"--source-format is parquet, csv, json or avro, not {source_format}",
        )
        require(output is None or force or not output.exists(), f"{output}: is there; --force writes over it")
        declared = read_declarations(project)
        sample = sample_events(source, source_format, rows)

        from pipelines.terminal import working

        with working("proposing a schema"):
            prepare_tfdv()
            from models.schemas.propose import propose_schema

            columns, unusable = sample.columns.columns(), sample.columns.unusable()
            proposal = propose_schema(columns, unusable, declared)
        require(len(proposal.schema.feature) > 0, "no field can be declared:\n" + "\n".join(proposal.notes))
        text = proposal.text(f"Proposed by `headrace schema infer` from {sample.describe()}.")
        for note in (sample.describe(), *proposal.notes):
            typer.echo(note, err=True)
        if output is None:
            typer.echo(text.decode(), nl=False)
        else:
            _write(output, text, force)
            typer.echo(f"{output}: written; next: headrace check {project}", err=True)


@app.command()
def diff(
    old: Annotated[str, typer.Argument(metavar="OLD", help="A schema's file, or a version's number with --project.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="The same, or `current`: the project's schema file.")],
    project: Annotated[
        pathlib.Path | None, typer.Option(help="Project whose declarations say which fields are needed.")
    ] = None,
    format: Annotated[str, typer.Option(help="text or json.")] = "text",
) -> None:
    """Say what changed and whether it is compatible; the exit code is 0 if so, 1 if not, 2 if it can't be told.

    Compatible: events that were valid still are, and what a model that was trained before reads is still there.
    """
    with clear_errors(code=2):
        from models.project.project import ProjectError
        from models.schemas import diff_schemas, field_needs, is_breaking, read_declarations, render_changes
        from pipelines.prechecks import require

        require(format in ("text", "json"), f"--format is text or json, not {format}")
        declared = read_declarations(project) if project else None
        schema_file = declared.schema_file if declared else None
        before, after = (_find_schema(name, project, schema_file) for name in (old, new))
        digests = [_digest(before), _digest(after)]
        try:
            needs = field_needs(declared) if declared else None
        except ValueError as error:
            raise ProjectError(f"{project}: {error}") from None
        changes = diff_schemas(before, after, needs)
        breaking = is_breaking(changes)
        if format == "json":
            report = {
                "compatible": not breaking,
                "old": {"name": old, "digest": digests[0]},
                "new": {"name": new, "digest": digests[1]},
                "changes": [dataclasses.asdict(change) for change in changes],
            }
            typer.echo(json.dumps(report, indent=1))
        else:
            if changes:
                typer.echo(render_changes(changes))
            said = "NOT COMPATIBLE" if breaking else "compatible" if digests[0] != digests[1] else "the same"
            typer.echo(f"{said}: {old} ({digests[0][:16]}) -> {new} ({digests[1][:16]})")
        if breaking:
            raise typer.Exit(1)


@app.command()
def register(
    project: ProjectFolder,
    allow_breaking: Annotated[bool, typer.Option(help="Register a schema that is not compatible, too.")] = False,
) -> None:
    """Keep the project's schema as the next version in its folder `schemas`, if it is compatible with the last."""
    with clear_errors():
        from models.project.project import load_project
        from models.schemas import field_needs, list_versions, render_changes
        from models.schemas import register as register_version

        declared = load_project(project)
        known = len(list_versions(project))
        version, changes = register_version(project, declared.contract, field_needs(declared), allow_breaking)
        if changes:
            typer.echo(render_changes(changes))
        said = "registered" if version.number > known else "was registered before"
        typer.echo(f"{declared.name}: version {version.number}, {version.short}, {said}")


@app.command("list")
def list_command(project: ProjectFolder) -> None:
    """List the versions of the project's schema, with the digest of each."""
    with clear_errors():
        from models.schemas import list_versions, read_declarations

        declared = read_declarations(project)
        current = _digest(_find_schema(CURRENT, project, declared.schema_file))
        versions = list_versions(project)
        for version in versions:
            mark = f"  {declared.schema_file}" if version.digest == current else ""
            typer.echo(f"version {version.number}  {version.short}  {len(version.contract.fields)} fields{mark}")
        if all(version.digest != current for version in versions):
            typer.echo(f"not registered  {current[:16]}  {declared.schema_file}")


@dataclasses.dataclass(frozen=True)
class Sample:
    """Rows of some files, and how they were chosen."""

    columns: SampledColumns
    files_read: int
    files: int
    parts_read: int
    cut: bool

    def describe(self) -> str:
        """How much was read, and whether that is all."""
        files = f"{self.files:,} file{'s' if self.files != 1 else ''}"
        text = f"all {self.columns.rows:,} rows of {files}"
        if self.cut:
            files = files if self.files_read == self.files else f"{self.files_read} of {files}"
            text = f"{self.columns.rows:,} rows, the first ones of {self.parts_read} parts of {files}"
        return f"{text}; {self.columns.broken:,} rows can't be read" if self.columns.broken else text


def sample_events(source: Sequence[str], source_format: str | None, rows: int) -> Sample:
    """Read a sample and show how far that is; UsageError where there are no files, or no event in them."""
    from pipelines.prechecks import require, require_files
    from pipelines.terminal import working

    require_files(source)
    with working("reading") as shown:
        sample = read_sample(source, source_format, rows, shown)
    require(sample.columns.rows > 0, f"no event could be read from {', '.join(source)}")
    return sample


def read_sample(
    patterns: Sequence[str], kind: str | None, max_rows: int, shown: collections.Counter[str] | None = None
) -> Sample:
    """At most `max_rows` rows of the files that match: the first of each part, the same for the same files.

    Of many files, `MAX_FILES` are read, spread over the sorted names, with the first and the last one. A part that
    has fewer rows than its share leaves them to those that follow.

    Raises:
        SourceError: if a pattern matches nothing, or a file's name does not tell its format.
    """
    from models.schemas.sampled import SampledColumns
    from pipelines.sources.files import read_split, split_file
    from pipelines.sources.listing import format_of, match_files

    paths = sorted({path for pattern in patterns for path in match_files(pattern)})
    chosen = paths
    if len(paths) > MAX_FILES:
        chosen = [paths[round(i * (len(paths) - 1) / (MAX_FILES - 1))] for i in range(MAX_FILES)]
    splits = [split for path in chosen for split in split_file(path, kind or format_of(path))]
    columns = SampledColumns()
    cut, parts, spent = len(chosen) < len(paths), 0, 0
    for i, split in enumerate(splits):
        share = -(-(max_rows - columns.rows) // (len(splits) - i))
        parts += share > 0
        for batch in read_split(split):
            part = batch.slice(0, share)
            cut |= part.num_rows < batch.num_rows
            spent += part.nbytes
            if share == 0 or spent > MAX_BYTES:
                cut = True
                break
            _add(columns, part)
            if shown is not None:
                shown["read"] += part.num_rows
            share -= part.num_rows
    return Sample(columns, len(chosen), len(paths), parts, cut)


def _add(columns: SampledColumns, batch: Any) -> None:
    from models.batches import column, without
    from models.record import COLUMNS, FORMAT, PAYLOAD, POSITION

    kind, declared = batch.schema.metadata[FORMAT], batch.schema.metadata.get(COLUMNS)
    if kind == b"json":
        columns.add_json(column(batch, PAYLOAD).to_pylist())
    elif kind == b"csv":
        columns.add_csv(column(batch, PAYLOAD), json.loads(declared))
    elif kind == b"unreadable":
        columns.broken += batch.num_rows
    else:
        rows = without(batch, POSITION)
        columns.add_typed(rows.schema.names, rows.columns)


def _find_schema(name: str, project: pathlib.Path | None, schema_file: str | None) -> Contract:
    """A file's schema; or, of a project, a version's by its number, or the present one."""
    from models.schemas import VersionError, list_versions, read_schema

    if project is None or schema_file is None or not (name == CURRENT or name.isdigit()):
        return read_schema(pathlib.Path(name))
    if name == CURRENT:
        return read_schema(project / schema_file)
    versions = list_versions(project)
    if not 0 < int(name[:9]) <= len(versions):
        raise VersionError(f"{project}: has no version {name[:9]} of its schema; it has {len(versions)}")
    return versions[int(name[:9]) - 1].contract


def _digest(contract: Contract) -> str:
    from models.schemas import schema_digest

    return schema_digest(contract.text)


def _write(path: pathlib.Path, content: bytes, force: bool) -> None:
    """Write a file whole or not at all, over one that is there only with `force`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        file.write(content)
    try:
        os.chmod(file.name, 0o644)
        if force:
            os.replace(file.name, path)
        else:
            os.link(file.name, path)
    finally:
        pathlib.Path(file.name).unlink(missing_ok=True)


def prepare_tfdv() -> None:
    """Import TFDV without what it and TensorFlow say of things that they do not find and nobody here needs."""
    from pipelines.prechecks import UsageError

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            from models.quality.backend import import_tfdv

            import_tfdv()
    except ImportError as error:
        raise UsageError(
            f"to infer a schema needs tensorflow-data-validation, which can't be imported: {error}"
        ) from None
