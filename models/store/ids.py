"""Ids of events in a store, by which an event is known to be a duplicate whatever entities the other one had.

An id stands with its event's time and with a hash of what tells the event from others with that id: its fields, but for
those that become known later, as its label. The hash has a bit for an event that was refused as a duplicate itself: of
one that is sent again, it tells what was answered. Ids are in tiles of many, by a hash of theirs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.batches import as_int64, column, hash_keys, times_us
from models.features.duplicates import count_earlier
from models.features.table_join import content_of
from models.features.windows import Bools, Events, History, Run, encode_values
from models.order import order_by
from models.store.kinds import Kind, Place, as_stored
from models.store.tiles import Rows, decode_tiles

_BUCKETS = 4096
_REFUSED = 1 << 62
_NEVER_LATE_US = 1 << 60


def content_column(batch: pa.RecordBatch, names: Sequence[str], refused: Bools) -> pa.Array:
    """What stands beside each event's id: a hash of the fields `names`, and whether the event was refused, int64[n]."""
    content = content_of(batch.select(list(names))) if names else np.zeros(batch.num_rows, np.uint64)
    return pa.array((content >> np.uint64(2)).astype(np.int64) | np.where(refused, _REFUSED, 0))


def rows_of_ids(kind: Kind, batch: pa.RecordBatch, content: pa.Array) -> tuple[Rows, pa.Array]:
    """The ids of events as a store has them, and the key of each, a text."""
    ids = column(batch, kind.event_id)
    keys = pa.array((hash_keys(ids) % np.uint64(_BUCKETS)).astype(np.int64)).cast(pa.string())
    return Rows(kind.kinds, times_us(batch), (as_stored(ids, kind.kinds[0]), content)), keys


def places_of_ids(kind: Kind, batch: pa.RecordBatch) -> list[Place]:
    """The tiles that may have ids of events as near to a batch's as duplicates are, each once."""
    _, keys = rows_of_ids(kind, batch, pa.nulls(batch.num_rows, pa.int64()))
    found = {
        Place(kind.name, key, start): None
        for key, time_us in zip(keys.to_pylist(), times_us(batch).tolist(), strict=True)
        for start in range(kind.starts_us(time_us).start, time_us + kind.span_us, kind.tile_us)
    }
    return list(found)


def find_repeated(kind: Kind, batch: pa.RecordBatch, content: pa.Array, tiles: Sequence[bytes]) -> Bools:
    """Which events, bool[n], are duplicates, by the tiles of their places and by each other; of one that stands there
    already, whether it was one then. `content` is as if none were. TileError if a tile is damaged.
    """
    ids, times = as_stored(column(batch, kind.event_id), kind.kinds[0]), times_us(batch)
    rows, _ = decode_tiles(kind.kinds, tiles)
    known = pc.is_in(rows.columns[0], value_set=ids)
    if not pc.any(known).as_py() and pc.count_distinct(ids).as_py() == len(ids):
        return np.zeros(len(times), bool)
    rows = rows.take(np.flatnonzero(known))
    codes: dict[object, int] = {}
    mine, theirs = encode_values(ids, codes), encode_values(rows.columns[0], codes)
    order = order_by(theirs, rows.time)
    history = History((Run(theirs[order], rows.time[order], {}),) if len(rows) else ())
    (earlier,) = count_earlier(kind.span_us, _NEVER_LATE_US).features_of(history, Events(mine, times, content, {}))
    repeated: Bools = earlier > 0
    stored = as_int64(rows.columns[1])
    before = zip(
        theirs.tolist(), rows.time.tolist(), (stored & ~_REFUSED).tolist(), (stored >= _REFUSED).tolist(), strict=True
    )
    answered: dict[tuple[int, int, int], bool] = {}
    for code, time_us, hashed, refused in before:
        answered[code, time_us, hashed] = answered.get((code, time_us, hashed), True) and refused
    again = zip(mine.tolist(), times.tolist(), as_int64(content).tolist(), repeated.tolist(), strict=True)
    return np.array([answered.get((*event, hashed), each) for *event, hashed, each in again], bool)
