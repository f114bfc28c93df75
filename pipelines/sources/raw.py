"""Batches of records as a source gives them, and of what it could not read; see transforms.decode."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

import pyarrow as pa

from models.record import COLUMNS, FORMAT, PAYLOAD, POSITION, SYSTEM_FIELDS

KEPT_BYTES = 65536  # of what could not be read


class BrokenFile(Exception):
    """A file that is damaged from some place on; all that comes before was read."""


def raw_batch(payloads: pa.Array, positions: pa.Array, metadata: dict[bytes, bytes]) -> pa.RecordBatch:
    """Records as their bytes, with their positions."""
    schema = pa.schema([SYSTEM_FIELDS[PAYLOAD], SYSTEM_FIELDS[POSITION]], metadata)
    return pa.RecordBatch.from_arrays([payloads, positions], schema=schema)


def rows_batch(names: Sequence[str], columns: Sequence[pa.Array], positions: pa.Array) -> pa.RecordBatch:
    """Records as typed columns, with their positions; without columns of headrace's own names."""
    kept = [place for place, name in enumerate(names) if not name.startswith("__")]
    fields = [pa.field(names[place], columns[place].type) for place in kept]
    schema = pa.schema([*fields, SYSTEM_FIELDS[POSITION]], {FORMAT: b"rows"})
    return pa.RecordBatch.from_arrays([*(columns[place] for place in kept), positions], schema=schema)


def unreadable(why: str, payload: bytes, position: int) -> pa.RecordBatch:
    """One record that stands for a part of a file that can't be read."""
    metadata = {FORMAT: b"unreadable", COLUMNS: why.encode("utf-8", "backslashreplace")}
    return raw_batch(pa.array([payload[:KEPT_BYTES]], pa.binary()), pa.array([position], pa.int64()), metadata)


def distinct(names: Sequence[str], needed: Collection[str] | None) -> list[str]:
    """The names of columns, a further one of a name as `NAME#2`; ValueError if one of `needed`, or None, is double.

    A name that is made up is none of a column and none that is needed.
    """
    counts, taken = Counter(names), {*names, *(needed or ())}
    doubled = [name for name, count in counts.items() if count > 1 and (needed is None or name in needed)]
    if doubled:
        raise ValueError(f"it names a column twice: {doubled[0]}")
    found: list[str] = []
    known: set[str] = set()
    for name in names:
        new, number = name, 1
        while new in known or (number > 1 and new in taken):
            number += 1
            new = f"{name}#{number}"
        known.add(new)
        found.append(new)
    return found
