"""An open MLflow store: quiet, one writer at a time, its troubles in one line. Only calls import MLflow."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import sqlite3
import time
import urllib.parse
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from models.errors import HeadraceError
from models.redact import redact

_SQLITE = "sqlite:///"
_SERVER = re.compile(
    r"(?:https?|(?:postgresql|mysql|mssql)(?:\+\w+)?|databricks(?:-uc)?|uc)://[^/]|file:///|databricks$"
)
_LOCK_SECONDS = 300.0  # that another process may take to make a registry or to register in it
BUSY_SECONDS = 5.0  # that another program's transaction may take


class RegistryError(HeadraceError):
    """A registry that can't be used, or a name, version or alias that is not there; the message says what is."""


def database_of(tracking_uri: str) -> Path | None:
    """The absolute path of an SQLite registry; None for a server."""
    if not tracking_uri.startswith(_SQLITE):
        return None
    return Path(tracking_uri.removeprefix(_SQLITE).partition("?")[0]).absolute()


def absolute_uri(uri: str) -> str:
    """The URI of an SQLite database that names it wherever a process works; other URIs as they are."""
    database = database_of(uri)
    return uri if database is None else "".join((f"{_SQLITE}{database}", *uri.partition("?")[1:]))


def check_registry(tracking_uri: str, *, create: bool = False) -> None:
    """Raise RegistryError for a URI that is none, or a database that is not there or can't be used; imports nothing.

    With `create` one that is not there is fine, if it can be made.
    """
    database = database_of(tracking_uri)
    if database is None:
        if not _SERVER.match(tracking_uri):
            raise RegistryError(
                f"registry {redact(tracking_uri)!r}: is no URI of one: write sqlite:///PATH or http(s)://SERVER"
            )
        return
    with in_one_line(str(database)):
        if database.exists():
            _probe(database, create)
        elif not create:
            raise RegistryError(f"no registry at {database}: `headrace train` makes one; --registry names another")
        else:
            above = next(path for path in database.parents if path.exists())
            if not (above.is_dir() and os.access(above, os.W_OK | os.X_OK)):
                raise RegistryError(f"registry {database}: can't be made: {above} is no folder that can be written to")


@contextlib.contextmanager
def open_client(tracking_uri: str, *, write: bool = False, create: bool = False) -> Iterator[Any]:
    """Open MLflow without its reports to its makers, its notices and its progress bars.

    Raises:
        RegistryError: for whatever is wrong with the registry itself, in one line.
    """
    check_registry(tracking_uri, create=create)
    database = database_of(tracking_uri)
    for name, value in (
        ("MLFLOW_DISABLE_TELEMETRY", "true"),
        ("DO_NOT_TRACK", "true"),
        ("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false"),
        ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3"),  # its 7 take four minutes to tell that there is no server
        ("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1"),
        ("MLFLOW_HTTP_REQUEST_TIMEOUT", "30"),
    ):
        os.environ.setdefault(name, value)
    place = str(database) if database else redact(tracking_uri)
    with in_one_line(place, ImportError):
        import mlflow
        import mlflow.store.db.utils
        from alembic.util import CommandError
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

    mlflow.store.db.utils.MAX_RETRY_COUNT = 3  # its 10 take two minutes
    for chatty in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    # It logs with their tracebacks what it raises, too.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    with (
        warnings.catch_warnings(),
        in_one_line(place, MlflowException, SQLAlchemyError, CommandError, ImportError),
        locked(database, write),
    ):
        warnings.filterwarnings("ignore", message="The ``noload`` loader strategy is deprecated")
        if database is not None:
            if database.exists():
                _probe(database, write)
            # As MLflow locks by the URI's hash in a folder that all users of a machine share.
            tracking_uri = absolute_uri(tracking_uri)
        yield mlflow.MlflowClient(tracking_uri, registry_uri=tracking_uri)


@contextlib.contextmanager
def locked(database: Path | None, write: bool) -> Iterator[None]:
    """Hold the lock beside an SQLite registry, as two processes can't make its tables or number versions at once."""
    if database is None:
        yield
        return
    if write:
        database.parent.mkdir(parents=True, exist_ok=True)
    path = database.with_name(database.name + ".lock")
    if not write and not path.exists():  # nobody has written since there is this lock
        yield
        return
    end = time.monotonic() + _LOCK_SECONDS
    with path.open("ab" if write else "rb") as file:
        while True:
            try:
                fcntl.flock(file, (fcntl.LOCK_EX if write else fcntl.LOCK_SH) | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise RegistryError(f"registry {database}: another process holds {path}; try again") from None
                time.sleep(0.05)
        yield


def _probe(database: Path, write: bool) -> None:
    """Raise sqlite3.Error where the database is no SQLite file, is locked, or can't be written to."""
    uri = f"file:{urllib.parse.quote(str(database))}?mode=rw"
    with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS)) as connection:
        if write:
            connection.execute("BEGIN IMMEDIATE")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        connection.rollback()


@contextlib.contextmanager
def in_one_line(place: str, *kinds: type[Exception]) -> Iterator[None]:
    """Say in one line what is wrong with a registry: what the system, SQLite or `kinds` raise."""
    kinds = (OSError, sqlite3.Error, *kinds)
    try:
        yield
    except kinds as error:
        raise RegistryError(f"registry {place}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """The one line of an error that tells: of the driver below SQLAlchemy, of the system below HTTP, or its first."""
    text = redact(str(error))
    driver = re.search(r"\([\w.]+\.\w*Error\) ([^\n]+)", text)
    system = re.search(r"\[Errno -?\d+\] ([^'\")\n]+)", text)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}{f': {error.filename}' if error.filename else ''}"
    if driver:
        return driver[1].strip()
    if system:
        return system[1].strip()
    return next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)[:500]
