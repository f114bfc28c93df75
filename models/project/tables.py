"""The declarations of tables: those that are joined with events, and those that events add up to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import pydantic

from models.project.aggregates import AGGREGATES, OF_PERIODS, PERIODS, parse_aggregate
from models.project.sections import Declaration, RollingFeature


class Table(Declaration):
    """Rows about an entity, each with the time from which it is known, and perhaps until when it holds.

    An event takes `fields` of the latest row of its entity that is known at its time. `key` is the row's field that
    names the entity, if it is not called as in the event. A row whose field `deleted` is true ends what was known.
    """

    newer: ClassVar[tuple[str, ...]] = ("deleted",)

    entity: str
    time: str
    fields: dict[str, Literal["int", "float", "text"]] = pydantic.Field(min_length=1)
    key: str | None = None
    until: str | None = None
    deleted: str | None = None
    time_format: str | None = None  # of strptime, or UNIX_SECONDS and the like; if none, that of the event's time


class Totals(Declaration):
    """A table of what events of a period add up to, for each value that the fields `by` have together."""

    period: Literal["day", "week", "month", "quarter"]
    by: list[str] = pydantic.Field(default_factory=list)
    columns: dict[str, str] = pydantic.Field(min_length=1)

    def expand(self) -> Iterator[RollingFeature]:
        """What its columns are, as aggregates of the period; ValueError for what is none."""
        for name, text in self.columns.items():
            written = parse_aggregate(text)
            if written.name not in OF_PERIODS:
                raise ValueError(f"{text!r} is not an aggregate of a period: there are {', '.join(OF_PERIODS)}")
            empty, length = AGGREGATES[written.name].empty, PERIODS[self.period]
            yield RollingFeature(
                name, "all", written.name, written.field, length, 0, True, empty, written.where, period=self.period
            )
