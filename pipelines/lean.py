"""XGBoost, Beam and Arrow, imported without what they take along only because it is installed.

XGBoost makes estimators for scikit-learn, Beam converters for pandas and file systems for clouds, where these can be
imported: that is more than half of a start. Each of them does without where they can't. So for as long as the imports
take, they can't be. That is for the process of a command, or a child of it, which runs nobody else's code; the layers
below it import the libraries whole.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from types import ModuleType

EXTRAS = ("sklearn", "pandas")
CLOUD = ("apache_beam.io.gcp", "google.api_core", "google.auth", "boto3")  # of Beam's extras `gcp` and `aws`


class _Absent(importlib.abc.MetaPathFinder):
    """Finds no module of some names, for one thread."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names, self._thread = names, threading.get_ident()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        hidden = any(f"{fullname}.".startswith(f"{name}.") for name in self._names)
        if hidden and threading.get_ident() == self._thread:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
        return None


@contextlib.contextmanager
def absent(names: Sequence[str]) -> Iterator[None]:
    """Let this thread import nothing of some names; what is imported already stays."""
    finder = _Absent([name for name in names if name not in sys.modules])
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


def import_arrow() -> None:
    """Import Arrow alone, for a process that converts without pandas."""
    with absent(EXTRAS):
        _convert()


def _convert() -> None:
    import numpy as np
    import pyarrow as pa

    # Arrow looks for pandas at its first conversions, in Python and in C++, and remembers that there is none.
    pa.array(np.empty(0)), pa.array([0])


def import_libraries(*, local: bool) -> None:
    """Import what scores; with `local`, where all paths are of this machine and the engine is this process."""
    # XGBoost's threads wait for one another by going round, milliseconds a call where something else has their
    # processor. OpenMP reads how they are to wait when it is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    with absent([*EXTRAS, *(CLOUD if local else ())]):
        _convert()

        import apache_beam  # noqa: F401
        import xgboost  # noqa: F401
