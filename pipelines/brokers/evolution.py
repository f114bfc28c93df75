"""Whether what producers write by their Avro schemas is what a project's contract reads."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import fastavro

from models.codecs import WriterSchemaError, parse_writer_schema
from models.project.contract import UNIX_UNITS, Contract, Field
from pipelines.brokers import BrokerError
from pipelines.brokers.schema_registry import SchemaRegistry

# Avro's types, with a logical type where that makes another of it, that decode to a field's kind.
_DECIMALS = {"bytes decimal", "fixed decimal"}
_MOMENTS = {f"long {local}timestamp-{unit}" for local in ("", "local-") for unit in ("millis", "micros")} | {"int date"}
_READABLE = {
    "int": {"int", "long"},
    "float": {"int", "long", "float", "double", *_DECIMALS},
    "string": {"string", "bytes", "enum", "fixed", "string uuid"},
}


class ContractMismatch(BrokerError):
    """Schemas of which the contract does not read all values; the message has one fault a line."""


def check_subject(registry: SchemaRegistry, subject: str, contract: Contract) -> None:
    """Raise ContractMismatch if a version of a subject does not have what the contract reads.

    Each version has the required fields, and those of the contract that it has are of types that decode to the
    contract's. A field that is not required may be missing in versions before it was added, but not be gone from the
    newest: its feature would silently be empty. What the contract does not know may come and go.
    """
    versions = [(f"subject {subject}, version {each.version}", each.schema) for each in registry.versions(subject)]
    _refuse(versions, contract, registry.url)


def check_schema(schema: Any, contract: Contract, name: str) -> None:
    """Raise ContractMismatch if one schema, that a file called `name` has, does not have what the contract reads."""
    _refuse([(name, schema)], contract, name)


def _refuse(named: list[tuple[str, Any]], contract: Contract, where: str) -> None:
    faults: list[str] = []
    last_seen: dict[str, str] = {}
    for number, (name, schema) in enumerate(named, 1):
        try:
            kinds = field_types(schema)
        except WriterSchemaError as error:
            faults.append(f"{name}: {error}")
            continue
        for field in contract.fields.values():
            fault = _fault(field, kinds.get(field.name))
            if fault is None and field.name not in kinds and field.name in last_seen and number == len(named):
                fault = f"is gone; {last_seen[field.name]} has it"
            if fault is not None:
                faults.append(f"{name}, field {field.name}: {fault}")
        last_seen |= dict.fromkeys(kinds, name)
    if faults:
        advice = "change the contract, or what is registered"
        raise ContractMismatch("\n".join([f"{where} does not fit the project's contract: {advice}", *faults]))


def _fault(field: Field, types: list[str] | None) -> str | None:
    if types is None:
        return "is not there, and the contract requires it" if field.required else None
    readable = _readable(field)
    wrong = [each for each in types if each != "null" and each not in readable]
    if types == ["null"] and field.required:
        wrong = types
    return f"is {' or '.join(wrong)}, which is not read as the contract's {_kind(field)}" if wrong else None


def _kind(field: Field) -> str:
    return f"time in {field.time_format}" if field.kind == "time" else field.kind


def _readable(field: Field) -> set[str]:
    if field.kind == "time":
        return _MOMENTS | (_READABLE["int"] if field.time_format in UNIX_UNITS else {"string"})
    return _READABLE[field.kind] | ({"boolean"} if field.is_boolean else set())


def field_types(schema: Any) -> dict[str, list[str]]:
    """The types of each field of an Avro record schema, such as ["null", "long timestamp-millis"].

    WriterSchemaError if it is none, or can't be used.
    """
    parsed = parse_writer_schema(json.dumps(schema))
    if not isinstance(parsed, dict) or parsed.get("type") != "record":
        raise WriterSchemaError("not the schema of a record")
    named = parsed.get("__named_schemas", {})
    return {field["name"]: list(_types(field["type"], named)) for field in parsed["fields"]}


def _types(schema: Any, named: dict[str, Any]) -> Iterable[str]:
    if isinstance(schema, list):
        for branch in schema:
            yield from _types(branch, named)
    elif isinstance(schema, str):
        yield named[schema]["type"] if schema in named else schema
    elif not isinstance(schema["type"], str):
        yield from _types(schema["type"], named)
    else:
        kind = named[schema["type"]]["type"] if schema["type"] in named else schema["type"]
        logical = schema.get("logicalType")
        yield f"{kind} {logical}" if f"{kind}-{logical}" in fastavro.read.LOGICAL_READERS else kind
