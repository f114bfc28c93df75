import itertools
import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pyarrow as pa

from models.project import RollingFeature
from models.windows import Events, History, RollingKernel, encode_entities
from tests.support import brute_force

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
    columns, _ = RollingKernel(declared, {}).advance(
        History(), Events(entity, time, pa.array(np.arange(6000)), {})
    )
    assert (columns[0] == 1).all()


def test_entities_may_be_text():
    codes = {}
    first = encode_entities(pa.array(["a", "b", "a"]), codes)
    second = encode_entities(pa.array(["c", "b"]), codes)
    assert first[0] == first[2] != first[1] == second[1]
    assert len({*first, *second}) == 3
