"""Tables beside a release log, in its database: rows that are noted once and stay."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from models.predictors.registry_store import database_of
from pipelines.databases import is_database, lock_writers, transaction

if TYPE_CHECKING:
    from sqlalchemy import Row, Table

MAX_REASON = 1_000  # characters that are kept of why


def read_notes(place: str, make_table: Callable[[], Table], project: str) -> Sequence[Row[Any]]:
    """The rows of a project in the order of their keys; of an exported log, none.

    Raises:
        DatabaseError: if the database can't be used.
    """
    database = database_of(place)
    if not is_database(place) or (database is not None and not os.path.lexists(database)):
        return ()
    from sqlalchemy import inspect, select

    table = make_table()
    with transaction(place, read_only=True) as connection:
        if not inspect(connection).has_table(table.name):
            return ()
        mine = select(table).where(table.c.project == project).order_by(*table.primary_key)
        return connection.execute(mine).all()


def note(place: str, table: Table, rows: Iterable[Mapping[str, Any]]) -> None:
    """Keep rows; what is there of their keys already stays.

    Raises:
        DatabaseError: if the database can't be written to.
    """
    from sqlalchemy import insert, select

    with transaction(place) as connection:
        lock_writers(connection, table.name)
        table.metadata.create_all(connection)
        for row in rows:
            same = [column == row[column.name] for column in table.primary_key]
            if connection.execute(select(*table.primary_key).where(*same)).first() is None:
                connection.execute(insert(table).values(row))
