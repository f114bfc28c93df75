"""Which files there are, and of which format, on any filesystem that Beam knows."""

from __future__ import annotations

import dataclasses
import functools
import os

from apache_beam.io.filesystems import FileSystems

from models.errors import HeadraceError
from pipelines.databases import is_database
from pipelines.s3 import share_clients, store_errors
from pipelines.sources.delta import PREFIX, list_delta
from pipelines.sources.query import list_query

FORMATS = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".avro": "avro",
    ".journal": "journal",
}
_HIDDEN = (".", "_")


class SourceError(HeadraceError, ValueError):
    """A source that can't be read at all."""


@dataclasses.dataclass(frozen=True)
class Files:
    """Files by their paths or globs, and their format where their names do not tell it."""

    patterns: tuple[str, ...]
    format: str | None = None
    skipped: frozenset[str] = frozenset()  # paths that are not to be read

    @functools.cached_property
    def paths(self) -> tuple[str, ...]:
        """The paths that one of the patterns matches, once each; they are listed once, where they are first asked for.

        So a run reads those files that its inputs' digest is of. SourceError if a pattern matches nothing.
        """
        found = {path for pattern in self.patterns for path in match_files(pattern)}
        return tuple(sorted(found - self.skipped))

    def format_of(self, path: str) -> str:
        """The format of one of the files."""
        return self.format or format_of(path)


def match_files(pattern: str) -> list[str]:
    """The paths that match, sorted; SourceError if there are none. A `*` matches no hidden file.

    Of a Delta table they are those of its version, of a query those of its rows.
    """
    if pattern.startswith(PREFIX):
        return list_delta(pattern)
    if is_database(pattern):
        return list(list_query(pattern))
    share_clients()
    try:
        found = [metadata.path for metadata in FileSystems.match([pattern])[0].metadata_list]
    except store_errors(ValueError) as error:
        raise SourceError(f"{pattern}: cannot be listed: {' '.join(str(error).split())}") from None
    if not _name(pattern).startswith(_HIDDEN):
        found = [path for path in found if not _name(path).startswith(_HIDDEN)]
    if not found:
        raise SourceError(f"{pattern}: no such file")
    for path in found:
        if os.path.isdir(path):
            raise SourceError(f"{path}: is a folder: name its files, as in {path.rstrip('/')}/*")
    return sorted(found)


def _name(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def size_of(path: str) -> int:
    """The bytes of a file that is there."""
    return int(FileSystems.match([path])[0].metadata_list[0].size_in_bytes)


def format_of(path: str) -> str:
    """The format that a file's name tells, compression aside."""
    name = path.lower()
    for compression in (".gz", ".bz2", ".zst"):
        name = name.removesuffix(compression)
    for ending, kind in FORMATS.items():
        if name.endswith(ending):
            return kind
    raise SourceError(f"{path}: its name does not tell its format: end it in {', '.join(FORMATS)}, or name the format")
