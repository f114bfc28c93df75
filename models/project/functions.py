"""The functions of expressions: what each takes and gives, and how it is done on whole columns.

A column of numbers is int64[n], float64[n] with NaN for what is missing, or bool[n]; one of texts is a pyarrow string
array with nulls. Numbers and texts as they are written stand for columns of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.codecs.times import times_from_numbers, times_from_text

Column = Any
ISO_8601 = "%Y-%m-%dT%H:%M:%S%z"
TIME_UNITS = {"s": 1_000_000, "ms": 1_000, "us": 1}
_DAY_US = 86_400_000_000
_INTEGER, _NUMBER = r"^\s*[-+]?[0-9]{1,18}\s*$", r"^\s*[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]{1,4})?\s*$"


class Function(NamedTuple):
    """One function.

    `takes` are its arguments' kinds: number, string, time, any; `text`, `whole` and `bounds` are written down, as a
    text, a whole number and a list of numbers. The last stands for any further ones if it `repeats`. `gives` is a
    kind, or `first` for that of the arguments, which must agree.
    """

    takes: tuple[str, ...]
    gives: str
    call: Callable[..., Column]
    repeats: bool = False
    optional: int = 0  # so many of the last arguments may be left out


def texts(values: Column) -> pa.Array:
    """A column as pyarrow texts: integers in decimal, floats in their shortest form, times in microseconds."""
    if isinstance(values, str):
        return values
    array = values if isinstance(values, pa.Array) else pa.array(np.asarray(values), from_pandas=True)
    if pa.types.is_boolean(array.type) or pa.types.is_timestamp(array.type):
        array = array.cast(pa.int64())
    return array.cast(pa.string())


def numbers(values: Column) -> Column:
    """A column as numpy's numbers, booleans as 0 and 1."""
    if isinstance(values, pa.Array):
        if pa.types.is_timestamp(values.type):
            values = values.cast(pa.int64())
        return values.to_numpy(zero_copy_only=False).astype(
            np.float64 if values.null_count else values.type.to_pandas_dtype()
        )
    return values.astype(np.int64) if isinstance(values, np.ndarray | np.bool_) and values.dtype == bool else values


def missing(values: Column) -> Column:
    """Whether each value is missing, bool[n]."""
    if isinstance(values, pa.Array):
        return pc.is_null(values, nan_is_null=True).to_numpy(zero_copy_only=False)
    return np.isnan(np.asarray(values, np.float64))


def truth(condition: Column) -> Column:
    """A condition as booleans; a missing one is true."""
    return np.asarray(numbers(condition)) != 0


def _mask(condition: pa.Array) -> Column:
    return condition.fill_null(False).to_numpy(zero_copy_only=False)


def _of_time(part: Callable[[Column], Column]) -> Callable[[Column], Column]:
    """A part of times; of missing ones NaN."""

    def apply(times: Column) -> Column:
        times = numbers(times)
        if times.dtype.kind != "f":
            return part(times)
        holes = np.isnan(times)
        return np.where(holes, np.nan, part(np.where(holes, 0, times).astype(np.int64)))

    return apply


def _month(times: Column) -> Column:
    return times.astype("M8[us]").astype("M8[M]").astype(np.int64) % 12 + 1


def _day(times: Column) -> Column:
    days = times.astype("M8[us]")
    return np.asarray(days.astype("M8[D]") - days.astype("M8[M]").astype("M8[D]")).astype(np.int64) + 1


def _where(condition: Column, one: Column, other: Column) -> Column:
    if isinstance(one, pa.Array | str):
        chosen = pa.array(np.atleast_1d(truth(condition)))
        return pc.if_else(chosen, one, other)
    return np.where(truth(condition), numbers(one), numbers(other))


def _coalesce(*values: Column) -> Column:
    if isinstance(values[0], pa.StringArray | str):
        return pc.coalesce(*values)
    found = numbers(values[-1])
    for value in reversed(values[:-1]):
        found = np.where(missing(value), found, numbers(value))
    return found


def _bucket(values: Column, bounds: list[float]) -> Column:
    values = np.asarray(numbers(values), np.float64)
    return np.where(np.isnan(values), np.nan, np.searchsorted(bounds, values, side="right"))


def _split(values: Column, separator: str, place: int) -> Column:
    parts = pc.split_pattern(texts(values), separator)
    there = pc.greater(pc.list_value_length(parts), place)
    return pc.list_element(pc.if_else(there, parts, pa.scalar([None] * (place + 1), parts.type)), place)


def _concat(*values: Column) -> Column:
    return pc.binary_join_element_wise(*map(texts, values), "")


def _cast(pattern: str, kind: pa.DataType) -> Callable[[Column], Column]:
    """Numbers as they are written in texts, missing where there is none; numbers cut to whole ones for int()."""

    def apply(values: Column) -> Column:
        if isinstance(values, pa.StringArray):
            written = pc.if_else(pc.match_substring_regex(values, pattern), pc.utf8_trim_whitespace(values), None)
            written = pc.replace_substring_regex(written, r"^\+", "")
            return np.asarray(numbers(written.cast(kind)), np.float64)  # whether or not one is missing
        values = numbers(values)
        return np.trunc(values) if pa.types.is_integer(kind) and np.asarray(values).dtype.kind == "f" else values

    return apply


def _time(values: Column, unit: str | None = None) -> Column:
    """Texts of ISO 8601, or numbers of a unit since 1970 UTC, as microseconds since then."""
    if isinstance(values, pa.StringArray):
        return numbers(times_from_text(values, ISO_8601))
    array = pa.array(np.asarray(numbers(values)), from_pandas=True)
    if pa.types.is_floating(array.type):
        scaled = np.rint(array.to_numpy(zero_copy_only=False) * TIME_UNITS[unit or "s"])
        return numbers(times_from_numbers(pa.array(scaled, from_pandas=True).cast(pa.int64(), safe=False), 1))
    return numbers(times_from_numbers(array, TIME_UNITS[unit or "s"]))


def _hash(*values: Column) -> Column:
    """32 hexadecimal digits of BLAKE2b (RFC 7693) of all values, or of all fields; lengths stand between them."""
    parts = []
    for value in map(texts, values):
        lengths = pc.binary_length(value.cast(pa.binary())).cast(pa.string())
        parts.append(pc.binary_join_element_wise(lengths, value, ":").fill_null("-"))
    joined = pc.binary_join_element_wise(*parts, "").cast(pa.binary())
    return pa.array([hashlib.blake2b(text, digest_size=16).hexdigest() for text in joined.to_pylist()], pa.string())


TIME_FUNCTIONS: dict[str, Callable[[Column], Column]] = {
    "hour": lambda t: t % _DAY_US // 3_600_000_000,
    "weekday": lambda t: (t // _DAY_US + 3) % 7,  # 1970-01-01 was a Thursday; Monday is 0
    "day": _day,
    "month": _month,
    "quarter": lambda t: (_month(t) + 2) // 3,
    "year": lambda t: t.astype("M8[us]").astype("M8[Y]").astype(np.int64) + 1970,
}
FUNCTIONS: dict[str, Function] = {
    **{name: Function(("time",), "int", _of_time(part)) for name, part in TIME_FUNCTIONS.items()},
    "abs": Function(("number",), "first", lambda a: np.abs(numbers(a))),
    "min": Function(("number", "number"), "first", lambda a, b: np.minimum(numbers(a), numbers(b))),
    "max": Function(("number", "number"), "first", lambda a, b: np.maximum(numbers(a), numbers(b))),
    "where": Function(("number", "any", "any"), "first", _where),
    "is_missing": Function(("any",), "bool", missing),
    "coalesce": Function(("any", "any"), "first", _coalesce, repeats=True),
    "bucket": Function(("number", "bounds"), "int", _bucket),
    "lower": Function(("string",), "string", lambda s: pc.utf8_lower(s)),
    "upper": Function(("string",), "string", lambda s: pc.utf8_upper(s)),
    "strip": Function(("string",), "string", lambda s: pc.utf8_trim_whitespace(s)),
    "len": Function(("string",), "int", lambda s: pc.utf8_length(s).to_numpy(zero_copy_only=False).astype(np.float64)),
    "startswith": Function(("string", "text"), "bool", lambda s, t: _mask(pc.starts_with(s, t))),
    "endswith": Function(("string", "text"), "bool", lambda s, t: _mask(pc.ends_with(s, t))),
    "contains": Function(("string", "text"), "bool", lambda s, t: _mask(pc.match_substring(s, t))),
    "split": Function(("string", "text", "whole"), "string", _split),
    "concat": Function(("any", "any"), "string", _concat, repeats=True),
    "str": Function(("any",), "string", texts),
    "int": Function(("any",), "int", _cast(_INTEGER, pa.int64())),
    "float": Function(("any",), "float", _cast(_NUMBER, pa.float64())),
    "time": Function(("any", "text"), "time", _time, optional=1),
    "hash": Function(("any",), "string", _hash, repeats=True, optional=1),
}
# What these are asked about may be missing.
ASKING = ("is_missing", "coalesce", "hash")
