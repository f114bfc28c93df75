"""The engines by their names. It imports no Beam, so that a wrong name is told of at once."""

from __future__ import annotations

from models.errors import HeadraceError

DIRECT = "DirectRunner"  # headrace's in-process engine
FN_API = "FnApiRunner"
PRISM = "PrismRunner"
FLINK = "FlinkRunner"
PORTABLE = "PortableRunner"
DATAFLOW = "DataflowRunner"
RUNNERS = (DIRECT, FN_API, PRISM, FLINK, PORTABLE, DATAFLOW)

_ALIASES = {"inprocessrunner": DIRECT, **{name.lower(): name for name in RUNNERS}}


class RunnerError(HeadraceError, ValueError):
    """A runner that is not known, or one asked for in another way than by --runner."""


def runner_named(text: str) -> str:
    """The runner of a name, compared as Beam does: without case, and with or without the ending `Runner`."""
    name = text.strip().lower()
    found = _ALIASES.get(name) or _ALIASES.get(name + "runner")
    if found is None:
        raise RunnerError(f"--runner {text} is not known; there are: {', '.join(RUNNERS)}")
    return found
