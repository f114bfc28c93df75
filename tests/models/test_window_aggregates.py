"""The aggregates that need order, calendars, sessions and conditions, against their definition in plain Python."""

import itertools
import math
import statistics

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest

from models.features import aggregates
from models.features.aggregates import WindowSumError, start_of
from models.features.windows import Events, History, RollingKernel
from models.project.sections import RollingFeature
from tests.kit import window_oracle
from tests.kit.window_oracle import by_definition
from tests.kit.window_rows import DECIMALS, HOUR, features, rows, same_bits, to_events

pytestmark = [pytest.mark.both_sets, pytest.mark.core_set, pytest.mark.slow]


@hypothesis.settings(deadline=None, max_examples=400)
@hypothesis.given(features(), rows)
def test_equals_the_definition(declared, found):
    columns, _ = RollingKernel(declared, DECIMALS).advance(History(), to_events(found, {}))
    expected = by_definition(declared, found, DECIMALS)
    for number, column in enumerate(columns):
        assert column.dtype == (np.int64 if declared[number].aggregate in ("count", "distinct") else np.float64)
        assert same_bits(column, [values[number] for values in expected]), declared[number]


@hypothesis.settings(deadline=None, max_examples=300)
@hypothesis.given(features(), rows, st.integers(1, 40), st.randoms(use_true_random=False))
def test_splits_and_shuffles_change_no_bit(declared, found, slice_hours, random):
    kernel, codes = RollingKernel(declared, DECIMALS), {}
    expected = by_definition(declared, found, DECIMALS)
    history, by_id = History(), {}
    slices = sorted(found, key=lambda row: row["time"] // (slice_hours * HOUR))
    for _, group in itertools.groupby(slices, key=lambda row: row["time"] // (slice_hours * HOUR)):
        part = list(group)
        random.shuffle(part)
        columns, history = kernel.advance(history, to_events(part, codes))
        by_id |= {row["id"]: [column[place] for column in columns] for place, row in enumerate(part)}
    for number in range(len(declared)):
        wanted = [values[number] for values in expected]
        assert same_bits([by_id[row["id"]][number] for row in found], wanted), declared[number]


@hypothesis.settings(deadline=None, max_examples=300)
@hypothesis.given(features(), st.lists(rows, min_size=1, max_size=4))
def test_late_events_find_their_windows_and_change_nothing_before_them(declared, calls):
    kernel = RollingKernel(declared, DECIMALS, lateness_us=100 * HOUR)
    history, seen, codes = History(), [], {}
    for number, call in enumerate(calls):
        columns, history = kernel.advance(history, to_events(call, codes))
        here = [{**row, "id": (number, row["id"])} for row in call]
        seen += here
        expected = by_definition(declared, seen, DECIMALS)[len(seen) - len(here) :]
        for place, column in enumerate(columns):
            assert same_bits(column, [values[place] for values in expected]), declared[place]


@hypothesis.settings(deadline=None, max_examples=200)
@hypothesis.given(features(), st.lists(rows, min_size=2, max_size=5))
def test_a_history_made_anew_from_all_that_came_is_the_same(declared, calls):
    kernel = RollingKernel(declared, DECIMALS)
    history, past, codes = History(), [], {}
    for call in calls:
        anew, other_codes = History(), {}
        if past:
            anew = kernel.extend(History(), to_events(past, other_codes))
        one, history = kernel.advance(history, to_events(call, codes))
        other, _ = kernel.advance(anew, to_events(call, other_codes))
        assert all(same_bits(a, b) for a, b in zip(one, other, strict=True))
        past += sorted(call, key=lambda row: (row["entity"], row["time"], row["id"]))


@hypothesis.given(st.integers(-(2**50), 2**52), st.sampled_from(["day", "week", "month", "quarter", "year"]))
def test_periods_start_where_the_calendar_says(time_us, period):
    assert start_of(period, np.array([time_us])).tolist() == [window_oracle.start_of(period, time_us)]


def one_entity(values, aggregate, decimals, window=1 << 40):
    kernel = RollingKernel((RollingFeature("f", "e", aggregate, "x", window, 0, True, math.nan),), {"x": decimals})
    count = len(values)
    events = Events(
        np.zeros(count, np.int64), np.arange(count), pa.array(np.arange(count)), {"x": np.array(values, float)}
    )
    return kernel.advance(History(), events)[0][0]


@pytest.mark.parametrize(
    ("values", "decimals"), [([1.1, 1.1, 1.2, 9.7], 1), ([175_921_860_444.15, -175_921_860_444.15, 0.01], 2)]
)
def test_a_deviation_is_that_of_statistics(values, decimals):
    """As near as its roundings: of the numerator, the quotient, the root, and the places."""
    found = one_entity(values, "std", decimals)
    assert math.isnan(found[0])
    for n in range(2, len(values) + 1):
        assert found[n - 1] == pytest.approx(statistics.stdev(values[:n]), rel=1e-15)


def test_a_deviation_of_equal_values_is_none():
    assert one_entity([1e9 + 0.1] * 1000, "std", 1)[1:].tolist() == [0.0] * 999


@pytest.mark.parametrize("aggregate", ["sum", "mean", "std"])
def test_a_window_too_large_for_exact_sums_is_an_error(aggregate, monkeypatch):
    """The bound of 64 bits is where the sums of the contract's largest values would wrap."""
    monkeypatch.setattr(aggregates, "_SAFE_COUNT", 2)
    large = [float(1 << 62)] * 3
    with pytest.raises(WindowSumError, match=r"f: the window of e holds 3 events, and .*: declare a shorter window"):
        one_entity(large, aggregate, 0)
    assert not np.isnan(one_entity([float(1 << 44)] * 300, aggregate, 0)[1:]).any()


def test_a_hot_entity_is_read_from_the_end():
    """What last() looks at is as much as it needs, not the window."""
    f = RollingFeature("f", "e", "last", "x", 1 << 40, 0, False, math.nan, rank=3)
    kernel, history = RollingKernel((f,), {"x": 0}), History()
    many = Events(np.zeros(5000, np.int64), np.arange(5000), pa.array(np.arange(5000)), {"x": np.arange(5000.0)})
    _, history = kernel.advance(history, many)
    one = Events(np.zeros(1, np.int64), np.array([6000]), pa.array([6000]), {"x": np.array([1.0])})
    plan = aggregates.Plan.of((f,))
    seen = aggregates.Seen.of(plan, windows_run(one), history.runs, 0, {})
    assert len(seen.gather(plan).runs[0]) == 4
    assert kernel.advance(history, one)[0][0].tolist() == [4997.0]


def windows_run(events):
    from models.features.windows import Run

    return Run.of(events, np.arange(len(events)))
