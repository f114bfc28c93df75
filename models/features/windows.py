"""Rolling windows over an entity's events, to the microsecond, on whole columns and exactly.

`RollingKernel.advance(history, events)` gives the features of `events` and the history that comes after
them. Order within an entity is (event time, event id). A window of length w and delay d, seen from an event
at time t, holds the entity's events with time in (t - d - w, t - d]; without a delay it ends at the event
itself, in that order. The result for an event depends on the set of events only, never on how it was split
into calls: sums are 64-bit integers of declared decimal places, with one division at the end.

That holds for calls in the order of event time. An event that comes late, after a call with later ones, finds
all events of its windows if it is no more than `lateness_us` older than the newest; it stands after those of
its own time that came before it. What was already computed does not change.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from models.features.aggregates import SQUARE_BITS, Plan, Seen, aggregate, counts_different, needs_order
from models.features.as_of import look_up, put_back
from models.features.few import FEW
from models.fixed_point import to_units
from models.order import order_by, sort_order
from models.project.aggregates import AGGREGATES
from models.project.sections import RollingFeature

Int64 = np.ndarray[Any, np.dtype[np.int64]]
Float64 = np.ndarray[Any, np.dtype[np.float64]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]
T = TypeVar("T")

# A run is merged into the one before it once that is no longer this many times longer.
_RUN_RATIO = 8
# A search key of (entity, time) has no more bits than this, so that 64 hold it and what is added to it.
_KEY_BITS = 62


@dataclasses.dataclass(frozen=True, eq=False)
class Events:
    """Rows of one entity kind: entity codes int64[n], times int64[n] in microseconds, ids, and numbers
    float64[n] by column, NaN where there is none; under `code_name` of a column codes int64[n], -1 where there is none.
    """

    entity: Int64
    time: Int64
    ids: pa.Array
    values: dict[str, Float64]

    def __len__(self) -> int:
        return len(self.time)


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """At least one event, sorted by (entity, time), with what it takes to look windows up in them."""

    entity: Int64
    time: Int64
    values: dict[str, Float64]
    _totals: dict[tuple[str, str], Int64] = dataclasses.field(default_factory=dict, repr=False)
    _known: dict[str, Int64 | None] = dataclasses.field(default_factory=dict, repr=False)
    _largest: dict[str, int] = dataclasses.field(default_factory=dict, repr=False)
    _kept: dict[tuple[str, str], Any] = dataclasses.field(default_factory=dict, repr=False)

    @staticmethod
    def of(events: Events, order: Int64) -> Run:
        """The given rows of `events`, in that order, which sorts them."""
        return Run(events.entity[order], events.time[order], {k: v[order] for k, v in events.values.items()})

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
        return max(0, (len(self._entities) * (self.last - self.first + 1)).bit_length() - _KEY_BITS)

    @functools.cached_property
    def _span(self) -> int:
        return ((self.last - self.first) >> self._tick_bits) + 1

    @functools.cached_property
    def _key(self) -> Int64:
        """One ascending number a row for entity and time, so that one search finds both."""
        base = np.arange(len(self._entities)) * self._span
        key: Int64 = np.repeat(base, np.diff(self._starts)) + ((self.time - self.first) >> self._tick_bits)
        return key

    def rows_until(self, events: Run, ages: Sequence[int | Int64], passed: int) -> Int64:
        """How many rows stand at or before each event's time less each age, as int64[ages, events].

        An age is one for all events or int64[events]. Rows stand in order, so those of the entities before an event's
        are counted too. A time before `passed` is taken as `passed`.
        """
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

    def _places_of(self, events: Run) -> tuple[Int64, Bools]:
        """Where each entity of `events`, as they follow one another there, stands among the entities here or would,
        and whether it is here.
        """
        if events is self:
            return np.arange(len(self._entities)), np.ones(len(self._entities), bool)
        place = np.searchsorted(self._entities, events._entities)
        return place, self._entities[np.minimum(place, len(self._entities) - 1)] == events._entities

    def known_until(self, field: str, rows: Int64) -> Int64:
        """How many of the first `rows` rows have a number in `field`."""
        if field not in self._known:
            known = ~np.isnan(self.values[field])
            self._known[field] = None if known.all() else _running_total(known)
        totals = self._known[field]
        return rows if totals is None else totals.take(rows)

    def sum_until(self, field: str, decimals: int, rows: Int64) -> Int64:
        """The sum of `field` over the first `rows` rows, in units of its last decimal place."""
        if ("sum", field) not in self._totals:
            self._totals["sum", field] = _running_total(self._scaled(field, decimals))
        return self._totals["sum", field].take(rows)

    def squares_until(self, field: str, decimals: int, rows: Int64) -> tuple[Int64, Int64, Int64]:
        """Sums over the first `rows` rows of a * a, a * b and b * b, where a value is a * 2**SQUARE_BITS + b."""
        if ("aa", field) not in self._totals:
            size = np.abs(self._scaled(field, decimals).astype(np.int64))
            a, b = size >> SQUARE_BITS, size & ((1 << SQUARE_BITS) - 1)
            for name, product in (("aa", a * a), ("ab", a * b), ("bb", b * b)):
                self._totals[name, field] = _running_total(product)
        aa, ab, bb = (self._totals[name, field][rows] for name in ("aa", "ab", "bb"))
        return aa, ab, bb

    def largest(self, field: str, decimals: int) -> int:
        """The largest value but for its sign, in units of its last decimal place."""
        if field not in self._largest:
            self._largest[field] = int(np.abs(self._scaled(field, decimals)).max())
        return self._largest[field]

    def known(self, field: str) -> Int64:
        """The rows that have a number in `field`, ascending, and how many rows there are in all at the end."""
        if ("rows", field) not in self._totals:
            self._totals["rows", field] = np.append(np.flatnonzero(~np.isnan(self.values[field])), len(self))
        return self._totals["rows", field]

    def kept(self, name: tuple[str, str], make: Callable[[], T]) -> T:
        """What was made of the run under a name before, or is now."""
        if name not in self._kept:
            self._kept[name] = make()
        found: T = self._kept[name]
        return found

    def _scaled(self, field: str, decimals: int) -> Float64:
        scaled = to_units(self.values[field], decimals)
        return np.where(np.isnan(scaled), 0, scaled)

    def merge(self, later: Run) -> Run:
        """The rows of both, those of `later` after this run's rows of the same entity and time."""
        there = self.rows_until(later, [0], later.first)[0] + np.arange(len(later))
        here = np.ones(len(self) + len(later), bool)
        here[there] = False

        def both(mine: Any, others: Any) -> Any:
            merged = np.empty(len(here), mine.dtype)
            merged[here], merged[there] = mine, others
            return merged

        values = {name: both(mine, later.values[name]) for name, mine in self.values.items()}
        return Run(both(self.entity, later.entity), both(self.time, later.time), values)

    def after(self, time: int) -> Run:
        """The rows later than `time`, of which there must be one."""
        if self.first > time:
            return self
        kept = self.time > time
        return Run(self.entity[kept], self.time[kept], {k: v[kept] for k, v in self.values.items()})


@dataclasses.dataclass(frozen=True)
class History:
    """Past events that windows still need: runs, oldest first, each much longer than the next.

    So an append rewrites few rows, however long the history is, and a look-up reads few runs. `labels` are runs of
    what labels change, see models.features.labels.
    """

    runs: tuple[Run, ...] = ()
    labels: tuple[tuple[Run, ...], ...] = ()

    def __len__(self) -> int:
        return sum(map(len, self.runs))


@dataclasses.dataclass(frozen=True)
class RollingKernel:
    """The rolling features of one entity kind.

    `decimals` gives a column's decimal places; one without them is summed as integers. A feature's delay may
    be negative: its window then also holds events of earlier calls that are later by no more than that, which
    are there only for an event that comes late itself.
    """

    features: tuple[RollingFeature, ...]
    decimals: Mapping[str, int]
    lateness_us: int = 0

    @property
    def fields(self) -> tuple[str, ...]:
        """The columns whose values the windows read."""
        return tuple(dict.fromkeys(f.column for f in self.features if f.column))

    @property
    def coded(self) -> tuple[str, ...]:
        """Those of them whose values are only told apart: `Events.values` has codes of them, see `code_name`."""
        return tuple(name for name in self.fields if self._reads(name, distinct=True))

    @property
    def numbers(self) -> tuple[str, ...]:
        """Those of them whose values are numbers."""
        return tuple(name for name in self.fields if self._reads(name, distinct=False))

    @property
    def is_ordered(self) -> bool:
        """Whether the order of events of one time makes a difference to the windows of later ones."""
        return any(AGGREGATES[f.aggregate].alike and AGGREGATES[f.aggregate].ordered for f in self.features)

    @property
    def needs_order(self) -> bool:
        """Whether the order of a window's events makes a difference to some feature."""
        return bool(self._plan_of_few.features)

    @property
    def needs_all(self) -> bool:
        """Whether some feature needs all events of a window together, however few are asked for."""
        return any(f.gap_us is not None for f in self.features)

    @property
    def horizon_us(self) -> int:
        """How much older than the newest event one is that no window holds any more, in microseconds."""
        return max(f.delay_us + f.window_us for f in self.features) + self.lateness_us

    def advance(self, history: History, events: Events) -> tuple[list[Int64 | Float64], History]:
        """Features of `events` in their order (counts int64[n], others float64[n]), and the next history."""
        columns, new = self._advance(history, events)
        return columns, history if new is None else self._append(history, new)

    def features_of(self, history: History, events: Events) -> list[Int64 | Float64]:
        """Features of `events` as `advance` gives them, where what comes after them does not matter.

        History may have events later than these, of which they see nothing, but none of an entity and a time of theirs.
        """
        return self._advance(history, events)[0]

    def answer(self, history: History, asked: Events) -> list[Int64 | Float64]:
        """Features as of the times of `asked`, which are no events: neither their ids nor their values are looked at.

        They are late if history has later events. A window that holds the current event ends with the events of the
        time itself, and one that does not before them.
        """
        if not history.runs or not len(asked):
            return [np.full(len(asked), 0 if f.is_count else f.empty) for f in self.features]
        order = order_by(asked.entity, asked.time)
        passed = self._oldest_needed(*history.runs)
        found = look_up(self.features, history.runs, Run.of(asked, order), passed, self.decimals)
        return put_back(found, order)

    def extend(self, history: History, events: Events) -> History:
        """The history after `events`, without computing their features; their ids are not looked at."""
        if not len(events):
            return history
        return self._append(history, Run.of(events, order_by(events.entity, events.time)))

    def _advance(self, history: History, events: Events) -> tuple[list[Int64 | Float64], Run | None]:
        """Features of events in their order, and these as a run, None of no event."""
        if not len(events):
            return [np.empty(0, np.int64) if f.is_count else np.empty(0) for f in self.features], None
        order = sort_order(events.ids, events.entity, events.time)
        new = Run.of(events, order)
        return put_back(self._compute(history, new), order), new

    def _reads(self, name: str, distinct: bool) -> bool:
        return any(f.column == name and (f.aggregate == "distinct") is distinct for f in self.features)

    def _oldest_needed(self, *runs: Run) -> int:
        """The time up to which events are out of every window; whether they are still there changes nothing."""
        return max(run.last for run in runs) - self.horizon_us

    def _append(self, history: History, new: Run) -> History:
        passed = self._oldest_needed(*history.runs, new)
        return dataclasses.replace(history, runs=append_run(history.runs, new, passed))

    def _compute(self, history: History, new: Run) -> list[Int64 | Float64]:
        """The features of `new`, in its order."""
        passed = self._oldest_needed(*history.runs) if history.runs else 0
        seen = Seen.of(self._plan, new, history.runs, passed, self.decimals)
        plan = self._plan_of_few if len(new) <= FEW else self._plan_in_order
        together = seen.gather(plan) if plan.features else seen
        return [aggregate(f, together if f.name in plan.places else seen) for f in self.features]

    @functools.cached_property
    def _plan(self) -> Plan:
        return Plan.of(self.features)

    @functools.cached_property
    def _plan_in_order(self) -> Plan:
        return Plan.of([f for f in self.features if needs_order(f)])

    @functools.cached_property
    def _plan_of_few(self) -> Plan:
        return Plan.of([f for f in self._plan_in_order.features if not counts_different(f)])


def append_run(runs: tuple[Run, ...], new: Run, passed: int) -> tuple[Run, ...]:
    """The runs with one more, joined where one has become too short; rows up to the time `passed` may be left out."""
    kept = [run for run in (*runs, new) if run.last > passed]
    while len(kept) > 1 and len(kept[-2]) < _RUN_RATIO * len(kept[-1]):
        last = kept.pop()
        kept[-1] = kept[-1].merge(last)
        if len(kept) == 1:
            kept = [kept[0].after(passed)]
    return tuple(kept)


def encode_entities(values: pa.Array, codes: dict[Any, int]) -> Int64:
    """Codes int64[n] of entity keys: integers are their own, strings get the next free number in `codes`."""
    if pa.types.is_integer(values.type):
        return np.asarray(values.to_numpy(zero_copy_only=False), dtype=np.int64)
    return encode_values(values, codes)


def encode_values(values: pa.Array, codes: dict[Any, int]) -> Int64:
    """Codes int64[n] of values of any kind, the next free number in `codes` for a new one; -1 where there is none."""
    encoded = values.dictionary_encode()
    found = [-1 if value != value else codes.setdefault(value, len(codes)) for value in encoded.dictionary.to_pylist()]
    codes_of: Int64 = np.append(np.asarray(found, np.int64), -1)
    codes_of_rows: Int64 = codes_of[encoded.indices.fill_null(len(found)).to_numpy()]
    return codes_of_rows


def _running_total(numbers: np.ndarray[Any, Any]) -> Int64:
    """The sums int64[n + 1] of the first 0 .. n numbers; they may wrap around, and differences stay right."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(numbers.astype(np.int64))])
