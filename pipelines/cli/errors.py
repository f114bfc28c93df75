"""What a user sees of an error: one clear message and an exit code."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import typer

from models.errors import HeadraceError
from models.project.project import ProjectError
from pipelines.prechecks import UsageError


@contextlib.contextmanager
def clear_errors(code: int = 1) -> Iterator[None]:
    """Turn an error that a user can mend into its message and an exit code; all others keep their traceback."""
    try:
        yield
    except ProjectError as error:  # its lines begin with the place of each fault
        fail(str(error), code)
    except HeadraceError as error:
        lines = str(error).splitlines() if isinstance(error, UsageError) else [str(error)]
        fail("\n".join(f"headrace: {line}" for line in lines), code)
    except OSError as error:
        fail(f"headrace: {_line_of(error)}", code)
    except KeyboardInterrupt:
        fail("interrupted", 130)


def fail(message: str, code: int = 1) -> None:
    """Print a message and exit."""
    typer.echo(message, err=True)
    raise typer.Exit(code) from None


def _line_of(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}" if error.strerror and error.filename else str(error)
