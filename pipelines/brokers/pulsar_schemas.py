"""The schemas that Pulsar keeps with a topic: what messages name by a version, and what a sink registers."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import pulsar
import pulsar.schema

from pipelines.brokers import BrokerError
from pipelines.brokers.pulsar_client import REFUSALS, log, say
from pipelines.brokers.schema_registry import AVRO, JSON, RegisteredSchema

# The client that pulsar 3.13 wraps: pulsar itself asks for schemas only to decode by them.
_pulsar = pulsar._pulsar
_KINDS = {_pulsar.SchemaType.AVRO: AVRO, _pulsar.SchemaType.JSON: JSON}
_RETRY_SECONDS, _PATIENCE_SECONDS = 0.5, 60.0
_MOST_VERSIONS = 1000


class TopicSchemas:
    """Asks for a topic's schemas; what was said of a version is kept."""

    def __init__(self, uri: str, client: pulsar.Client, topic: str) -> None:
        self._uri, self._client, self._topic = uri, client, topic
        self._known: dict[int, RegisteredSchema | None] = {}

    def version(self, number: int) -> RegisteredSchema | None:
        """The schema of a version, which is its id, too; None if there is none, or it is neither Avro nor JSON.

        A broker that does not answer is waited for, up to a minute; then BrokerError.
        """
        if number not in self._known:
            if len(self._known) >= _MOST_VERSIONS:
                self._known.clear()
            self._known[number] = self._ask(number) if number >= 0 else None
        return self._known[number]

    def versions(self) -> list[RegisteredSchema]:
        """All versions from the first on, up to one that was deleted; BrokerError if there is none."""
        found: list[RegisteredSchema] = []
        while len(found) < _MOST_VERSIONS and (schema := self.version(len(found))) is not None:
            found.append(schema)
        if not found:
            raise BrokerError(f"{self._uri}: the topic has no schema of Avro or JSON: its producers register one")
        return found

    def _ask(self, number: int) -> RegisteredSchema | None:
        deadline, told = time.monotonic() + _PATIENCE_SECONDS, False
        while True:
            try:
                info = self._client._client.get_schema_info(self._topic, number)
                break
            except pulsar.TopicNotFound:  # or the version
                return None
            except pulsar.PulsarException as error:
                if isinstance(error, REFUSALS) or time.monotonic() > deadline:
                    raise BrokerError(f"{self._uri}: schema version {number}: {say(error)}") from None
                if not told:
                    log.warning("Pulsar, %s: schema version %d: %s; trying again", self._uri, number, say(error))
                told = True
                time.sleep(_RETRY_SECONDS)
        kind = _KINDS.get(info.schema_type())
        try:
            return None if kind is None else RegisteredSchema(number, json.loads(info.schema()), number, kind)
        except ValueError:
            return None


class JsonRows(pulsar.schema.Schema):
    """The schema of JSON rows that are encoded already; all fields may be null."""

    def __init__(self, name: str, fields: Mapping[str, str]) -> None:
        made = [{"name": field, "type": ["null", kind], "default": None} for field, kind in fields.items()]
        super().__init__(bytes, _pulsar.SchemaType.JSON, {"type": "record", "name": name, "fields": made}, "JSON")

    def encode(self, obj: bytes) -> bytes:
        """The row."""
        return obj

    def decode(self, data: bytes) -> Any:
        """The row's fields."""
        return json.loads(data)
