"""Rows of joined tables in a store: for each key all rows that an event may take, in a tile of all times.

An event takes the latest row that is known at its time, however old that is, so these tiles have no length of event
time: one of a key has its rows from 1970 on, and one those before. The id of a row is a hash of its content, and its
fields stand there as texts, of which those of Arrow's numbers read back to the same bits. What leaves such a tile are
rows that were replaced before the oldest event to come.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from models.batches import column, times_us
from models.features.table_join import Known, content_of, learn
from models.record import EVENT_TIME, TIMESTAMP, RecordType
from models.store.kinds import Int64, Kind
from models.store.tiles import Rows, decode_tiles, encode_tiles, kinds_in


def rows_of_table(kind: Kind, records: RecordType, batch: pa.RecordBatch) -> tuple[Rows, pa.Array]:
    """The valid rows of a table as a store has them, and the key of each, a text."""
    names = [*records.carried, EVENT_TIME]
    rows = pa.RecordBatch.from_arrays([column(batch, name) for name in names], names=names)
    fields = [_as_text(column(rows, name)) for name, _ in kind.columns]
    content = pa.array(content_of(rows).view(np.int64))
    return Rows(kind.kinds, times_us(rows), (content, *fields)), rows.column(0).cast(pa.string())


def known_of(records: RecordType, rows: Rows, keys: pa.Array) -> Known:
    """What `rows_of_table` made rows of, as models.features.table_join looks it up."""
    if not len(rows):
        return ()
    kinds = [records.contract.fields[name].arrow_type for name in records.carried]
    fields = [_of_text(values, kind) for values, kind in zip((keys, *rows.columns[1:]), kinds, strict=True)]
    columns = [*fields, pa.array(rows.time).cast(TIMESTAMP)]
    return learn((), pa.RecordBatch.from_arrays(columns, names=[*records.carried, EVENT_TIME]), int(rows.time.min()))


def without_replaced(tile: bytes, before_us: int) -> bytes:
    """A tile without the rows that events from a time on, microseconds since 1970 UTC, do not take.

    Whatever it was united with before or after, what is left in the end is the same. TileError if it is damaged.
    """
    rows, _ = decode_tiles(kinds_in(tile), [tile])
    first = first_needed(rows.time, before_us)
    return encode_tiles(rows.slice(first, len(rows)), np.zeros(1, np.int64))[0] if first else tile


def first_needed(times: Int64, before_us: int) -> int:
    """How many of the rows of one key, of ascending times, stand before the last time that is not later than that."""
    known = int(times.searchsorted(before_us, "right"))
    return int(times.searchsorted(times[known - 1])) if known else 0


def _as_text(values: pa.Array) -> pa.Array:
    return (values.cast(pa.int64()) if pa.types.is_timestamp(values.type) else values).cast(pa.string())


def _of_text(values: pa.Array, kind: pa.DataType) -> pa.Array:
    return values.cast(pa.int64()).cast(kind) if pa.types.is_timestamp(kind) else values.cast(kind)
