"""Files that are read once: again only if they were replaced, and forgotten when they are gone."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from models.errors import HeadraceError

T = TypeVar("T")
_Stamp = tuple[int, int]  # bytes, and nanoseconds since 1970 of the last change


@dataclasses.dataclass
class Files(Generic[T]):
    """What files of this machine say, by their paths; `parse` reads one, and its HeadraceError or OSError is kept."""

    parse: Callable[[str], T]
    _known: dict[str, tuple[_Stamp, T | str]] = dataclasses.field(default_factory=dict)

    def refresh(self, paths: Iterable[str]) -> bool:
        """Read what is new or changed among all paths that there are; whether anything was, or is gone."""
        there = dict(_stamps(paths))
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

    def faults(self) -> list[str]:
        """Why others could not be."""
        return [said for _, (_, said) in sorted(self._known.items()) if isinstance(said, str)]

    def _read(self, path: str) -> T | str:
        try:
            return self.parse(path)
        except (HeadraceError, OSError) as error:
            return str(error)


def _stamps(paths: Iterable[str]) -> Iterator[tuple[str, _Stamp]]:
    for path in paths:
        try:
            found = os.stat(path)
        except FileNotFoundError:  # it went since it was listed
            continue
        yield path, (found.st_size, found.st_mtime_ns)
