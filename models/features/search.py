"""How many rows stand up to each of many times: the search that rolling windows come down to.

Rows are ordered by entity and time. Where `_rows.c` was built it searches, several times as fast and beside other
threads; where there was no compiler numpy does, with the same answers.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

find_rows: Callable[..., None] | None
try:
    from models.features._rows import find_rows
except ImportError:
    find_rows = None

Int64 = np.ndarray[Any, np.dtype[np.int64]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]

# A search key of (entity, time) has no more bits than this, so that 64 hold it and what is added to it.
KEY_BITS = 62


@dataclasses.dataclass(frozen=True, eq=False)
class Ordered:
    """At least one row, sorted by (entity, time): int64[n], C-contiguous."""

    entity: Int64
    time: Int64

    def __len__(self) -> int:
        return len(self.time)

    @functools.cached_property
    def first(self) -> int:
        """The earliest time."""
        return int(self.time.min())

    @functools.cached_property
    def last(self) -> int:
        """The latest time."""
        return int(self.time.max())

    @functools.cached_property
    def _starts(self) -> Int64:
        """The row that each entity starts at, and the number of rows."""
        starts: Int64 = np.flatnonzero(np.concatenate([[True], self.entity[1:] != self.entity[:-1], [True]]))
        return starts

    @functools.cached_property
    def _entities(self) -> Int64:
        return np.asarray(self.entity[self._starts[:-1]])

    @functools.cached_property
    def _tick_bits(self) -> int:
        """How many low bits of a time a key has no room for: 0, but for very many entities over a long time."""
        return max(0, (len(self._entities) * (self.last - self.first + 1)).bit_length() - KEY_BITS)

    @functools.cached_property
    def _span(self) -> int:
        return ((self.last - self.first) >> self._tick_bits) + 1

    @functools.cached_property
    def _key(self) -> Int64:
        """One ascending number a row for entity and time, so that one search finds both."""
        base = np.arange(len(self._entities)) * self._span
        key: Int64 = np.repeat(base, np.diff(self._starts)) + ((self.time - self.first) >> self._tick_bits)
        return key

    def rows_until(self, events: Ordered, ages: Sequence[int | Int64], passed: int) -> Int64:
        """How many rows stand at or before each event's time less each age, as int64[ages, events].

        An age is one for all events or int64[events]. Rows stand in order, so those of the entities before an event's
        are counted too. A time before `passed` is taken as `passed`.
        """
        if find_rows is None:
            return self._rows_until(events, ages, passed)
        rows = np.empty((len(ages), len(events)), np.int64)
        for age, found in zip(ages, rows, strict=True):
            find_rows(self.entity, self.time, events.entity, np.maximum(events.time - age, passed), found)
        return rows

    def _rows_until(self, events: Ordered, ages: Sequence[int | Int64], passed: int) -> Int64:
        """The same in numpy."""
        place, known = self._places_of(events)
        counts = np.diff(events._starts)
        start = np.repeat(self._starts[place], counts)
        rows = np.empty((len(ages), len(events)), np.int64)
        if not known.any():
            rows[:] = start
            return rows
        end, base = np.repeat(self._starts[place + known], counts), np.repeat(place * self._span, counts)
        for age, found in zip(ages, rows, strict=True):
            until = np.maximum(events.time - age, passed)
            before = until < self.last
            found[:] = np.where(before, start, end)
            inside = before & (until >= self.first)
            if inside.any():
                some = slice(None) if 2 * np.count_nonzero(inside) > len(inside) else np.flatnonzero(inside)
                found[some] = self._search(until[some], base[some], start[some], end[some])
        return rows

    def _search(self, until: Int64, base: Int64, start: Int64, end: Int64) -> Int64:
        """How many rows stand up to each time `until`, of the entity that has the rows from `start` to `end`, and the
        keys from `base` on.
        """
        if len(self._entities) == len(self):  # a row each
            return np.where(self.time[np.minimum(start, len(self) - 1)] <= until, end, start)
        key = np.minimum(np.maximum(until, self.first - 1), self.last)
        key -= self.first
        key >>= self._tick_bits
        key += base
        found = np.minimum(np.searchsorted(self._key, key, side="right"), end)
        # Where a key has no room for all of a time, the last rows found may be later than it.
        while self._tick_bits and (later := (found > start) & (self.time[found - 1] > until)).any():
            found -= later
        return found

    def _places_of(self, events: Ordered) -> tuple[Int64, Bools]:
        """Where each entity of `events`, as they follow one another there, stands among the entities here or would,
        and whether it is here.
        """
        if events is self:
            return np.arange(len(self._entities)), np.ones(len(self._entities), bool)
        place = np.searchsorted(self._entities, events._entities)
        return place, self._entities[np.minimum(place, len(self._entities) - 1)] == events._entities
