"""The join of a table as a transform: whatever order, slices, shards, workers and engine, the fields are the same."""

import dataclasses
import random

import apache_beam as beam
import pyarrow as pa
import pytest

from models import steps as segments
from models.batches import partition, slice_ends, times_us
from models.project.contract import Contract, field_of_kind
from models.record import EVENT_TIME, MARKS, TIMESTAMP, RecordType
from tests.kit.holds import State, make_worker
from tests.kit.steps import END, through
from transforms.tables import JoinTable, _LookUp

pytestmark = [pytest.mark.both_sets, pytest.mark.slow]

SECOND = 1_000_000
KINDS = {"shop": "string", "size": "int"}
FIELDS = {name: field_of_kind(name, kind, False) for name, kind in KINDS.items()}
RECORDS = RecordType("shops", 2, Contract(FIELDS, b""), "shop", "known", tuple(KINDS), 0, 1 << 60, 1000)


def join(shards=1, lateness_s=0):
    return JoinTable(RECORDS, "store", ("size",), None, shards, lateness_s * SECOND)


def make(seed=0, number=300):
    chosen = random.Random(seed)
    events = [(n, chosen.choice(["a", "b", None, "c"]), chosen.randrange(200) * SECOND) for n in range(number)]
    rows = {(chosen.choice("ab"), chosen.randrange(200) * SECOND): chosen.choice([None, 1, 2, 3]) for _ in range(80)}
    return events, [(shop, size, time) for (shop, time), size in rows.items()]


def expected(events, rows):
    found = {}
    for number, store, time in events:
        known = [(known, size) for shop, size, known in rows if shop == store and known <= time]
        found[number] = max(known, key=lambda each: each[0])[1] if known else None
    return found


def event_batch(events):
    names = ["id", "store", EVENT_TIME, MARKS]
    arrays = [
        pa.array([n for n, _, _ in events]),
        pa.array([s for _, s, _ in events], pa.string()),
        pa.array([t for _, _, t in events], TIMESTAMP),
        pa.array([0] * len(events), pa.int8()),
    ]
    return pa.RecordBatch.from_arrays(arrays, names=names)


def row_batch(rows):
    arrays = [
        pa.array([shop for shop, _, _ in rows], pa.string()),
        pa.array([size for _, size, _ in rows], pa.int64()),
        pa.array([time for _, _, time in rows], TIMESTAMP),
    ]
    return pa.RecordBatch.from_arrays(arrays, names=["shop", "size", EVENT_TIME])


def cut(batch, slice_s):
    return list(partition(batch, slice_ends(times_us(batch), slice_s * SECOND))) if batch.num_rows else []


@dataclasses.dataclass(eq=False)
class Apart(beam.PTransform):
    """Events and rows of one source, as a step of `through` has but one."""

    join: JoinTable

    def expand(self, pcoll):
        events = pcoll | "Events" >> beam.Filter(lambda batch: MARKS in batch.schema.names)
        rows = pcoll | "Rows" >> beam.Filter(lambda batch: MARKS not in batch.schema.names)
        return {"events": events, "rows": rows} | self.join


def fields(table):
    assert table.schema.names == ["id", "store", EVENT_TIME, MARKS, "size"]
    found = dict(zip(table["id"].to_pylist(), table["size"].to_pylist(), strict=True))
    assert len(found) == len(table)
    return found


@pytest.mark.parametrize(("shards", "slice_s", "seed"), [(1, 1000, 0), (3, 7, 1), (2, 50, 2)])
def test_the_fields_are_the_same(engine, shards, slice_s, seed):
    events, rows = make(seed)
    wanted = expected(events, rows)
    random.Random(seed).shuffle(events)
    rows = random.Random(seed).sample([*rows, *rows[:30]], len(rows) + 30)
    items = [i for part in (events[::2], events[1::2]) for i in cut(event_batch(part), slice_s)]
    items += [i for part in (rows[::3], rows[1::3], rows[2::3]) for i in cut(row_batch(part), slice_s)]
    random.Random(seed).shuffle(items)
    table, _ = through(Apart(join(shards)), [(items, END)], engine)
    assert fields(table) == wanted


def test_the_fields_are_the_same_as_the_watermark_moves():
    events, rows = make(3)
    items = sorted([*cut(event_batch(events), 10), *cut(row_batch(rows), 10)], key=lambda item: item[0])
    random.Random(0).shuffle(rows)
    steps = [([i for i in items if i[0] == end], end) for end in sorted({end for end, _ in items})]
    table, _ = through(Apart(join(2)), [*steps, ([], END)])
    assert fields(table) == expected(events, rows)


def test_workers_take_turns_and_what_is_thrown_out_changes_nothing(monkeypatch):
    monkeypatch.setattr(segments, "MAX_RECENT_SEGMENTS", 3)
    monkeypatch.setattr("transforms.tables._LookUp.horizon_us", 10 * SECOND)
    events, rows = make(4, 2000)
    rows += [("a", n % 7, n * SECOND + 1) for n in range(200)]
    options, state, found = join(), State(), {}
    workers = [make_worker(_LookUp(options)) for _ in range(2)]
    for number, end in enumerate(range(0, 200 * SECOND, 4 * SECOND)):
        now = [row for row in rows if end <= row[2] < end + 4 * SECOND]
        there = [event for event in events if end <= event[2] < end + 4 * SECOND]
        worker = workers[number // 3 % 2]
        items = [(end + 4 * SECOND, batch) for batch in (row_batch(now), event_batch(there)) if batch.num_rows]
        for batch in state.run(worker, items):
            found |= dict(zip(batch["id"].to_pylist(), batch["size"].to_pylist(), strict=True))
    assert found == expected(events, rows)
    assert state.rows() < len(rows) / 3
