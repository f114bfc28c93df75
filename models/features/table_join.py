"""Rows of tables joined with events: of those of its key that are known at an event's time, the latest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.batches import as_int64, column, concat_batches, hash_keys, take_rows, times_us
from models.features.label_join import KeptEvents
from models.features.windows import Int64
from models.record import EVENT_TIME

# A table's changes are joined to the rows before once these are no longer so many times more.
_RATIO = 8
# From one look for rows that no event needs any more to the next, in event time.
TIDY_US = 30 * 86_400_000_000
_NEVER, _ALWAYS = np.iinfo(np.int64).min, np.iinfo(np.int64).max

Rows = np.ndarray[Any, np.dtype[np.bool_]]
# The key first, __event_time last; parts, oldest first, each much longer than the next.
Known = tuple[KeptEvents, ...]


def learn(known: Known, rows: pa.RecordBatch, cutoff_us: int) -> Known:
    """What is known and at least one row more; rows that no event after `cutoff_us` needs may be thrown out."""
    parts = [*known, _ordered(rows)]
    while len(parts) > 1 and len(parts[-2]) < _RATIO * len(parts[-1]):
        last = parts.pop()
        both = concat_batches([parts[-1].events, last.events])
        parts[-1] = _ordered(take_rows(both, np.flatnonzero(still_needed(both, cutoff_us))))
    return tuple(parts)


def look_up(
    known: Known, keys: pa.Array, times: Int64, until: str | None, deleted: str | None = None
) -> tuple[list[Int64], Rows]:
    """For each part the row of it that each event takes, -1 for none; and which events, bool[n], have one at all.

    That is the latest row of the key that is known at the event's time, if it then still holds: `until` names the field
    that says how long, and `deleted` one that is 1 where nothing holds from a row's time on. Of two rows of one key and
    time, the one that is taken depends on their content alone.
    """
    rows = [part.find(keys, times) for part in known]
    best_us, best = np.full(len(times), _NEVER), np.full(len(times), -1)
    content = np.zeros(len(times), np.uint64)
    for place, (part, found) in enumerate(zip(known, rows, strict=True)):
        at = np.flatnonzero(found >= 0)
        chosen = take_rows(part.events, found[at])
        time, mine = times_us(chosen), content_of(chosen)
        better = (time > best_us[at]) | ((time == best_us[at]) & (mine >= content[at]))
        best_us[at[better]], content[at[better]], best[at[better]] = time[better], mine[better], place
    for place, (part, found) in enumerate(zip(known, rows, strict=True)):
        found[best != place] = -1
        at = np.flatnonzero(found >= 0)
        taken = pa.array(found[at])
        over = np.zeros(len(at), bool)
        if until is not None:
            over = times[at] >= as_int64(column(part.events, until).take(taken).cast(pa.int64()).fill_null(_ALWAYS))
        if deleted is not None:
            over = over | (as_int64(column(part.events, deleted).take(taken).cast(pa.int64()).fill_null(0)) == 1)
        found[at[over]], best[at[over]] = -1, -1
    return rows, best >= 0


def join_fields(
    batch: pa.RecordBatch,
    known: Known,
    key: str,
    kinds: Mapping[str, pa.DataType],
    until: str | None,
    deleted: str | None = None,
) -> tuple[pa.RecordBatch, Rows]:
    """Events with fields of the rows that `look_up` finds by their column `key`, and which events, bool[n], have one.

    `kinds` are the types of the fields, which stand at the end, missing where there is no row.
    """
    rows, found = look_up(known, column(batch, key), times_us(batch), until, deleted)
    joined = [
        take_fields(known, rows, name, kind) if rows else pa.nulls(len(found), kind) for name, kind in kinds.items()
    ]
    schema = pa.schema([*batch.schema, *(pa.field(*field) for field in kinds.items())], batch.schema.metadata)
    return pa.RecordBatch.from_arrays([*batch.columns, *joined], schema=schema), found


def take_fields(known: Known, rows: Sequence[Int64], name: str, kind: pa.DataType) -> pa.Array:
    """A field of the rows that `look_up` gave; null where there is none."""
    found = None
    for part, places in zip(known, rows, strict=True):
        values = column(part.events, name).take(pa.array(places, mask=places < 0))
        found = values if found is None else pc.coalesce(found, values)
    return pa.nulls(len(rows[0]) if rows else 0, kind) if found is None else found


def still_needed(rows: pa.RecordBatch, cutoff_us: int) -> Rows:
    """Which rows, bool[n], events later than `cutoff_us` may take: later ones, and of each key the last one before."""
    ordered = _ordered(rows)
    index, order = ordered.index, ordered.index.values["row"].astype(np.int64)
    keys = ordered.events.column(0).take(pa.array(order))
    same = np.asarray(pc.equal(keys.slice(1), keys.slice(0, max(len(keys) - 1, 0))), bool)
    replaced = np.append((index.entity[1:] == index.entity[:-1]) & same & (index.time[1:] <= cutoff_us), False)
    result = np.ones(len(order), bool)
    result[_by_content(rows)[order[replaced]]] = False
    return result


def _ordered(rows: pa.RecordBatch) -> KeptEvents:
    """Of one key and time, the rows stand in the order of their content."""
    return KeptEvents.of(take_rows(rows, _by_content(rows)))


def _by_content(rows: pa.RecordBatch) -> Int64:
    return np.argsort(content_of(rows), kind="stable")


def content_of(rows: pa.RecordBatch) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """A hash uint64[n] of each row's columns, but for its time."""
    content = np.zeros(rows.num_rows, np.uint64)
    for name, values in zip(rows.schema.names, rows.columns, strict=True):
        if name != EVENT_TIME:
            known = np.asarray(values.is_valid()).astype(np.uint64)  # what is missing is no 0
            content = hash_keys(values) * np.uint64(2) + known + content * np.uint64(31)
    return content
