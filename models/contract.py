"""The contract of an event: a TensorFlow Metadata schema as Arrow types and vectorised row checks."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2

from models.faults import RowFaults

Kind = Literal["int", "float", "string", "time"]

TIMESTAMP = pa.timestamp("us", tz="UTC")
ARROW_TYPES: dict[str, pa.DataType] = {
    "int": pa.int64(),
    "float": pa.float64(),
    "string": pa.string(),
    "time": TIMESTAMP,
}
UNIX_UNITS = {
    "UNIX_SECONDS": 1_000_000,
    "UNIX_MILLISECONDS": 1_000,
    "UNIX_MICROSECONDS": 1,
    "UNIX_NANOSECONDS": -1_000,
}

# A value times its decimal scale must stay below this, so that 2**19 of them sum without overflow in 64 bits.
FIXED_POINT_LIMIT = 1 << 44


class SchemaError(ValueError):
    """A schema that can't be used; the message has one fault a line."""


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of an event, of one value a row."""

    name: str
    kind: Kind
    required: bool = False
    minimum: float | None = None
    maximum: float | None = None
    domain: tuple[str, ...] | None = None
    is_boolean: bool = False
    time_format: str | None = None

    @property
    def arrow_type(self) -> pa.DataType:
        """int64, float64, string or timestamp[us, UTC]."""
        return ARROW_TYPES[self.kind]


@dataclasses.dataclass(frozen=True)
class Contract:
    """All fields of an event, in the schema's order."""

    fields: dict[str, Field]
    text: bytes

    @staticmethod
    def parse(text: bytes) -> Contract:
        """Read a schema.pbtxt; raise SchemaError naming every part that can't be used."""
        try:
            schema = text_format.Parse(text.decode(), schema_pb2.Schema())
        except (text_format.ParseError, UnicodeDecodeError) as error:
            raise SchemaError(f"not a TensorFlow Metadata schema: {error}") from None
        faults: list[str] = []
        fields: dict[str, Field] = {}
        for feature in schema.feature:
            if feature.name in fields:
                faults.append(f"field {feature.name}: stands twice")
            fields[feature.name] = _read_field(feature, schema, faults)
        if not fields:
            faults.append("has no feature")
        if faults:
            raise SchemaError("\n".join(faults))
        return Contract(fields, text)

    @functools.cached_property
    def arrow_schema(self) -> pa.Schema:
        """The Arrow schema of decoded events."""
        return pa.schema([(field.name, field.arrow_type) for field in self.fields.values()])

    def check(self, columns: dict[str, pa.Array], faults: RowFaults) -> None:
        """Add to `faults` every row of decoded `columns` that breaks presence or a domain."""
        for field in self.fields.values():
            _check_field(field, columns[field.name], faults)


def _read_field(feature: schema_pb2.Feature, schema: schema_pb2.Schema, faults: list[str]) -> Field:
    def fault(message: str) -> None:
        faults.append(f"field {feature.name or '(no name)'}: {message}")

    kind: Kind = "string"
    if feature.type == schema_pb2.INT:
        kind = "int"
    elif feature.type == schema_pb2.FLOAT:
        kind = "float"
    elif feature.type != schema_pb2.BYTES:
        fault("needs a type of INT, FLOAT or BYTES")
    if not feature.name:
        fault("needs a name")
    if feature.HasField("value_count") and (feature.value_count.max or 1) != 1:
        fault("has more than one value a row, which headrace does not read")

    minimum: float | None = None
    maximum: float | None = None
    domain: tuple[str, ...] | None = None
    time_format: str | None = None
    info = feature.WhichOneof("domain_info")
    if info == "int_domain" and kind == "int":
        minimum = feature.int_domain.min if feature.int_domain.HasField("min") else None
        maximum = feature.int_domain.max if feature.int_domain.HasField("max") else None
    elif info == "float_domain" and kind == "float":
        minimum = feature.float_domain.min if feature.float_domain.HasField("min") else None
        maximum = feature.float_domain.max if feature.float_domain.HasField("max") else None
    elif info == "string_domain" and kind == "string":
        domain = tuple(feature.string_domain.value)
    elif info == "domain" and kind == "string":
        named = {d.name: tuple(d.value) for d in schema.string_domain}
        if feature.domain not in named:
            fault(f"its domain {feature.domain} is not in the schema")
        domain = named.get(feature.domain)
    elif info == "bool_domain" and kind == "int":
        minimum, maximum = 0, 1
    elif info == "time_domain":
        time_format = feature.time_domain.string_format or None
        if time_format is None:
            time_format = schema_pb2.TimeDomain.IntegerTimeFormat.Name(feature.time_domain.integer_format)
            if time_format not in UNIX_UNITS:
                fault(f"its integer_format {time_format} is not one of {', '.join(UNIX_UNITS)}")
        kind = "time"
    elif info is not None:
        fault(f"its {info} is not one that headrace checks for its type")
    return Field(
        name=feature.name,
        kind=kind,
        required=feature.presence.min_fraction >= 1.0,
        minimum=minimum,
        maximum=maximum,
        domain=domain,
        is_boolean=kind == "int" and minimum == 0 and maximum == 1,
        time_format=time_format,
    )


def _check_field(field: Field, column: pa.Array, faults: RowFaults) -> None:
    if field.required and column.null_count:
        faults.add(_rows(pc.is_null(column)), field.name, "missing")
    if field.kind == "float":
        values = column.to_numpy(zero_copy_only=False)
        bad = ~np.isfinite(values) & _mask(pc.is_valid(column))
        if bad.any():
            faults.add(np.flatnonzero(bad), field.name, "not finite", column)
    if field.minimum is not None:
        faults.add(_rows(pc.less(column, field.minimum)), field.name, f"below {_number(field.minimum)}", column)
    if field.maximum is not None:
        too_high = pc.greater(column, field.maximum)
        if field.kind == "float":
            too_high = pc.and_(too_high, pc.is_finite(column))
        faults.add(_rows(too_high), field.name, f"above {_number(field.maximum)}", column)
    if field.domain is not None:
        known = pc.is_in(column, value_set=pa.array(field.domain, pa.string()))
        faults.add(_rows(pc.and_(pc.invert(known), pc.is_valid(column))), field.name, "not in domain", column)


def check_fixed_point(columns: dict[str, pa.Array], places: dict[str, int], faults: RowFaults) -> None:
    """Add to `faults` the rows whose summed values are too large for exact 64-bit sums."""
    for name, decimals in places.items():
        limit = FIXED_POINT_LIMIT / 10**decimals
        values = columns[name].to_numpy(zero_copy_only=False)
        with np.errstate(invalid="ignore"):
            bad = np.abs(values) > limit
        if bad.any():
            bad &= np.isfinite(values.astype(np.float64))
            faults.add(np.flatnonzero(bad), name, f"beyond {_number(limit)} of exact sums", columns[name])


def check_event_time(column: pa.Array, name: str, earliest_us: int, latest_us: int, faults: RowFaults) -> None:
    """Add to `faults` the rows whose event time lies outside [earliest, latest)."""
    values = column.cast(pa.int64())
    for bad, rule in (
        (pc.less(values, earliest_us), "before event.earliest"),
        (pc.greater_equal(values, latest_us), "not before event.latest"),
    ):
        faults.add(_rows(bad), name, rule, column)


def _mask(condition: pa.BooleanArray) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    return np.asarray(condition.fill_null(False).to_numpy(zero_copy_only=False), dtype=bool)


def _rows(condition: pa.BooleanArray) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    if not pc.any(condition).as_py():
        return np.empty(0, np.int64)
    return np.flatnonzero(_mask(condition))


def _number(value: float) -> str:
    return f"{value:g}" if value != int(value) else str(int(value))


def fields_of(names: Sequence[str], contract: Contract) -> Iterator[pa.Field]:
    """Arrow fields of `names`, in their order."""
    for name in names:
        yield pa.field(name, contract.fields[name].arrow_type)
