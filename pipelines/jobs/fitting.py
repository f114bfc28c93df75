"""Whether a registered bundle fits a project as it is, and which does."""

from __future__ import annotations

import pathlib
import shlex
from collections.abc import Iterator

from models.predictors import registry
from models.predictors.bundle import Bundle, BundleError
from models.project.declarations import Project
from models.schemas import REMEDY, SchemaMismatch, VersionError, check_against_bundle

MAX_TRIED = 20  # versions, where one that fits is looked for


def load_bundle(project: Project, folder: pathlib.Path, version: str, tracking_uri: str) -> Bundle:
    """The registered bundle; RunError if it was made with other features, or with a schema that is not compatible.

    The error says what to do: promote a newer version that fits, if there is one, or train again.
    """
    bundle = registry.load(project.name, version, tracking_uri)
    fault = find_misfit(project, folder, bundle)
    if fault is None:
        return bundle
    from pipelines.results import RunError

    named = f"{project.name} {version} (bundle {bundle.bundle_id})"
    fits = next(_fitting(project, folder, tracking_uri), None)
    if fits is None:
        raise RunError(f"{folder}: {named} does not fit: {fault}: {REMEDY}")
    raise RunError(
        f"{folder}: {named} does not fit: {fault}; version {fits} does: "
        f"headrace promote {shlex.quote(str(folder))} {fits}, or run with --model {fits}"
    )


def find_misfit(project: Project, folder: pathlib.Path, bundle: Bundle) -> str | None:
    """Why a bundle can't score for a project; None if it can."""
    try:
        check_against_bundle(project, folder, bundle.schema)
    except (SchemaMismatch, VersionError) as error:
        lines = str(error).removesuffix(f"\n{REMEDY}").splitlines()
        return "; ".join(lines).replace(":; ", ": ")
    if bundle.feature_definitions != project.feature_definitions():
        return "the features, decisions or event declarations of project.yaml changed since it was trained"
    return None


def _fitting(project: Project, folder: pathlib.Path, tracking_uri: str) -> Iterator[int]:
    """The versions that fit the project as it is, newest first, of the newest MAX_TRIED."""
    for known in reversed(registry.list_versions(project.name, tracking_uri)[-MAX_TRIED:]):
        try:
            bundle = registry.load(project.name, known.version, tracking_uri)
        except (registry.RegistryError, BundleError):  # its files are gone or damaged
            continue
        if find_misfit(project, folder, bundle) is None:
            yield known.version
