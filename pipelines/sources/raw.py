"""Batches of records as a source gives them, and of what it could not read; see transforms.decode."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from models.batches import COLUMNS, FORMAT, PAYLOAD, POSITION, SYSTEM_FIELDS

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
