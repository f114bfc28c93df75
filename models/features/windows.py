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
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa

from models.features.aggregates import SQUARE_BITS, Plan, Seen, aggregate, counts_different, needs_order
from models.features.as_of import look_up, put_back
from models.features.few import FEW
from models.features.search import Ordered
from models.fixed_point import to_units
from models.order import is_in_place, order_by, sort_order
from models.project.aggregates import AGGREGATES
from models.project.sections import RollingFeature

Int64 = np.ndarray[Any, np.dtype[np.int64]]
Float64 = np.ndarray[Any, np.dtype[np.float64]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]
T = TypeVar("T")

# A run is merged into the one before it once that is no longer this many times longer.
_RUN_RATIO = 8


@dataclasses.dataclass(frozen=True, eq=False)
class Events:
    """Rows of one entity kind: entity codes int64[n], times int64[n] in microseconds, ids as `sort_order` takes
    them, and numbers float64[n] by column, NaN where there is none; under `code_name` of a column codes int64[n], -1
    where there is none.
    """

    entity: Int64
    time: Int64
    ids: Any  # Ids
    values: dict[str, Float64]

    def __len__(self) -> int:
        return len(self.time)


@dataclasses.dataclass(frozen=True, eq=False)
class Run(Ordered):
    """At least one event, sorted by (entity, time), with what it takes to look windows up in them."""

    values: dict[str, Float64]
    _totals: dict[tuple[str, str], Int64] = dataclasses.field(default_factory=dict, repr=False)
    _known: dict[str, Int64 | None] = dataclasses.field(default_factory=dict, repr=False)
    _largest: dict[str, int] = dataclasses.field(default_factory=dict, repr=False)
    _kept: dict[tuple[str, str], Any] = dataclasses.field(default_factory=dict, repr=False)

    @staticmethod
    def of(events: Events, order: Int64) -> Run:
        """The given rows of `events`, in that order, which sorts them."""
        if is_in_place(order) and len(order) == len(events):
            return Run(events.entity, events.time, events.values)
        return Run(events.entity[order], events.time[order], {k: v[order] for k, v in events.values.items()})

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
        return self.merged(later)[0]

    def merged(self, later: Run) -> tuple[Run, Int64]:
        """What `merge` gives, and the row there of each row of `later`."""
        there = self.rows_until(later, [0], later.first)[0] + np.arange(len(later))
        here = np.ones(len(self) + len(later), bool)
        here[there] = False

        def both(mine: Any, others: Any) -> Any:
            merged = np.empty(len(here), mine.dtype)
            merged[here], merged[there] = mine, others
            return merged

        values = {name: both(mine, later.values[name]) for name, mine in self.values.items()}
        return Run(both(self.entity, later.entity), both(self.time, later.time), values), there

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
        if not len(events):
            return self._of_none(), history
        order = sort_order(events.ids, events.entity, events.time)
        new = Run.of(events, order)
        if self._plan_in_order.features or any(run.last >= new.first for run in history.runs):
            return put_back(self._compute(history, new), order), self._append(history, new)
        # All of them are later than what was there: joined with it first, they need but one search.
        joined = join_last(history.runs, new)
        columns = self._compute(dataclasses.replace(history, runs=joined.before), new, joined)
        runs = trim(joined, self._oldest_needed(new))
        return put_back(columns, order), dataclasses.replace(history, runs=runs)

    def features_of(self, history: History, events: Events) -> list[Int64 | Float64]:
        """Features of `events` as `advance` gives them, where what comes after them does not matter.

        History may have events later than these, of which they see nothing, but none of an entity and a time of theirs.
        """
        if not len(events):
            return self._of_none()
        order = sort_order(events.ids, events.entity, events.time)
        return put_back(self._compute(history, Run.of(events, order)), order)

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

    def _of_none(self) -> list[Int64 | Float64]:
        """The features of no event."""
        return [np.empty(0, np.int64) if f.is_count else np.empty(0) for f in self.features]

    def _reads(self, name: str, distinct: bool) -> bool:
        return any(f.column == name and (f.aggregate == "distinct") is distinct for f in self.features)

    def _oldest_needed(self, *runs: Run) -> int:
        """The time up to which events are out of every window; whether they are still there changes nothing."""
        return max(run.last for run in runs) - self.horizon_us

    def _append(self, history: History, new: Run) -> History:
        passed = self._oldest_needed(*history.runs, new)
        return dataclasses.replace(history, runs=append_run(history.runs, new, passed))

    def _compute(self, history: History, new: Run, joined: Joined | None = None) -> list[Int64 | Float64]:
        """The features of `new`, in its order, which may be `joined` with runs that are in history no more."""
        passed = self._oldest_needed(*history.runs) if history.runs else 0
        own = (joined.last, joined.places) if joined else None
        seen = Seen.of(self._plan, new, history.runs, passed, self.decimals, own)
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


class Joined(NamedTuple):
    """Runs, oldest first, the last of them with the rows of a new one in the rows `places` int64[n]."""

    before: tuple[Run, ...]
    last: Run
    places: Int64


def join_last(runs: Sequence[Run], new: Run) -> Joined:
    """The runs and a new one, which is merged with those that are not much longer."""
    before, last, places = list(runs), new, np.arange(len(new))
    while before and len(before[-1]) < _RUN_RATIO * len(last):
        last, there = before.pop().merged(last)
        places = there[places]
    return Joined(tuple(before), last, places)


def trim(joined: Joined, passed: int) -> tuple[Run, ...]:
    """The runs without rows up to the time `passed`, as far as that is cheap."""
    before = tuple(run for run in joined.before if run.last > passed)
    is_merged = len(joined.last) > len(joined.places)
    return (*before, joined.last.after(passed) if is_merged and not before else joined.last)


def append_run(runs: tuple[Run, ...], new: Run, passed: int) -> tuple[Run, ...]:
    """The runs with one more, joined where one has become too short; rows up to the time `passed` may be left out."""
    return trim(join_last([run for run in runs if run.last > passed], new), passed)


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
