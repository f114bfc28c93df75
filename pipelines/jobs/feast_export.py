"""`headrace features export`: a Feast repository over the table of features that runs have written."""

from __future__ import annotations

import os
import pathlib

from models.errors import HeadraceError
from models.features.feast import MADE, feast_definitions, feast_settings
from models.project.declarations import Project
from pipelines.results import read_success
from pipelines.sinks.folder import Folder
from pipelines.sinks.listed import FEATURE_SET, PROJECT, SCORES

SETTINGS, DEFINITIONS = "feature_store.yaml", "definitions.py"


class ExportError(HeadraceError, ValueError):
    """A table of features that can't be exported, or a folder that it can't be exported to."""


def export_feast(project: Project, sink: str, to: pathlib.Path) -> None:
    """Write the repository's two files; settings that are there already stay, as they may have been changed."""
    _check_table(project, sink)
    definitions, settings = to / DEFINITIONS, to / SETTINGS
    if definitions.exists() and not definitions.read_text().startswith(MADE):
        raise ExportError(f"{definitions}: was not made by headrace: name another folder")
    to.mkdir(parents=True, exist_ok=True)
    place = Folder(sink).join(SCORES)
    definitions.write_text(feast_definitions(project, place if "://" in place else os.path.abspath(place)))
    if not settings.exists():
        settings.write_text(feast_settings(project))


def _check_table(project: Project, sink: str) -> None:
    """ExportError unless all rows of a sink have the project's features, as it declares them, in Parquet."""
    if not project.rolling_features:
        raise ExportError(f"{project.name} declares no rolling features: there is nothing to look up by a key")
    said = read_success(sink)
    if said.get(PROJECT) != project.name:
        raise ExportError(f"{sink}: is of the project {said.get(PROJECT)}, not of {project.name}")
    files = [file for file in said["files"] if file["kind"] == SCORES]
    if not files:
        raise ExportError(f"{sink}: has no rows: run the project into it first")
    for file in files:
        if not file["name"].endswith(".parquet"):
            raise ExportError(f"{sink}: is not of Parquet, which Feast reads: run it with --sink-format parquet")
        if file.get(FEATURE_SET) != project.feature_set:
            raise ExportError(
                f"{sink}/{SCORES}/{file['name']}: is of feature set {file.get(FEATURE_SET)}, and the project declares "
                f"{project.feature_set}: run its days again, or name a sink of one feature set"
            )
