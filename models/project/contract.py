"""The contract of an event: a TensorFlow Metadata schema as Arrow types and vectorised row checks."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import math
import re
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2

from models.batches import as_int64
from models.errors import HeadraceError
from models.faults import RowFaults
from models.fixed_point import has_more_places
from models.project.schema_lines import read_feature_lines
from models.record import TIMESTAMP

Kind = Literal["int", "float", "string", "time"]

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

_NO_SCHEMA = "not a TensorFlow Metadata schema"
_WRONG_NAME = re.compile(r'Enum type "(?P<enum>[\w.]+)" has no value (?:named|with number) (?P<name>.+)\.$')
# Of these enums, the names that headrace reads.
_READ_NAMES = {"FeatureType": ("INT", "FLOAT", "BYTES"), "IntegerTimeFormat": tuple(UNIX_UNITS)}

# A value times its decimal scale must stay below this, so that 2**19 of them sum without overflow in 64 bits.
FIXED_POINT_LIMIT = 1 << 44


class SchemaError(HeadraceError, ValueError):
    """A schema that can't be used; the message has one fault a line, `line` (from 1) is where, if that is known."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.line = line


@dataclasses.dataclass(frozen=True)
class FieldFault:
    """What is wrong with a field of a schema, and at which line (from 1)."""

    field: str
    message: str
    line: int | None = None

    def __str__(self) -> str:
        shown = self.field if self.field.isprintable() and self.field else repr(self.field)
        return f"field {shown}: {self.message}"


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
        contract, faults = Contract.read(text)
        if faults:
            raise SchemaError("\n".join(str(fault) for fault in faults))
        return contract

    @staticmethod
    def read(text: bytes) -> tuple[Contract, list[FieldFault]]:
        """Read a schema.pbtxt as far as it can be used, and what of it can't; SchemaError if it is none."""
        try:
            schema = text_format.Parse(text.decode(), schema_pb2.Schema())
        except text_format.ParseError as error:
            raise SchemaError(_say(error), error.GetLine()) from None
        except UnicodeDecodeError as error:
            raise SchemaError(f"{_NO_SCHEMA}: {error}") from None
        except RecursionError:
            raise SchemaError(f"{_NO_SCHEMA}: nested too deep") from None
        faults: list[FieldFault] = []
        fields: dict[str, Field] = {}
        parts = functools.cache(lambda: read_feature_lines(text))

        def add(number: int, message: str, part: str = "") -> None:
            lines = parts()[number] if number < len(parts()) else {"": 1}
            faults.append(FieldFault(schema.feature[number].name, message, lines.get(part, lines[""])))

        for number, feature in enumerate(schema.feature):
            if feature.name in fields:
                add(number, "stands twice")
            fields[feature.name] = _read_field(feature, schema, functools.partial(add, number))
        if not fields:
            raise SchemaError("has no feature")
        return Contract(fields, text), faults

    @functools.cached_property
    def arrow_schema(self) -> pa.Schema:
        """The Arrow schema of decoded events."""
        return pa.schema([(field.name, field.arrow_type) for field in self.fields.values()])

    def with_fields(self, more: Mapping[str, Field]) -> Contract:
        """The same text, and fields that do not stand in it."""
        return Contract({**self.fields, **{n: f for n, f in more.items() if n not in self.fields}}, self.text)

    def line_of(self, name: str, part: str = "") -> int:
        """The line (from 1) of a part of a field in the schema's text, or else of the field."""
        features = text_format.Parse(self.text.decode(), schema_pb2.Schema()).feature
        for feature, lines in zip(features, read_feature_lines(self.text), strict=False):
            if feature.name == name:
                return lines.get(part, lines[""])
        return 1

    def check(self, columns: dict[str, pa.Array], faults: RowFaults) -> None:
        """Add to `faults` every row of decoded `columns` that breaks presence or a domain."""
        for field in self.fields.values():
            _check_field(field, columns[field.name], faults)


def field_of_kind(name: str, kind: str, required: bool) -> Field:
    """A field of an expression's result: int, float, string, time, or bool, which is 0 and 1."""
    if kind == "bool":
        return Field(name, "int", required, 0, 1, is_boolean=True)
    kinds: dict[str, Kind] = {"int": "int", "float": "float", "time": "time"}
    return Field(name, kinds.get(kind, "string"), required)


def _say(error: text_format.ParseError) -> str:
    """What protobuf says, but for a name that its enum does not have: what may stand there."""
    said = " ".join(str(error).split())
    wrong = _WRONG_NAME.search(said)
    try:
        kind = schema_pb2.DESCRIPTOR.pool.FindEnumTypeByName(wrong["enum"] if wrong else "")
    except KeyError:  # it says something else, or shows a line that looks like this
        kind = None
    if wrong is None or kind is None:
        return f"{_NO_SCHEMA}: {said}"
    allowed = _READ_NAMES.get(kind.name) or [value.name for value in kind.values if value.number]
    return f"{wrong['name']} is not one of {', '.join(allowed)}"


def _read_field(feature: schema_pb2.Feature, schema: schema_pb2.Schema, fault: Callable[..., None]) -> Field:
    """The field as far as it can be read; `fault` gets each message and the part of the feature that it is about."""
    kind: Kind = "string"
    if feature.type == schema_pb2.INT:
        kind = "int"
    elif feature.type == schema_pb2.FLOAT:
        kind = "float"
    elif feature.type != schema_pb2.BYTES:
        fault("needs a type of INT, FLOAT or BYTES", "type")
        return Field(feature.name, kind)
    if not feature.name or not feature.name.isprintable():
        fault("needs a name, of characters that can be seen", "name")
    several = feature.HasField("value_count") and (feature.value_count.max or 1) != 1
    if several or any(dimension.size != 1 for dimension in feature.shape.dim):
        fault("has more than one value a row, which headrace does not read", "value_count" if several else "shape")

    minimum: float | None = None
    maximum: float | None = None
    domain: tuple[str, ...] | None = None
    time_format: str | None = None
    info = feature.WhichOneof("domain_info")
    if (info == "int_domain" and kind == "int") or (info == "float_domain" and kind == "float"):
        bounds = getattr(feature, info)
        minimum = _as_written(bounds.min) if bounds.HasField("min") and bounds.min != -math.inf else None
        maximum = _as_written(bounds.max) if bounds.HasField("max") and bounds.max != math.inf else None
        if not (-math.inf if minimum is None else minimum) <= (math.inf if maximum is None else maximum):
            fault(f"no number is in its {info}, from {minimum} to {maximum}", info)
            minimum = maximum = None
    elif info in ("string_domain", "domain") and kind == "string":
        named = {d.name: tuple(d.value) for d in schema.string_domain}
        domain = tuple(feature.string_domain.value) if info == "string_domain" else named.get(feature.domain)
        if domain is None:
            fault(f"its domain {feature.domain!r} is not in the schema", info)
        elif not domain:
            fault("no text is in its domain", info)
        constraints = feature.distribution_constraints
        if constraints.HasField("min_domain_mass") and constraints.min_domain_mass < 1:
            domain = None  # open: other values are scored, and it is for quality to say that they are too many
    elif info == "bool_domain" and kind == "int":
        minimum, maximum = 0, 1
    elif info == "time_domain":
        time_format = _read_time_format(feature, kind, functools.partial(fault, part=info))
        kind = "time"
    elif info is not None:
        fault(f"its {info} is not one that headrace checks for its type", info)
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


def _as_written(bound: float) -> float:
    """A bound as its text says: a float_domain has 32 bits, of which 0.1 would be a little more than 0.1."""
    return float(str(np.float32(bound))) if isinstance(bound, float) else bound


def _read_time_format(feature: schema_pb2.Feature, kind: Kind, fault: Callable[[str], None]) -> str:
    text = feature.time_domain.string_format
    if not text:
        unit: str = schema_pb2.TimeDomain.IntegerTimeFormat.Name(feature.time_domain.integer_format)
        if unit not in UNIX_UNITS:
            fault(f"its integer_format {unit} is not one of {', '.join(UNIX_UNITS)}")
        elif kind != "int":
            fault("its integer_format needs the type INT")
        return unit
    if kind != "string":
        fault("its string_format needs the type BYTES")
    if (message := fault_of_time_format(text)) is not None:
        fault(f"its string_format {message}")
    return str(text)


def fault_of_time_format(text: str) -> str | None:
    """What is wrong with a format of strptime, if anything is."""
    sample = datetime.datetime(2024, 2, 29, 13, tzinfo=datetime.UTC)
    try:
        read_back = datetime.datetime.strptime(sample.strftime(text), text)  # noqa: DTZ007
    except ValueError as error:
        return f"{text!r} can't be read: {error}"
    if read_back.date() != sample.date() or "%Z" in text:
        return f"{text!r} does not say year, month and day, or has %Z, which says no offset"
    return None


def _check_field(field: Field, column: pa.Array, faults: RowFaults) -> None:
    if field.required and column.null_count:
        faults.add(_rows(pc.is_null(column)), field.name, "missing")
    if field.kind == "float":
        values = column.to_numpy(zero_copy_only=False)
        bad = ~np.isfinite(values)
        if bad.any() and (bad := bad & _mask(pc.is_valid(column))).any():
            faults.add(np.flatnonzero(bad), field.name, "not finite", column)
    for bound, breaks, side in ((field.minimum, np.less, "below"), (field.maximum, np.greater, "above")):
        if bound is not None and (rows := _breaking(field, column, breaks, bound)).size:
            faults.add(rows, field.name, f"{side} {_number(bound)}", column)
    if field.domain is not None:
        known = pc.is_in(column, value_set=pa.array(field.domain, pa.string()))
        faults.add(_rows(pc.and_(pc.invert(known), pc.is_valid(column))), field.name, "not in domain", column)


def _breaking(
    field: Field, column: pa.Array, breaks: np.ufunc, bound: float
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The rows of numbers that are beyond a bound, which what is not finite is not."""
    if field.kind == "float":
        values = column.to_numpy(zero_copy_only=False)
        return np.asarray((breaks(values, bound) & np.isfinite(values)).nonzero()[0])
    whole = column.fill_null(0) if column.null_count else column
    found = np.asarray(breaks(whole.to_numpy(), bound).nonzero()[0])
    return found[_mask(column.take(pa.array(found)).is_valid())] if column.null_count and len(found) else found


def check_fixed_point(
    columns: dict[str, pa.Array],
    places: Mapping[str, int],
    faults: RowFaults,
    exact: frozenset[str] = frozenset(),
) -> None:
    """Add to `faults` the rows whose summed values are too large for exact 64-bit sums, or have too many places.

    Of the columns `exact`, no value may have more places than are declared; those of others are rounded.
    """
    for name, decimals in places.items():
        limit = FIXED_POINT_LIMIT / 10**decimals
        values = columns[name].to_numpy(zero_copy_only=False).astype(np.float64)
        bad = (np.abs(values) > limit) & np.isfinite(values)
        if bad.any():
            faults.add(np.flatnonzero(bad), name, f"beyond {_number(limit)} of exact sums", columns[name])
        if name in exact:
            more = has_more_places(values, decimals) & ~bad & np.isfinite(values)
            faults.add(np.flatnonzero(more), name, f"more than {decimals} decimal places", columns[name])


def check_event_time(column: pa.Array, name: str, earliest_us: int, latest_us: int, faults: RowFaults) -> None:
    """Add to `faults` the rows whose event time lies outside [earliest, latest)."""
    there = _mask(column.is_valid()) if column.null_count else True
    values = as_int64(column.fill_null(0) if column.null_count else column)
    early, late = values < earliest_us, values >= latest_us
    for bad, rule in ((early, "before event.earliest"), (late, "not before event.latest")):
        if bad.any():
            faults.add(np.flatnonzero(bad & there), name, rule, column)


def _mask(condition: pa.BooleanArray) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    return np.asarray(condition.fill_null(False).to_numpy(zero_copy_only=False), dtype=bool)


def _rows(condition: pa.BooleanArray) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    if not pc.any(condition).as_py():
        return np.empty(0, np.int64)
    return np.flatnonzero(_mask(condition))


def _number(value: float) -> str:
    return str(int(value)) if isinstance(value, int) or (value.is_integer() and abs(value) < 1e15) else repr(value)
