"""Avro's logical types as they stand in the bytes: times as numbers, which Arrow holds all of and Python does not.

A schema's own text names them as logical types, which fastavro would make Python's times of, and fail at one of the
year 10000. What it makes of a plain schema is typed by Arrow, as a Parquet file's columns are.
"""

from __future__ import annotations

import decimal
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import fastavro
import fastavro.read
import pyarrow as pa

_TIMES: dict[tuple[str, str], pa.DataType] = {
    ("int", "date"): pa.date32(),
    ("int", "time-millis"): pa.time32("ms"),
    ("long", "time-micros"): pa.time64("us"),
    **{("long", f"timestamp-{name}"): pa.timestamp(unit, "UTC") for name, unit in
       (("millis", "ms"), ("micros", "us"), ("nanos", "ns"))},
    **{("long", f"local-timestamp-{name}"): pa.timestamp(unit) for name, unit in
       (("millis", "ms"), ("micros", "us"), ("nanos", "ns"))},
}  # fmt: skip
MAX_DECIMAL_BYTES = 256  # a double needs no more than 128; Python's time for a number's digits grows with its square
_KIND = "__time"  # the attribute of a plain schema's number that is a time
_INT32 = 1 << 31
_OWN = "headrace-"  # before the names of logical types that are read here
_GUARDED = ("date", "time-millis", "time-micros", "timestamp-millis", "timestamp-micros", "local-timestamp-millis",
            "local-timestamp-micros", "uuid")  # fmt: skip
_PARSED, _NAMED = "__fastavro_parsed", "__named_schemas"  # what fastavro marks a parsed schema with


class PlainSchema(NamedTuple):
    """A parsed schema without the logical types that Python can't always hold, and its named parts."""

    schema: Any
    named: Mapping[str, Any]

    def field_types(self) -> dict[str, Any]:
        """The schema of each of a record's fields; none if it is no record's."""
        schema = self.schema
        if not (isinstance(schema, dict) and schema["type"] in ("record", "error")):
            return {}
        return {field["name"]: field["type"] for field in schema["fields"]}

    def time_type(self, schema: Any) -> pa.DataType | None:
        """The Arrow type of a field that is a time or null."""
        part = _but_null(schema)
        return _TIMES.get((part["type"], part.get(_KIND, ""))) if isinstance(part, dict) else None

    def to_array(self, values: Sequence[Any], schema: Any) -> pa.Array:
        """A field's values, read by this schema, as a column; ArrowInvalid if they are of several types."""
        kind = self.time_type(schema)
        if kind is None:
            array = pa.array(values)
            typed = self._typed(array.type, schema)
            return array if typed == array.type else pa.array(values, typed)
        if kind == pa.date32():  # fastavro reads an int of 64 bits, too: a day that is none stays none
            values = [v if v is None or -_INT32 <= v < _INT32 else _INT32 - 1 for v in values]
        elif kind == pa.time32("ms"):
            values = [v if v is None or -_INT32 <= v < _INT32 else -1 for v in values]
        return pa.array(values, kind)

    def _typed(self, kind: pa.DataType, schema: Any) -> pa.DataType:
        """An inferred type with times where the schema says so."""
        part = _but_null(schema)
        if isinstance(part, str):
            part = self.named.get(part)
        if not isinstance(part, dict):
            return kind
        if kind == pa.int64():
            return self.time_type(part) or kind
        if pa.types.is_list(kind) and part["type"] == "array":
            return pa.list_(self._typed(kind.value_type, part["items"]))
        if pa.types.is_struct(kind) and part["type"] in ("record", "error", "map"):
            schemas = {field["name"]: field["type"] for field in part.get("fields", ())}
            return pa.struct(
                [(f.name, self._typed(f.type, part.get("values") or schemas.get(f.name))) for f in kind.fields]
            )
        return kind


def plain_schema(schema: Any) -> PlainSchema:
    """A parsed writer's schema for reading; its texts that say they are UUIDs are texts, be they UUIDs or not.

    A union of several types keeps its times, as a number does not tell of which of them it is; one that Python can't
    hold is a text there, and so no time. Decimals are exact, as Avro's own reader has them, even with more digits than
    their precision says, to which fastavro would round them.
    """
    if not isinstance(schema, dict):
        return PlainSchema(schema, {})
    # Not parsed again: a full name without a namespace would be taken for one of the namespace around it.
    named = {name: _strip(part) for name, part in schema.get(_NAMED, {}).items()}
    return PlainSchema({**_strip(schema), _PARSED: True, _NAMED: named}, named)


def _but_null(schema: Any) -> Any:
    """The one other part of a union with null, else the schema itself."""
    others = [part for part in schema if part != "null"] if isinstance(schema, list) else []
    return others[0] if len(others) == 1 else schema


def _strip(schema: Any, in_union: bool = False) -> Any:
    if isinstance(schema, list):
        in_union = in_union or sum(part != "null" for part in schema) > 1
        return [_strip(part, in_union) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: value for key, value in schema.items() if not key.startswith("__")}
    for key in ("type", "items", "values"):
        if key in found:
            found[key] = _strip(found[key], in_union)
    if "fields" in found:
        found["fields"] = [{**field, "type": _strip(field["type"], in_union)} for field in found["fields"]]
    kind = found["type"] if isinstance(found["type"], str) else None
    logical = found.get("logicalType")
    if kind is not None and isinstance(logical, str):
        if f"{kind}-{_OWN}{logical}" in _READERS and (in_union or logical == "decimal"):
            found["logicalType"] = f"{_OWN}{logical}"
        elif (kind, logical) in _TIMES and not in_union:
            found[_KIND] = found.pop("logicalType")
        elif (kind, logical) == ("string", "uuid"):
            del found["logicalType"]
    return found


def _read_decimal(data: bytes, writer_schema: Any = None, _reader_schema: Any = None) -> decimal.Decimal | str:
    if len(data) > MAX_DECIMAL_BYTES:
        return f"a decimal of {len(data)} bytes"
    unscaled = int.from_bytes(data, "big", signed=True)
    return decimal.Decimal(f"{unscaled}E-{writer_schema.get('scale', 0)}")


def _guard(name: str, read: Callable[..., Any]) -> Callable[..., Any]:
    """As fastavro reads a logical type, but for what Python can't hold: that is a text."""

    def read_or_show(data: Any, writer_schema: Any = None, reader_schema: Any = None) -> Any:
        try:
            return read(data, writer_schema, reader_schema)
        except (ArithmeticError, ValueError):
            return f"{data} {name}"

    return read_or_show


_READERS: dict[str, Callable[..., Any]] = {
    f"bytes-{_OWN}decimal": _read_decimal,
    f"fixed-{_OWN}decimal": _read_decimal,
    **{f"{kind}-{_OWN}{name}": _guard(name, fastavro.read.LOGICAL_READERS[f"{kind}-{name}"])
       for kind in ("int", "long", "string") for name in _GUARDED if f"{kind}-{name}" in fastavro.read.LOGICAL_READERS},
}  # fmt: skip
fastavro.read.LOGICAL_READERS.update(_READERS)  # as fastavro's documentation says of custom logical types
