"""`headrace takeover`: from an event time on, events are scored by the run of another feature set."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.cli.errors import clear_errors
from pipelines.cli.parameters import ProjectFolder, Registry, Releases
from pipelines.cli.release import Approver, At, Author, ChangeId, Reason, micros_of_option, open_desk, print_newest


def takeover(
    project: ProjectFolder,
    reason: Reason,
    version: Annotated[
        str, typer.Argument(help="Version or alias of the bundle that is to be champion.")
    ] = "challenger",
    journal: Annotated[str | None, typer.Option(help="The journal of the stream that takes over.")] = None,
    history: Annotated[
        list[str] | None,
        typer.Option(help="Files, or the state, that the run began with; of a batch its sources. May be repeated."),
    ] = None,
    cold: Annotated[bool, typer.Option("--cold", help="Hand over to a run that is not warm, too.")] = False,
    from_: Annotated[
        str | None,
        typer.Option("--from", help="Event time (UTC) from which it scores; as soon as can be, if not given."),
    ] = None,
    at: At = None,
    author: Author = None,
    approver: Approver = None,
    change_id: ChangeId = None,
    registry: Registry = None,
    releases: Releases = None,
) -> None:
    """Hand events over to a run of other features once it is warm: it scores from a time on, the other stands by."""
    with clear_errors():
        declared, desk = open_desk(project, registry, releases, at, "take over")

        from pipelines.jobs import releasing
        from pipelines.jobs.takeover import Evidence, take_over

        told = releasing.told_by(reason, author, approver, change_id)
        evidence, from_us = Evidence(journal, tuple(history or ())), micros_of_option("--from", from_)
        log, lacking = take_over(desk, releasing.changes(desk, version), told, evidence, from_us, cold)
        for each in lacking:
            typer.echo(f"not warm: {each}", err=True)
        print_newest(declared, desk, log)
        if moved := releasing.move_alias(desk, log):
            typer.echo(f"{declared.name}: version {moved.version} is champion")
