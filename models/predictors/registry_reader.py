"""A registry in SQLite, read without MLflow, whose import takes seconds; only MLflow writes.

The tables are those of one revision of MLflow's schema, and tests/models/test_registry.py compares what both read.
Where a database has another, `open_reader` gives None, and MLflow reads, or refuses it.
"""

from __future__ import annotations

import contextlib
import sqlite3
import urllib.parse
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

from models.predictors.registry_store import BUSY_SECONDS, check_registry, database_of, in_one_line, locked
from models.predictors.versions import BUNDLE_ID, Version

_REVISION = "dc11669786a5"  # of the schema, as MLflow 3 names it


class SqliteReader:
    """What a registry says of names and versions."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._ask = connection.execute

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(name for (name,) in self._ask("SELECT name FROM registered_models"))

    def versions(self, name: str) -> list[Version]:
        """The versions of a name, ascending, without what was told of them; of a name that is not there, none."""
        aliases: dict[int, list[str]] = {}
        for alias, version in self._ask("SELECT alias, version FROM registered_model_aliases WHERE name = ?", (name,)):
            aliases.setdefault(int(version), []).append(alias)
        tags = self._ask(
            "SELECT version, value FROM model_version_tags WHERE name = ? AND key = ?", (name, BUNDLE_ID)
        ).fetchall()
        bundles = {int(version): value for version, value in tags}
        found = self._ask(
            "SELECT version, creation_time, run_id FROM model_versions "
            "WHERE name = ? AND current_stage != 'Deleted_Internal' ORDER BY version",
            (name,),
        )
        return [
            Version(
                version,
                bundles.get(version, ""),
                tuple(sorted(aliases.get(version, ()))),
                datetime.fromtimestamp(created / 1000, UTC),
                run_id,
            )
            for version, created, run_id in found.fetchall()
        ]

    def with_facts(self, known: Version) -> Version:
        """A version with the metrics and parameters of its run, if that is still there."""
        run = (known.run_id,)
        if self._ask("SELECT 1 FROM runs WHERE run_uuid = ?", run).fetchone() is None:
            return known
        metrics = self._ask("SELECT key, value, is_nan FROM latest_metrics WHERE run_uuid = ?", run)
        params = self._ask("SELECT key, value FROM params WHERE run_uuid = ?", run)
        figures = {key: float("nan") if is_nan else value for key, value, is_nan in metrics}
        return replace(known, metrics=figures, facts=dict(params.fetchall()))


@contextlib.contextmanager
def open_reader(tracking_uri: str) -> Iterator[SqliteReader | None]:
    """Open a registry for reading; None for a server, or a schema that is not the one known here.

    RegistryError for a database that is not there or can't be read.
    """
    check_registry(tracking_uri)
    database = database_of(tracking_uri)
    if database is None:
        yield None
        return
    uri = f"file:{urllib.parse.quote(str(database))}?mode=ro"
    with (
        in_one_line(str(database)),
        locked(database, False),
        contextlib.closing(sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS)) as connection,
    ):
        yield SqliteReader(connection) if _is_known(connection) else None


def _is_known(connection: sqlite3.Connection) -> bool:
    named = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchone()
    found = connection.execute("SELECT version_num FROM alembic_version").fetchall() if named else []
    return found == [(_REVISION,)]
