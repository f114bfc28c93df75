"""A Confluent-compatible schema registry.

It is not read by confluent-kafka's own SchemaRegistryClient, for three reasons, seen in version 2.16.1: it needs
authlib and httpx2, which nothing else here does; it takes an answer of any size, and one that never ends as long as
some bytes come in time; and it asks again for each unknown id, which a producer's mistake makes one request a message.

SchemaRegistryError
├── UnknownSchema      the registry answers that it has none
├── UnusableSchema     the registry has one that is not for us, such as Protobuf's
└── RegistryDown       no answer, after trying again: waiting may help
"""

from __future__ import annotations

import base64
import dataclasses
import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from pipelines.brokers import BrokerError, BrokerOptionError

AVRO, JSON = "AVRO", "JSON"
_MEDIA_TYPE = "application/vnd.schemaregistry.v1+json"
_ATTEMPTS = 3
_BACKOFF_SECONDS = 0.2
_CACHED_SCHEMAS = 1000
_UNKNOWN_SECONDS = 60.0  # ids come with the messages: a wrong one must not cost a request each time


class SchemaRegistryError(BrokerError):
    """The registry refuses, or answers what can't be used."""


class UnknownSchema(SchemaRegistryError):
    """The registry has no such schema or subject."""


class UnusableSchema(SchemaRegistryError):
    """A schema that is neither Avro nor JSON Schema, or is made of several."""


class RegistryDown(SchemaRegistryError):
    """The registry does not answer."""


@dataclasses.dataclass(frozen=True)
class RegisteredSchema:
    """A schema with the id that payloads name it by; `version` is of its subject, where that was asked for.

    `kind` is AVRO or JSON, as the registry calls JSON Schema.
    """

    id: int
    schema: Any
    version: int | None = None
    kind: str = AVRO


@dataclasses.dataclass
class SchemaRegistry:
    """Asks a registry; what it said of an id is kept.

    `credentials` is the name of an environment variable that holds USER:PASSWORD. They are sent to no other
    address: a redirect is an error.
    """

    url: str
    credentials: str | None = None
    timeout_seconds: float = 10.0
    max_bytes: int = 4 << 20
    _schemas: dict[int, RegisteredSchema] = dataclasses.field(default_factory=dict, init=False, repr=False)
    _unknown: dict[int, float] = dataclasses.field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.query:
            raise BrokerOptionError("a schema registry's URL is http(s)://HOST[:PORT][/PATH], with no user or password")

    def schema(self, schema_id: int) -> RegisteredSchema:
        """The schema of an id; UnknownSchema if there is none, for a minute without asking again."""
        if schema_id in self._schemas:
            return self._schemas[schema_id]
        if time.monotonic() < self._unknown.get(schema_id, 0.0):
            raise UnknownSchema(f"{self.url}: no schema {schema_id}")
        try:
            answer = self._request(f"/schemas/ids/{schema_id:d}")
        except UnknownSchema:
            _keep(self._unknown, schema_id, time.monotonic() + _UNKNOWN_SECONDS)
            raise
        found = self._registered({"id": schema_id} | answer if isinstance(answer, dict) else answer)
        _keep(self._schemas, schema_id, dataclasses.replace(found, version=None))
        return self._schemas[schema_id]

    def versions(self, subject: str) -> list[RegisteredSchema]:
        """All versions of a subject, oldest first, asked anew each time; UnknownSchema if there is no such subject."""
        path = f"/subjects/{urllib.parse.quote(subject, safe='')}/versions"
        numbers = self._request(path)
        if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
            raise SchemaRegistryError(f"{self.url}: an answer that is not a list of versions")
        return [self._registered(self._request(f"{path}/{number}")) for number in sorted(numbers)]

    def _registered(self, answer: Any) -> RegisteredSchema:
        if not isinstance(answer, dict):
            raise SchemaRegistryError(f"{self.url}: an answer that is not a JSON object")
        kind, number, version = answer.get("schemaType", AVRO), answer.get("id"), answer.get("version")
        if kind not in (AVRO, JSON):
            raise UnusableSchema(f"{self.url}: schema {number} is {kind}, not Avro or JSON Schema")
        if answer.get("references"):
            raise UnusableSchema(f"{self.url}: schema {number} refers to other schemas, which is not supported")
        if not isinstance(number, int) or not isinstance(version, int | None):
            raise SchemaRegistryError(f"{self.url}: an answer without a schema's id")
        try:
            return RegisteredSchema(number, json.loads(answer["schema"]), version, kind)
        except (KeyError, TypeError, ValueError, RecursionError):
            raise UnusableSchema(f"{self.url}: schema {number} is not JSON") from None

    def _request(self, path: str) -> Any:
        headers = {"Accept": _MEDIA_TYPE}
        if self.credentials is not None:
            if self.credentials not in os.environ:
                raise SchemaRegistryError(f"{self.url}: needs the environment variable {self.credentials}")
            headers["Authorization"] = "Basic " + base64.b64encode(os.environ[self.credentials].encode()).decode()
        request = urllib.request.Request(self.url.rstrip("/") + path, headers=headers)
        opener, why = urllib.request.build_opener(_NoRedirects), ""
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(_BACKOFF_SECONDS * 2**attempt)
            try:
                with opener.open(request, timeout=self.timeout_seconds) as response:
                    return self._parse(response)
            except urllib.error.HTTPError as error:
                with error:
                    why = f"{self.url}{path}: HTTP {error.code}: {_message(error)}"
                if error.code == 404:
                    raise UnknownSchema(why) from None
                if error.code < 500 and error.code != 429:
                    raise SchemaRegistryError(why) from None
            except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
                why = f"{self.url}{path}: {getattr(error, 'reason', error)}"
        raise RegistryDown(why)

    def _parse(self, response: Any) -> Any:
        """The JSON of a response that is neither too large nor too slow."""
        content, deadline = bytearray(), time.monotonic() + self.timeout_seconds
        while part := response.read1(65536):
            content += part
            if len(content) > self.max_bytes:
                raise SchemaRegistryError(f"{self.url}: an answer of more than {self.max_bytes} bytes")
            if time.monotonic() > deadline:
                raise TimeoutError("timed out")
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            raise SchemaRegistryError(f"{self.url}: an answer that is not JSON") from None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Follow none: urllib would take the credentials along."""


def _keep(cache: dict[int, Any], key: int, value: Any) -> None:
    """Add, and let go of the oldest."""
    cache[key] = value
    while len(cache) > _CACHED_SCHEMAS:
        cache.pop(next(iter(cache)), None)


def _message(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(error.read(4096))["message"])[:500]
    except (KeyError, TypeError, ValueError, RecursionError, OSError, http.client.HTTPException):
        return error.reason
