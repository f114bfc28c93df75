"""Where in a project something stands, as its faults say."""

from __future__ import annotations

from collections.abc import Iterator

from models.project.declarations import Project
from models.project.documents import Path

Fault = tuple[Path, str]


def place_of(project: Project, name: str) -> str:
    """Where a field stands in the schema."""
    return f"{project.schema_file}:{project.contract.line_of(name)}"


def unknown_field(project: Project, path: Path, name: str) -> Iterator[Fault]:
    fields = project.contract.fields
    if name not in fields:
        yield path, f"{name!r} is not a field of {project.schema_file}; it has {', '.join(fields)}"
