"""`headrace journal …`: check whether a stream's journal is whole, and save what is sound of one that is not."""

from __future__ import annotations

import contextlib
import pathlib
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli.errors import clear_errors

if TYPE_CHECKING:
    from pipelines.sources.journal_check import Segment

app = typer.Typer(
    help="Check a stream's journal, and save what is sound of a damaged one.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Folder = Annotated[str, typer.Argument(metavar="FOLDER", help="A journal, on any filesystem that Beam knows.")]


@app.command()
def check(folder: Folder) -> None:
    """List the segments of a journal with their records, and all damage; the exit code is 1 if there is any."""
    with clear_errors():
        from pipelines.sources.journal import JournalError
        from pipelines.sources.journal_check import examine

        found = examine(folder.rstrip("/") or "/", thorough=True, need_marks=True)
        if not found.segments and not found.files:
            raise JournalError(f"{folder}: has no journal")
        sound = 0
        for segment in found.segments:
            records, published = _look_into(segment, found.number)
            sound += records
            kind = "" if segment.journal is not None else ", no checksums"
            typer.echo(f"{segment.path}: from record {segment.first_row:,}: {records:,} sound{published}{kind}")
        marks = found.marks
        emitted = f", records up to {int(marks.rows[-1]):,} were emitted" if len(marks.rows) else ""
        typer.echo(f"{sound:,} sound records in {len(found.segments):,} segments{emitted}")
        for fault in found.faults:
            typer.echo(f"headrace: {fault}", err=True)
        if found.faults:
            raise typer.Exit(1)
        typer.echo("no fault")


@app.command()
def recover(
    folder: Folder,
    to: Annotated[pathlib.Path, typer.Option(help="Folder to make, of the records that are sound.")],
) -> None:
    """Copy what is sound of a journal into a new one, from which a stream or a batch goes on; FOLDER stays as it is."""
    with clear_errors():
        from pipelines.sources.journal_recovery import recover as recover_journal

        done = recover_journal(folder.rstrip("/") or "/", to)
        for fault in done.faults:
            typer.echo(f"headrace: {fault}", err=True)
        for first, last in done.lost:
            typer.echo(f"lost: {last - first + 1:,} records, {first} to {last}")
        lost = sum(last - first + 1 for first, last in done.lost)
        typer.echo(
            f"{done.records:,} records and {done.marks:,} marks are in {to}; {lost:,} records are known to be lost"
        )


def _look_into(segment: Segment, journal: int | None) -> tuple[int, str]:
    """How many records of a segment are sound, and from when to when they were published."""
    import pyarrow.compute as pc

    from models.batches import column
    from models.record import PUBLISHED
    from pipelines.sources.frames import Expected, Fault
    from pipelines.sources.journal import batches_of, open_file, pieces_of

    records, spans = 0, []
    with contextlib.closing(open_file(segment.path)) as file:
        for piece in pieces_of(file, segment.path, Expected(segment.first_row, journal=journal)):
            if not isinstance(piece, Fault):
                records += piece.rows
                spans += [pc.min_max(column(batch, PUBLISHED)).as_py() for batch in batches_of(piece, segment.path)]
    times = [time for span in spans for time in (span["min"], span["max"]) if time is not None]
    return records, f", published {min(times):%Y-%m-%dT%H:%M:%S} to {max(times):%Y-%m-%dT%H:%M:%S}" if times else ""
