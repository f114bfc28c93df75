"""`headrace report`: a run's folder as one static page that people can read."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from models.project.declarations import Project
from pipelines.report.gather import gather
from pipelines.report.render import render
from pipelines.results import RunError

__all__ = ["report"]


def report(project: Project, run: str, output: pathlib.Path | None = None, labels: Sequence[str] = ()) -> pathlib.Path:
    """Write the report of the run in the folder `run`, by default into that folder; the path of the file.

    It takes the place of an earlier report; RunError if another file is there. `labels` are files of label records,
    where labels come as such.
    """
    if output is None:
        if "://" in run:
            raise RunError(f"{run} is no folder of this machine: say with --output where the report goes")
        output = pathlib.Path(run) / "report.html"
    if output.exists() and not _is_report(output):
        raise RunError(f"{output}: is there already and is no report: say with --output where the report goes")
    page = render(gather(project, run, labels))
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page, encoding="utf-8")
    return output


def _is_report(path: pathlib.Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return b": run report</title>" in file.read(4096)
