"""What failed on an engine that hands back no exception, but the text of a traceback."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from models.errors import HeadraceError

_OTHERS = ("OSError", "PermissionError", "BeamIOError")


class EngineError(HeadraceError, RuntimeError):
    """What a step failed with on an engine that tells of it by text alone; the message is the error's own line."""


@contextlib.contextmanager
def clear_failures() -> Iterator[None]:
    """EngineError for a RuntimeError whose text is the traceback of an error that a user can mend."""
    try:
        yield
    except RuntimeError as error:
        line = None if isinstance(error, HeadraceError) else _line_of(str(error))
        if line is None:
            raise
        raise EngineError(line) from error


def _line_of(text: str) -> str | None:
    """The line of an error of headrace's in a traceback, without the error's name; None if there is none."""
    names = "|".join((*sorted(_names_of(HeadraceError)), *_OTHERS))
    found = re.search(rf"(?m)^(?:[\w.]+\.)?(?:{names}): (.*?)(?: \[while running.*)?$", text)
    return found and found[1]


def _names_of(kind: type[HeadraceError]) -> set[str]:
    """The names of the errors derived from one, as far as their modules are imported: those of a graph are."""
    return {kind.__name__}.union(*(_names_of(each) for each in kind.__subclasses__()))
