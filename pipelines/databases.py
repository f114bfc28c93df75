"""Databases by their URLs: `postgresql://USER:$NAME@HOST/DATABASE` or `sqlite:///FILE`.

A password is the name of an environment variable, and never stands in a URL itself.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from models.errors import HeadraceError
from models.redact import redact

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection

_SCHEMES = ("postgresql", "sqlite")
_READ_ONLY = {"postgresql": "SET TRANSACTION READ ONLY", "sqlite": "PRAGMA query_only = ON"}
_SECRET = ("pass", "secret", "token")  # in the names of a query's parameters


class DatabaseError(HeadraceError, ValueError):
    """A database that can't be used."""


def is_database(uri: str) -> bool:
    """Whether a URI is a database's."""
    scheme, found, _ = uri.partition("://")
    return bool(found) and scheme in _SCHEMES


def check_database(uri: str) -> None:
    """DatabaseError for a URL that can't be, before anything is opened."""
    url = _url_of(uri)
    if not url.database:
        raise DatabaseError(f"{redact(uri)}: names no database: {_FORMS}")


def query_of(uri: str) -> tuple[str, str]:
    """The URL of a database and the file of a query, which a source names both; DatabaseError if it doesn't."""
    found = re.fullmatch(r"(.*)[?&]query=(.+)", uri)
    if found is None:
        raise DatabaseError(f"{redact(uri)}: name the file of a query, too, as in sqlite:///shop.db?query=events.sql")
    check_database(found[1])
    return found[1], found[2]


@contextlib.contextmanager
def transaction(uri: str, read_only: bool = False) -> Iterator[Connection]:
    """A connection with one transaction, which counts if the block ends well; DatabaseError if the database refuses."""
    from sqlalchemy import create_engine, event
    from sqlalchemy.exc import SQLAlchemyError

    url = _url_of(uri)
    if read_only and url.drivername == "sqlite" and not os.path.isfile(url.database or ""):
        raise DatabaseError(f"{redact(uri)}: no such file")
    engine = create_engine(url, hide_parameters=True)
    if url.drivername == "sqlite":  # whose driver would begin only before some statements, and not before CREATE TABLE
        event.listen(engine, "connect", _begins_nothing)
        event.listen(engine, "begin", lambda c: c.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE"))
    try:
        with engine.begin() as connection:
            if read_only:
                connection.exec_driver_sql(_READ_ONLY[url.get_backend_name()])
            yield connection
    except SQLAlchemyError as error:
        why = " ".join(str(getattr(error, "orig", None) or error).split())
        raise DatabaseError(f"{redact(uri)}: {redact(why)}") from None
    finally:
        engine.dispose()


def lock_writers(connection: Connection, name: str) -> None:
    """Let no other transaction that calls this by the same name go on before this one ends."""
    if connection.dialect.name == "postgresql":  # SQLite's transactions see to it that there is one writer
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtext(%s))", (name,))


def _begins_nothing(connection: Any, _: Any) -> None:
    connection.isolation_level = None


_FORMS = "write postgresql://USER:$NAME@HOST/DATABASE, with a variable's name for the password, or sqlite:///FILE"


def _url_of(uri: str) -> URL:
    """The URL with the values of `$NAME` from the environment; no error shows a secret."""
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(uri)
    except (ArgumentError, ValueError):
        raise DatabaseError(f"{redact(uri)}: is no URL of a database: {_FORMS}") from None
    query = {
        name: _value(uri, value, any(part in name.lower() for part in _SECRET)) for name, value in url.query.items()
    }
    password = None if url.password is None else _value(uri, str(url.password), True)
    driver = {"postgresql": "postgresql+psycopg"}.get(url.drivername, url.drivername)
    return url.set(drivername=driver, password=password, query=query)


def _value(uri: str, value: Any, secret: bool) -> Any:
    if not isinstance(value, str) or not value.startswith("$"):
        if secret:
            raise DatabaseError(f"{redact(uri)}: has a password in it: put it into a variable, and {_FORMS}")
        return value
    if value[1:] not in os.environ:  # whose name is not shown: it may be a secret that starts with a dollar sign
        raise DatabaseError(f"{redact(uri)}: needs the environment variable after its $, which is not set")
    return os.environ[value[1:]]
