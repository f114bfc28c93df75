"""Where a release log is kept: a database beside the registry, or a file that was exported.

The table is only added to, by one writer at a time; whoever meets a log that has grown since he read it is told so.
"""

from __future__ import annotations

import os
import pathlib
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING

from models.predictors.registry_store import database_of
from models.project.declarations import Project
from models.redact import redact
from models.rollout.log_file import MAX_LOG_BYTES, from_lines, to_lines
from models.rollout.records import MAX_RECORDS, ReleaseError, ReleaseLog, canonical, digest, read_record
from pipelines.databases import check_database, is_database, lock_writers, transaction

if TYPE_CHECKING:
    from sqlalchemy import Connection, Table

VARIABLE = "HEADRACE_RELEASES"  # of the environment: where the log is
# A record is written within this time after it is made: who reads the log `lead` before it takes effect has it.
WRITTEN_WITHIN_US = 1_000_000
_FILE = "releases.db"


def place_of_log(registry: str, given: str | None) -> str | None:
    """Where a log is: what was given or the variable says, or beside an SQLite registry; None if nothing tells."""
    if place := given or os.environ.get(VARIABLE):
        return place
    database = database_of(registry)
    return None if database is None else f"sqlite:///{database.with_name(_FILE)}"


def find_log(project: Project, registry: str, given: str | None) -> str | None:
    """Where the log is that a run follows; None if there is none. ReleaseError if one was given and has no record."""
    place = place_of_log(registry, given)
    if place is None or read_log(place, project) is not None:
        return place
    if given is not None:
        raise no_release(place, project)
    return None


def no_release(place: str, project: Project) -> ReleaseError:
    """The error where a log is wanted and a place has none of the project."""
    return ReleaseError(f"{redact(place)}: has no release of {project.name}: `headrace release` makes one")


def need_log(place: str, project: Project) -> ReleaseLog:
    """`read_log` where a log is wanted; ReleaseError if there is no record, too."""
    log = read_log(place, project)
    if log is None or not log.records:
        raise no_release(place, project)
    return log


def read_log(place: str, project: Project) -> ReleaseLog | None:
    """A project's log, in a database or an exported file, each record checked; None of a database without one.

    Raises:
        ReleaseError: if a record was changed, or names what the project does not have.
        DatabaseError: if the database can't be used.
        OSError: if the file can't be read.
    """
    try:
        log = _read_database(place, project.name) if is_database(place) else _read_file(place, project.name)
        if log is not None:
            log.check(project.entities)
    except ReleaseError as error:
        raise ReleaseError(f"release log {redact(place)}: {error}") from None
    return log


def newest_digest(place: str, project: str) -> str | None:
    """The digest of a log's last record, by which one who has read the log knows that it has not grown; None of none.

    Raises:
        DatabaseError: if the database can't be used.
    """
    from sqlalchemy import select

    _, records = _tables()
    newest = select(records.c.digest).where(records.c.project == project).order_by(records.c.seq.desc()).limit(1)
    with transaction(place, read_only=True) as connection:
        return connection.execute(newest).scalar()


def append(
    place: str, project: str, seen: ReleaseLog, now_us: Callable[[], int], make: Callable[[int], ReleaseLog]
) -> ReleaseLog:
    """Add records to a log; `make` gives the longer log at a time, which is asked for when nobody else can write.

    Raises:
        ReleaseError: if the log is not as it was seen any more, as another command was first, or writing took longer
            than WRITTEN_WITHIN_US.
        DatabaseError: if the database can't be used.
    """
    from sqlalchemy import insert

    check_writable(place)
    database = database_of(place)
    if database is not None:
        database.parent.mkdir(parents=True, exist_ok=True)
    logs, records = _tables()
    with transaction(place) as connection:
        lock_writers(connection, records.name)
        logs.metadata.create_all(connection)
        found = _read(connection, project)
        if found != (seen if seen.records else None):
            newest = f": record {found.records[-1].seq}, by {found.records[-1].author}" if found else ""
            raise ReleaseError(
                f"release log {redact(place)}: another release was made meanwhile{newest}; look at `headrace "
                "releases`, and say again what is still wanted"
            )
        made_us = now_us()
        longer = make(made_us)
        if found is None:
            header = {"project": project, "clock": longer.clock, "lead_us": longer.lead_us}
            connection.execute(insert(logs).values(header))
        for release in longer.records[len(seen.records) :]:
            content = canonical(release).decode()
            row = {"project": project, "seq": release.seq, "record": content, "digest": digest(release)}
            connection.execute(insert(records).values(row))
        if now_us() > made_us + WRITTEN_WITHIN_US:
            raise ReleaseError(f"release log {redact(place)}: took too long to write, and nothing was: say it again")
    return longer


def export(log: ReleaseLog, project: str, path: pathlib.Path) -> None:
    """Write a log as JSON lines; ReleaseError if something else is there, which stays."""
    if path.exists():
        try:
            _read_file(str(path), project)
        except ReleaseError:
            raise ReleaseError(f"{path}: is there, and is no release log of {project}: name another file") from None
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        unfinished.write_bytes(to_lines(log, project))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def check_writable(place: str) -> None:
    """ReleaseError for a place that no release can be written to; DatabaseError for a URL that can't be."""
    if not is_database(place):
        raise ReleaseError(
            f"{redact(place)}: releases are written to a database, sqlite:///FILE or "
            "postgresql://USER:$NAME@HOST/DATABASE; a file is only read"
        )
    check_database(place)


def _read_file(place: str, project: str) -> ReleaseLog:
    with open(place, "rb") as file:
        content = file.read(MAX_LOG_BYTES + 1)
    return from_lines(content, project)


def _read_database(place: str, project: str) -> ReleaseLog | None:
    database = database_of(place)
    if database is not None and not os.path.lexists(database):
        return None  # before SQLAlchemy is imported, which takes a fifth of a second
    check_database(place)
    with transaction(place, read_only=True) as connection:
        return _read(connection, project)


def _read(connection: Connection, project: str) -> ReleaseLog | None:
    from sqlalchemy import inspect, select

    logs, records = _tables()
    if not inspect(connection).has_table(logs.name):
        return None
    header = connection.execute(select(logs.c.clock, logs.c.lead_us).where(logs.c.project == project)).one_or_none()
    if header is None:
        return None
    mine = select(records.c.seq, records.c.record, records.c.digest).where(records.c.project == project)
    found = []
    for seq, content, stated in connection.execute(mine.order_by(records.c.seq).limit(MAX_RECORDS)):
        release = read_record(seq, content.encode())
        if release.seq != seq or digest(release) != stated:
            raise ReleaseError(f"record {seq}: is not as it was written: its digest is of another one")
        found.append(release)
    if not found:
        raise ReleaseError("has no record: those that there were are gone")
    return ReleaseLog(header.clock, header.lead_us, tuple(found))


def _tables() -> tuple[Table, Table]:
    """The logs, one of each project, and their records."""
    from sqlalchemy import BigInteger, Column, Integer, MetaData, String, Table, Text

    metadata = MetaData()
    logs = Table(
        "headrace_release_logs",
        metadata,
        Column("project", String(100), primary_key=True),
        Column("clock", String(10), nullable=False),
        Column("lead_us", BigInteger, nullable=False),
    )
    records = Table(
        "headrace_releases",
        metadata,
        Column("project", String(100), primary_key=True),
        Column("seq", Integer, primary_key=True, autoincrement=False),
        Column("record", Text, nullable=False),
        Column("digest", String(64), nullable=False),
    )
    return logs, records
