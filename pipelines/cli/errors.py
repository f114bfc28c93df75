"""What a user sees of an error: one clear message and an exit code."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import typer

from models.errors import HeadraceError


@contextlib.contextmanager
def clear_errors(code: int = 1) -> Iterator[None]:
    """Turn an error that a user can mend into its message and an exit code; all others keep their traceback."""
    try:
        yield
    except HeadraceError as error:
        fail("\n".join(_lines_of(error)), code)
    except OSError as error:
        fail(f"headrace: {_line_of(error)}", code)
    except KeyboardInterrupt:
        fail("interrupted", 130)


def fail(message: str, code: int = 1) -> None:
    """Print a message and exit."""
    typer.echo(message, err=True)
    raise typer.Exit(code) from None


def _lines_of(error: HeadraceError) -> list[str]:
    from models.project.project import ProjectError
    from pipelines.prechecks import UsageError

    if isinstance(error, ProjectError):  # its lines begin with the place of each fault
        return [str(error)]
    return [
        f"headrace: {line}" for line in (str(error).splitlines() if isinstance(error, UsageError) else [str(error)])
    ]


def _line_of(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}" if error.strerror and error.filename else str(error)
