"""What the values of a stream's messages are: JSON, Avro of one schema, or either by a schema registry."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import pathlib
import time
import urllib.parse
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.codecs import WriterSchemaError, parse_writer_schema
from models.codecs.times import times_from_numbers, times_from_text
from models.project.contract import Contract
from models.record import COLUMNS, FORMAT
from pipelines.brokers import BrokerOptionError
from pipelines.brokers.evolution import check_schema, check_subject, check_topic
from pipelines.brokers.schema_registry import (
    AVRO,
    JSON,
    RegisteredSchema,
    RegistryDown,
    SchemaRegistry,
    UnknownSchema,
    UnusableSchema,
)

REGISTRY_LOGIN = "HEADRACE_SCHEMA_REGISTRY_LOGIN"  # environment variable with USER:PASSWORD, if one is needed

_log = logging.getLogger(__name__)
_HEADER_BYTES = 5  # of Confluent's wire format: a byte 0, and the schema's id, big-endian
_NO_ID = -1
_NO_SCHEMA = "no schema of Avro or JSON: its producer has none, or the topic has it no more"
_NOT_WIRE = "no schema id: not of Confluent's wire format"
_MAX_SCHEMA_BYTES = 4 << 20
_MAX_KNOWN = 1000
_RETRY_SECONDS = 1.0

Int64 = np.ndarray[Any, np.dtype[np.int64]]


Schemas = Sequence[RegisteredSchema | None] | None


class ValueGroup(NamedTuple):
    """Messages of one format: their places int64[m] in what was split, ascending, payloads, and a batch's metadata."""

    rows: Int64
    payloads: pa.BinaryArray
    metadata: dict[bytes, bytes]


class Values(Protocol):
    """What messages' values are. It is frozen and pickles."""

    def split(self, payloads: Sequence[bytes], schemas: Schemas = None) -> list[ValueGroup]:
        """Groups of one format each, as transforms.decode reads them, with every message in one of them.

        `schemas` are the messages' own, where their broker has told them.
        """

    def check(self, contract: Contract) -> None:
        """Raise ContractMismatch where it is known already that values are not what the contract reads."""


@dataclasses.dataclass(frozen=True)
class JsonValues:
    """JSON objects."""

    def split(self, payloads: Sequence[bytes], schemas: Schemas = None) -> list[ValueGroup]:
        """One group."""
        return _one_group(payloads, {FORMAT: b"json"})

    def check(self, contract: Contract) -> None:
        """Nothing is declared."""


@dataclasses.dataclass(frozen=True)
class AvroValues:
    """Avro datums without a header, all of one writer's schema; WriterSchemaError if that can't be used."""

    schema: str
    name: str = "the Avro schema"

    def __post_init__(self) -> None:
        parse_writer_schema(self.schema)

    def split(self, payloads: Sequence[bytes], schemas: Schemas = None) -> list[ValueGroup]:
        """One group."""
        return _one_group(payloads, {FORMAT: b"avro", COLUMNS: self.schema.encode()})

    def check(self, contract: Contract) -> None:
        """See evolution.check_schema."""
        check_schema(json.loads(self.schema), contract, self.name)


@dataclasses.dataclass(frozen=True)
class RegistryValues:
    """Avro or JSON in Confluent's wire format, each message with the id of its schema in a registry.

    What has no id, or one without a usable schema, is `unreadable`. A registry that is down is waited for, up to
    `patience_seconds` for an id that was not asked for before; then RegistryDown.
    """

    registry: SchemaRegistry
    subject: str | None = None
    patience_seconds: float = 60.0
    kind: str = AVRO
    _known: dict[int, dict[bytes, bytes]] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def split(self, payloads: Sequence[bytes], schemas: Schemas = None) -> list[ValueGroup]:
        """A group for each schema, by their ids, without the header."""
        values = pa.array(payloads, pa.binary())
        ids, lengths = read_headers(values)
        groups = []
        for schema_id in np.unique(ids).tolist():
            rows = np.flatnonzero(ids == schema_id)
            metadata = _unreadable(_NOT_WIRE) if schema_id == _NO_ID else self._metadata(schema_id)
            chosen = values if len(rows) == len(values) else values.take(pa.array(rows))
            if metadata[FORMAT] in (b"avro", b"json"):
                chosen = strip_headers(chosen, lengths[rows])
            groups.append(ValueGroup(rows, chosen, metadata))
        return groups

    def check(self, contract: Contract) -> None:
        """All versions of the subject, if one is named; see evolution.check_subject."""
        if self.subject is not None:
            check_subject(self.registry, self.subject, contract)

    def _metadata(self, schema_id: int) -> dict[bytes, bytes]:
        if schema_id in self._known:
            return self._known[schema_id]
        try:
            found = self._schema(schema_id)
            if found.kind != self.kind:
                raise UnusableSchema(f"schema {schema_id} is of the kind {found.kind}, not {self.kind}")
        except UnknownSchema as error:  # it may be known later
            return _unreadable(str(error))
        except UnusableSchema as error:
            metadata = _unreadable(str(error))
        else:
            metadata = _metadata_of(found)
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()
        self._known[schema_id] = metadata
        return metadata

    def _schema(self, schema_id: int) -> RegisteredSchema:
        deadline, told = time.monotonic() + self.patience_seconds, False
        while True:
            try:
                return self.registry.schema(schema_id)
            except RegistryDown as error:
                if time.monotonic() > deadline:
                    raise
                if not told:
                    _log.warning("%s; trying again for %.0f s", error, self.patience_seconds)
                told = True
                time.sleep(_RETRY_SECONDS)


@dataclasses.dataclass(frozen=True)
class BrokerValues:
    """Avro or JSON, each message as the schema says that its broker keeps of it; one without any is `unreadable`.

    `versions` gives all schemas that the topic has, oldest first; BrokerError if it has none.
    """

    versions: Callable[[], Sequence[RegisteredSchema]]
    name: str = "the topic"

    def split(self, payloads: Sequence[bytes], schemas: Schemas = None) -> list[ValueGroup]:
        """A group for each schema, by their ids."""
        values = pa.array(payloads, pa.binary())
        found = {each.id: each for each in schemas or () if each is not None}
        ids = np.array([_NO_ID if each is None else each.id for each in schemas or [None] * len(payloads)], np.int64)
        groups = []
        for schema_id in np.unique(ids).tolist():
            rows = np.flatnonzero(ids == schema_id)
            metadata = _unreadable(_NO_SCHEMA) if schema_id == _NO_ID else _metadata_of(found[schema_id])
            groups.append(ValueGroup(rows, values.take(pa.array(rows)), metadata))
        return groups

    def check(self, contract: Contract) -> None:
        """All versions; see evolution.check_topic."""
        check_topic(self.versions(), self.name, contract)


def _metadata_of(found: RegisteredSchema) -> dict[bytes, bytes]:
    """A batch's metadata for payloads that a schema was used for."""
    text = json.dumps(found.schema)
    if found.kind == JSON:
        return {FORMAT: b"json"}
    try:
        parse_writer_schema(text)
    except WriterSchemaError as error:
        return _unreadable(f"schema {found.id}: {error}")
    return {FORMAT: b"avro", COLUMNS: text.encode()}


def open_values(text: str, topic: str | None = None) -> Values:
    """`json`, `avro:FILE.avsc`, or `avro:` or `json:http(s)://REGISTRY[?subject=SUBJECT]`; BrokerOptionError if not.

    The subject is the topic's, "TOPIC-value", if none is named. A registry that needs a login gets that of the
    environment variable HEADRACE_SCHEMA_REGISTRY_LOGIN. OSError if the file can't be read.
    """
    kind, _, place = text.partition(":")
    if text == "json":
        return JsonValues()
    is_url = place.startswith(("http://", "https://"))
    if not place or not (kind == "avro" or (kind == "json" and is_url)):
        raise BrokerOptionError(
            f"values are json, avro:FILE.avsc, or avro: or json:http(s)://REGISTRY?subject=SUBJECT, not {text!r}"
        )
    if is_url:
        url, mark, query = place.partition("?")
        found = dict(urllib.parse.parse_qsl(query, strict_parsing=bool(mark)))
        if mark and list(found) != ["subject"]:
            raise BrokerOptionError("a schema registry's URL has no query but ?subject=SUBJECT")
        subject = found.get("subject", f"{topic}-value" if topic else None)
        registry = SchemaRegistry(url, REGISTRY_LOGIN if REGISTRY_LOGIN in os.environ else None)
        return RegistryValues(registry, subject, kind=kind.upper())
    with pathlib.Path(place).open("rb") as file:
        content = file.read(_MAX_SCHEMA_BYTES + 1)
    if len(content) > _MAX_SCHEMA_BYTES:
        raise BrokerOptionError(f"{place}: more than {_MAX_SCHEMA_BYTES} bytes are no Avro schema")
    try:
        return AvroValues(content.decode(), place)
    except ValueError as error:
        raise BrokerOptionError(f"{place}: {error}") from None


def read_headers(payloads: pa.BinaryArray) -> tuple[Int64, Int64]:
    """The schema ids int64[n] of Confluent's wire format, -1 where a payload is not of it, and lengths int64[n]."""
    offsets, data = _buffers(payloads)
    lengths = np.diff(offsets)
    ids = np.full(len(lengths), _NO_ID, np.int64)
    rows = np.flatnonzero(lengths >= _HEADER_BYTES)
    headers = data[offsets[rows, None] + np.arange(_HEADER_BYTES)]
    numbers = headers[:, 1:].copy().view(">i4").ravel()
    ids[rows] = np.where((headers[:, 0] == 0) & (numbers >= 0), numbers, _NO_ID)
    return ids, lengths


def strip_headers(payloads: pa.BinaryArray, lengths: Int64) -> pa.BinaryArray:
    """Payloads, of these lengths, without their first five bytes."""
    offsets, data = _buffers(payloads)
    kept = np.ones(len(data), bool)
    kept[: offsets[0]] = kept[offsets[-1] :] = False
    kept[(offsets[:-1, None] + np.arange(_HEADER_BYTES)).ravel()] = False
    ends = np.cumsum(lengths - _HEADER_BYTES)
    buffers = [None, pa.py_buffer(np.append(0, ends).astype(np.int32)), pa.py_buffer(data[kept])]
    return pa.Array.from_buffers(pa.binary(), len(lengths), buffers)


def attribute_times_us(texts: Sequence[str | None]) -> pa.Int64Array:
    """Times int64[n] of messages' attributes in microseconds since 1970 UTC: of Unix milliseconds or ISO 8601 text.

    Null where there is neither. It is what Beam's own Pub/Sub source reads from a timestamp attribute.
    """
    values = pa.array(texts, pa.string())
    numeric = pc.fill_null(pc.match_substring_regex(values, r"^-?[0-9]{1,17}$"), False)
    numbers = pc.if_else(numeric, values, None).cast(pa.int64())
    text = pc.if_else(numeric, None, values)
    times = pc.coalesce(times_from_numbers(numbers, 1000), times_from_text(text, "%Y-%m-%dT%H:%M:%S.%f%z"))
    return times.cast(pa.int64())


def _one_group(payloads: Sequence[bytes], metadata: dict[bytes, bytes]) -> list[ValueGroup]:
    return [ValueGroup(np.arange(len(payloads)), pa.array(payloads, pa.binary()), metadata)] if len(payloads) else []


def _unreadable(why: str) -> dict[bytes, bytes]:
    return {FORMAT: b"unreadable", COLUMNS: why.encode()}


def _buffers(payloads: pa.BinaryArray) -> tuple[Int64, np.ndarray[Any, np.dtype[np.uint8]]]:
    """Offsets int64[n + 1] into the bytes uint8[m] of payloads without nulls."""
    _, offsets, data = payloads.buffers()
    places = np.frombuffer(offsets, np.int32)[payloads.offset : payloads.offset + len(payloads) + 1]
    return places.astype(np.int64), np.frombuffer(data or b"", np.uint8)
