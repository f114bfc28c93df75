"""Records of Avro: single datums of one writer's schema."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterator
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa

from models.codecs.avro_times import plain_schema
from models.codecs.columns import RECORD, Columns, coerce, decode_dicts
from models.faults import RowFaults
from models.project.contract import Contract

MAX_SCHEMA_NODES = 10_000

# What fastavro raises on bytes that are not of the schema.
DATUM_ERRORS = (ArithmeticError, AttributeError, EOFError, LookupError, TypeError, ValueError)

_LEAST_BYTES = {"null": 0, "float": 4, "double": 8}  # of a datum; 1 of any other kind


class WriterSchemaError(ValueError):
    """A writer's schema that can't be used."""


def parse_writer_schema(text: bytes | str) -> Any:
    """Parse a writer's schema; WriterSchemaError if it is none, or one of which few bytes could make much.

    fastavro would follow a recursive schema until the stack overflows, and make as many nulls as a list says.
    """
    try:
        named: dict[str, Any] = {}
        schema = fastavro.parse_schema(json.loads(text), named)
        _least_bytes(schema, named, (), itertools.count())
    except RecursionError:
        raise WriterSchemaError("a schema that is nested too deep") from None
    except (*DATUM_ERRORS, fastavro.schema.SchemaParseException) as error:
        if isinstance(error, WriterSchemaError):
            raise
        raise WriterSchemaError(f"not an Avro schema: {type(error).__name__} {error}") from None
    return schema


def _least_bytes(schema: Any, named: dict[str, Any], path: tuple[str, ...], nodes: Iterator[int]) -> int:
    """The length of the shortest datum; WriterSchemaError where that does not bound what is made of it."""

    def least(part: Any) -> int:
        return _least_bytes(part, named, path, nodes)

    if next(nodes) > MAX_SCHEMA_NODES:
        raise WriterSchemaError(f"a schema of more than {MAX_SCHEMA_NODES} parts")
    if isinstance(schema, list):
        return 1 + min(map(least, schema), default=0)
    if isinstance(schema, str):
        return least(named[schema]) if schema in named else _LEAST_BYTES.get(schema, 1)
    kind, name = schema["type"], schema.get("name", "")
    if name in path:
        raise WriterSchemaError(f"a recursive schema: {name} holds itself")
    if kind in ("record", "error"):
        path = (*path, name)
        return sum(least(field["type"]) for field in schema["fields"])
    if kind == "array" and least(schema["items"]) == 0:
        raise WriterSchemaError("a schema with a list of what takes no bytes")
    if kind == "map":
        least(schema["values"])
    return int(schema["size"]) if kind == "fixed" else _LEAST_BYTES.get(kind, 1)


def decode_avro(
    payloads: pa.BinaryArray, writer_schema: Any, contract: Contract, refuse_unknown: bool, faults: RowFaults
) -> Columns:
    """Decode one Avro datum of `writer_schema` (parsed) a payload."""
    plain = plain_schema(writer_schema)
    rows = [_read_datum(payload, plain.schema, n, faults) for n, payload in enumerate(payloads.to_pylist())]
    fields = plain.field_types()
    times = {name: fields[name] for name in contract.fields if plain.time_type(fields.get(name)) is not None}
    found = {}
    for name, schema in times.items():
        column = plain.to_array([row.pop(name, None) for row in rows], schema)
        found[name] = coerce(column, contract.fields[name], faults)
    return decode_dicts(rows, contract, refuse_unknown, faults) | found


def _read_datum(payload: bytes, writer_schema: Any, number: int, faults: RowFaults) -> dict[str, Any]:
    stream = io.BytesIO(payload)
    try:
        row = fastavro.schemaless_reader(stream, writer_schema, None)
        wrong = "bytes are left over" if stream.read(1) else "" if isinstance(row, dict) else "not a record"
    except DATUM_ERRORS as error:
        wrong = f"{type(error).__name__}: {error}"
    if wrong:
        faults.add(np.array([number]), RECORD, "not Avro of its schema", [wrong])
        return {}
    return row  # type: ignore[no-any-return]
