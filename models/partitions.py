"""Partitions of what a run writes: a day or an hour of event time each, in Hive's style, as `event_day=2018-06-08`."""

from __future__ import annotations

import dataclasses
import datetime
import re
import zoneinfo
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.codecs.times import micros_of
from models.record import TIMESTAMP

Int64 = np.ndarray[Any, np.dtype[np.int64]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]

DAY, HOUR = "event_day", "event_hour"
# Hive's name for the partition of rows without a value.
NO_TIME = f"{DAY}=__HIVE_DEFAULT_PARTITION__"
UTC = "UTC"
STATE_NAME = re.compile(r"until=(\d{4}-\d\d-\d\dT\d{6}Z)")  # of the state of a time
_LENGTHS_US = {"day": 86_400_000_000, "hour": 3_600_000_000}
_NAME = re.compile(rf"(?:^|/){DAY}=(\d{{4}}-\d\d-\d\d)(?:/{HOUR}=(\d\d))?/")


def stamp_of(time_us: int) -> str:
    """A time in whole seconds, UTC, as names of files have it: `2018-06-09T000000Z`."""
    return f"{np.datetime64(time_us, 'us').astype('M8[s]')}Z".replace(":", "")


def time_of(stamp: str) -> int:
    """The time of a stamp, microseconds since 1970 UTC."""
    day, clock = stamp.removesuffix("Z").split("T")
    return int(np.datetime64(f"{day}T{clock[:2]}:{clock[2:4]}:{clock[4:]}", "us").astype(np.int64))


@dataclasses.dataclass(frozen=True)
class Partitions:
    """Which day or hour of a time zone an event is of.

    Where clocks go back, the hour that comes twice is one partition. Arrow knows the changes of clocks up to 2037.
    """

    by: Literal["day", "hour"] = "day"
    timezone: str = UTC

    def starts_us(self, times_us: Int64) -> Int64:
        """The start of the partition of each time; both int64[n], microseconds since 1970 UTC."""
        length = _LENGTHS_US[self.by]
        if self.timezone == UTC:
            return np.asarray(times_us // length * length)
        local = pc.local_timestamp(pa.array(times_us).cast(TIMESTAMP).cast(pa.timestamp("us", self.timezone)))
        floored = pa.array(local.cast(pa.int64()).to_numpy() // length * length).cast(pa.timestamp("us"))
        starts = pc.assume_timezone(floored, self.timezone, ambiguous="earliest", nonexistent="earliest")
        return np.asarray(starts.cast(pa.int64()).to_numpy())

    def start_us(self, time_us: int) -> int:
        """The start of the partition that a time is in, microseconds since 1970 UTC."""
        return int(self.starts_us(np.array([time_us]))[0])

    def next_us(self, start_us: int) -> int:
        """The start of the partition after the one that starts then."""
        length = _LENGTHS_US[self.by]
        after = start_us + length
        if self.timezone == UTC:
            return after
        # A day has 23 to 25 hours, and an hour that comes twice is one: look for the first start that is later.
        steps = np.arange(start_us, after + 2 * _LENGTHS_US["hour"] + 1, 900_000_000)
        starts = np.unique(self.starts_us(steps))
        return int(starts[np.searchsorted(starts, start_us, side="right")])

    def name(self, start_us: int) -> str:
        """The folder of the partition that starts then, as in `event_day=2018-06-08/event_hour=13`."""
        start = datetime.datetime.fromtimestamp(start_us // 1_000_000, self._zone)
        day = f"{DAY}={start:%Y-%m-%d}"
        return day if self.by == "day" else f"{day}/{HOUR}={start:%H}"

    def start_of(self, name: str) -> int | None:
        """The start of the partition that a file of this name under its kind's folder is in; None if it is in none.

        ValueError if the name is that of partitions of another kind.
        """
        found = _NAME.search(name)
        if found is None:
            return None
        day, hour = found.groups()
        if (hour is None) is not (self.by == "day"):
            raise ValueError(f"{name}: is no partition by {self.by}")
        return self.parse(f"{day}T{hour or '00'}:00")

    def parse(self, text: str) -> int:
        """A time as ISO 8601 writes it, of the time zone where it says no other, in microseconds since 1970 UTC.

        ValueError if it is none.
        """
        time = datetime.datetime.fromisoformat(text)
        if time.tzinfo is None:
            time = time.replace(tzinfo=self._zone)
        return micros_of(time)

    @property
    def _zone(self) -> datetime.tzinfo:
        return datetime.UTC if self.timezone == UTC else zoneinfo.ZoneInfo(self.timezone)

    def facts(self) -> dict[str, str]:
        """What tells partitions of one kind from others."""
        return {"by": self.by, "timezone": self.timezone}


@dataclasses.dataclass(frozen=True)
class Span:
    """Times from `start_us` until before `stop_us`, microseconds since 1970 UTC; None is no bound."""

    start_us: int | None = None
    stop_us: int | None = None

    def __contains__(self, time_us: int) -> bool:
        """Whether a time is in it."""
        after = self.start_us is None or time_us >= self.start_us
        return after and (self.stop_us is None or time_us < self.stop_us)

    def holds(self, times_us: Int64) -> Bools:
        """Which times, int64[n] in microseconds since 1970 UTC, are in it, bool[n]."""
        inside = np.ones(len(times_us), bool) if self.start_us is None else times_us >= self.start_us
        return inside if self.stop_us is None else inside & (times_us < self.stop_us)

    @property
    def is_all(self) -> bool:
        """Whether it has no bound."""
        return self.start_us is None and self.stop_us is None

    @staticmethod
    def of_facts(said: Sequence[str | None]) -> Span:
        """What `facts` gave."""
        return Span(*(None if text is None else Partitions().parse(text) for text in said))

    def facts(self) -> list[str | None]:
        """Both bounds in ISO 8601, UTC."""
        return [
            None if us is None else f"{np.datetime64(us, 'us').astype('M8[s]')}Z"
            for us in (self.start_us, self.stop_us)
        ]


EVER = Span()


def joined(spans: Iterable[Span]) -> list[Span]:
    """Spans as few as can be, in their order: those that touch are one."""
    least, most = -(1 << 62), 1 << 62
    found: list[tuple[int, int]] = []
    for start, stop in sorted((s.start_us if s.start_us is not None else least, s.stop_us or most) for s in spans):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], stop)
        else:
            found.append((start, stop))
    return [Span(None if start == least else start, None if stop == most else stop) for start, stop in found]
