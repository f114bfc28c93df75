"""Which features the bundles of a release log have, kept beside it, so that whose an event is needs no bundle.

A bundle whose files are gone can't tell any more: were its events taken for a run's own, two runs would score them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from models.predictors.registry_store import database_of
from pipelines.databases import is_database, lock_writers, transaction

if TYPE_CHECKING:
    from sqlalchemy import Table


def features_id(definitions: bytes) -> str:
    """The SHA-256 of definitions of features, 64 hexadecimal digits."""
    return hashlib.sha256(definitions).hexdigest()


def read_features(place: str, project: str) -> dict[str, str]:
    """The ids of the features of bundles, by the bundles' ids; of an exported log, nothing.

    Raises:
        DatabaseError: if the database can't be used.
    """
    database = database_of(place)
    if not is_database(place) or (database is not None and not os.path.lexists(database)):
        return {}
    from sqlalchemy import inspect, select

    table = _table()
    with transaction(place, read_only=True) as connection:
        if not inspect(connection).has_table(table.name):
            return {}
        rows = connection.execute(select(table.c.bundle, table.c.features).where(table.c.project == project))
        return {bundle: features for bundle, features in rows}


def note_features(place: str, project: str, features: Mapping[str, str]) -> None:
    """Keep the features of bundles; what is there already stays.

    Raises:
        DatabaseError: if the database can't be written to.
    """
    from sqlalchemy import insert, select

    table = _table()
    with transaction(place) as connection:
        lock_writers(connection, table.name)
        table.metadata.create_all(connection)
        there = set(connection.execute(select(table.c.bundle).where(table.c.project == project)).scalars())
        for bundle, found in features.items():
            if bundle not in there:
                connection.execute(insert(table).values({"project": project, "bundle": bundle, "features": found}))


def _table() -> Table:
    from sqlalchemy import Column, MetaData, String, Table

    return Table(
        "headrace_bundle_features",
        MetaData(),
        Column("project", String(100), primary_key=True),
        Column("bundle", String(64), primary_key=True),
        Column("features", String(64), nullable=False),
    )
