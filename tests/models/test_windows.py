"""The kernel of rolling windows against a brute force that follows the definition row by row."""

import decimal
import itertools
import math
from unittest import mock

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest

from models.features import search
from models.features.windows import Events, History, RollingKernel, encode_entities
from models.project.sections import RollingFeature
from tests.kit.support import brute_force

pytestmark = [pytest.mark.both_sets, pytest.mark.core_set, pytest.mark.slow]

DECIMALS = {"amount": 2}
AGGREGATES = [("count", None), ("sum", "amount"), ("mean", "amount"), ("min", "amount"), ("max", "amount")]
AGGREGATES.append(("rate", "fraud"))


@st.composite
def features(draw):
    chosen = draw(st.lists(st.sampled_from(AGGREGATES), min_size=1, max_size=6))
    made = []
    for number, (aggregate, field) in enumerate(chosen):
        delay = draw(st.sampled_from([0, 0, 1, 3, 7]))
        window = draw(st.integers(1, 12))
        current = draw(st.booleans()) if not delay else True
        empty = draw(st.sampled_from([0.0, -1.0]))
        made.append(RollingFeature(f"f{number}", "e", aggregate, field, window, delay, current, empty))
    return tuple(made)


rows = st.lists(
    st.fixed_dictionaries(
        {
            "entity": st.integers(0, 3),
            "time": st.integers(0, 25),
            "amount": st.none() | st.integers(0, 10**9).map(lambda cents: cents / 100),
            "fraud": st.sampled_from([0, 1]),
        }
    ),
    max_size=40,
).map(lambda found: [{**row, "id": number} for number, row in enumerate(found)])


def to_events(part):
    def numbers(name):
        return np.array([math.nan if r[name] is None else r[name] for r in part], float)

    return Events(
        np.array([r["entity"] for r in part], np.int64),
        np.array([r["time"] for r in part], np.int64),
        pa.array([r["id"] for r in part], pa.int64()),
        {"amount": numbers("amount"), "fraud": numbers("fraud")},
    )


def same_bits(one, other):
    return np.asarray(one, float).tobytes() == np.asarray(other, float).tobytes()


@hypothesis.settings(deadline=None, max_examples=300)
@hypothesis.given(features(), rows)
def test_equals_brute_force(declared, found):
    columns, _ = RollingKernel(declared, DECIMALS).advance(History(), to_events(found))
    expected = brute_force(declared, found, DECIMALS)
    for number, column in enumerate(columns):
        assert same_bits(column, [values[number] for values in expected]), declared[number]


@hypothesis.settings(deadline=None, max_examples=200)
@hypothesis.given(features(), rows, st.integers(1, 9), st.randoms(use_true_random=False))
def test_splits_and_shuffles_change_no_bit(declared, found, slice_length, random):
    kernel = RollingKernel(declared, DECIMALS)
    whole, _ = kernel.advance(History(), to_events(found))
    history, by_id = History(), {}
    ordered = sorted(found, key=lambda row: row["time"] // slice_length)
    for _, group in itertools.groupby(ordered, key=lambda row: row["time"] // slice_length):
        part = list(group)
        random.shuffle(part)
        events = to_events(part)
        before = [events.entity.copy(), events.time.copy(), events.values["amount"].copy()]
        columns, history = kernel.advance(history, events)
        after = [events.entity, events.time, events.values["amount"]]
        assert all(a.tobytes() == b.tobytes() for a, b in zip(before, after, strict=True))
        for place, row in enumerate(part):
            by_id[row["id"]] = [column[place] for column in columns]
    for number in range(len(declared)):
        assert same_bits(whole[number], [by_id[row["id"]][number] for row in found])


def test_history_stays_bounded_and_exact_over_a_long_stream():
    declared = (RollingFeature("n", "e", "count", None, 50, 10, True, 0.0),)
    kernel = RollingKernel(declared, {})
    history, random = History(), np.random.default_rng(0)
    times = np.sort(random.integers(0, 20_000, 20_000))
    entity = random.integers(0, 5, 20_000)
    ids, got = pa.array(np.arange(20_000)), []
    edges = np.searchsorted(times, np.arange(0, 20_001, 40))
    for start, stop in itertools.pairwise(edges):
        part = Events(entity[start:stop], times[start:stop], ids[start:stop], {})
        columns, history = kernel.advance(history, part)
        got.append(columns[0])
        assert len(history) < 1000
    whole, _ = kernel.advance(History(), Events(entity, times, ids, {}))
    assert same_bits(np.concatenate(got), whole[0])


def test_very_many_entities_over_a_very_long_time():
    declared = (RollingFeature("n", "e", "count", None, 1 << 50, 0, True, 0.0),)
    entity = np.repeat(np.arange(3000), 2) * 12345678901
    time = np.tile([0, 1 << 55], 3000) + np.arange(6000) % 7
    columns, _ = RollingKernel(declared, {}).advance(History(), Events(entity, time, pa.array(np.arange(6000)), {}))
    assert (columns[0] == 1).all()


def test_entities_may_be_text():
    codes = {}
    first = encode_entities(pa.array(["a", "b", "a"]), codes)
    second = encode_entities(pa.array(["c", "b"]), codes)
    assert first[0] == first[2] != first[1] == second[1]
    assert len({*first, *second}) == 3


@hypothesis.settings(deadline=None, max_examples=300)
@hypothesis.given(features(), st.lists(rows, min_size=1, max_size=4))
def test_late_events_find_their_windows_and_change_nothing_before_them(declared, calls):
    kernel = RollingKernel(declared, DECIMALS, lateness_us=100)
    history, seen = History(), []
    for number, call in enumerate(calls):
        columns, history = kernel.advance(history, to_events(call))
        here = [{**row, "id": (number, row["id"])} for row in call]
        seen += here
        expected = brute_force(declared, seen, DECIMALS)[len(seen) - len(here) :]
        for place, column in enumerate(columns):
            assert same_bits(column, [values[place] for values in expected]), declared[place]


@hypothesis.settings(deadline=None, max_examples=200)
@hypothesis.given(features(), st.lists(rows, min_size=2, max_size=5))
def test_a_history_made_anew_from_all_that_came_is_the_same(declared, calls):
    """Whatever was thrown out on the way, and however late an event is."""
    kernel = RollingKernel(declared, DECIMALS)
    history, past = History(), []
    for call in calls:
        anew = kernel.extend(History(), to_events(past))
        one, history = kernel.advance(history, to_events(call))
        other, _ = kernel.advance(anew, to_events(call))
        assert all(same_bits(a, b) for a, b in zip(one, other, strict=True))
        past += call


@hypothesis.settings(deadline=None, max_examples=200)
@hypothesis.given(features(), rows, rows, st.integers(1, 9))
def test_a_key_too_short_for_a_time_changes_nothing(declared, first, second, bits):
    def compute():
        kernel = RollingKernel(declared, DECIMALS)
        some, history = kernel.advance(History(), to_events(first))
        more, history = kernel.advance(history, to_events(second))
        return [*some, *more]

    whole = compute()
    with mock.patch.multiple(search, KEY_BITS=bits, find_rows=None):
        assert all(same_bits(a, b) for a, b in zip(whole, compute(), strict=True))


@hypothesis.given(st.lists(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30)), max_size=12), max_size=5))
def test_a_negative_delay_sees_later_events_of_earlier_calls(calls):
    """As deduplication asks: of one entity's events in any (t - 5, t + 5], only the first may count none."""
    kernel = RollingKernel((RollingFeature("n", "e", "count", None, 10, -5, False, 0.0),), {})
    history, past = History(), []
    for call in calls:
        events = Events(
            np.array([e for e, _ in call], np.int64),
            np.array([t for _, t in call], np.int64),
            pa.array(range(len(call))),
            {},
        )
        (found,), history = kernel.advance(history, events)
        newest = max((t for _, t in past), default=-100)
        for place, (entity, time) in enumerate(call):
            low = max(time - 5, newest - 5)  # what is older than the horizon is gone for good
            expected = sum(e == entity and low < t <= time + 5 for e, t in past)
            before = [(t, n) for n, (e, t) in enumerate(call) if e == entity and t > time - 5]
            assert found[place] == expected + sum(b < (time, place) for b in before)
        past += call


def one_entity(values, **field):
    name, aggregate, window = field["name"], field["aggregate"], field["window"]
    kernel = RollingKernel((RollingFeature("f", "e", aggregate, name, window, 0, True, 0.0),), DECIMALS)
    count = len(values)
    events = Events(
        np.zeros(count, np.int64), np.arange(count), pa.array(np.arange(count)), {name: np.array(values, float)}
    )
    return kernel.advance(History(), events)[0][0]


def test_sums_are_those_of_decimal_numbers():
    cents = [decimal.Decimal(n * 7919 % 100_003 - 50_000) / 100 for n in range(5000)]
    found = one_entity([float(c) for c in cents], name="amount", aggregate="sum", window=1000)
    expected = [float(sum(cents[max(0, n - 999) : n + 1])) for n in range(5000)]
    assert same_bits(found, expected)
    assert one_entity([0.1, 0.2, -0.3], name="amount", aggregate="sum", window=9).tolist() == [0.1, 0.3, 0.0]


def test_running_totals_may_wrap_around():
    large = float(1 << 44)  # the contract's limit; more than 2**19 of them in one call, but few in a window
    found = one_entity([large] * 600_000, name="fraud", aggregate="sum", window=3)
    assert found[:3].tolist() == [large, 2 * large, 3 * large]
    assert (found[2:] == 3 * large).all()


@pytest.mark.parametrize("aggregate", ["min", "max"])
def test_zero_has_one_sign(aggregate):
    for values in ([0.0, -0.0], [-0.0, 0.0]):
        assert same_bits(one_entity(values, name="fraud", aggregate=aggregate, window=9), [0.0, 0.0])


def test_no_events_change_nothing():
    declared = tuple(RollingFeature(a, "e", a, f, 5, 0, True, 0.0) for a, f in AGGREGATES)
    kernel = RollingKernel(declared, DECIMALS)
    for history in (History(), kernel.extend(History(), to_events([dict(entity=1, time=2, id=3, amount=1, fraud=0)]))):
        columns, after = kernel.advance(history, to_events([]))
        assert after is history
        assert kernel.extend(history, to_events([])) is history
        assert [(c.shape, c.dtype.kind) for c in columns] == [((0,), "i" if f.field is None else "f") for f in declared]


def test_entities_may_be_any_integer():
    extremes = np.array([-(2**63), 2**63 - 1, 0, -1, 2**63 - 1, -(2**63)])
    kernel = RollingKernel((RollingFeature("n", "e", "count", None, 10, 0, True, 0.0),), {})
    times = np.arange(6)
    history = History()
    for expected in ([1, 1, 1, 1, 2, 2], [2, 3, 2, 2, 4, 4]):
        columns, history = kernel.advance(history, Events(extremes, times, pa.array(np.arange(6)), {}))
        assert columns[0].tolist() == expected
        times = times + 3


def test_windows_before_1970():
    kernel = RollingKernel((RollingFeature("n", "e", "count", None, 3, 2, True, 0.0),), {})
    times = np.array([-9, -7, -6, -5, -4, -3, -2])
    columns, _ = kernel.advance(History(), Events(np.zeros(7, np.int64), times, pa.array(np.arange(7)), {}))
    assert columns[0].tolist() == [sum(t - 5 < other <= t - 2 for other in times) for t in times]


def test_a_burst_is_forgotten_when_it_has_passed():
    kernel = RollingKernel((RollingFeature("n", "e", "count", None, 50, 0, True, 0.0),), {})
    history = History()
    for start, count in [(0, 10_000), *((100 + n, 3) for n in range(200))]:
        events = Events(np.arange(count), np.full(count, start), pa.array(np.arange(count)), {})
        _, history = kernel.advance(history, events)
    assert len(history) < 200


def test_an_event_is_seen_as_long_as_a_window_reaches_it():
    kernel = RollingKernel((RollingFeature("n", "e", "count", None, 6, 4, True, 0.0),), {})
    for last, expected in ((13, 1), (14, 0)):
        history = kernel.extend(History(), to_events([dict(entity=0, time=4, id=0, amount=1, fraud=0)]))
        for number in (1, 2):  # the second time the first event may have been thrown out
            found, history = kernel.advance(
                history, to_events([dict(entity=0, time=last, id=number, amount=1, fraud=0)])
            )
            assert found[0].tolist() == [expected]
