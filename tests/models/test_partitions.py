"""Partitions: which day or hour of a time zone a time is of, through changes of clocks, and names that tell it again."""

import datetime
import itertools
import zoneinfo

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from models.partitions import Partitions, Span, joined, stamp_of, time_of

pytestmark = pytest.mark.both_sets

ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe", "Pacific/Chatham"]
HOUR = 3_600_000_000
times = st.integers(0, 2_140_000_000).map(lambda seconds: seconds * 1_000_000 + 7)


def start_in_python(time_us, by, zone):
    """The start of the day or hour by Python's own calendar."""
    zone = zoneinfo.ZoneInfo(zone)
    local = datetime.datetime.fromtimestamp(time_us // 1_000_000, zone)
    floor = local.replace(minute=0, second=0, **({"hour": 0} if by == "day" else {}), fold=0)
    return int(floor.timestamp()) * 1_000_000


@hypothesis.given(times, st.sampled_from(ZONES), st.sampled_from(["day", "hour"]))
def test_the_start_is_that_of_the_calendar(time_us, zone, by):
    assert Partitions(by, zone).start_us(time_us) == start_in_python(time_us, by, zone)


@hypothesis.given(times, st.sampled_from(ZONES), st.sampled_from(["day", "hour"]))
def test_the_name_tells_the_start_and_the_next_begins_where_it_ends(time_us, zone, by):
    partitions = Partitions(by, zone)
    start, stop = partitions.start_us(time_us), partitions.next_us(partitions.start_us(time_us))
    assert start <= time_us < stop
    assert partitions.start_of(f"scores/{partitions.name(start)}/part.parquet") == start
    assert partitions.starts_us(np.array([start, stop - 1, stop])).tolist() == [start, start, stop]


def test_a_day_of_23_hours_and_one_of_25():
    berlin = Partitions("day", "Europe/Berlin")
    for day, hours in (("2018-03-25", 23), ("2018-10-28", 25), ("2018-06-08", 24)):
        start = berlin.parse(day)
        assert berlin.next_us(start) - start == hours * HOUR
        assert berlin.name(start) == f"event_day={day}"


def test_an_hour_that_comes_twice_is_one_partition():
    berlin = Partitions("hour", "Europe/Berlin")
    start = berlin.parse("2018-10-28T02:00")
    assert berlin.name(start) == "event_day=2018-10-28/event_hour=02"
    assert berlin.next_us(start) - start == 2 * HOUR


def test_names_of_other_partitions_are_told():
    assert Partitions().start_of("quality/baseline.json") is None
    with pytest.raises(ValueError, match="no partition by hour"):
        Partitions("hour").start_of("scores/event_day=2018-06-08/part.parquet")
    with pytest.raises(ValueError, match="no partition by day"):
        Partitions("day").start_of("scores/event_day=2018-06-08/event_hour=01/part.parquet")


@hypothesis.given(st.integers(0, 4_000_000_000))
def test_a_stamp_tells_its_time(seconds):
    assert time_of(stamp_of(seconds * 1_000_000)) == seconds * 1_000_000


@hypothesis.given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 5)), max_size=8))
def test_joined_spans_hold_the_same_times(found):
    spans = [Span(start, start + length) for start, length in found]
    one = joined(spans)
    for time in range(40):
        assert any(time in span for span in spans) is any(time in span for span in one)
    assert all(first.stop_us < second.start_us for first, second in itertools.pairwise(one))


def test_spans_without_bounds():
    assert joined([Span(5, None), Span(1, 2)]) == [Span(1, 2), Span(5, None)]
    assert joined([Span(5, None), Span(None, 7)]) == [Span()]
    assert Span.of_facts(Span(86_400_000_000, None).facts()) == Span(86_400_000_000, None)
    assert Span(1, 3).holds(np.array([0, 1, 2, 3])).tolist() == [False, True, True, False]
