"""Where reports go: each takes the place of an earlier one of its kind, and of no other file."""

from __future__ import annotations

import pathlib

from pipelines.results import RunError

_HEAD_BYTES = 4096


def check_output(output: pathlib.Path, mark: bytes) -> None:
    """RunError if a file is there whose head lacks the mark of such reports."""
    if output.exists() and not _has(output, mark):
        raise RunError(f"{output}: is there already and is no report: name another file")


def write(output: pathlib.Path, content: str, mark: bytes) -> None:
    """Write a report, whose head has the mark; RunError as `check_output`."""
    check_output(output, mark)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(content, encoding="utf-8")


def _has(path: pathlib.Path, mark: bytes) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return mark in file.read(_HEAD_BYTES)
