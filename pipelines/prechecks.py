"""What can be known to be wrong with a command before anything slow is imported: options, paths, the registry."""

from __future__ import annotations

import datetime
import errno
import glob
import importlib.util
import os
import pathlib
import socket
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from models.errors import HeadraceError
from models.partitions import Partitions, Span
from models.predictors.registry import find
from models.predictors.registry_store import RegistryError, check_registry, database_of
from models.project.sections import parse_duration
from pipelines.brokers import is_broker
from pipelines.databases import is_database, query_of
from pipelines.s3 import has_credentials
from pipelines.sources.delta import PREFIX, place_of
from pipelines.store import check_store, is_embedded

if TYPE_CHECKING:
    from models.project.declarations import Project

_FILE_SYSTEMS = ("gs", "s3", "hdfs", "azfs")
# The options that say which event time is scored.
BOUNDS = ("score_from", "score_to", "day", "hour")
_REGISTRY = pathlib.Path(".headrace", "registry.db")
_SINK = pathlib.Path(".headrace", "sink")


class UsageError(HeadraceError, ValueError):
    """Something on the command line that can't be."""


def require(condition: bool, message: str) -> None:
    """UsageError with the message, unless the condition holds."""
    if not condition:
        raise UsageError(message)


def require_package(name: str, what: str) -> None:
    """UsageError if a package that is not always there is needed, and isn't."""
    require(
        importlib.util.find_spec(name) is not None, f"{what} needs {name}, which is not installed: pip install {name}"
    )


def require_model(project: Project, what: str) -> None:
    """UsageError if a command needs a model, and the project declares none."""
    require(project.has_model, f"{project.name} declares no model: there is nothing to {what}")


def require_store(uri: str, project: Project, from_state: bool, apart: bool) -> None:
    """UsageError unless a store can have all that a project's features need of the past; StoreError if it is none."""
    check_store(uri)
    require(
        bool(project.rolling_features or project.tables),
        f"--store: {project.name} declares no rolling features and no tables: nothing is stored",
    )
    require(
        not from_state,
        "--store: a state that a run starts from does not say which events it is of: fill the store from their files, "
        "with `headrace store fill`",
    )
    require(
        not apart or not is_embedded(uri),
        "--store: the engine's workers may be on other machines: name a store in Redis, not a file",
    )


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
        if pattern.startswith(PREFIX):
            require_package("deltalake", f"--source {PREFIX}")
            pattern = place_of(pattern)
        if is_database(pattern):
            pattern = query_of(pattern)[1]
        require_file_system(pattern)
        # Beam's globs are those of Python, but for these.
        if "://" in pattern or "**" in pattern or "\\" in pattern:
            continue
        found = os.path.lexists(pattern) or any(True for _ in glob.iglob(pattern, include_hidden=True))
        require(found, f"{pattern or 'an empty path'}: no such file")


def split_sinks(sinks: Iterable[str], project: pathlib.Path) -> tuple[str, tuple[str, ...]]:
    """The last folder or topic among what is named as --sink, and the databases.

    Beside databases alone, the run's own files are in the project's folder.
    """
    databases = tuple(sink for sink in sinks if is_database(sink))
    return [str(project / _SINK), *(sink for sink in sinks if not is_database(sink))][-1], databases


def require_file_system(place: str) -> None:
    """UsageError for a URI that is neither a broker's nor one of a file system that Beam has."""
    scheme, found, _ = place.partition("://")
    if scheme == "s3":
        require_package("boto3", place)
        require(
            has_credentials(),
            f"{place}: nothing tells who you are: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or as boto3 says",
        )
    require(
        not found or scheme in _FILE_SYSTEMS or is_broker(place),
        f"{place}: no file system {scheme} is known: name a path, or {', '.join(f'{s}://' for s in _FILE_SYSTEMS)}",
    )


def require_values(values: str) -> None:
    """UsageError for --values that can't be; what is in its file is checked later."""
    kind, _, place = values.partition(":")
    is_url = place.startswith(("http://", "https://"))
    known = values in ("json", "pulsar") or (kind == "avro" and bool(place)) or (kind == "json" and is_url)
    form = "json, avro:FILE.avsc, pulsar, or avro: or json:http(s)://REGISTRY?subject=SUBJECT"
    require(known, f"--values is {form}, not {values}")
    if kind == "avro" and not is_url:
        require(os.path.isfile(place), f"--values {values}: no file {place}")


def require_traces(share: float) -> None:
    """UsageError for a share of events, and TraceError for a collector, that can't be."""
    from pipelines.monitoring.spans import collector_url

    require(0 < share <= 1, f"--traces is a share of events above 0 and up to 1, such as 0.001, not {share:g}")
    collector_url()


def require_transactional(sink: str, dead_letters: str | None, journal: str | None, at_arrival: bool) -> None:
    """UsageError, with one fault a line, for a stream that can't publish by transactions."""
    cluster = "/".join(sink.split("/")[:3])
    faults = []
    if not sink.startswith("kafka://"):
        faults.append(f"--transactional is by transactions of Kafka's: --sink is kafka://HOST:PORT/TOPIC, not {sink}")
    elif dead_letters is not None and "/".join(dead_letters.split("/")[:3]) != cluster:
        faults.append(
            f"--transactional has dead letters in the scores' transactions: --dead-letters is a topic of {cluster}, "
            f"not {dead_letters}"
        )
    if journal is None:
        faults.append("--transactional needs a --journal, by which a stream that was killed goes on")
    if at_arrival:
        faults.append("--transactional is for --order event_time: at arrival an event may have a second row")
    require(not faults, "\n".join(faults))


def require_one_cluster(sink: str, sinks: Mapping[str, str]) -> None:
    """UsageError unless what decisions are sent to is of the cluster of the sink, whose transactions rows are in."""
    cluster = "/".join(sink.split("/")[:3])
    for decision, place in sinks.items():
        require(
            not is_broker(place) or "/".join(place.split("/")[:3]) == cluster,
            f"--transactional has all rows in the transactions of {cluster}: sinks sends {decision} to {place}; "
            "name a topic there",
        )


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


def option_of(name: str) -> str:
    """The option that gives a field of RunSpec."""
    return f"--{name.replace('_', '-')}"


def span_of(bounds: Mapping[str, str], partitions: Partitions) -> Span:
    """The event time that the options of BOUNDS name, of the time zone where they say no other; UsageError if none."""
    given = {name: time_us(name, text, partitions) for name, text in bounds.items()}
    for name, kind in _kinds(partitions).items():
        if name in given:
            return Span(given[name], kind.next_us(given[name]))
    return Span(given.get("score_from"), given.get("score_to"))


def require_span(bounds: Mapping[str, str], partitions: Partitions) -> None:
    """UsageError unless the options of BOUNDS name one span."""
    span, kinds = span_of(bounds, partitions), _kinds(partitions)
    one = bounds.keys() & kinds.keys()
    require(len(bounds) < 2 or not one, "name one of --day, --hour, or --score-from and --score-to")
    for name in one:
        example = "2018-06-08" if name == "day" else "2018-06-08T13"
        whole = span.start_us is not None and kinds[name].start_us(span.start_us) == span.start_us
        require(whole, f"--{name} is the start of one, such as {example}, not {bounds[name]}")
    if span.start_us is not None and span.stop_us is not None:
        backward = f"--score-to {bounds.get('score_to')} is not after --score-from {bounds.get('score_from')}"
        require(span.start_us < span.stop_us, backward)


def require_whole(bounds: Mapping[str, str], partitions: Partitions) -> None:
    """UsageError where a span would replace a part of a partition of the output."""
    needs = "is for a project whose output is partitioned by hour: declare partition: hour, or name a --day"
    require("hour" not in bounds or partitions.by == "hour", f"--hour {needs}")
    for name, text in bounds.items():
        us, what = time_us(name, text, partitions), "an hour" if partitions.by == "hour" else "a day"
        whole = us == partitions.start_us(us)
        require(whole, f"{option_of(name)} is the start of {what}, as a run replaces each as a whole: not {text}")


def _kinds(partitions: Partitions) -> dict[str, Partitions]:
    return {"day": Partitions("day", partitions.timezone), "hour": Partitions("hour", partitions.timezone)}


def time_us(name: str, text: str, partitions: Partitions) -> int:
    """What an option names, in microseconds since 1970 UTC; UsageError if it is no time."""
    try:
        return partitions.parse(text)
    except ValueError:
        example = "a time such as 2018-06-08 or 2018-06-08T12:00:00"
        raise UsageError(f"{option_of(name)} is {example}, not {text}") from None


def check_duration(option: str, text: str) -> None:
    """UsageError for a text that is no duration."""
    try:
        parse_duration(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None


def find_version(project: pathlib.Path, name: str, version: str, given: str | None) -> str:
    """As `find_registry`; RegistryError also if it is of this machine and has no such version or alias.

    A server is asked for it later.
    """
    registry = find_registry(project, given)
    if database_of(registry) is not None:
        find(name, version, registry)
    return registry
