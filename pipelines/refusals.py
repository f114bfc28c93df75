"""Bundles that a stream refused where they landed, kept beside the release log, so that a replay refuses the same.

A bundle that is damaged today may be mended tomorrow: what was decided by the one before stays so.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from models.predictors.registry_store import database_of
from pipelines.databases import is_database, lock_writers, transaction

if TYPE_CHECKING:
    from sqlalchemy import Table

MAX_REASON = 1_000  # characters that are kept of why


def read_refusals(place: str, project: str) -> dict[tuple[int, str], str]:
    """Why a bundle was refused, by the number of the release and the bundle's id; of an exported log, nothing.

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
        rows = connection.execute(select(table.c.seq, table.c.bundle, table.c.reason).where(table.c.project == project))
        return {(seq, bundle): reason for seq, bundle, reason in rows}


def note_refusals(place: str, project: str, seq: int, reasons: Mapping[str, str]) -> None:
    """Keep why bundles of a release were refused; what is there already stays.

    Raises:
        DatabaseError: if the database can't be written to.
    """
    from sqlalchemy import insert, select

    table = _table()
    with transaction(place) as connection:
        lock_writers(connection, table.name)
        table.metadata.create_all(connection)
        mine = select(table.c.bundle).where(table.c.project == project, table.c.seq == seq)
        there = set(connection.execute(mine).scalars())
        for bundle, reason in reasons.items():
            if bundle not in there:
                row = {"project": project, "seq": seq, "bundle": bundle, "reason": reason[:MAX_REASON]}
                connection.execute(insert(table).values(row))


def _table() -> Table:
    from sqlalchemy import Column, Integer, MetaData, String, Table

    return Table(
        "headrace_refused_bundles",
        MetaData(),
        Column("project", String(100), primary_key=True),
        Column("seq", Integer, primary_key=True, autoincrement=False),
        Column("bundle", String(64), primary_key=True),
        Column("reason", String(MAX_REASON), nullable=False),
    )
