"""Rolling windows as a transform: whatever order, batches, shards, slices and engine, the bits are the same."""

import random

import numpy as np
import pyarrow as pa
import pytest
from apache_beam.utils.timestamp import Timestamp

from models import steps as segments
from models.batches import partition, slice_ends, times_us
from models.features.windows import RollingKernel
from models.project.sections import RollingFeature
from models.record import EVENT_TIME
from tests.kit.holds import State, make_worker
from tests.kit.steps import END, through
from tests.kit.support import brute_force
from tests.kit.window_oracle import by_definition
from transforms.rolling import RollingWindows, _Windows

pytestmark = [pytest.mark.both_sets, pytest.mark.slow]

SECOND = 1_000_000
FEATURES = (
    RollingFeature("n", "card", "count", None, 40 * SECOND, 0, True, 0.0),
    RollingFeature("before", "card", "count", None, 25 * SECOND, 0, False, 0.0),
    RollingFeature("mean", "card", "mean", "amount", 30 * SECOND, 0, True, float("nan")),
    RollingFeature("risk", "card", "rate", "fraud", 30 * SECOND, 10 * SECOND, True, 0.0),
    RollingFeature("most", "card", "max", "amount", 60 * SECOND, 5 * SECOND, True, -1.0),
)
KERNEL = RollingKernel(FEATURES, {"amount": 2})


def make_rows(count, seed=0, span=200, cards=4):
    choose = random.Random(seed)
    return [
        {
            "id": f"e{number:05d}",
            "card": choose.randrange(cards),
            "time": choose.randrange(span) * SECOND,
            "amount": choose.choice([None, choose.randrange(10_000) / 100]),
            "fraud": choose.choice([0, 0, 1]),
        }
        for number in range(count)
    ]


def to_batch(rows, texts=False):
    cards = [row["card"] for row in rows]
    return pa.RecordBatch.from_arrays(
        [
            pa.array([row["id"] for row in rows], pa.string()),
            pa.array([f"card {c}" for c in cards], pa.string()) if texts else pa.array(cards, pa.int64()),
            pa.array([row["time"] for row in rows], pa.timestamp("us", tz="UTC")),
            pa.array([row["amount"] for row in rows], pa.float64()),
            pa.array([row["fraud"] for row in rows], pa.int64()),
        ],
        names=["id", "card", EVENT_TIME, "amount", "fraud"],
    )


def cut(rows, slice_us, texts=False, pieces=1):
    """(slice end, batch) pairs of rows, in the order of the rows, from so many batches."""
    found = []
    for start in range(pieces):
        batch = to_batch(rows[start::pieces], texts)
        if batch.num_rows:
            found += partition(batch, slice_ends(times_us(batch), slice_us))
    return found


def bits(table):
    """The features of each event, by id, so that equal means the same bits."""
    columns = [table.column(f.name).combine_chunks().to_numpy() for f in FEATURES]
    values = np.column_stack([c.astype(np.float64) for c in columns])
    ids = table.column("id").to_pylist()
    assert len(set(ids)) == len(ids)
    return {name: row.tobytes() for name, row in zip(ids, values, strict=True)}


def windows(shards=1, kernel=KERNEL):
    return RollingWindows("card", "id", kernel, shards)


ROWS = make_rows(250)
EXPECTED = {
    row["id"]: np.array(values).tobytes()
    for row, values in zip(
        ROWS, brute_force(FEATURES, [{**r, "entity": r["card"]} for r in ROWS], {"amount": 2}), strict=True
    )
}


@pytest.mark.parametrize(
    ("shards", "slice_s", "pieces", "texts"),
    [(1, 1000, 1, False), (3, 7, 5, False), (8, 50, 2, True), (1, 1, 3, True)],
)
def test_the_bits_are_the_same(engine, shards, slice_s, pieces, texts):
    rows = list(ROWS)
    random.Random(shards).shuffle(rows)
    found, _ = through(windows(shards), [(cut(rows, slice_s * SECOND, texts, pieces), END)], engine)
    assert bits(found) == EXPECTED
    assert found.schema.names == ["id", "card", EVENT_TIME, "amount", "fraud", *(f.name for f in FEATURES)]


@pytest.mark.parametrize("pieces", [1, 7])
def test_the_bits_are_the_same_as_the_watermark_moves(pieces):
    slice_us = 10 * SECOND
    rows = sorted(ROWS, key=lambda row: row["time"])
    random.Random(pieces).shuffle(rows)
    items = sorted(cut(rows, slice_us, pieces=pieces), key=lambda item: item[0])
    steps = [([i for i in items if i[0] == end], end) for end in range(0, 210 * SECOND, slice_us)]
    assert bits(through(windows(2), [*steps, ([], END)])[0]) == EXPECTED


def test_a_slice_is_whole_before_it_is_handed_on():
    """A watermark at its end does not say yet that all events of the end's very time are there."""
    row = ROWS[0]
    early, late = ({**row, "id": name, "time": 10 * SECOND} for name in ("b", "a"))
    steps = [(cut([early], 10 * SECOND), 10 * SECOND), (cut([late], 10 * SECOND), 10 * SECOND), ([], END)]
    found = through(windows(), steps)[0]
    assert dict(zip(found["id"].to_pylist(), found["n"].to_pylist(), strict=True)) == {"a": 1, "b": 2}


def test_chained_windows_hold_the_watermark_for_each_other():
    rows = make_rows(120, seed=1)
    items = sorted(cut(rows, 10 * SECOND), key=lambda item: item[0])
    steps = [([item], item[0]) for item in items]
    second = (RollingFeature("again", "card", "count", None, 40 * SECOND, 0, True, 0.0),)
    third = (RollingFeature("more", "card", "count", None, 40 * SECOND, 0, True, 0.0),)

    class Chain(RollingWindows):
        def expand(self, pcoll):
            first = pcoll | "One" >> windows(3)
            twice = first | "Two" >> RollingWindows("card", "id", RollingKernel(second, {}), 2)
            return twice | "Three" >> RollingWindows("card", "id", RollingKernel(third, {}), 1)

    found = through(Chain("card", "id", KERNEL, 1), [*steps, ([], END)])[0]
    assert found.num_rows == len(rows)
    assert found["again"].equals(found["n"])
    assert found["more"].equals(found["n"])


def test_a_late_batch_is_handed_on_with_what_it_still_can_know():
    early, now, late = ({**ROWS[0], "id": i, "time": t * SECOND} for i, t in (("a", 5), ("c", 95), ("b", 10)))
    steps = [(cut([early, now], 10 * SECOND), 150 * SECOND), (cut([late], 10 * SECOND), 150 * SECOND), ([], END)]
    found = through(windows(), steps)[0]
    counts = dict(zip(found["id"].to_pylist(), found["n"].to_pylist(), strict=True))
    assert counts == {"a": 1, "b": 1, "c": 1}  # "a" has passed every window of events as new as "c"
    kernel = RollingKernel(FEATURES, {"amount": 2}, lateness_us=100 * SECOND)
    found = through(windows(kernel=kernel), steps)[0]
    counts = dict(zip(found["id"].to_pylist(), found["n"].to_pylist(), strict=True))
    assert counts == {"a": 1, "b": 2, "c": 1}


def advance():
    return make_worker(_Windows("card", "id", KERNEL))


def slices(rows, slice_us=5 * SECOND, texts=False):
    items = sorted(cut(rows, slice_us, texts), key=lambda item: item[0])
    return [[item] for item in items]


def joined(batches):
    return bits(pa.Table.from_batches(batches))


def test_two_workers_that_take_turns_over_one_state():
    """The memory of each is of a state that the other has moved on since."""
    workers, state, found = [advance(), advance()], State(), []
    for number, items in enumerate(slices(ROWS)):
        found += state.run(workers[number // 3 % 2], items)
    assert joined(found) == EXPECTED


def test_a_state_that_is_restored_and_goes_on_otherwise():
    worker, state = advance(), State()
    first, second, *rest = slices(ROWS)
    found = state.run(worker, first)
    checkpoint = state.copy()
    for items in rest[:5]:
        state.run(worker, items)
    for items in [second, *rest]:
        found += checkpoint.run(worker, items)
    assert joined(found) == EXPECTED


def test_a_bundle_that_fails_half_way_is_done_again():
    worker, state, found = advance(), State(), []
    for items in slices(ROWS, 20 * SECOND):
        state.put(worker, items)
    found += [output.value for output in state.fire(worker)]
    before = state.copy()
    half_way = state.fire(worker, END)
    next(half_way)
    next(half_way)
    half_way.close()
    found += [output.value for output in before.fire(worker, END)]
    assert joined(found) == EXPECTED


def test_several_slices_that_are_due_at_once():
    worker, state = advance(), State()
    items = [item for one in slices(ROWS) for item in one]
    random.Random(0).shuffle(items)
    state.put(worker, items)
    outputs = list(state.fire(worker, 101 * SECOND))
    assert [o.timestamp.micros for o in outputs] == [end * SECOND + 1000 for end in range(5, 105, 5)]
    assert state.timer.at == Timestamp(micros=105 * SECOND + 1000)
    outputs += list(state.fire(worker, END))
    assert state.timer.at is None
    assert list(state.cells["pending"].read()) == []
    assert joined([o.value for o in outputs]) == EXPECTED


@pytest.mark.parametrize("texts", [False, True])
def test_joins_and_evictions_change_nothing(monkeypatch, texts):
    monkeypatch.setattr(segments, "MAX_RECENT_SEGMENTS", 3)
    monkeypatch.setattr(segments, "SEGMENT_ROWS", 50)
    rows = make_rows(4000, seed=2, span=4000)
    horizon = KERNEL.horizon_us // SECOND
    one, state, found, most = advance(), State(), [], 0
    for number, items in enumerate(slices(rows, texts=texts)):
        found += state.run(advance() if number % 17 == 0 else one, items)
        most = max(most, state.rows())
        assert len(state.cells["shard_state"].data) < 200
    assert most < 4 * horizon  # about a row a second
    whole = State().run(advance(), [(5000 * SECOND, to_batch(rows, texts))])
    assert joined(found) == joined(whole)


def test_names_that_never_come_again_are_forgotten(monkeypatch):
    monkeypatch.setattr(segments, "MAX_RECENT_SEGMENTS", 3)
    worker, state = advance(), State()
    row, number = ROWS[0], 0
    for start in range(0, 3000, 10):
        number += 200
        rows = [{**row, "id": str(n), "card": n, "time": start * SECOND} for n in range(number, number + 200)]
        state.run(worker, [(start * SECOND, to_batch(rows, texts=True))])
        assert len(worker._memories[0][1].codes) < 20_000
    assert number == 60_000


def test_a_segment_holds_only_what_windows_read():
    state = State()
    state.run(advance(), [(5 * SECOND, to_batch(ROWS[:3]))])
    (segment,) = state.cells["recent"].read()
    assert segment.schema.names == ["card", EVENT_TIME, "amount", "fraud"]
    assert segment.num_rows == 3


def test_events_of_one_time_keep_their_order_in_a_history_that_is_read_again():
    """Of last(), which sees the last of them, whichever worker goes on, whatever order they came in."""
    feature = RollingFeature("last", "card", "last", "amount", 50 * SECOND, 0, False, -1.0)
    kernel = RollingKernel((feature,), {"amount": 2})
    rows = [{**row, "time": row["time"] // (5 * SECOND) * 5 * SECOND} for row in make_rows(400, seed=4)]
    random.Random(4).shuffle(rows)
    state, found = State(), {}
    for items in slices(rows):
        for batch in state.run(make_worker(_Windows("card", "id", kernel)), items):
            found |= dict(zip(batch["id"].to_pylist(), batch["last"].to_pylist(), strict=True))
    plain = [{**row, "entity": row["card"]} for row in rows]
    wanted = [value for (value,) in by_definition([feature], plain, {"amount": 2})]
    assert found == {row["id"]: value for row, value in zip(rows, wanted, strict=True)}
    assert len({row["time"] for row in rows}) < len(rows) / 5


@pytest.mark.parametrize("entity", [("card", "shop"), ("shop",), ()])
def test_a_row_without_a_key_has_no_features_and_is_in_no_window(engine, entity):
    feature = RollingFeature("n", "both", "count", None, 40 * SECOND, 0, True, 0.0)
    mean = RollingFeature("mean", "both", "mean", "amount", 40 * SECOND, 0, True, 0.0)
    kernel = RollingKernel((feature, mean), {"amount": 2})
    shops = [random.Random(n).choice([None, "a", "b:1", "b"]) for n in range(len(ROWS))]
    rows = list(zip(ROWS, shops, strict=True))
    random.Random(7).shuffle(rows)
    batch = to_batch([row for row, _ in rows], texts=True).append_column("shop", pa.array([shop for _, shop in rows]))
    items = list(partition(batch, slice_ends(times_us(batch), 30 * SECOND)))
    found, _ = through(RollingWindows(entity, "id", kernel, 3), [(items, END)], engine)
    there = [{**r, "shop": s, "entity": tuple({**r, "shop": s}[e] for e in entity)} for r, s in rows if s or not entity]
    values = by_definition(kernel.features, there, {"amount": 2})
    wanted = {row["id"]: value for row, value in zip(there, values, strict=True)}
    assert len(found) == len(ROWS)
    for row in found.to_pylist():
        both = [row["n"], row["mean"]]
        assert both == wanted[row["id"]] if row["id"] in wanted else repr(both) == "[None, nan]"
    assert found.schema.field("n").type == pa.int64()
