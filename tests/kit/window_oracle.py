"""Every aggregate of rolling windows by its definition, event by event in plain Python."""

from __future__ import annotations

import datetime
import fractions
import math
from collections.abc import Sequence
from typing import Any

from models.project.sections import RollingFeature

EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
MICROSECOND = datetime.timedelta(microseconds=1)


def by_definition(
    features: Sequence[RollingFeature], rows: Sequence[dict[str, Any]], decimals: dict[str, int]
) -> list[list[float]]:
    """The features of each row, of {entity, time, id, and by column a number, a text or None}; NaN is missing."""
    return [[_value(f, row, _inside(f, row, rows), decimals) for f in features] for row in rows]


def as_of_definition(
    features: Sequence[RollingFeature],
    asked: Sequence[dict[str, Any]],
    rows: Sequence[dict[str, Any]],
    decimals: dict[str, int],
) -> list[list[float]]:
    """The features at each {entity, time}, which is no event itself."""
    return [[_value(f, row, _known_at(f, row, rows), decimals) for f in features] for row in asked]


def _known_at(f: RollingFeature, row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    mine = sorted((r for r in rows if r["entity"] == row["entity"]), key=lambda r: (r["time"], r["id"]))
    end = row["time"] - f.delay_us
    found = [other for other in mine if other["time"] <= end]
    if f.gap_us is not None:
        session, now = [], row["time"]
        for other in reversed(found):
            if now - other["time"] > f.gap_us:
                break
            session.insert(0, other)
            now = other["time"]
        found = session
    if not f.delay_us and (not f.include_current or f.aggregate == "since_last"):
        found = [other for other in found if other["time"] < end]
    if f.period is not None:
        return [other for other in found if other["time"] >= start_of(f.period, end)]
    return [other for other in found if other["time"] > end - f.window_us]


def start_of(period: str, time_us: int) -> int:
    time = EPOCH + time_us * MICROSECOND
    day = time.replace(hour=0, minute=0, second=0, microsecond=0)
    if period == "week":
        day -= datetime.timedelta(days=day.weekday())
    elif period != "day":
        months = {"month": 1, "quarter": 3, "year": 12}[period]
        day = day.replace(day=1, month=(day.month - 1) // months * months + 1)
    return (day - EPOCH) // MICROSECOND


def _inside(f: RollingFeature, row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The events of the window in their order."""

    def place(other):
        return (other["time"], other["id"])

    mine = sorted((other for other in rows if other["entity"] == row["entity"]), key=place)
    end = row["time"] - f.delay_us
    if f.delay_us:
        found = [other for other in mine if other["time"] <= end]
    else:
        found = [other for other in mine if place(other) <= place(row)]
    if f.gap_us is not None:
        session = [found[-1]]
        for other in reversed(found[:-1]):
            if session[0]["time"] - other["time"] > f.gap_us:
                break
            session.insert(0, other)
        found = session
    if not f.delay_us and (not f.include_current or f.aggregate == "since_last"):
        found = found[:-1]
    if f.period is not None:
        return [other for other in found if other["time"] >= start_of(f.period, end)]
    return [other for other in found if other["time"] > end - f.window_us]


def _value(f: RollingFeature, row: dict[str, Any], inside: list[dict[str, Any]], decimals: dict[str, int]) -> float:
    known = [other for other in inside if f.column is None or other[f.column] is not None]
    if f.aggregate == "count":
        return float(len(known))
    if f.aggregate == "since_last":
        return (row["time"] - known[-1]["time"]) / 1e6 if known else f.empty
    values = [other[f.column] for other in known]
    if f.aggregate == "distinct":
        return float(len(set(values)))
    if f.aggregate in ("min", "max"):
        return {"min": min, "max": max}[f.aggregate](values) if values else f.empty
    if f.aggregate == "first":
        return values[0] if values else f.empty
    if f.aggregate == "last":
        return values[-f.rank] if len(values) >= f.rank else f.empty
    unit = 10 ** decimals.get(str(f.column), 0)
    scaled = [int(fractions.Fraction(round(value * unit))) for value in values]
    if f.aggregate == "std":
        n = len(scaled)
        if n < 2:
            return f.empty
        return math.sqrt((n * sum(x * x for x in scaled) - sum(scaled) ** 2) / float(n * (n - 1))) / unit
    count = len(inside) if f.aggregate == "rate" and f.where is None else len(values)
    if not count:
        return f.empty
    return float(sum(scaled)) / float(unit * (1 if f.aggregate == "sum" else count))
