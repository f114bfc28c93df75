"""`headrace report`: a run's folder as one static page that people can read."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from models.project.declarations import Project
from pipelines.report.files import check_output, write
from pipelines.results import RunError

__all__ = ["report"]

_MARK = b": run report</title>"


def report(project: Project, run: str, output: pathlib.Path | None = None, labels: Sequence[str] = ()) -> pathlib.Path:
    """Write the report of the run in the folder `run`, by default into that folder; the path of the file.

    It takes the place of an earlier report; RunError if another file is there. `labels` are files of label records,
    where labels come as such.
    """
    from pipelines.report.gather import gather
    from pipelines.report.render import render  # it draws: who only reads records waits for none of that

    if output is None:
        if "://" in run:
            raise RunError(f"{run} is no folder of this machine: say with --output where the report goes")
        output = pathlib.Path(run) / "report.html"
    check_output(output, _MARK)
    write(output, render(gather(project, run, labels)), _MARK)
    return output
