"""`headrace rollout`: what to do with a challenger, and why."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli.errors import clear_errors
from pipelines.cli.parameters import Labels, ProjectFolder, Registry, Releases
from pipelines.cli.release import Approver, At, Author, ChangeId, open_desk, place_of, print_newest, versions_of

if TYPE_CHECKING:
    from models.predictors.versions import Version
    from models.project.declarations import Project
    from models.rollout.records import ReleaseLog
    from models.rollout.rules import Decided
    from pipelines.jobs.releasing import Desk

EXIT_CODES = {"promote": 0, "hold": 3, "roll back": 4}


def rollout(
    project: ProjectFolder,
    run: Annotated[
        str | None, typer.Option(help="Folder that a run's scores, and those of its shadows, went to.")
    ] = None,
    scores: Annotated[
        list[str] | None,
        typer.Option(help="In its place: path or glob of score rows, Parquet or JSON lines of a topic; may repeat."),
    ] = None,
    shadows: Annotated[
        list[str] | None, typer.Option(help="With --scores: path or glob of the rows of shadows; may be repeated.")
    ] = None,
    labels: Labels = None,
    challenger: Annotated[
        str | None,
        typer.Option(help="Version, alias or bundle; if not given, the canary, or else the one shadow there is."),
    ] = None,
    json_: Annotated[pathlib.Path | None, typer.Option("--json", help="JSON file to write.")] = None,
    html: Annotated[pathlib.Path | None, typer.Option(help="HTML file to write.")] = None,
    apply: Annotated[
        bool, typer.Option("--apply", help="Release what is said: promote the challenger, or end the canary or shadow.")
    ] = False,
    at: At = None,
    author: Author = None,
    approver: Approver = None,
    change_id: ChangeId = None,
    registry: Registry = None,
    releases: Releases = None,
) -> None:
    """Compare a canary or shadow with the champion, and say by the declared rules: promote, hold or roll back.

    The exit code is 0 for promote, 3 for hold, 4 for roll back, and 1 for an error.
    """
    with clear_errors():
        from models.project.project import load_project
        from pipelines.prechecks import require, require_model

        declared = load_project(project)
        require_model(declared, "compare")
        _check_rows(run, scores, shadows)
        require(declared.label_type is not None or not labels, "--labels are for a project that declares label.events")
        of_apply = "--at, --author, --approver and --change-id are of --apply"
        require(apply or not (at or author or approver or change_id), of_apply)
        desk = open_desk(project, registry, releases, at, "compare")[1] if apply else None
        log = _read_log(project, declared, registry, releases)

        from pipelines.cli.rollout_shown import print_decided
        from pipelines.jobs.rollout import decide, files_of, files_of_run
        from pipelines.terminal import working

        if json_ or html:
            from pipelines.report.rollout import check_outputs

            check_outputs(json_, html)
        registered = versions_of(project, declared.name, registry)
        versions = {version.bundle_id: version.version for version in registered}
        bundle = _bundle_of(challenger, registered, log)
        files = files_of_run(run) if run is not None else (files_of(scores or []), files_of(shadows or []))
        with working("comparing"):
            decided = decide(declared, log, *files, labels or (), bundle)
        print_decided(decided, versions)
        if json_ or html:
            from pipelines.report.rollout import write_reports

            write_reports(decided, versions, json_, html)
            typer.echo(f"report in {' and '.join(str(path) for path in (json_, html) if path)}")
        if desk is not None:
            _apply(declared, decided, desk, author, approver, change_id)
    raise typer.Exit(EXIT_CODES[decided.verdict])


def _check_rows(run: str | None, scores: list[str] | None, shadows: list[str] | None) -> None:
    from pipelines.prechecks import require, require_file_system, require_files

    require((run is None) != (not scores), "say --run FOLDER, or --scores FILE and, for a shadow, --shadows FILE")
    require(run is None or not shadows, "--shadows goes with --scores: those of a run are in its folder")
    if run is not None:
        require_file_system(run)
        require("://" in run or pathlib.Path(run).is_dir(), f"{run}: no such folder")
    require_files([*(scores or ()), *(shadows or ())])


def _read_log(project: pathlib.Path, declared: Project, registry: str | None, releases: str | None) -> ReleaseLog:
    from pipelines.prechecks import registry_of
    from pipelines.release_store import need_log

    return need_log(place_of(registry_of(project, registry), releases), declared)


def _bundle_of(challenger: str | None, versions: Sequence[Version], log: ReleaseLog) -> str | None:
    """The id of what is named by it, a version or an alias."""
    from pipelines.prechecks import UsageError

    if challenger is None or any(challenger in record.bundles for record in log.records):
        return challenger
    for version in versions:
        if challenger == str(version.version) or challenger in version.aliases:
            return str(version.bundle_id)
    raise UsageError(
        f"--challenger {challenger}: no version or alias of the registry, and no bundle of the release log"
    )


def _apply(
    declared: Project, decided: Decided, desk: Desk, author: str | None, approver: str | None, change_id: str | None
) -> None:
    from pipelines.jobs import releasing
    from pipelines.jobs.rollout import apply

    told = releasing.told_by(decided.reason(), author, approver, change_id)
    log = apply(decided, desk, told)
    if log is None:
        typer.echo(f"{declared.name}: nothing is released")
        return
    print_newest(declared, desk, log)
    if version := releasing.move_alias(desk, log):
        typer.echo(f"{declared.name}: version {version.version} is champion")
