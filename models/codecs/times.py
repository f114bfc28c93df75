"""Times of every form as microseconds since 1970 UTC: text, numbers in Unix units, timestamps, dates.

A time outside the years 1 to 9999 is none: ISO 8601 has no text for it, nor Python a value.
"""

from __future__ import annotations

import datetime
import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.record import TIMESTAMP

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_NAIVE_EPOCH = datetime.datetime(1970, 1, 1)  # noqa: DTZ001
_MICROSECOND = datetime.timedelta(microseconds=1)
_FIRST_US = (datetime.datetime.min - _NAIVE_EPOCH) // _MICROSECOND  # noqa: DTZ901
_LAST_US = (datetime.datetime.max - _NAIVE_EPOCH) // _MICROSECOND  # noqa: DTZ901

# Formats of which ISO 8601 is the general case, so that any of its forms can be meant.
_ISO_FORMAT = re.compile(r"%Y-%m-%d([T ]%H:%M(:%S(\.%f)?)?(Z|%z)?)?")
_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000}
_DAY_US = 86_400_000_000


def times_from_text(text: pa.StringArray, time_format: str) -> pa.Array:
    """Text of a strptime format, UTC where no offset stands; null where it is not one.

    If the format is one of ISO 8601's, all other forms of that are read, too.
    """
    iso = _ISO_FORMAT.fullmatch(time_format) is not None
    for form in (pa.timestamp("us"), TIMESTAMP) if iso else ():  # all without an offset, or all with one
        try:
            return _bounded(text.cast(form).cast(pa.int64()))
        except pa.ArrowInvalid:
            continue
    micros = [_micros_of_text(value, time_format, iso) for value in text.to_pylist()]
    return _bounded(pa.array(micros, pa.int64()))


def _micros_of_text(value: str | None, time_format: str, iso: bool) -> int | None:
    if value is None:
        return None
    try:
        if iso:
            return micros_of(datetime.datetime.fromisoformat(value))
    except ValueError:
        pass
    try:
        return micros_of(datetime.datetime.strptime(value, time_format))  # noqa: DTZ007
    except (ValueError, OverflowError):
        return None


def micros_of(value: datetime.datetime | datetime.date) -> int:
    """Microseconds since 1970 UTC of a time, or of a date's first instant; UTC where no offset stands."""
    if not isinstance(value, datetime.datetime):
        value = datetime.datetime(value.year, value.month, value.day)  # noqa: DTZ001
    return (value - (_NAIVE_EPOCH if value.tzinfo is None else _EPOCH)) // _MICROSECOND


def times_from_numbers(numbers: pa.Int64Array, unit: int) -> pa.Array:
    """Numbers of units since 1970 UTC; a unit is so many microseconds, or -n for the n-th part of one."""
    values = numbers.fill_null(0).to_numpy(zero_copy_only=False)
    if unit < 0:
        micros = values // -unit
        fits = np.ones(len(values), bool)
    else:
        fits = (values >= -(-_FIRST_US // unit)) & (values <= _LAST_US // unit)
        micros = np.where(fits, values, 0) * unit
    known = fits & pc.is_valid(numbers).to_numpy(zero_copy_only=False)
    return _bounded(pa.array(micros, pa.int64(), mask=~known))


def times_from_timestamps(column: pa.Array) -> pa.Array:
    """A column of timestamps or dates; UTC where no zone stands."""
    if pa.types.is_date32(column.type):
        return times_from_numbers(column.view(pa.int32()).cast(pa.int64()), _DAY_US)
    unit = "ms" if pa.types.is_date64(column.type) else column.type.unit
    per_unit = 1_000_000 // _PER_SECOND[unit] if unit != "ns" else -1_000
    return times_from_numbers(column.view(pa.int64()), per_unit)


def _bounded(micros: pa.Int64Array) -> pa.Array:
    outside = pc.or_(pc.less(micros, _FIRST_US), pc.greater(micros, _LAST_US))
    if pc.any(outside).as_py():
        micros = pc.if_else(outside, None, micros)
    return micros.cast(TIMESTAMP)
