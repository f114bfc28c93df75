"""Score rows in a table of a database, a row an event, for tools that ask databases.

A run replaces its days in one transaction, and `headrace_tables` says which tables are headrace's, and their columns.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from models.redact import redact
from pipelines.databases import DatabaseError, lock_writers, transaction
from pipelines.sinks.folder import Folder, SinkError
from pipelines.sinks.listed import Scope, Written
from pipelines.sinks.tables import read_rows, schema_of, score_files

if TYPE_CHECKING:
    from sqlalchemy import Connection, Table

TABLES = "headrace_tables"


@dataclasses.dataclass(frozen=True)
class DatabaseTable:
    """The table of a project's score rows: of events with one id the latest."""

    url: str
    name: str
    event_id: str
    event_time: str

    def check(self, folder: Folder, schema: pa.Schema | None, scope: Scope) -> None:
        """SinkError if the database can't be used, or the table is another's, or has other columns that are to stay."""
        with self._transaction() as connection:
            self._look(connection, schema, scope)
            connection.rollback()

    def commit(self, folder: Folder, written: Sequence[Written], facts: Mapping[str, Any], scope: Scope) -> None:
        """Have these files' rows, and no others, in a scope, by one transaction."""
        from sqlalchemy import delete, insert

        files = score_files(written)
        schema = schema_of(folder, files[0].place) if files else None
        with self._transaction() as connection:
            columns = self._look(connection, schema, scope)
            if schema is not None and columns != schema:
                self._table(columns or schema).drop(connection, checkfirst=True)
                self._table(schema).create(connection)
                tables = _tables()
                connection.execute(delete(tables).where(tables.c.name == self.name))
                connection.execute(insert(tables).values(name=self.name, columns=_text_of(schema)))
            elif columns is not None:
                table, span = self._table(columns), scope.span
                time = table.c[self.event_time]
                bounds = [time >= _time(span.start_us)] if span.start_us is not None else []
                bounds += [time < _time(span.stop_us)] if span.stop_us is not None else []
                connection.execute(delete(table).where(*bounds))
            if schema is not None:
                upsert = self._upsert(connection, self._table(schema))
                for batch in read_rows(folder, files):
                    connection.execute(upsert, without_nul(batch).to_pylist())

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Connection]:
        try:
            with transaction(self.url) as connection:
                lock_writers(connection, TABLES + self.name)  # one run at a time
                yield connection
        except DatabaseError as error:
            raise SinkError(str(error)) from None

    def _look(self, connection: Connection, schema: pa.Schema | None, scope: Scope) -> pa.Schema | None:
        """The table's columns; None if there is no table yet."""
        from sqlalchemy import inspect, select

        tables = _tables()
        tables.create(connection, checkfirst=True)
        text = connection.scalar(select(tables.c.columns).where(tables.c.name == self.name))
        there, where = inspect(connection).has_table(self.name), f"{redact(self.url)}: the table {self.name}"
        if there and text is None:
            raise SinkError(f"{where} was not made by headrace: give it another name, or name another database")
        if text is None or not there:
            return None
        columns = _schema_of(text)
        if schema is not None and columns != schema and not scope.span.is_all:
            raise SinkError(
                f"{where} has other columns than this run's rows: name another database, or have all of it replaced "
                "by a run without a span of time and with --replace"
            )
        return columns

    def _table(self, schema: pa.Schema) -> Table:
        import sqlalchemy as sa

        columns = [
            sa.Column(f.name, _sql_type(f.type), primary_key=f.name == self.event_id, autoincrement=False)
            for f in schema
        ]
        return sa.Table(self.name, sa.MetaData(), *columns, sa.Index(None, self.event_time))

    def _upsert(self, connection: Connection, table: Table) -> Any:
        if connection.dialect.name == "postgresql":
            from sqlalchemy.dialects.postgresql import insert
        else:
            from sqlalchemy.dialects.sqlite import insert  # type: ignore[assignment]
        statement = insert(table)
        new = statement.excluded
        changed = {column.name: new[column.name] for column in table.c if column.name != self.event_id}
        later = new[self.event_time] >= table.c[self.event_time]
        return statement.on_conflict_do_update(index_elements=[self.event_id], set_=changed, where=later)


def without_nul(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with U+FFFD for each NUL in its texts, which PostgreSQL's can't hold."""
    columns = [
        pc.replace_substring(values, "\0", "\ufffd") if pa.types.is_string(values.type) else values
        for values in batch.columns
    ]
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema)


def _tables() -> Table:
    import sqlalchemy as sa

    return sa.Table(TABLES, sa.MetaData(), sa.Column("name", sa.Text, primary_key=True), sa.Column("columns", sa.Text))


def _text_of(schema: pa.Schema) -> str:
    return json.dumps([[f.name, str(f.type)] for f in schema])


def _schema_of(text: str) -> pa.Schema:
    return pa.schema([(name, _ARROW.get(kind) or pa.type_for_alias(kind)) for name, kind in json.loads(text)])


_ARROW = {"timestamp[us, tz=UTC]": pa.timestamp("us", "UTC")}


def _sql_type(kind: pa.DataType) -> Any:
    """The type of a column; SinkError if there is none for it."""
    import sqlalchemy as sa

    if pa.types.is_boolean(kind):
        return sa.Boolean()
    if pa.types.is_integer(kind):
        return sa.BigInteger()
    if pa.types.is_floating(kind):
        return sa.Double()  # of a float32, too: REAL is shown rounded
    if pa.types.is_timestamp(kind):
        return sa.DateTime(timezone=True)
    if pa.types.is_string(kind):
        return sa.Text()
    if pa.types.is_binary(kind):
        return sa.LargeBinary()
    raise SinkError(f"a column of {kind} has no type in a database")


def _time(us: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(us // 1_000_000, datetime.UTC)  # the start of a partition
