"""An object store in memory, as Beam sees one: names and bytes, no folders, no locks, a rename is a copy and a removal."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

from apache_beam.io.filesystem import BeamIOError, CompressionTypes, FileMetadata, FileSystem

OBJECTS: dict[str, bytes] = {}
CHANGES: list[str] = []  # each change of a name, in order
FAIL_AT: list[int] = []  # the numbers of changes that fail instead


def clear() -> None:
    """Begin with nothing in it."""
    for kept in (OBJECTS, CHANGES, FAIL_AT):
        kept.clear()


def _change(what: str) -> None:
    if len(CHANGES) in FAIL_AT:
        raise BeamIOError(f"{what}: the store went away")
    CHANGES.append(what)


class _Upload(io.BytesIO):
    """An object that is there once it is closed."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def close(self) -> None:
        if not self.closed:
            _change(f"put {self._path}")
            OBJECTS[self._path] = self.getvalue()
        super().close()


class MemoryStore(FileSystem):  # type: ignore[misc]
    """The objects whose names begin with `memory://`."""

    @classmethod
    def scheme(cls) -> str:
        return "memory"

    def join(self, basepath: str, *paths: str) -> str:
        return "/".join([basepath.rstrip("/"), *paths])

    def split(self, path: str) -> tuple[str, str]:
        head, _, tail = path.rpartition("/")
        return head, tail

    def mkdirs(self, path: str) -> None:
        raise AssertionError("a store has no folders")

    def has_dirs(self) -> bool:
        return False

    def _list(self, dir_or_prefix: str) -> Iterator[FileMetadata]:
        for path in sorted(OBJECTS):
            if path.startswith(dir_or_prefix):
                yield FileMetadata(path, len(OBJECTS[path]), 0.0)

    def create(self, path: str, mime_type: str = "", compression_type: str = CompressionTypes.AUTO) -> io.BytesIO:
        return _Upload(path)

    def open(self, path: str, mime_type: str = "", compression_type: str = CompressionTypes.AUTO) -> io.BytesIO:
        if path not in OBJECTS:
            raise FileNotFoundError(path)
        return io.BytesIO(OBJECTS[path])

    def copy(self, source_file_names: Sequence[str], destination_file_names: Sequence[str]) -> None:
        for source, target in zip(source_file_names, destination_file_names, strict=True):
            _change(f"put {target}")
            OBJECTS[target] = OBJECTS[source]

    def rename(self, source_file_names: Sequence[str], destination_file_names: Sequence[str]) -> None:
        for source, target in zip(source_file_names, destination_file_names, strict=True):
            self.copy([source], [target])
            self.delete([source])

    def exists(self, path: str) -> bool:
        return path in OBJECTS

    def size(self, path: str) -> int:
        return len(OBJECTS[path])

    def last_updated(self, path: str) -> float:
        return 0.0

    def metadata(self, path: str) -> Any:
        return FileMetadata(path, len(OBJECTS[path]), 0.0)

    def delete(self, paths: Sequence[str]) -> None:
        for path in paths:
            _change(f"delete {path}")
            del OBJECTS[path]
