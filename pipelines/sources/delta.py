"""The files of a Delta table, of a version of it: `delta:PATH` or `delta:PATH?version=N` names them as a source."""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Iterable
from typing import TYPE_CHECKING

from models.errors import HeadraceError

if TYPE_CHECKING:
    from deltalake import DeltaTable

PREFIX = "delta:"
_URI = re.compile(rf"{PREFIX}(?P<path>.+?)(?:\?version=(?P<version>\d+))?")
# Features of a table with which its rows are still those of its files.
_HARMLESS = {"timestampNtz", "v2Checkpoint", "vacuumProtocolCheck"}


class DeltaSourceError(HeadraceError, ValueError):
    """A Delta table that can't be read."""


def list_delta(uri: str) -> list[str]:
    """The paths of the files that are the table's in that version."""
    import pyarrow as pa

    path, table = _open(uri)
    protocol, mapping = table.protocol(), table.metadata().configuration.get("delta.columnMapping.mode", "none")
    others = set(protocol.reader_features or ()) - _HARMLESS
    if others or mapping != "none":
        what = ", ".join(sorted(others)) or "columnMapping"
        raise DeltaSourceError(f"{uri}: its files are not its rows as they are ({what}): copy it to a plain table")
    names = [urllib.parse.unquote(name) for name in pa.table(table.get_add_actions())["path"].to_pylist()]
    return sorted(name if "://" in name else f"{path.rstrip('/')}/{name}" for name in names)


def check_partitions(uris: Iterable[str], fields: Iterable[str]) -> None:
    """DeltaSourceError if a table has one of the fields in the names of its folders alone."""
    for uri in uris:
        if uri.startswith(PREFIX) and (both := set(_open(uri)[1].metadata().partition_columns).intersection(fields)):
            raise DeltaSourceError(
                f"{uri}: is partitioned by {', '.join(sorted(both))}, which its files do not hold: derive it of "
                "others, or give the table a copy of that column"
            )


def place_of(uri: str) -> str:
    """The folder that a source of this kind names; any other source as it is."""
    found = _URI.fullmatch(uri)
    return found["path"] if found else uri


def _open(uri: str) -> tuple[str, DeltaTable]:
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    found = _URI.fullmatch(uri)
    if found is None:
        raise DeltaSourceError(f"{uri}: name the table's folder, as in delta:PATH or delta:PATH?version=3")
    try:
        return found["path"], DeltaTable(found["path"], int(found["version"]) if found["version"] else None)
    except (DeltaError, OSError) as error:
        raise DeltaSourceError(f"{uri}: no Delta table that can be read: {' '.join(str(error).split())}") from None
