"""The rows of a query, as `postgresql://…?query=FILE.sql` or `sqlite:///…?query=FILE.sql` names them as a source.

They are kept as Parquet files beside the query's file, in the folder FILE.sql.rows, and read from there: so they have
digests, dead letters have their rows, and a run that is done again can be compared.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from models.redact import redact
from pipelines.databases import DatabaseError, query_of, transaction

ROWS_AT_ONCE = 1 << 17
_PART = re.compile(r"part-\d{5}\.parquet")


@functools.lru_cache
def list_query(uri: str) -> tuple[str, ...]:
    """The files of the rows that the query has now; of a process, it is asked once."""
    place, file = query_of(uri)
    with open(file, encoding="utf-8", errors="replace") as opened:
        text = opened.read()
    folder = f"{file}.rows"
    os.makedirs(folder, exist_ok=True)
    paths = []
    for number, (names, rows) in enumerate(_rows(place, text)):
        paths.append(f"{folder}/part-{number:05d}.parquet")
        pq.write_table(_table(uri, names, rows), f"{paths[-1]}.new")
        os.replace(f"{paths[-1]}.new", paths[-1])
    for name in os.listdir(folder):
        if _PART.fullmatch(name) and f"{folder}/{name}" not in paths:
            os.remove(f"{folder}/{name}")
    return tuple(paths)


def _rows(place: str, text: str) -> Iterator[tuple[list[str], Sequence[Any]]]:
    """The names of the columns, with some rows at a time; once without rows if there are none."""
    import sqlalchemy as sa

    # A colon is none of a parameter.
    statement = sa.text(text.replace(":", r"\:"))
    options = {"stream_results": True, "yield_per": ROWS_AT_ONCE}
    with (
        transaction(place, read_only=True) as connection,
        connection.execute(statement, execution_options=options) as result,
    ):
        names, empty = list(result.keys()) if result.returns_rows else [], True
        if not names or len(set(names)) < len(names):
            raise DatabaseError(f"{redact(place)}: write one SELECT, which gives each column a name of its own")
        for rows in result.partitions(ROWS_AT_ONCE):
            empty = False
            yield names, rows
        if empty:
            yield names, []


def _table(uri: str, names: list[str], rows: Sequence[Any]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(names)
    arrays = []
    for name, values in zip(names, columns, strict=True):
        try:
            arrays.append(pa.array(values))
        except (pa.ArrowException, TypeError, OverflowError) as error:
            why = " ".join(str(error).split())
            raise DatabaseError(f"{redact(uri)}: column {name}: {why}: CAST it to one type in the query") from None
    return pa.Table.from_arrays(arrays, names=names)
