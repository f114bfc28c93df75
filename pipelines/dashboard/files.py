"""Files that are read once: again only if they were replaced, and forgotten when they are gone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from models.errors import HeadraceError
from pipelines.s3 import store_errors
from pipelines.sinks.folder import Stamp

T = TypeVar("T")


@dataclasses.dataclass
class Files(Generic[T]):
    """What files say, by their paths; `parse` reads one, and its HeadraceError or what the store raises is kept."""

    parse: Callable[[str], T]
    _known: dict[str, tuple[Stamp, T | str]] = dataclasses.field(default_factory=dict)

    def refresh(self, there: Mapping[str, Stamp]) -> bool:
        """Read what is new or changed among all files that there are; whether anything was, or is gone."""
        gone = self._known.keys() - there.keys()
        for path in gone:
            del self._known[path]
        changed = bool(gone)
        for path, stamp in there.items():
            former = self._known.get(path)
            if former is None or former[0] != stamp:
                self._known[path] = (stamp, self._read(path))
                changed = True
        return changed

    def values(self) -> list[T]:
        """What all files that could be read say, in the order of their paths."""
        return [said for _, (_, said) in sorted(self._known.items()) if not isinstance(said, str)]

    def paths(self) -> list[str]:
        """Of all files."""
        return sorted(self._known)

    def faults(self) -> list[str]:
        """Why others could not be."""
        return [said for _, (_, said) in sorted(self._known.items()) if isinstance(said, str)]

    def _read(self, path: str) -> T | str:
        try:
            return self.parse(path)
        except store_errors(HeadraceError) as error:
            return str(error)
