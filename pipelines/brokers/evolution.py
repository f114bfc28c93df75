"""Whether what producers write by their Avro or JSON schemas is what a project's contract reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import fastavro

from models.codecs import WriterSchemaError, parse_writer_schema
from models.project.contract import UNIX_UNITS, Contract, Field
from pipelines.brokers import BrokerError
from pipelines.brokers.schema_registry import AVRO, JSON, RegisteredSchema, SchemaRegistry

# Types that decode to a field's kind: Avro's, with a logical type where that makes another of it, and JSON Schema's.
_DECIMALS = {"bytes decimal", "fixed decimal"}
_MOMENTS = {f"long {local}timestamp-{unit}" for local in ("", "local-") for unit in ("millis", "micros")} | {"int date"}
_READABLE = {
    "int": {"int", "long", "integer"},
    "float": {"int", "long", "float", "double", "integer", "number", *_DECIMALS},
    "string": {"string", "bytes", "enum", "fixed", "string uuid"},
}


ANY = "any"  # of a JSON schema that says no type
_MOST_REFERENCES = 16
TypesOf = Callable[[Any], dict[str, list[str]]]


class ContractMismatch(BrokerError):
    """Schemas of which the contract does not read all values; the message has one fault a line."""


def check_subject(registry: SchemaRegistry, subject: str, contract: Contract) -> None:
    """Raise ContractMismatch if a version of a subject does not have what the contract reads.

    Each version has the required fields, and those of the contract that it has are of types that decode to the
    contract's. A field that is not required may be missing in versions before it was added, but not be gone from the
    newest: its feature would silently be empty. What the contract does not know may come and go.
    """
    found = registry.versions(subject)
    versions = [(f"subject {subject}, version {each.version}", each.schema, _TYPES[each.kind]) for each in found]
    _refuse(versions, contract, registry.url)


def check_topic(found: Sequence[RegisteredSchema], name: str, contract: Contract) -> None:
    """As `check_subject`, of the versions that Pulsar keeps with a topic: Avro's schemas, of Avro or of JSON values."""
    types = {AVRO: field_types, JSON: _types_in_json}
    _refuse([(f"schema version {each.version}", each.schema, types[each.kind]) for each in found], contract, name)


def _types_in_json(schema: Any) -> dict[str, list[str]]:
    """The types of JSON values by a schema as Avro writes it, whose logical types JSON does not have, or JSON's own."""
    if isinstance(schema, dict) and "properties" in schema:
        return json_field_types(schema)
    return {name: [kind.partition(" ")[0] for kind in kinds] for name, kinds in field_types(schema).items()}


def check_schema(schema: Any, contract: Contract, name: str) -> None:
    """Raise ContractMismatch if the Avro schema of a file called `name` does not have what the contract reads."""
    _refuse([(name, schema, field_types)], contract, name)


def _refuse(named: Sequence[tuple[str, Any, TypesOf]], contract: Contract, where: str) -> None:
    faults: list[str] = []
    last_seen: dict[str, str] = {}
    for number, (name, schema, types_of) in enumerate(named, 1):
        try:
            kinds = types_of(schema)
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
    wrong = [each for each in types if each not in ("null", ANY) and each not in readable]
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


def json_field_types(schema: Any) -> dict[str, list[str]]:
    """The types of each property of a JSON schema of an object, such as ["null", "integer"]; ANY where it says none.

    WriterSchemaError if it is not one of an object with properties.
    """
    found = schema.get("properties") if isinstance(schema, dict) else None
    if not isinstance(found, dict) or "object" not in _json_types(schema, schema):
        raise WriterSchemaError("not the schema of an object with properties")
    return {name: _json_types(each, schema) for name, each in found.items()}


def _json_types(schema: Any, whole: dict[str, Any], depth: int = 0) -> list[str]:
    """The types that one of a schema's branches allows; references are followed within the document."""
    if not isinstance(schema, dict) or depth > _MOST_REFERENCES:
        return [ANY]
    if isinstance(reference := schema.get("$ref"), str):
        target: Any = whole
        for part in reference.removeprefix("#/").split("/") if reference.startswith("#/") else ():
            target = target.get(part) if isinstance(target, dict) else None
        return [ANY] if target is whole else _json_types(target, whole, depth + 1)
    for name in ("anyOf", "oneOf"):
        if isinstance(branches := schema.get(name), list):
            return [kind for branch in branches for kind in _json_types(branch, whole, depth + 1)]
    kinds = schema.get("type", ANY)
    return [str(kind) for kind in kinds] if isinstance(kinds, list) else [str(kinds)]


_TYPES = {AVRO: field_types, JSON: json_field_types}


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
