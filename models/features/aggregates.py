"""The aggregates of rolling windows: what a kernel makes of the rows that stand between a window's two edges."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from models.errors import HeadraceError
from models.features.few import FEW, count_different, extremes
from models.order import order_by
from models.project.aggregates import AGGREGATES, PERIODS
from models.project.sections import RollingFeature

if TYPE_CHECKING:
    from models.features.windows import Run

Int64 = np.ndarray[Any, np.dtype[np.int64]]
Float64 = np.ndarray[Any, np.dtype[np.float64]]

# Squares are summed in parts of so many bits: of values below 2**44, 2**19 of each part fit into 64 bits.
SQUARE_BITS = 22
_SAFE_COUNT = 1 << 19
_DAY_US = 86_400_000_000
_MOST_APART = 1 << 16  # rows that are read one range after another, where few windows read them


class WindowSumError(HeadraceError, OverflowError):
    """A window whose exact sum 64 bits can't hold."""


class Edge(NamedTuple):
    """An edge of a window: so long before an event, and whether the event itself is below it.

    With a period, it is just before the start of that of the time so long before; with a gap, it is no earlier than
    after the last one that long.
    """

    age_us: int
    current: bool = False
    period: str | None = None
    gap_us: int | None = None


def needs_order(f: RollingFeature) -> bool:
    """Whether a feature needs all events of a window together, in their order."""
    return AGGREGATES[f.aggregate].ordered or f.gap_us is not None


def counts_different(f: RollingFeature) -> bool:
    """Whether it is a count of different values of a window, which for few windows needs no order."""
    return f.aggregate == "distinct" and f.gap_us is None


def code_name(column: str) -> str:
    """The name in `Events.values` of the codes int64[n] of a column's values, -1 for none."""
    return f"code of {column}"


def _lower(f: RollingFeature) -> Edge:
    return Edge(f.delay_us if f.period else f.delay_us + f.window_us, False, f.period, f.gap_us)


def _upper(f: RollingFeature) -> Edge:
    return Edge(f.delay_us, f.delay_us <= 0 and f.include_current and f.aggregate != "since_last")


@dataclasses.dataclass(frozen=True)
class Plan:
    """The edges of features' windows, and by a feature's name the places of its lower and its upper one among them."""

    features: tuple[RollingFeature, ...]
    edges: tuple[Edge, ...]
    places: Mapping[str, tuple[int, int]]

    @staticmethod
    def of(features: Sequence[RollingFeature]) -> Plan:
        """Edges with a gap stand there without it, too."""
        edges = [edge for f in features for edge in (_lower(f), _upper(f))]
        each = tuple(dict.fromkeys(one for edge in edges for one in (edge._replace(gap_us=None), edge)))
        return Plan(tuple(features), each, {f.name: (each.index(_lower(f)), each.index(_upper(f))) for f in features})


@dataclasses.dataclass(eq=False)
class Seen:
    """Runs of events, the latest last, and how many rows of each stand below each edge of each of the events `new`.

    A count or a sum of a window is the difference of two running ones, up to its upper and up to its lower edge.
    """

    new: Run
    plan: Plan
    runs: Sequence[Run]
    rows: Sequence[Int64]
    decimals: Mapping[str, int]
    _sums: dict[tuple[str, str], Any] = dataclasses.field(default_factory=dict)

    @staticmethod
    def of(
        plan: Plan,
        new: Run,
        history: Sequence[Run],
        passed: int,
        decimals: Mapping[str, int],
        own: tuple[Run, Int64] | None = None,
    ) -> Seen:
        """What the windows of `new` see of the run that they are in, and of history.

        That run is `own`, with their rows in it, if they are joined with others. Rows of history up to `passed` are in
        no window.
        """
        run, places = own or (new, np.arange(len(new)))
        rows = [rows_below(run, new, plan.edges, run.first - 1, places)]
        rows += [rows_below(run, new, plan.edges, passed, None) for run in history]
        return Seen(new, plan, [run, *history], rows, decimals)

    def gather(self, plan: Plan) -> Seen:
        """The rows that some of the features read, those of `plan`, of all runs, as one run."""
        features = plan.features
        parts = [self._needed(features, run, rows) for run, rows in zip(self.runs[1:], self.rows[1:], strict=True)]
        parts = [*parts, (self.new, np.arange(len(self.new)))]
        names = {name for f in features if (name := _value_name(f)) is not None}
        entity, time = (np.concatenate([getattr(run, n)[rows] for run, rows in parts]) for n in ("entity", "time"))
        order = order_by(entity, time)  # stable: of one time, those of earlier calls stand first
        values = {n: np.concatenate([run.values[n][rows] for run, rows in parts])[order] for n in names}
        run = type(self.new)(entity[order], time[order], values)
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        rows = rows_below(run, self.new, plan.edges, run.first - 1, place[-len(self.new) :])
        return Seen(self.new, plan, [run], [rows], self.decimals)

    def _needed(self, features: Sequence[RollingFeature], run: Run, rows: Int64) -> tuple[Run, Int64]:
        """The rows of a run that some feature of an event reads, ascending."""
        ranges = []
        for f in features:
            above, until = (rows[place] for place in self.plan.places[f.name])  # as if there were no gap
            if f.aggregate in ("last", "since_last") and f.gap_us is None:  # no more than so many from the end
                above = np.maximum(above, _back(run, f.column, until, f.rank))
            elif f.aggregate == "first" and f.column is not None and f.gap_us is None:
                until = np.minimum(until, _after_first(run, f.column, above))
            ranges.append((above, np.maximum(above, until)))
        lows, highs = (np.stack(edges) for edges in zip(*ranges, strict=True))
        if len(self.new) <= FEW and (highs - lows).sum() <= _MOST_APART:
            return run, np.unique(_ranges(lows.ravel(), highs.ravel()))
        low, high = lows.min(axis=0), highs.max(axis=0)
        starts = np.flatnonzero(np.concatenate([[True], self.new.entity[1:] != self.new.entity[:-1]]))
        low, high = np.minimum.reduceat(low, starts), np.maximum.reduceat(high, starts)
        return run, _ranges(low, np.maximum(low, high))

    def between(self, f: RollingFeature) -> list[tuple[Run, Int64, Int64]]:
        """Each run, with how many of its rows stand below the window's lower and upper edge."""
        low, high = self.plan.places[f.name]
        return [(run, rows[low], rows[high]) for run, rows in zip(self.runs, self.rows, strict=True)]

    def count(self, f: RollingFeature) -> Int64:
        """The events of the window."""
        found: Int64 = self._difference(f, "rows", "", lambda run, rows: rows)
        return found

    def known(self, f: RollingFeature, column: str) -> Int64:
        """Those that have a number in `column`."""
        found: Int64 = self._difference(f, "known", column, lambda run, rows: run.known_until(column, rows))
        return found

    def total(self, f: RollingFeature, column: str) -> Int64:
        """The sum, in units of the last decimal place; WindowSumError where 64 bits may be too few."""
        decimals = self.decimals.get(column, 0)
        total: Int64 = self._difference(f, "sum", column, lambda run, rows: run.sum_until(column, decimals, rows))
        self._check_size(f, column, 1)
        return total

    def squares(self, f: RollingFeature, column: str) -> tuple[Int64, Int64, Int64]:
        """The sums of `Run.squares_until`; WindowSumError where 64 bits may be too few."""
        decimals = self.decimals.get(column, 0)
        self._check_size(f, column, 2)
        parts = self._difference(
            f, "squares", column, lambda run, rows: np.stack(run.squares_until(column, decimals, rows))
        )
        return parts[0], parts[1], parts[2]

    def largest(self, column: str) -> int:
        """The largest value but for its sign, in units of the last decimal place."""
        return max(run.largest(column, self.decimals.get(column, 0)) for run in self.runs)

    def _difference(self, f: RollingFeature, what: str, column: str, until: Any) -> Any:
        if (what, column) not in self._sums:
            found = [until(run, rows) for run, rows in zip(self.runs, self.rows, strict=True)]
            self._sums[what, column] = functools.reduce(np.add, found)
        sums = self._sums[what, column]
        low, high = self.plan.places[f.name]
        return sums[..., high, :] - sums[..., low, :]

    def _check_size(self, f: RollingFeature, column: str, power: int) -> None:
        if sum(map(len, self.runs)) <= _SAFE_COUNT or (most := int(self.count(f).max())) <= _SAFE_COUNT:
            return
        size = self.largest(column)
        if power == 2:
            size = max(size >> SQUARE_BITS, min(size, (1 << SQUARE_BITS) - 1)) ** 2
        if most * size >= 1 << 63:
            raise WindowSumError(
                f"{f.name}: the window of {f.entity} holds {most:,} events, and {f.aggregate} of {column} "
                "may be more than exact sums of 64 bits hold: declare a shorter window, or fewer places in fixed_point"
            )


def aggregate(f: RollingFeature, seen: Seen) -> Int64 | Float64:
    """The values of one feature: int64[n] of counts, float64[n] of others."""
    column = f.column
    if f.aggregate == "since_last":
        return _since_last(f, seen)
    if column is None:
        return seen.count(f)
    if f.aggregate == "count":
        return seen.known(f, column)
    if f.aggregate in ("min", "max"):
        return _extreme(f, column, seen)
    if f.aggregate in ("first", "last"):
        return _from_an_end(f, column, seen)
    if counts_different(f) and len(seen.new) <= FEW:
        return count_different(seen.between(f), code_name(column))
    if f.aggregate == "distinct":
        ((run, low, high),) = seen.between(f)
        return _distinct(run, run.values[code_name(column)].astype(np.int64, copy=False), low, high)
    # An unknown value counts in a rate as not true, as does a label that never came.
    count = seen.count(f) if f.aggregate == "rate" and f.where is None else seen.known(f, column)
    result = np.full(len(count), f.empty)
    if f.aggregate == "std":
        return _deviation(f, column, seen, count, result)
    divisor = 10 ** seen.decimals.get(column, 0) * (1 if f.aggregate == "sum" else count)
    return np.divide(seen.total(f, column), divisor, out=result, where=count > 0)


def start_of(period: str, times: Int64) -> Int64:
    """The start of the calendar period in UTC that each time lies in; weeks begin on Monday."""
    if period in ("day", "week"):
        days = times // _DAY_US
        return (days - (days + 3) % 7 * (period == "week")) * _DAY_US
    months = times.astype("M8[us]").astype("M8[M]").astype(np.int64)
    months -= months % {"month": 1, "quarter": 3, "year": 12}[period]
    return months.astype("M8[M]").astype("M8[us]").astype(np.int64)


def end_of(period: str, times: Int64) -> Int64:
    """The start of the period after that which each time lies in."""
    return start_of(period, start_of(period, times) + PERIODS[period])


def rows_below(run: Run, new: Run, edges: Sequence[Edge], passed: int, places: Int64 | None) -> Int64:
    """How many rows of a run stand below each edge of each new event; `places` are their rows, where it has them.

    An edge with a gap can only be told in the one run that has all events; elsewhere it is as if there were none.
    """
    rows = np.empty((len(edges), len(new)), np.int64)
    searched = [n for n, e in enumerate(edges) if e.period or e.age_us > 0 or places is None]
    ages = [_age(edges[n], new) for n in searched]
    rows[searched] = run.rows_until(new, ages, passed)
    for n, edge in enumerate(edges):
        if n not in searched and places is not None:
            rows[n] = places + edge.current
        if edge.gap_us is not None and places is not None:
            begins = np.concatenate([[True], run.entity[1:] != run.entity[:-1]])
            begins[1:] |= run.time[1:] - run.time[:-1] > edge.gap_us
            session = np.maximum.accumulate(np.where(begins, np.arange(len(run)), 0))
            rows[n] = np.maximum(rows[n], session[places])
    return rows


def _age(edge: Edge, new: Run) -> int | Int64:
    if edge.period is None:
        return edge.age_us
    return new.time - (start_of(edge.period, new.time - edge.age_us) - 1)


def _value_name(f: RollingFeature) -> str | None:
    return code_name(f.column) if f.column and f.aggregate == "distinct" else f.column


def _back(run: Run, column: str | None, until: Int64, count: int) -> Int64:
    """The row of the how many-th value from the end of the first `until` rows; 0 where there are fewer."""
    if column is None:
        return np.maximum(until - count, 0)
    place = run.known_until(column, until) - count
    return np.where(place >= 0, run.known(column).take(np.maximum(place, 0)), 0)


def _after_first(run: Run, column: str, above: Int64) -> Int64:
    """The row after the first value behind the first `above` rows; the number of rows where there is none."""
    return run.known(column).take(run.known_until(column, above)) + 1


def _ranges(low: Int64, high: Int64) -> Int64:
    """All of low .. high, row by row."""
    length = high - low
    ends = np.cumsum(length)
    rows: Int64 = np.repeat(low - ends + length, length) + np.arange(int(length.sum()))
    return rows


def _place_from_an_end(f: RollingFeature, column: str | None, seen: Seen) -> tuple[Run, Int64, Any]:
    """The run, the row of the window's first value or of the how many-th from its end, and whether there is one."""
    ((run, low, high),) = seen.between(f)
    if column is None:
        return run, high - f.rank, high - low >= f.rank
    before, until = run.known_until(column, low), run.known_until(column, high)
    place = before if f.aggregate == "first" else until - f.rank
    there = until - before >= f.rank
    return run, np.where(there, run.known(column).take(np.where(there, place, 0)), 0), there


def _from_an_end(f: RollingFeature, column: str, seen: Seen) -> Float64:
    run, rows, there = _place_from_an_end(f, column, seen)
    return np.where(there, run.values[column][rows] + 0.0, f.empty)


def _since_last(f: RollingFeature, seen: Seen) -> Float64:
    """Seconds from the window's last event to the event."""
    run, rows, there = _place_from_an_end(f, f.column, seen)
    return np.where(there, (seen.new.time - run.time[rows]) / 1e6, f.empty)


def _distinct(run: Run, codes: Int64, low: Int64, high: Int64) -> Int64:
    """How many different codes there are in low .. high, row by row, where neither edge ever goes back.

    A row counts where it is in the window and the one before it with its code is not: that is so for the windows from
    some one to some other.
    """
    rows = np.arange(len(codes))
    order = order_by(run.entity, codes)
    again = (codes[order[1:]] == codes[order[:-1]]) & (run.entity[order[1:]] == run.entity[order[:-1]])
    before = np.full(len(codes), -1)
    before[order[1:][again]] = order[:-1][again]
    first = np.maximum(np.searchsorted(high, rows, "right"), np.searchsorted(low, before, "right"))
    last = np.searchsorted(low, rows, "right")
    counted = (first < last) & (codes >= 0)
    change = np.bincount(first[counted], minlength=len(low) + 1) - np.bincount(last[counted], minlength=len(low) + 1)
    return np.cumsum(change[:-1])


def _deviation(f: RollingFeature, column: str, seen: Seen, count: Int64, result: Float64) -> Float64:
    """The standard deviation of a sample, of two values at least: its numerator n * sum(x * x) - sum(x)**2 is exact."""
    size, most = seen.largest(column), int(count.max())
    kind = np.int64 if (most * size) ** 2 < 1 << 62 else object
    aa, ab, bb = (part.astype(kind) for part in seen.squares(f, column))
    total, n = seen.total(f, column).astype(kind), count.astype(kind)
    numerator = n * ((aa << 2 * SQUARE_BITS) + (ab << SQUARE_BITS + 1) + bb) - total * total
    pairs = (count * (count - 1)).astype(np.float64)
    enough = count > 1
    np.divide(numerator.astype(np.float64), pairs, out=result, where=enough)
    np.sqrt(result, out=result, where=enough)
    return np.divide(result, 10 ** seen.decimals.get(column, 0), out=result, where=enough)


def _extreme(feature: RollingFeature, column: str, seen: Seen) -> Float64:
    """min or max of the windows, NaN left out."""
    pick, neutral = (np.fmin, np.inf) if feature.aggregate == "min" else (np.fmax, -np.inf)
    parts = seen.between(feature)
    if len(seen.new) <= FEW:
        found = [extremes(run, column, pick, neutral, low, high) for run, low, high in parts]
    else:
        found = [_extreme_of_ranges(pick, neutral, run.values[column], low, high) for run, low, high in parts]
    result: Float64 = functools.reduce(pick, found)
    result[~np.isfinite(result)] = feature.empty
    return result


def _extreme_of_ranges(pick: np.ufunc, neutral: float, values: Float64, low: Int64, high: Int64) -> Float64:
    """`pick` over values[low:high], row by row; a sparse table, one level in memory at a time."""
    length = high - low
    result = np.full(len(low), neutral)
    if (rows := int(length.sum())) < len(values):  # few of the values: first put each range by itself
        high = np.cumsum(length)
        values, low = values[np.repeat(low - high + length, length) + np.arange(rows)], high - length
    level = np.where(np.isnan(values), neutral, values + 0.0)  # -0.0 is 0.0, whichever comes first
    for power in itertools.count():
        width = 1 << power
        rows_here = np.flatnonzero((length >= width) & (length < 2 * width))
        result[rows_here] = pick(level[low[rows_here]], level[high[rows_here] - width])
        if not (length >= 2 * width).any():
            break
        level = pick(level[:-width], level[width:])
    return result
