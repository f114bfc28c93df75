"""Clients of librdkafka: which settings they take, and what is logged of an outage."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection
from typing import Any

from confluent_kafka import KafkaError, KafkaException

from pipelines.brokers import BrokerError, BrokerOptionError
from pipelines.brokers.properties import Settings

log = logging.getLogger("pipelines.brokers.kafka")
_SECRET = re.compile(r".*(password|passphrase|secret|key\.pem).*")
_LOG_SECONDS = 600.0


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


def connect(client: Callable[..., Any], settings: dict[str, Any], outage: Outage) -> Any:
    """A client of librdkafka with settings; BrokerError if it refuses them."""
    try:
        return client({"error_cb": outage.failed, **settings}, logger=log)
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
            log.warning("Kafka, %s: %s; trying again until it works", self._uri, (self.error or error).str())

    def worked(self) -> None:
        """A broker has answered."""
        if self.down:
            self.down = False
            _logged.clear()
            log.warning("Kafka, %s: works again", self._uri)


def _is_news(record: logging.LogRecord) -> bool:
    """Let a line of librdkafka's pass and then none of its kind for a while: it tells of an outage with each try."""
    if not isinstance(record.args, tuple) or len(record.args) != 3:
        return True
    kind = record.args[0]
    passes = record.created >= _logged.get(kind, 0.0) + _LOG_SECONDS
    _logged.update({kind: record.created} if passes else {})
    return passes


_logged: dict[object, float] = {}
log.addFilter(_is_news)
