"""Rows of tables as they were known at an event's time, against the definition in plain Python."""

import random

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest

from models.features.table_join import learn, look_up, still_needed, take_fields
from models.record import EVENT_TIME, TIMESTAMP

pytestmark = [pytest.mark.both_sets, pytest.mark.core_set, pytest.mark.slow]

rows = st.lists(
    st.fixed_dictionaries(
        {
            "key": st.sampled_from(["a", "b", "c"]),
            "until": st.none() | st.integers(0, 40),
            "deleted": st.sampled_from([None, 0, 0, 1]),
            "value": st.none() | st.integers(0, 5),
            EVENT_TIME: st.integers(0, 30),
        }
    ),
    max_size=25,
)
events = st.lists(st.tuples(st.sampled_from(["a", "b", "d", None]), st.integers(-3, 40)), min_size=1, max_size=20)


def to_batch(found):
    kinds = {"key": pa.string(), "until": TIMESTAMP, "deleted": pa.int8(), "value": pa.int64(), EVENT_TIME: TIMESTAMP}
    arrays = [pa.array([row[name] for row in found], kind) for name, kind in kinds.items()]
    return pa.RecordBatch.from_arrays(arrays, names=list(kinds))


def join(known, asked, until="until"):
    keys, times = pa.array([k for k, _ in asked], pa.string()), np.array([t for _, t in asked], np.int64)
    places, found = look_up(known, keys, times, until, "deleted")
    if not known:
        return [None] * len(asked), found.tolist()
    return take_fields(known, places, "value", pa.int64()).to_pylist(), found.tolist()


def possible(found, key, time):
    """What may be taken: the values of the latest rows of the key; of several of one time, one."""
    known = [row for row in found if row["key"] == key and row[EVENT_TIME] <= time]
    latest = [row for row in known if row[EVENT_TIME] == max(r[EVENT_TIME] for r in known)]
    holds = [(row["until"] is None or time < row["until"]) and row["deleted"] != 1 for row in latest]
    return [row["value"] if one else "over" for row, one in zip(latest, holds, strict=True)] or ["none"]


@hypothesis.settings(deadline=None, max_examples=300)
@hypothesis.given(rows, events, st.randoms(use_true_random=False))
def test_the_latest_row_that_is_known_is_taken_however_rows_come(found, asked, chosen):
    whole = learn((), to_batch(found), -100) if found else ()
    values, there = join(whole, asked)
    for (key, time), value, is_there in zip(asked, values, there, strict=True):
        assert (value if is_there else ("none" if value is None else "wrong")) in [
            "none" if p == "over" else p for p in possible(found, key, time)
        ]
    known, shuffled = (), chosen.sample(found, len(found)) + chosen.sample(found, len(found) // 2)
    while shuffled:
        count = chosen.randrange(1, 6)
        known, shuffled = learn(known, to_batch(shuffled[:count]), -100), shuffled[count:]
    assert join(known, asked) == (values, there)


@hypothesis.settings(deadline=None, max_examples=200)
@hypothesis.given(rows, events, st.integers(0, 30), st.randoms(use_true_random=False))
def test_what_is_thrown_out_no_later_event_misses(found, asked, cutoff, chosen):
    asked = [(key, time) for key, time in asked if time >= cutoff]
    if not found or not asked:
        return
    batch = to_batch(found)
    kept = [row for row, needed in zip(found, still_needed(batch, cutoff).tolist(), strict=True) if needed]
    known, left = (), chosen.sample(found, len(found))
    while left:
        known, left = learn(known, to_batch(left[:3]), cutoff), left[3:]
    expected = join(learn((), batch, -100), asked)
    assert join(learn((), to_batch(kept), -100), asked) == expected
    assert join(known, asked) == expected


def test_old_rows_of_a_key_are_forgotten():
    found = [{"key": "a", "until": None, "deleted": 0, "value": n % 5, EVENT_TIME: n} for n in range(1000)]
    random.Random(0).shuffle(found)
    kept = still_needed(to_batch(found), 990)
    assert sorted(row[EVENT_TIME] for row, needed in zip(found, kept, strict=True) if needed) == list(range(990, 1000))
