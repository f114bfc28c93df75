"""Changes of a circuit breaker that follow from verdicts, kept beside the release log with their reasons.

A replay does not need them, as it finds them again; people do, and a stream that starts again: it goes on with the
circuit as it was, though it has forgotten the windows from which that follows.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from models.predictors.registry_store import database_of
from models.quality.circuit import Circuit, Noted
from pipelines.databases import is_database, lock_writers, transaction

if TYPE_CHECKING:
    from sqlalchemy import Table

MAX_REASON = 1_000  # characters that are kept of why


def read_circuits(place: str, project: str) -> tuple[Noted, ...]:
    """The changes that were noted, in the order of their times; of an exported log, none.

    Raises:
        DatabaseError: if the database can't be used.
    """
    database = database_of(place)
    if not is_database(place) or (database is not None and not os.path.lexists(database)):
        return ()
    from sqlalchemy import inspect, select

    table = _table()
    with transaction(place, read_only=True) as connection:
        if not inspect(connection).has_table(table.name):
            return ()
        mine = select(table).where(table.c.project == project).order_by(table.c.from_us)
        rows = connection.execute(mine).all()
    return tuple(Noted(Circuit(row.state, row.since_us, 0, row.from_us), row.reason) for row in rows)


def note_circuit(place: str, project: str, noted: Noted) -> None:
    """Keep a change; what is there of its time already stays.

    Raises:
        DatabaseError: if the database can't be written to.
    """
    from sqlalchemy import insert, select

    table, circuit = _table(), noted.circuit
    with transaction(place) as connection:
        lock_writers(connection, table.name)
        table.metadata.create_all(connection)
        mine = select(table.c.state).where(table.c.project == project, table.c.from_us == circuit.from_us)
        if connection.execute(mine).first() is None:
            told = {"state": circuit.state, "since_us": circuit.since_us, "reason": noted.reason[:MAX_REASON]}
            connection.execute(insert(table).values(project=project, from_us=circuit.from_us, **told))


def _table() -> Table:
    from sqlalchemy import BigInteger, Column, MetaData, String, Table

    return Table(
        "headrace_circuits",
        MetaData(),
        Column("project", String(100), primary_key=True),
        Column("from_us", BigInteger, primary_key=True, autoincrement=False),
        Column("state", String(10), nullable=False),
        Column("since_us", BigInteger),
        Column("reason", String(MAX_REASON), nullable=False),
    )
