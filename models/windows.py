"""Rolling windows over an entity's events, to the microsecond, on whole columns and exactly.

`RollingKernel.advance(history, events)` gives the features of `events` and the history that comes after
them. Order within an entity is (event time, event id). A window of length w and delay d, seen from an event
at time t, holds the entity's events with time in (t - d - w, t - d]; without a delay it ends at the event
itself, in that order. The result for an event depends on the set of events only, never on how it was split
into calls: sums are 64-bit integers of declared decimal places, with one division at the end.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from models.project import RollingFeature

Int64 = np.ndarray[Any, np.dtype[np.int64]]
Float64 = np.ndarray[Any, np.dtype[np.float64]]

# A run is merged into the one before it once that is no longer this many times longer.
_RUN_RATIO = 4


@dataclasses.dataclass(frozen=True)
class Events:
    """Rows of one entity kind: entity codes int64[n], times int64[n] in us, ids, numbers float64[n] (NaN: none)."""

    entity: Int64
    time: Int64
    ids: pa.Array
    values: dict[str, Float64]

    def __len__(self) -> int:
        return len(self.time)

    def take(self, rows: Int64) -> Events:
        """The given rows, in that order."""
        ids = self.ids.take(pa.array(rows))
        return Events(self.entity[rows], self.time[rows], ids, {k: v[rows] for k, v in self.values.items()})

    @staticmethod
    def concat(parts: Sequence[Events]) -> Events:
        """All rows of `parts`, one after another; no copy of a single part."""
        if len(parts) == 1:
            return parts[0]
        return Events(
            np.concatenate([p.entity for p in parts]),
            np.concatenate([p.time for p in parts]),
            pa.concat_arrays([p.ids for p in parts]),
            {k: np.concatenate([p.values[k] for p in parts]) for k in parts[0].values},
        )


@dataclasses.dataclass(frozen=True)
class History:
    """Past events that windows still need: runs sorted by (entity, time, id), each much longer than the next.

    So an append rewrites few rows, however long the history is, and a look-up reads few runs.
    """

    runs: tuple[Events, ...] = ()

    def __len__(self) -> int:
        return sum(map(len, self.runs))


@dataclasses.dataclass(frozen=True)
class RollingKernel:
    """The rolling features of one entity kind.

    `decimals` gives a field's decimal places; a field without them is summed as integers.
    """

    features: tuple[RollingFeature, ...]
    decimals: Mapping[str, int]

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields whose values the windows read."""
        return tuple(dict.fromkeys(f.field for f in self.features if f.field))

    @property
    def horizon_us(self) -> int:
        """How long an event is still seen by some window, in microseconds."""
        return max(f.delay_us + f.window_us for f in self.features)

    def advance(self, history: History, events: Events) -> tuple[list[Int64 | Float64], History]:
        """Features of `events` in their order (counts int64[n], others float64[n]), and the next history."""
        events_order = _sort_order(events)
        new = events if _is_sorted(events_order) else events.take(events_order)
        past = _seen_by(history, new)
        in_order = self._compute(Events.concat(past) if past else new.take(np.empty(0, np.int64)), new)
        columns: list[Int64 | Float64] = []
        for column in in_order:
            restored = np.empty_like(column)
            restored[events_order] = column
            columns.append(restored)
        return columns, self._append(history, new)

    def extend(self, history: History, events: Events) -> History:
        """The history after `events`, without computing their features."""
        return self._append(history, events.take(_sort_order(events)))

    def _append(self, history: History, new: Events) -> History:
        if not len(new):
            return history
        runs = [*history.runs, new]
        while len(runs) > 1 and len(runs[-2]) < _RUN_RATIO * len(runs[-1]):
            last = runs.pop()
            runs[-1] = _merge(runs[-1], last)
            if len(runs) == 1:
                needed = np.flatnonzero(runs[0].time > new.time.max() - self.horizon_us)
                runs = [runs[0] if len(needed) == len(runs[0]) else runs[0].take(needed)]
        return History(tuple(runs))

    def _compute(self, past: Events, new: Events) -> list[Int64 | Float64]:
        """Features of sorted `new`, given all of their entities' sorted `past`, in the order of `new`."""
        if not len(new):
            return [np.empty(0, np.int64 if f.aggregate == "count" else np.float64) for f in self.features]
        entities = np.unique(new.entity)
        first = int(min(new.time.min(), past.time.min() if len(past) else new.time.min()))
        last = int(max(new.time.max(), past.time.max() if len(past) else new.time.max()))
        span = last - first + self.horizon_us + 1
        if span * len(entities) >= 1 << 62:  # the search key would overflow: halve the entities
            if len(entities) == 1:
                raise OverflowError(f"events of one entity lie {span} us apart, too far for a 64-bit key")
            middle = entities[len(entities) // 2]
            halves = [
                self._compute(past.take(np.flatnonzero(p)), new.take(np.flatnonzero(n)))
                for p, n in (
                    (past.entity < middle, new.entity < middle),
                    (past.entity >= middle, new.entity >= middle),
                )
            ]
            return [np.concatenate(pair) for pair in zip(*halves, strict=True)]

        if len(past):
            seen = Events.concat([past, new])
            order = _sort_order(seen)
            position = np.empty(len(order), np.int64)
            position[order] = np.arange(len(order))
            seen, position = seen.take(order), position[len(past) :]
        else:
            seen, position = new, np.arange(len(new))
        # One sorted key for all entities; `span` keeps a window from reaching into the entity before.
        key = np.searchsorted(entities, seen.entity) * span + (seen.time - first)
        return self._aggregate(seen, key, position)

    def _aggregate(self, seen: Events, key: Int64, position: Int64) -> list[Int64 | Float64]:
        here = key if len(position) == len(key) else key[position]
        bounds: dict[int, Int64] = {}
        prefixes: dict[tuple[str, str], Int64] = {}

        def bound(shift: int) -> Int64:
            """For each event, how many sorted rows lie at or before (its time - shift)."""
            if shift not in bounds:
                bounds[shift] = np.searchsorted(key, here - shift, side="right")
            return bounds[shift]

        def prefix(kind: str, field: str) -> Int64:
            if (kind, field) not in prefixes:
                values = seen.values[field]
                known = ~np.isnan(values)
                if kind == "known":
                    numbers: Int64 = known.astype(np.int64)
                else:
                    scaled = np.rint(values * 10 ** self.decimals.get(field, 0))
                    numbers = np.where(known, scaled, 0).astype(np.int64)
                prefixes[kind, field] = np.concatenate([np.zeros(1, np.int64), np.cumsum(numbers)])
            return prefixes[kind, field]

        columns: list[Int64 | Float64] = []
        for f in self.features:
            low = bound(f.delay_us + f.window_us)
            if f.delay_us:
                high = bound(f.delay_us)
            else:
                high = position + 1 if f.include_current else position
            count = high - low
            if f.aggregate == "count":
                columns.append(count)
                continue
            assert f.field is not None
            if f.aggregate in ("min", "max"):
                columns.append(_extreme(f.aggregate, seen.values[f.field], low, high, f.empty))
                continue
            sums = prefix("sum", f.field)
            total = sums[high] - sums[low]
            scale = 10 ** self.decimals.get(f.field, 0)
            if f.aggregate == "sum":
                columns.append(total / float(scale))
                continue
            if f.aggregate == "mean" and np.isnan(seen.values[f.field]).any():
                known = prefix("known", f.field)
                count = known[high] - known[low]
            # rate: an unknown value counts as not true, as a label that never came does
            result = np.full(len(count), f.empty)
            np.divide(total, count * scale, out=result, where=count > 0)
            columns.append(result)
        return columns


def encode_entities(values: pa.Array, codes: dict[Any, int]) -> Int64:
    """Codes int64[n] of entity keys: integers stand for themselves, strings get the next free number in `codes`."""
    if pa.types.is_integer(values.type):
        return np.asarray(values.to_numpy(zero_copy_only=False), dtype=np.int64)
    encoded = values.dictionary_encode()
    of_unique = [codes.setdefault(value, len(codes)) for value in encoded.dictionary.to_pylist()]
    return np.asarray(of_unique, dtype=np.int64)[encoded.indices.to_numpy()]


def sort_order(ids: pa.Array, *keys: Int64) -> Int64:
    """Row numbers that sort by `keys`, the first one first, then by ids, which are looked at only in ties."""
    order = np.lexsort(keys[::-1])
    tied = np.logical_and.reduce([key[order[1:]] == key[order[:-1]] for key in keys])
    if tied.any():
        edges = np.flatnonzero(np.diff(np.concatenate([[False], tied, [False]]).astype(np.int8)))
        for start, stop in zip(edges[::2].tolist(), (edges[1::2] + 1).tolist(), strict=True):
            rows = order[start:stop]
            texts = ids.take(pa.array(rows)).to_pylist()
            order[start:stop] = rows[sorted(range(len(texts)), key=texts.__getitem__)]
    return order


def _sort_order(events: Events) -> Int64:
    return sort_order(events.ids, events.entity, events.time)


def _is_sorted(order: Int64) -> bool:
    return bool((order[1:] > order[:-1]).all())


def _merge(a: Events, b: Events) -> Events:
    both = Events.concat([a, b])
    return both.take(_sort_order(both))


def _seen_by(history: History, new: Events) -> list[Events]:
    """The rows of `history` of the entities in `new`, run by run."""
    entities = np.unique(new.entity)
    parts = []
    for run in history.runs:
        start = np.searchsorted(run.entity, entities, side="left")
        length = np.searchsorted(run.entity, entities, side="right") - start
        if length.any():
            parts.append(run.take(_ranges(start, length)))
    return parts


def _ranges(start: Int64, length: Int64) -> Int64:
    """The numbers start[i] .. start[i] + length[i] - 1 of every i, one range after another."""
    before = np.cumsum(length) - length
    return np.repeat(start - before, length) + np.arange(int(length.sum()))


def _extreme(kind: str, values: Float64, low: Int64, high: Int64, empty: float) -> Float64:
    """min or max of values[low:high], row by row, NaN left out; a sparse table, one level in memory at a time."""
    pick, neutral = (np.fmin, np.inf) if kind == "min" else (np.fmax, -np.inf)
    level = np.where(np.isnan(values), neutral, values)
    length = high - low
    result = np.full(len(low), neutral)
    for power in itertools.count():
        width = 1 << power
        rows = np.flatnonzero((length >= width) & (length < 2 * width))
        result[rows] = pick(level[low[rows]], level[high[rows] - width])
        if not (length >= 2 * width).any():
            break
        level = pick(level[:-width], level[width:])
    result[~np.isfinite(result)] = empty
    return result
