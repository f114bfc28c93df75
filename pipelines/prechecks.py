"""What can be known to be wrong with a command before anything slow is imported: options, paths, the registry."""

from __future__ import annotations

import datetime
import errno
import glob
import os
import pathlib
import socket
from collections.abc import Iterable

from models.errors import HeadraceError
from models.predictors.registry import find
from models.predictors.registry_store import RegistryError, check_registry, database_of
from models.project.declarations import parse_duration
from pipelines.brokers import is_broker

_FILE_SYSTEMS = ("gs", "s3", "hdfs", "azfs")
_REGISTRY = pathlib.Path(".headrace", "registry.db")


class UsageError(HeadraceError, ValueError):
    """Something on the command line that can't be."""


def require(condition: bool, message: str) -> None:
    """UsageError with the message, unless the condition holds."""
    if not condition:
        raise UsageError(message)


def registry_of(project: pathlib.Path, given: str | None) -> str:
    """The URI of the registry: the one given, or that in the project's folder, wherever the command runs."""
    return given if given else f"sqlite:///{project / _REGISTRY}"


def find_registry(project: pathlib.Path, given: str | None, *, create: bool = False) -> str:
    """As `registry_of`; RegistryError if it isn't there or can't be used, or with `create` if it can't be made.

    Before, the registry was that of the working directory: where only such a one is, the error says so.
    """
    uri = registry_of(project, given)
    try:
        check_registry(uri, create=create)
    except RegistryError as error:
        database, here = database_of(uri), _REGISTRY.absolute()
        if given or not here.is_file() or database is None or database.exists():
            raise
        raise RegistryError(
            f"{error}; there is one at {here}: say --registry sqlite:///{here}, "
            f"or move the folder {_REGISTRY.parent} into {project}"
        ) from None
    return uri


def require_files(patterns: Iterable[str]) -> None:
    """UsageError for a path or glob of this machine that matches nothing; what else there is to say, Beam says."""
    for pattern in patterns:
        require_file_system(pattern)
        # Beam's globs are those of Python, but for these.
        if "://" in pattern or "**" in pattern or "\\" in pattern:
            continue
        found = os.path.lexists(pattern) or any(True for _ in glob.iglob(pattern, include_hidden=True))
        require(found, f"{pattern or 'an empty path'}: no such file")


def require_file_system(place: str) -> None:
    """UsageError for a URI that is neither a broker's nor one of a file system that Beam has."""
    scheme, found, _ = place.partition("://")
    require(
        not found or scheme in _FILE_SYSTEMS or is_broker(place),
        f"{place}: no file system {scheme} is known: name a path, or {', '.join(f'{s}://' for s in _FILE_SYSTEMS)}",
    )


def require_values(values: str) -> None:
    """UsageError for --values that can't be; what is in its file is checked later."""
    kind, _, place = values.partition(":")
    known = values == "json" or (kind == "avro" and bool(place))
    require(known, f"--values is json, avro:FILE.avsc or avro:http(s)://REGISTRY?subject=SUBJECT, not {values}")
    if kind == "avro" and not place.startswith(("http://", "https://")):
        require(os.path.isfile(place), f"--values {values}: no file {place}")


def require_port(port: int) -> None:
    """UsageError if something listens on a port of this machine."""
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(("127.0.0.1", port))
        except OSError as error:
            why = "it is taken, perhaps by another one" if error.errno == errno.EADDRINUSE else error.strerror
            raise UsageError(f"can't listen on port {port}: {why}; say another with --port") from None


def parse_time(option: str, text: str | None) -> datetime.datetime | None:
    """A time as ISO 8601 writes it, of UTC where it says no other; UsageError if it is none."""
    if text is None:
        return None
    try:
        return datetime.datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{option} is a time such as 2018-06-08 or 2018-06-08T12:00:00, not {text}") from None


def check_duration(option: str, text: str) -> None:
    """UsageError for a text that is no duration."""
    try:
        parse_duration(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None


def require_version(name: str, version: str, registry: str) -> None:
    """RegistryError if a registry of this machine has no such version or alias; a server is asked later."""
    if database_of(registry) is not None:
        find(name, version, registry)
