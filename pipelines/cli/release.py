"""`headrace release`, `promote`, `rollback` and `releases`: which model scores from when on, and the log of it."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.cli.errors import clear_errors
from pipelines.cli.parameters import ProjectFolder, Registry, Releases

if TYPE_CHECKING:
    from models.project.declarations import Project
    from models.rollout.records import ReleaseLog
    from pipelines.jobs.releasing import Desk

Reason = Annotated[str, typer.Option(help="Why, in a line.")]
At = Annotated[
    str | None, typer.Option(help="The event time (UTC) at which it is made, of a log whose clock is event time.")
]
Author = Annotated[str | None, typer.Option(help="Who makes it; the user of this machine, if not given.")]
Approver = Annotated[str | None, typer.Option(help="Who agreed.")]
ChangeId = Annotated[str | None, typer.Option(help="The change that it is part of.")]


def release(
    project: ProjectFolder,
    version: Annotated[str, typer.Argument(help="Version or alias of the bundle that is to be champion or canary.")],
    reason: Reason,
    from_: Annotated[
        str | None,
        typer.Option("--from", help="Event time (UTC) from which it holds; as soon as can be, if not given."),
    ] = None,
    canary: Annotated[
        str | None, typer.Option(help="The version scores this share of an entity's keys, such as 5%.")
    ] = None,
    shadow: Annotated[
        list[str] | None,
        typer.Option(help="Version that scores every event beside; may be repeated. none ends all shadows."),
    ] = None,
    fallback: Annotated[
        str | None, typer.Option(help="Version that scores in place of one that can't be used where it lands, or none.")
    ] = None,
    holdout: Annotated[
        str | None, typer.Option(help="Share of an entity's keys that pass whatever their score, or none.")
    ] = None,
    threshold: Annotated[
        list[str] | None,
        typer.Option(help="Lowest score of a decision, such as block=0.9; may be repeated. none: those declared."),
    ] = None,
    entity: Annotated[
        str | None, typer.Option(help="By whose keys shares are taken; needed where the project has several.")
    ] = None,
    at: At = None,
    author: Author = None,
    approver: Approver = None,
    change_id: ChangeId = None,
    registry: Registry = None,
    releases: Releases = None,
) -> None:
    """Release a bundle: from a time on it is champion, or has a canary's share. What is not said stays as it is."""
    with clear_errors():
        declared, desk = open_desk(project, registry, releases, at, "release")

        from pipelines.jobs import releasing

        told = releasing.told_by(reason, author, approver, change_id)
        shares = (canary, tuple(shadow or ()), holdout, entity, fallback)
        change = releasing.changes(desk, version, *shares, tuple(threshold or ()))
        log = releasing.release(desk, change, told, micros_of_option("--from", from_))
        if log is None:
            typer.echo(f"{declared.name}: nothing to release: all of that is in effect by then")
            return
        print_newest(declared, desk, log)
        if releasing.move_alias(desk, log) is None:
            typer.echo(
                "the registry's champion stays as it is, as this is for later: runs without --releases take that"
            )


def promote(
    project: ProjectFolder,
    version: Annotated[str, typer.Argument(help="Version or alias of the bundle.")] = "challenger",
    reason: Reason = "promoted",
    at: At = None,
    author: Author = None,
    approver: Approver = None,
    change_id: ChangeId = None,
    registry: Registry = None,
    releases: Releases = None,
) -> None:
    """Make a bundle champion, in the registry and in the release log; promoting an earlier version rolls back."""
    with clear_errors():
        from models.predictors.registry import CHAMPION, find, set_alias
        from pipelines.prechecks import find_version
        from pipelines.release_store import place_of_log

        declared = _load(project, "promote")
        uri = find_version(project, declared.name, version, registry)
        number = find(declared.name, version, uri).version
        if place_of_log(uri, releases) is None:
            typer.echo("no release log: --releases names one, for a registry that is a server")
        else:
            from pipelines.jobs import releasing

            _, desk = open_desk(project, registry, releases, at, "promote")
            change = releasing.changes(desk, str(number))
            log = releasing.release(desk, change, releasing.told_by(reason, author, approver, change_id))
            if log is not None:
                print_newest(declared, desk, log)
        set_alias(declared.name, CHAMPION, number, uri)
        typer.echo(f"{declared.name}: version {number} is champion")


def rollback(
    project: ProjectFolder,
    reason: Reason,
    at: At = None,
    author: Author = None,
    approver: Approver = None,
    change_id: ChangeId = None,
    registry: Registry = None,
    releases: Releases = None,
) -> None:
    """Go back to the state before the one in effect: without its canary, or with the champion before."""
    with clear_errors():
        declared, desk = open_desk(project, registry, releases, at, "roll back")

        from pipelines.jobs import releasing

        log = releasing.roll_back(desk, releasing.told_by(reason, author, approver, change_id))
        print_newest(declared, desk, log)
        if version := releasing.move_alias(desk, log):
            typer.echo(f"{declared.name}: version {version.version} is champion")


def releases(
    project: ProjectFolder,
    json_: Annotated[bool, typer.Option("--json", help="Print all of the log as JSON.")] = False,
    export: Annotated[
        pathlib.Path | None, typer.Option(help="Write the log to this file of JSON lines, which --releases reads.")
    ] = None,
    run: Annotated[
        str | None, typer.Option(help="Folder of a run over files: show what the circuit breaker did in it.")
    ] = None,
    registry: Registry = None,
    releases: Releases = None,
) -> None:
    """List the release log of a project, each record checked against the one before."""
    with clear_errors():
        from pipelines.prechecks import registry_of, require
        from pipelines.release_store import export as write
        from pipelines.release_store import read_log

        declared = _load(project, "release")
        require(not (json_ and export), "say --json or --export, not both")
        require(not (run and export), "--run shows what a run did, and no log that is exported has that: leave one out")
        place = place_of(registry_of(project, registry), releases)
        log = read_log(place, declared)
        if log is None:
            typer.echo(f"{declared.name}: no release yet: runs take the registry's champion")
            return
        if export is not None:
            write(log, declared.name, export)
            typer.echo(f"{len(log.records)} records in {export}, {_intact(log)}")
            return

        from pipelines.circuits import read_circuits
        from pipelines.cli.releases_shown import as_json, log_lines
        from pipelines.results import circuits_of_run

        versions = versions_of(project, declared.name, registry)
        noted = read_circuits(place, declared.name) if run is None else circuits_of_run(run, declared.name)
        if json_:
            typer.echo(as_json(declared.name, log, versions, noted))
            return
        typer.echo("\n".join(log_lines(log, versions, noted)))
        typer.echo(f"{len(log.records)} records by the clock {log.clock}, {_intact(log)}")


def _load(project: pathlib.Path, what: str) -> Project:
    from models.project.project import load_project
    from pipelines.prechecks import require_model

    declared = load_project(project)
    require_model(declared, what)
    return declared


def open_desk(
    project: pathlib.Path, registry: str | None, place: str | None, at: str | None, what: str
) -> tuple[Project, Desk]:
    """The project, and the desk where its releases are made, checked."""
    declared, at_us = _load(project, what), micros_of_option("--at", at)

    from pipelines.jobs.releasing import Desk
    from pipelines.prechecks import find_registry

    uri = find_registry(project, registry)
    desk = Desk(declared, project, uri, place_of(uri, place), at_us)
    desk.check()
    return declared, desk


def place_of(registry: str, given: str | None) -> str:
    """Where the release log is; UsageError if nothing tells."""
    from pipelines.prechecks import require
    from pipelines.release_store import place_of_log

    place = place_of_log(registry, given)
    require(place is not None, "the registry is a server: say with --releases which database has the release log")
    return str(place)


def micros_of_option(option: str, text: str | None) -> int | None:
    """The time that an option names, microseconds since 1970 UTC."""
    from models.codecs.times import micros_of
    from pipelines.prechecks import parse_time

    time = parse_time(option, text)
    return None if time is None else micros_of(time)


def versions_of(project: pathlib.Path, name: str, registry: str | None) -> list[Any]:
    """The registered versions; of a log that was taken elsewhere, without its registry, none."""
    from models.predictors.registry import RegistryError, list_versions
    from pipelines.prechecks import registry_of

    try:
        return list_versions(name, registry_of(project, registry))
    except RegistryError:
        return []


def print_newest(declared: Project, desk: Desk, log: ReleaseLog) -> None:
    """Print what the newest record says."""
    from models.predictors.registry import list_versions
    from pipelines.cli.releases_shown import newest_lines

    typer.echo("\n".join(newest_lines(declared.name, log, list_versions(declared.name, desk.registry))))


def _intact(log: ReleaseLog) -> str:
    from models.rollout.records import digest

    return f"each follows from the one before; the last one's hash is {digest(log.records[-1])}"
