"""Slices and history in state: whatever order, batches, bundles and workers, a step is told the same."""

import json
import random

import pyarrow as pa
import pytest
from apache_beam import pvalue
from apache_beam.utils.timestamp import Timestamp

from models import steps as segments
from models.batches import concat_batches, times_us, with_column
from models.record import EVENT_TIME, IS_PROVISIONAL, LABEL_TIME, MARKS, SYSTEM_FIELDS
from models.steps import Shard, Step, has_labels
from tests.kit.holds import State, held, make_worker, plain
from tests.kit.steps import END
from transforms import slices as holding

SECOND = 1_000_000
HORIZON = 30 * SECOND


class Past(Step):
    """Each event with the sum of the `n` of all in the horizon before it; labels count, and are counted apart.

    It asserts that a slice is whole, that none comes twice, and that its memory is of this very history.
    """

    shard = Shard
    horizon_us = HORIZON

    def kind_of(self, batch):
        return int(not has_labels(batch))

    def recall(self, memory, log):
        return sorted(rows_of(log.read())) if memory is None else memory

    def advance(self, batch, due_us, memory, log):
        if len(set(batch["n"].to_pylist()) if has_labels(batch) else ()) > 1:
            yield pvalue.TaggedOutput("dead", batch)
        ahead = MARKS in batch.schema.names
        labelled, last = has_labels(batch), int(times_us(batch).max())
        sums = [sum(n for t, n, label in memory if label == labelled and t > last - HORIZON)] * batch.num_rows
        if not ahead:
            memory.extend(rows_of([batch]))
            log.append(batch)
        yield with_column(batch, "before", pa.array(sums, pa.int64()))

    def passed_us(self, parts, shard):
        return max((int(times_us(part).max()) for part in parts), default=0) - self.horizon_us


def rows_of(batches):
    return [
        (t, n, has_labels(b)) for b in batches for t, n in zip(times_us(b).tolist(), b["n"].to_pylist(), strict=True)
    ]


def to_batch(times, numbers, label=False, marks=None):
    arrays = {EVENT_TIME: pa.array(times, pa.int64()).cast(SYSTEM_FIELDS[EVENT_TIME].type), "n": pa.array(numbers)}
    if label:
        arrays[LABEL_TIME] = arrays[EVENT_TIME]
    if marks is not None:
        arrays[MARKS] = pa.array([marks] * len(times), pa.int8())
    return pa.RecordBatch.from_arrays(list(arrays.values()), names=list(arrays))


def make_slices(count, slice_us=5 * SECOND, seed=0):
    """(slice end, batch) pairs by slice: two batches of events and at times one of labels each."""
    choose, slices = random.Random(seed), []
    for end in range(slice_us, count * slice_us + 1, slice_us):
        kinds = [False, False, True] if choose.random() < 0.5 else [False, False]
        slices.append(
            [
                (end, to_batch([end - choose.randrange(slice_us), end], [choose.randrange(100), 1], label))
                for label in kinds
            ]
        )
    return slices


def told(outputs):
    """What came out, one entry for a slice and kind."""
    found = {}
    for batch in outputs:
        ends = -(-times_us(batch) // (5 * SECOND))
        assert len(set(ends.tolist())) == 1
        sums = set(batch["before"].to_pylist())
        assert len(sums) == 1
        place = found.setdefault((int(ends[0]), has_labels(batch)), (sums.pop(), []))
        place[1].extend(batch["n"].to_pylist())
    return {place: (before, sorted(numbers)) for place, (before, numbers) in found.items()}


def results(outputs):
    return told(output for output in outputs if "before" in output.schema.names)


def expected(slices):
    found, past = {}, []
    for items in slices:
        for labelled in (True, False):
            batches = [batch for _, batch in items if has_labels(batch) is labelled]
            if batches:
                last = max(int(times_us(batch).max()) for batch in batches)
                before = sum(n for t, n, label in past if label == labelled and t > last - HORIZON)
                numbers = sorted(n for batch in batches for n in batch["n"].to_pylist())
                found[last // (5 * SECOND), labelled] = (before, numbers)
                past += rows_of(batches)
    return found


SLICES = make_slices(60)
EXPECTED = expected(SLICES)


@pytest.mark.parametrize("seed", range(3))
def test_slices_go_on_in_order_whatever_order_their_batches_come_in(seed):
    items = [item for one in SLICES for item in one]
    random.Random(seed).shuffle(items)
    state, worker = State(), make_worker(Past())
    for start in range(0, len(items), 7):
        assert state.put(worker, items[start : start + 7]) == []
    outputs = [output.value for output in state.fire(worker, END) if not isinstance(output, pvalue.TaggedOutput)]
    assert list(told(outputs)) == list(EXPECTED)  # labels first
    assert results(outputs) == EXPECTED
    assert state.timer.at is None
    assert list(state.cells["pending"].read()) == []


def test_the_size_of_the_history_is_known_all_the_time():
    state, worker, sizes = State(), make_worker(Past()), []
    for items in SLICES:
        state.run(worker, items)
        sizes.append(Shard.from_bytes(state.cells["shard_state"].data).history_bytes)
        assert sizes[-1] == state.bytes()
    assert 0 < sizes[-1] < max(sizes) < sum(batch.nbytes for items in SLICES for _, batch in items)


def test_a_timer_hands_on_what_is_due_and_waits_for_the_rest():
    state, worker = State(), make_worker(Past())
    state.put(worker, [item for one in reversed(SLICES) for item in one])
    assert state.timer.at == Timestamp(micros=5 * SECOND + 1000)
    outputs = list(state.fire(worker, 101 * SECOND))
    ends = [output.timestamp.micros for output in outputs if not isinstance(output, pvalue.TaggedOutput)]
    assert sorted(set(ends)) == [end * SECOND + 1000 for end in range(5, 105, 5)]
    assert ends == sorted(ends)
    assert state.timer.at == Timestamp(micros=105 * SECOND + 1000)
    outputs += list(state.fire(worker, END))
    assert results([plain(output) for output in outputs]) == EXPECTED


def test_what_is_tagged_goes_on_as_it_is():
    outputs = list(State().run(make_worker(Past()), [(5 * SECOND, to_batch([1, 2], [3, 4], label=True))]))
    assert [output.schema.names for output in outputs] == [
        [EVENT_TIME, "n", LABEL_TIME],
        [EVENT_TIME, "n", LABEL_TIME, "before"],
    ]


def test_the_timer_is_set_for_the_earliest_slice():
    state, worker = State(), make_worker(Past())
    for end in (50, 20, 30):
        state.put(worker, [(end * SECOND, to_batch([1], [1]))])
        state.put(make_worker(Past()), [((end + 1) * SECOND, to_batch([1], [1]))])
    assert state.timer.at == Timestamp(micros=20 * SECOND + 1000)


def test_a_bundle_reads_the_shard_once():
    state, worker = State(), make_worker(Past())
    bundle = [(end * SECOND, to_batch([1], [1])) for end in (20, 20, 30, 10, 10, 20)]
    state.put(worker, bundle)
    assert state.cells["shard_state"].reads == 1
    state.put(worker, bundle[1:3])  # another worker may have been here
    assert state.cells["shard_state"].reads == 2


def test_what_comes_after_a_release_in_one_bundle_is_in_its_state():
    state, worker = State(), make_worker(Past())
    batch = to_batch([1], [1])
    state.put(worker, [(10 * SECOND, batch)])
    assert len(list(state.fire(worker))) == 1
    for end in (20, 15):
        list(worker.process(*held(end * SECOND, batch), release=state.timer, **state.cells))
        assert state.timer.at == Timestamp(micros=end * SECOND + 1000)
    assert json.loads(state.cells["shard_state"].data)["recent"] == 1


@pytest.mark.parametrize("near", [1, 3, 1000])
@pytest.mark.parametrize("seed", range(3))
def test_slices_that_wait_apart_are_all_handed_on(monkeypatch, near, seed):
    """They come over many bundles, to workers that take turns, as the timers fire; some before the latest that wait."""
    monkeypatch.setattr(holding, "NEAR_SLICES", near)
    choose, state, found = random.Random(seed), State(), []
    workers = [make_worker(Past()), make_worker(Past())]
    items = [(end + choose.randrange(40) * 5 * SECOND, end, batch) for one in SLICES for end, batch in one]
    to_come = sorted(items, key=lambda item: item[0], reverse=True)  # each up to 40 slices early
    for number in range(60):
        watermark = number * 5 * SECOND
        bundle = []
        while to_come and to_come[-1][0] <= watermark + 200 * SECOND:
            bundle.append(to_come.pop()[1:])
        assert all(end > watermark for end, _ in bundle)
        state.put(workers[choose.randrange(2)], bundle)
        while state.timer.at is not None and state.timer.at.micros < watermark + 5 * SECOND:
            found += [plain(output) for output in state.fire(workers[choose.randrange(2)])]
    found += state.run(workers[0], [item[1:] for item in to_come])
    assert results(found) == EXPECTED
    assert list(told(output for output in found if "before" in output.schema.names)) == list(EXPECTED)
    assert list(state.cells["pending"].read()) == list(state.cells["later"].read()) == []
    assert json.loads(state.cells["shard_state"].data)["later_us"] is None


def test_many_slices_that_wait_are_not_all_read_each_time():
    state, worker = State(), make_worker(Past())
    items = [item for one in make_slices(400) for item in one]
    random.Random(0).shuffle(items)
    state.put(worker, items)
    outputs = 0
    while state.timer.at is not None:
        outputs += len(list(state.fire(worker)))
    read = sum(state.cells[name].decoded for name in ("pending", "later"))
    assert outputs > 500
    assert read < 30_000  # 220,000 if each release read all


def test_two_workers_that_take_turns_over_one_state():
    """The memory of each is of a state that the other has moved on since."""
    workers, state, found = [make_worker(Past()), make_worker(Past())], State(), []
    for number, items in enumerate(SLICES):
        found += state.run(workers[number // 3 % 2], items)
    assert results(found) == EXPECTED


def test_a_state_that_is_restored_and_goes_on_otherwise():
    worker, state = make_worker(Past()), State()
    first, second, *rest = SLICES
    found = state.run(worker, first)
    checkpoint = state.copy()
    for items in rest[:5]:
        state.run(worker, items)
    for items in [second, *rest]:
        found += checkpoint.run(worker, items)
    assert results(found) == EXPECTED


def test_a_state_that_went_on_as_far_but_otherwise_is_another():
    one, other, state = make_worker(Past()), make_worker(Past()), State()
    state.run(one, [(5 * SECOND, to_batch([1], [1]))])
    lost = state.copy()
    lost.run(one, [(10 * SECOND, to_batch([6 * SECOND], [10]))])
    state.run(other, [(10 * SECOND, to_batch([6 * SECOND], [100]))])
    (found,) = state.run(one, [(15 * SECOND, to_batch([11 * SECOND], [0]))])
    assert found["before"].to_pylist() == [101]


def test_a_bundle_that_fails_half_way_is_done_again():
    worker, state = make_worker(Past()), State()
    state.put(worker, [item for one in SLICES for item in one])
    found = [plain(output) for output in state.fire(worker)]
    before = state.copy()
    half_way = state.fire(worker, END)
    for _ in range(5):
        next(half_way)
    half_way.close()
    found += [plain(output) for output in before.fire(worker, END)]
    assert results(found) == EXPECTED


@pytest.mark.parametrize("anew", [1, 17, 1000])
def test_joins_and_evictions_change_nothing(monkeypatch, anew):
    monkeypatch.setattr(segments, "MAX_RECENT_SEGMENTS", 3)
    monkeypatch.setattr(segments, "SEGMENT_ROWS", 5)
    slices = make_slices(600, seed=1)
    worker, state, found, most = make_worker(Past()), State(), [], 0
    for number, items in enumerate(slices):
        if number % anew == 0:
            worker = make_worker(Past())
        found += state.run(worker, items)
        most = max(most, state.rows())
        assert len(state.cells["shard_state"].data) < 200
    assert most < 200  # about a row a second, twice the horizon, and what is not joined yet
    assert results(found) == expected(slices)


def test_a_log_keeps_events_and_labels_apart_and_only_what_is_needed(monkeypatch):
    monkeypatch.setattr(segments, "MAX_RECENT_SEGMENTS", 2)
    state = State()
    cells = {name: state.cells[name] for name in ("base", "recent")}
    log, rows = segments.Log(**cells, shard=Shard(), step=Past()), []
    for second in range(1, 100):
        batch = to_batch([second * SECOND], [second], label=second % 3 == 0)
        log.append(batch)
        rows += rows_of([batch])
        events, *labels = log.read()
        assert not has_labels(events)
        assert all(map(has_labels, labels))
        assert len(labels) == (second >= 3)
        needed = [row for row in rows if row[0] > second * SECOND - HORIZON]
        assert sorted(rows_of([events, *labels])) == needed
        assert state.rows() <= 2 * 30 + 6


def test_rows_go_on_in_pieces(monkeypatch):
    monkeypatch.setattr(holding, "OUTPUT_ROWS", 4)
    batch = to_batch(list(range(1, 12)), list(range(11)))
    found = State().run(make_worker(Past()), [(5 * SECOND, batch.slice(0, 3)), (5 * SECOND, batch.slice(3))])
    assert [piece.num_rows for piece in found] == [4, 4, 3]
    assert concat_batches(found)["n"].to_pylist() == list(range(11))


def test_a_provisional_batch_goes_on_at_once_and_is_not_kept():
    worker, state = make_worker(Past()), State()
    state.run(worker, [(5 * SECOND, to_batch([1, 2], [10, 20]))])
    before = {name: state.cells[name].data for name in state.cells}
    ahead = to_batch([3], [99], marks=IS_PROVISIONAL)
    for one in (worker, make_worker(Past())):
        (found,) = state.put(one, [(5 * SECOND, ahead)])
        assert found["before"].to_pylist() == [30]
    assert {name: state.cells[name].data for name in state.cells} == before
    assert state.timer.at is None


def test_the_small_state_is_json_of_few_numbers():
    state = State()
    state.run(make_worker(Past()), [(5 * SECOND, to_batch([1], [1]))])
    said = json.loads(state.cells["shard_state"].data)
    assert sorted(said) == ["history_bytes", "kept_us", "later_us", "recent", "tidy_us", "timer_us", "token"]
    assert (said["recent"], said["tidy_us"], said["timer_us"]) == (1, 1 + Past().horizon_us, None)
    assert Shard.from_bytes(Shard(3, 4, "x", 1, 2).to_bytes()) == Shard(3, 4, "x", 1, 2)
    assert Shard.from_bytes(None) == Shard()
