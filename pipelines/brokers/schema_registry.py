"""A Confluent-compatible schema registry, and whether an Avro schema may follow another.

SchemaRegistryError
├── UnknownSchema      the registry answers that it has none
└── RegistryDown       no answer, after trying again: waiting may help
"""

from __future__ import annotations

import base64
import dataclasses
import http.client
import json
import os
import struct
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Collection, Iterator, Mapping
from typing import Any

_MEDIA_TYPE = "application/vnd.schemaregistry.v1+json"
_MAGIC = 0
_HEADER = struct.Struct(">bi")
_ATTEMPTS = 3
_BACKOFF_SECONDS = 0.2
_CACHED_SCHEMAS = 1000
_UNKNOWN_SECONDS = 60.0  # ids come with the messages: a wrong one must not cost a request each time
_PRIMITIVES = {"null", "boolean", "int", "long", "float", "double", "bytes", "string"}
# What a reader takes for what was written, by the Avro specification.
_PROMOTIONS = {
    "int": {"long", "float", "double"},
    "long": {"float", "double"},
    "float": {"double"},
    "string": {"bytes"},
    "bytes": {"string"},
}


class SchemaRegistryError(RuntimeError):
    """The registry refuses, or answers what can't be used."""


class UnknownSchema(SchemaRegistryError):
    """The registry has no such schema or subject."""


class RegistryDown(SchemaRegistryError):
    """The registry does not answer."""


class WireFormatError(ValueError):
    """A payload that is not of Confluent's wire format."""


@dataclasses.dataclass(frozen=True)
class RegisteredSchema:
    """A schema with the id that payloads name it by; `version` is of its subject, where that was asked for."""

    id: int
    schema: Any
    version: int | None = None


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
            raise ValueError("a schema registry's URL is http(s)://HOST[:PORT][/PATH], with no user or password")

    def schema(self, schema_id: int) -> RegisteredSchema:
        """The Avro schema of an id; UnknownSchema if there is none, for a minute without asking again."""
        if schema_id in self._schemas:
            return self._schemas[schema_id]
        if time.monotonic() < self._unknown.get(schema_id, 0.0):
            raise UnknownSchema(f"{self.url}: no schema {schema_id}")
        try:
            answer = self._request(f"/schemas/ids/{schema_id:d}")
        except UnknownSchema:
            _keep(self._unknown, schema_id, time.monotonic() + _UNKNOWN_SECONDS)
            raise
        found = self._registered({"id": schema_id} | answer)
        _keep(self._schemas, schema_id, dataclasses.replace(found, version=None))
        return self._schemas[schema_id]

    def latest(self, subject: str) -> RegisteredSchema:
        """A subject's newest schema, asked anew each time."""
        return self._registered(self._request(f"/subjects/{urllib.parse.quote(subject, safe='')}/versions/latest"))

    def incompatibilities(self, subject: str, schema: Mapping[str, Any]) -> list[str]:
        """Why the registry would not take a schema as the subject's next, by the rule it has for it; none if it would.

        UnknownSchema if there is no such subject.
        """
        path = f"/compatibility/subjects/{urllib.parse.quote(subject, safe='')}/versions/latest?verbose=true"
        answer = self._request(path, {"schema": json.dumps(schema)})
        compatible = answer.get("is_compatible")
        if not isinstance(compatible, bool):
            raise SchemaRegistryError(f"{self.url}: an answer without is_compatible")
        messages = answer.get("messages")
        reasons = [str(message) for message in messages] if isinstance(messages, list) else []
        return [] if compatible else reasons or ["the registry does not say why"]

    def _registered(self, answer: dict[str, Any]) -> RegisteredSchema:
        kind, number, version = answer.get("schemaType", "AVRO"), answer.get("id"), answer.get("version")
        if kind != "AVRO":
            raise SchemaRegistryError(f"{self.url}: schema {number} is {kind}, not Avro")
        if answer.get("references"):
            raise SchemaRegistryError(f"{self.url}: schema {number} refers to other schemas, which is not supported")
        if not isinstance(number, int) or not isinstance(version, int | None):
            raise SchemaRegistryError(f"{self.url}: an answer without a schema's id")
        try:
            return RegisteredSchema(number, json.loads(answer["schema"]), version)
        except (KeyError, TypeError, ValueError, RecursionError):
            raise SchemaRegistryError(f"{self.url}: schema {number} is not JSON") from None

    def _request(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        headers = {"Accept": _MEDIA_TYPE, "Content-Type": _MEDIA_TYPE}
        if self.credentials is not None:
            if self.credentials not in os.environ:
                raise SchemaRegistryError(f"{self.url}: needs the environment variable {self.credentials}")
            headers["Authorization"] = "Basic " + base64.b64encode(os.environ[self.credentials].encode()).decode()
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url.rstrip("/") + path, data, headers)
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

    def _parse(self, response: Any) -> dict[str, Any]:
        """The JSON object of a response that is neither too large nor too slow."""
        content, deadline = bytearray(), time.monotonic() + self.timeout_seconds
        while part := response.read1(65536):
            content += part
            if len(content) > self.max_bytes:
                raise SchemaRegistryError(f"{self.url}: an answer of more than {self.max_bytes} bytes")
            if time.monotonic() > deadline:
                raise TimeoutError("timed out")
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise SchemaRegistryError(f"{self.url}: an answer that is not a JSON object")
        return answer


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


def split_wire(payload: bytes) -> tuple[int, bytes]:
    """The schema's id and the Avro datum of a payload in Confluent's wire format; WireFormatError if it is not."""
    if len(payload) < _HEADER.size:
        raise WireFormatError(f"a payload of {len(payload)} bytes is too short for a schema's id")
    magic, schema_id = _HEADER.unpack_from(payload)
    if magic != _MAGIC or schema_id < 0:
        raise WireFormatError(f"a payload that starts with {payload[: _HEADER.size].hex()}, not 00 and a schema's id")
    return schema_id, payload[_HEADER.size :]


def check_evolution(old: Mapping[str, Any], new: Mapping[str, Any], required: Collection[str] = ()) -> list[str]:
    """Why the record schema `new` can't follow `old`, one sentence for each fault; none if it can.

    It can if a reader with `new` understands what was written with `old` (Avro's schema resolution), no field
    of `old` is gone, no logical type differs, and the fields `required` are there and never null. A field that
    is added needs a default. ValueError if one of the two is not an Avro record schema.
    """
    before, after = _Schema(old), _Schema(new)
    try:
        faults = list(_Comparison(before, after).faults("", before.root, after.root))
    except RecursionError:
        raise ValueError("an Avro schema that is nested too deep") from None
    for name in required:
        field = after.root["fields"].get(name)
        if field is None:
            faults.append(f"{name}: is required, and not there")
        elif any(branch["type"] == "null" for branch in after.branches(field["type"])):
            faults.append(f"{name}: is required, and may be null")
    return list(dict.fromkeys(faults))


class _Schema:
    """An Avro record schema in one form: every type a dict, with its name in full; a name alone is of a named type."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._named: dict[str, dict[str, Any]] = {}
        try:
            self.root = self._resolve(schema, "")
        except (AttributeError, KeyError, TypeError, RecursionError):
            raise ValueError("not an Avro schema") from None
        if self.root["type"] != "record":
            raise ValueError("not an Avro record schema")

    def branches(self, node: dict[str, Any]) -> list[dict[str, Any]]:
        """The types of a union, or the one type."""
        return [self._named[each["name"]] if each["type"] == "name" else each for each in node.get("branches", [node])]

    def _resolve(self, schema: Any, namespace: str) -> dict[str, Any]:
        if isinstance(schema, list):
            return {"type": "union", "branches": [self._resolve(each, namespace) for each in schema]}
        if isinstance(schema, str):
            schema = {"type": schema}
        kind = schema["type"]
        if not isinstance(kind, str):
            return self._resolve(kind, namespace)
        node = {"type": kind} | {key: schema.get(key) for key in ("logicalType", "precision", "scale", "size")}
        if kind in ("array", "map"):
            node["items"] = self._resolve(schema["items" if kind == "array" else "values"], namespace)
        elif kind in ("record", "enum", "fixed"):
            node["name"] = name = _full_name(schema["name"], schema.get("namespace", namespace))
            inner = name.rpartition(".")[0]
            self._named[name] = node
            node["symbols"], node["default"], node["fields"] = schema.get("symbols", []), "default" in schema, {}
            for field in schema["fields"] if kind == "record" else ():
                resolved = self._resolve(field["type"], inner)
                node["fields"][field["name"]] = {"type": resolved, "default": "default" in field}
        elif kind not in _PRIMITIVES:
            node = {"type": "name", "name": _full_name(kind, namespace)}
            if node["name"] not in self._named:
                raise ValueError(f"not an Avro schema: there is no type {kind}")
        return node


class _Comparison:
    """Of two schemas; a pair of types within which the same pair comes again is compared once."""

    def __init__(self, before: _Schema, after: _Schema) -> None:
        self._before, self._after = before, after
        self._open: set[tuple[str, str]] = set()

    def faults(self, path: str, old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
        """Why a reader with `new` would not understand all that `old` allows."""
        candidates = self._after.branches(new)
        for branch in self._before.branches(old):
            faults = [list(self._compare(path, branch, each)) for each in candidates]
            if all(faults):
                alike = [each for each, to in zip(faults, candidates, strict=True) if _say(to) == _say(branch)]
                was = "could be" if "branches" in old else "was"
                now = " or ".join(map(_say, candidates))
                yield from alike[0] if alike else [f"{path or 'the record'}: {was} {_say(branch)}, now is {now}"]

    def _compare(self, path: str, old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
        plain = old["type"] in _PRIMITIVES and not old["logicalType"] and not new["logicalType"]
        if _say(old) != _say(new):
            if not (plain and new["type"] in _PROMOTIONS.get(old["type"], ())):
                yield f"{path}: another type"
        elif old["type"] in ("array", "map"):
            yield from self.faults(path + "[]", old["items"], new["items"])
        elif old["type"] == "enum" and not new["default"]:
            for symbol in old["symbols"]:
                if symbol not in new["symbols"]:
                    yield f"{path}: {symbol} is no symbol any more"
        elif old["type"] == "record" and (old["name"], new["name"]) not in self._open:
            self._open.add((old["name"], new["name"]))
            yield from self._compare_fields(path and path + ".", old["fields"], new["fields"])
            self._open.discard((old["name"], new["name"]))

    def _compare_fields(self, prefix: str, old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
        for name, field in old.items():
            if name in new:
                yield from self.faults(prefix + name, field["type"], new[name]["type"])
            else:
                yield f"{prefix}{name}: is gone"
        for name, field in new.items():
            if name not in old and not field["default"]:
                yield f"{prefix}{name}: is added without a default"


def _full_name(name: str, namespace: str) -> str:
    return f"{namespace}.{name}" if namespace and "." not in name else name


def _say(node: dict[str, Any]) -> str:
    """A type in words that are equal when, but for what is inside, the types are."""
    words = [node["type"], node.get("name", "").rpartition(".")[2], node["logicalType"] or ""]
    words += [f"{key} {node[key]}" for key in ("precision", "scale", "size") if node[key] is not None]
    return " ".join(filter(None, words))
