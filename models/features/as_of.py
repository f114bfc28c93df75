"""What rolling windows hold at times that are no events': rows that read, and add nothing."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from models.features.aggregates import Edge, Float64, Int64, Plan, Seen, aggregate, rows_below
from models.order import is_in_place
from models.project.sections import RollingFeature

if TYPE_CHECKING:
    from models.features.windows import Run


def look_up(
    features: Sequence[RollingFeature], runs: Sequence[Run], asked: Run, passed: int, decimals: Mapping[str, int]
) -> list[Int64 | Float64]:
    """The features at each time that is asked for, of events of which those up to the time `passed` may be missing.

    A window ends with the events of the time itself, and before them if it is one without the current event.
    """
    run = functools.reduce(lambda earlier, later: earlier.merge(later), runs)
    plan = Plan.of(features)
    rows = _rows_below(run, asked, [_opened(edge) for edge in plan.edges], passed)
    seen = Seen(asked, plan, [run], [rows], decimals)
    return [aggregate(f, seen) for f in features]


def put_back(columns: list[Int64 | Float64], order: Int64) -> list[Int64 | Float64]:
    """Columns of rows that were taken in `order` in the rows' own one."""
    if is_in_place(order):
        return columns
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return [column.take(place) for column in columns]


def _opened(edge: Edge) -> Edge:
    """The upper edge of a window without the current event a microsecond earlier; all others as they are."""
    return edge._replace(age_us=1) if edge.age_us == 0 and not edge.current and edge.period is None else edge


def _rows_below(run: Run, asked: Run, edges: Sequence[Edge], passed: int) -> Int64:
    """`rows_below`, in the place of the last event that is not later than the time asked for."""
    last = run.rows_until(asked, [0], passed)[0] - 1
    rows = rows_below(run, asked, edges, passed, last)
    for n, edge in enumerate(edges):
        if edge.gap_us is not None:  # its session is over
            over = (last < 0) | (asked.time - run.time[last] > edge.gap_us)
            rows[n] = np.where(over, last + 1, rows[n])
    return rows
