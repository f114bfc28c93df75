"""Clients of librdkafka: their settings, from a file or from code, and what is logged of an outage."""

from __future__ import annotations

import logging
import os
import pathlib
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException

from pipelines.brokers import BrokerError, BrokerOptionError

_log = logging.getLogger("pipelines.brokers.kafka")
_SECRET = re.compile(r".*(password|passphrase|secret|key\.pem).*")
_MAX_FILE_BYTES = 1 << 20
_LOG_SECONDS = 600.0

Settings = Mapping[str, str | int | float | bool]


def check_settings(settings: Settings, ours: Collection[str], where: str = "settings") -> None:
    """BrokerOptionError if there is one among them that headrace sets itself."""
    for name in settings:
        if name in ours:
            raise BrokerOptionError(f"{where}: {name} is not a setting to change")


def check_no_secrets(settings: Settings) -> None:
    """BrokerOptionError if a secret stands in code, from where it would travel with a pickled pipeline."""
    for name, value in settings.items():
        if _SECRET.fullmatch(name) and not re.match(r"\$[^$]", str(value)):
            raise BrokerOptionError(f"{name} is a secret: give $NAME, and have it in the environment variable NAME")


def read_properties(file: str) -> dict[str, str]:
    """The settings of lines NAME=VALUE, with `#` or `!` before a comment; BrokerOptionError or OSError if it can't."""
    path = pathlib.Path(file)
    with path.open("rb") as opened:
        content = opened.read(_MAX_FILE_BYTES + 1)
    if len(content) > _MAX_FILE_BYTES:
        raise BrokerOptionError(f"{file}: more than {_MAX_FILE_BYTES} bytes are no properties file")
    settings: dict[str, str] = {}
    for number, line in enumerate(content.decode(errors="replace").splitlines(), 1):
        line = line.strip()
        if not line or line[0] in "#!":
            continue
        name, equals, value = (part.strip() for part in line.partition("="))
        if not equals or not name or name in settings:  # the line is not shown: it may be a secret
            raise BrokerOptionError(f"{file}, line {number}: not NAME=VALUE, or a name that stands twice")
        settings[name] = value
    return settings


def resolve(settings: Settings) -> dict[str, Any]:
    """Settings with `$NAME` read from the environment, and `$$` as a dollar sign; BrokerError if one is not there.

    The error does not show NAME: it may be a secret that starts with a dollar sign.
    """
    resolved = dict(settings)
    for name, value in settings.items():
        if isinstance(value, str) and value.startswith("$$"):
            resolved[name] = value[1:]
        elif isinstance(value, str) and value.startswith("$"):
            if value[1:] not in os.environ:
                raise BrokerError(f"{name} needs the environment variable after its $, which is not set ($$ is a $)")
            resolved[name] = os.environ[value[1:]]
    return resolved


def connect(client: Callable[..., Any], settings: dict[str, Any], outage: Outage) -> Any:
    """A client of librdkafka with settings; BrokerError if it refuses them."""
    try:
        return client({"error_cb": outage.failed, **settings}, logger=_log)
    except (KafkaException, TypeError, ValueError) as failure:
        shown = str(failure)
        for name, value in settings.items():
            if _SECRET.fullmatch(name) and value:
                shown = shown.replace(str(value), "...")
        raise BrokerError(f"librdkafka refuses the settings: {shown}") from None


class Outage:
    """Whether a client has no broker left, which is logged when it begins and when it is over."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self.connected = False  # until then it is for who connects to say
        self.down = False
        self.error: KafkaError | None = None  # the last one that says why

    def failed(self, error: KafkaError) -> None:
        """librdkafka's error_cb; it tries again by itself."""
        if error.name() != "_ALL_BROKERS_DOWN":
            self.error = error
        elif self.connected and not self.down:
            self.down = True
            _log.warning("Kafka, %s: %s; trying again until it works", self._uri, (self.error or error).str())

    def worked(self) -> None:
        """A broker has answered."""
        if self.down:
            self.down = False
            _logged.clear()
            _log.warning("Kafka, %s: works again", self._uri)


def _is_news(record: logging.LogRecord) -> bool:
    """Let a line of librdkafka's pass and then none of its kind for a while: it tells of an outage with each try."""
    if not isinstance(record.args, tuple) or len(record.args) != 3:
        return True
    kind = record.args[0]
    passes = record.created >= _logged.get(kind, 0.0) + _LOG_SECONDS
    _logged.update({kind: record.created} if passes else {})
    return passes


_logged: dict[object, float] = {}
_log.addFilter(_is_news)
