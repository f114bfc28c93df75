"""Labels that come later than their events, against a brute force that follows the definition row by row."""

import datetime
import itertools
import json
import operator
import random
from unittest import mock

import apache_beam as beam
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest

from models import steps as segments
from models.batches import partition, slice_ends, times_us
from models.features import label_join
from models.features.label_join import ALREADY_KNOWN, NO_EVENT
from models.features.labels import LabelledKernel, Labels
from models.features.windows import Events, History, RollingKernel
from models.project.project import parse_project
from models.project.sections import RollingFeature
from models.record import EVENT_TIME, IS_PROVISIONAL, LABEL_TIME, MARKS, POSITION, SOURCE, SYSTEM_FIELDS
from pipelines.graph import GraphConfig, join_labels
from pipelines.runners import DIRECT
from tests.kit.holds import State, make_worker
from tests.kit.steps import END, through
from tests.kit.support import CARD_FRAUD
from transforms import join as joining
from transforms import slices as holding
from transforms.join import JoinLabels

pytestmark = pytest.mark.slow

AGGREGATES = [("rate", "fraud"), ("rate", "fraud"), ("sum", "fraud"), ("mean", "fraud"), ("count", None)]
AGGREGATES.append(("sum", "amount"))
DECIMALS = {"amount": 2}


@st.composite
def features(draw):
    made = []
    for number, (aggregate, field) in enumerate(draw(st.lists(st.sampled_from(AGGREGATES), min_size=1, max_size=6))):
        delay, window = draw(st.integers(1, 7)), draw(st.integers(1, 12))
        empty = draw(st.sampled_from([0.0, -1.0, float("nan")]))
        made.append(RollingFeature(f"f{number}", "e", aggregate, field, window, delay, True, empty))
    return tuple(made)


# `known`: when the event's label is known, as so long after the event; None for never.
rows = st.lists(
    st.fixed_dictionaries(
        {
            "entity": st.integers(0, 2),
            "time": st.integers(0, 25),
            "amount": st.none() | st.integers(0, 10**6).map(lambda cents: cents / 100),
            "fraud": st.sampled_from([0, 1]),
            "known": st.none() | st.integers(0, 25),
        }
    ),
    max_size=30,
).map(lambda found: [{**row, "id": number} for number, row in enumerate(found)])


def to_events(part, *fields):
    def numbers(name):
        return np.array([np.nan if r[name] is None else r[name] for r in part], float)

    entity, time = (np.array([r[name] for r in part], np.int64) for name in ("entity", "time"))
    return Events(entity, time, pa.array([r["id"] for r in part], pa.int64()), {name: numbers(name) for name in fields})


def to_labels(part):
    entity, time, known, value = (np.array([r[name] for r in part]) for name in ("entity", "time", "known_at", "fraud"))
    return Labels(entity.astype(np.int64), time.astype(np.int64), known.astype(np.int64), value.astype(float))


def labelled(found):
    """The rows that have a label, with the time that it is known at."""
    return [{**row, "known_at": row["time"] + row["known"]} for row in found if row["known"] is not None]


def by_definition(declared, found):
    result = []
    for row in found:
        t, values = row["time"], []
        for f in declared:
            d, w = f.delay_us, f.window_us
            of_entity = [o for o in found if o["entity"] == row["entity"]]
            inside = [o for o in of_entity if t - d - w < o["time"] <= t - d]
            known = [
                o["fraud"]
                for o in of_entity
                if o["known"] is not None and max(o["time"] + d, o["time"] + o["known"]) <= t and o["time"] > t - d - w
            ]
            if f.field == "amount":
                cents = [round(o["amount"] * 100) for o in inside if o["amount"] is not None]
                values.append(sum(cents) / 100 if cents else f.empty)
            elif f.aggregate == "count":
                values.append(len(inside))
            else:
                count = {"rate": len(inside), "mean": len(known), "sum": bool(known)}[f.aggregate]
                values.append(sum(known) / count if count else f.empty)
        result.append(values)
    return result


def same_bits(one, other):
    return np.asarray(one, float).tobytes() == np.asarray(other, float).tobytes()


def at_once(kernel, found):
    return kernel.advance(kernel.learn(History(), to_labels(labelled(found))), to_events(found, "amount"))


@hypothesis.settings(deadline=None, max_examples=300)
@hypothesis.given(features(), rows)
def test_equals_the_definition(declared, found):
    columns, _ = at_once(LabelledKernel(declared, DECIMALS, 0, "fraud"), found)
    expected = by_definition(declared, found)
    for number, column in enumerate(columns):
        assert same_bits(column, [values[number] for values in expected]), declared[number]
        assert column.dtype.kind == ("i" if declared[number].aggregate == "count" else "f")


@hypothesis.settings(deadline=None, max_examples=300)
@hypothesis.given(features(), rows, st.integers(1, 9), st.randoms(use_true_random=False), st.booleans())
def test_splits_and_shuffles_change_no_bit(declared, found, slice_length, random, anew):
    """`anew`: the history is made from all that came, before each call, as after a restart."""
    kernel = LabelledKernel(declared, DECIMALS, 0, "fraud")
    whole, _ = at_once(kernel, found)
    history, by_id, past, learnt = History(), {}, [], []
    for start in range(0, 60, slice_length):
        events = [row for row in found if start <= row["time"] < start + slice_length]
        labels = [row for row in labelled(found) if start <= row["known_at"] < start + slice_length]
        random.shuffle(events)
        random.shuffle(labels)
        if anew:
            history = kernel.learn(kernel.extend(History(), to_events(past, "amount")), to_labels(learnt))
        history = kernel.learn(history, to_labels(labels))
        columns, history = kernel.advance(history, to_events(events, "amount"))
        for place, row in enumerate(events):
            by_id[row["id"]] = [column[place] for column in columns]
        past, learnt = past + events, learnt + labels
    for number in range(len(declared)):
        assert same_bits(whole[number], [by_id[row["id"]][number] for row in found])


@hypothesis.settings(deadline=None, max_examples=200)
@hypothesis.given(features(), rows)
def test_labels_known_within_the_delay_are_as_a_column_of_events(declared, found):
    delays = [f.delay_us for f in declared if f.field == "fraud"] or [0]
    for row in found:
        row["known"] = None if row["known"] is None else row["known"] % (min(delays) + 1)
    columns, _ = at_once(LabelledKernel(declared, DECIMALS, 0, "fraud"), found)
    beside = [{**row, "fraud": None if row["known"] is None else row["fraud"]} for row in found]
    expected, _ = RollingKernel(declared, DECIMALS).advance(History(), to_events(beside, "amount", "fraud"))
    assert all(same_bits(a, b) for a, b in zip(columns, expected, strict=True))


@hypothesis.settings(deadline=None, max_examples=200)
@hypothesis.given(features(), st.lists(rows, min_size=2, max_size=4))
def test_late_events_find_the_labels_of_their_own_time(declared, calls):
    """And what was thrown out on the way, or made anew, changes nothing however late an event is."""
    for lateness in (100, 0):
        kernel = LabelledKernel(declared, DECIMALS, lateness, "fraud")
        history, past, seen = History(), [], []
        for number, call in enumerate(calls):
            anew = kernel.learn(kernel.extend(History(), to_events(past, "amount")), to_labels(labelled(past)))
            labels, events = to_labels(labelled(call)), to_events(call, "amount")
            other, _ = kernel.advance(kernel.learn(anew, labels), events)
            columns, history = kernel.advance(kernel.learn(history, labels), events)
            assert all(same_bits(a, b) for a, b in zip(columns, other, strict=True))
            past += call
            seen += [{**row, "id": (number, row["id"])} for row in call]
            if lateness and call:
                expected = by_definition(declared, seen)[-len(call) :]
                assert all(same_bits(c, [v[i] for v in expected]) for i, c in enumerate(columns))


@hypothesis.settings(deadline=None, max_examples=200)
@hypothesis.given(features(), rows, st.integers(-5, 120))
def test_a_time_that_is_no_events_sees_the_labels_that_an_event_there_would(declared, found, time):
    """All windows have a delay, and none would hold that event itself."""
    kernel = LabelledKernel(declared, DECIMALS, 200, "fraud")
    asked = {"entity": 0, "time": time, "id": 10**6, "amount": None, "fraud": 0, "known": None}
    expected = by_definition(declared, [*found, asked])[-1]
    _, history = at_once(kernel, found)
    assert same_bits([column[0] for column in kernel.answer(history, to_events([asked]))], expected)


def test_a_label_that_comes_late_changes_only_what_is_after_it():
    kernel = LabelledKernel((RollingFeature("f", "e", "sum", "fraud", 100, 5, True, 0.0),), {}, 0, "fraud")
    row = {"entity": 0, "time": 0, "id": 0, "amount": 1, "fraud": 1, "known": 7}
    expected = {4: 0.0, 5: 0.0, 6: 0.0, 7: 1.0, 104: 1.0, 105: 0.0}
    found = [row, *({**row, "time": t, "id": t, "known": None} for t in expected)]
    columns, _ = at_once(kernel, found)
    assert dict(zip(expected, columns[0][1:].tolist(), strict=True)) == expected


def test_history_stays_bounded_over_a_long_stream():
    declared = tuple(RollingFeature(a, "e", a, "fraud", 50, 10, True, 0.0) for a in ("rate", "mean"))
    kernel, history = LabelledKernel(declared, {}, 0, "fraud"), History()
    random = np.random.default_rng(0)
    times = np.sort(random.integers(0, 20_000, 20_000))
    entity, value = random.integers(0, 5, 20_000), random.integers(0, 2, 20_000).astype(float)
    known = times + random.integers(0, 80, 20_000)
    labels = Labels(entity, times, known, value)
    whole, _ = kernel.advance(kernel.learn(history, labels), Events(entity, times, pa.array(np.arange(20_000)), {}))
    got = []
    for start, stop in itertools.pairwise(range(0, 20_041, 40)):
        rows = np.flatnonzero((known >= start) & (known < stop))
        history = kernel.learn(history, Labels(entity[rows], times[rows], known[rows], value[rows]))
        rows = np.flatnonzero((times >= start) & (times < stop))
        columns, history = kernel.advance(history, Events(entity[rows], times[rows], pa.array(rows), {}))
        got.append(columns)
        assert sum(len(run) for runs in history.labels for run in runs) < 600
    for number, column in enumerate(whole):
        assert same_bits(np.concatenate([columns[number] for columns in got]), column)


def test_nothing_changes_nothing():
    declared = (RollingFeature("r", "e", "rate", "fraud", 5, 1, True, 0.0),)
    kernel, history = LabelledKernel(declared, {}, 0, "fraud"), History()
    assert kernel.learn(history, to_labels([])) is history
    columns, after = kernel.advance(history, to_events([]))
    assert after is history
    assert [(c.shape, c.dtype.kind) for c in columns] == [((0,), "f")]
    assert kernel.fields == ()


@pytest.mark.parametrize(("aggregate", "delay"), [("min", 1), ("max", 1), ("rate", 0)])
def test_features_that_labels_cannot_have(aggregate, delay):
    declared = (RollingFeature("f", "e", aggregate, "fraud", 5, delay, True, 0.0),)
    with pytest.raises(ValueError, match=r"f: over labels there are sum, mean and rate, with a delay"):
        LabelledKernel(declared, {}, 0, "fraud")
    assert LabelledKernel(declared, {}, 0, "other").fields == ("fraud",)


# ---- the join

TEXT = (
    (CARD_FRAUD / "project.yaml")
    .read_text()
    .replace("  field: TX_FRAUD\n", "  field: TX_FRAUD\n  events: {time: SEEN}\n")
)
PROJECT, FAULTS = parse_project(TEXT.encode(), lambda name: (CARD_FRAUD / name).read_bytes())
SECOND = 1_000_000
HORIZON = 60 * SECOND
ID = "TRANSACTION_ID"


def to_batch(rows, texts=False):
    """Events, or labels where the rows have a value."""
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    if texts:
        columns[ID] = [f"tx {number}" for number in columns[ID]]
    arrays = {name: pa.array(values) for name, values in columns.items()}
    arrays[EVENT_TIME] = arrays[EVENT_TIME].cast(SYSTEM_FIELDS[EVENT_TIME].type)
    arrays[SOURCE] = pa.array(["s"] * len(rows)).dictionary_encode()
    arrays[MARKS] = pa.array(np.zeros(len(rows), np.int8))
    return pa.RecordBatch.from_arrays(list(arrays.values()), names=list(arrays))


def cut(rows, slice_us, pieces=1, texts=False):
    batches = [to_batch(rows[n::pieces], texts) for n in range(pieces) if rows[n::pieces]]
    parts = [item for batch in batches for item in partition(batch, slice_ends(times_us(batch), slice_us))]
    return list(parts)


class Both(beam.PTransform):
    """Events and labels out of one collection, to be joined."""

    def __init__(self, join):
        super().__init__()
        self.join = join

    def expand(self, pcoll):
        events = pcoll | "Events" >> beam.Filter(lambda batch: "TX_FRAUD" not in batch.schema.names)
        labels = pcoll | "Labels" >> beam.Filter(lambda batch: "TX_FRAUD" in batch.schema.names)
        return {"events": events, "labels": labels} | self.join


def join(steps, shards=1, engine=DIRECT, **options):
    options = {"carried": ("CARD",), "horizon_us": HORIZON, **options}
    found = through(Both(JoinLabels(PROJECT.label_type, "TX_FRAUD", shards=shards, **options)), steps, engine)
    return [table.to_pylist() if table is not None else [] for table in found]


def an_event(number, second, **changes):
    return {ID: number, "CARD": f"card {number % 7}", EVENT_TIME: second * SECOND, POSITION: 0, **changes}


def a_label(number, second, value=1, **changes):
    return {ID: number, "TX_FRAUD": value, EVENT_TIME: second * SECOND, POSITION: 0, **changes}


def make(seed, count=150, span=300):
    choose = random.Random(seed)
    events = [an_event(number, choose.randrange(span)) for number in range(count)]
    labels = []
    for event in events:
        for _ in range(choose.choice([0, 1, 1, 1, 2, 3])):
            labels.append(
                a_label(event[ID], event[EVENT_TIME] // SECOND + choose.randrange(-3, 70), choose.randrange(2))
            )
    labels += [a_label(count + n, choose.randrange(span)) for n in range(5)]
    labels = [{**label, POSITION: place} for place, label in enumerate(labels)]
    choose.shuffle(events)
    choose.shuffle(labels)
    return events, labels


def by_definition_joined(events, labels):
    """{(id, card, event time, label, label time)}, and {(position of a label, why)}; of equal labels the position is left out."""
    rows, dead = set(), []
    event_of, by_id = {event[ID]: event for event in events}, operator.itemgetter(ID)
    for number, group in itertools.groupby(sorted(labels, key=by_id), key=by_id):
        event, had = event_of.get(number), False
        for label in sorted(group, key=operator.itemgetter(EVENT_TIME, "TX_FRAUD")):
            age = label[EVENT_TIME] - event[EVENT_TIME] if event else -1
            if not 0 <= age < HORIZON:
                dead.append((number, label[EVENT_TIME], label["TX_FRAUD"], NO_EVENT))
            elif had:
                dead.append((number, label[EVENT_TIME], label["TX_FRAUD"], ALREADY_KNOWN))
            else:
                rows.add((number, event["CARD"], event[EVENT_TIME], label["TX_FRAUD"], label[EVENT_TIME]))
                had = True
    return rows, sorted(dead)


def us(time):
    return (time - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)) // datetime.timedelta(microseconds=1)


def summary(rows, dead, texts=False):
    def number(value):
        return int(str(value).removeprefix("tx ")) if texts else value

    joined = [(number(r[ID]), r["CARD"], us(r[EVENT_TIME]), r["TX_FRAUD"], us(r[LABEL_TIME])) for r in rows]
    assert len(set(joined)) == len(joined)
    said = []
    for letter in dead:
        (reason,) = json.loads(letter["reasons"])
        payload = json.loads(letter["payload"])
        assert (reason["field"], letter["step"], reason["value"]) == (ID, "JoinLabels", letter["event_id"])
        said.append((number(payload[ID]), us(letter["event_time"]), payload["TX_FRAUD"], reason["rule"]))
    return set(joined), sorted(said)


@pytest.mark.parametrize(
    ("shards", "slice_s", "pieces", "texts"), [(1, 1000, 3, False), (3, 50, 2, False), (2, 20, 5, True)]
)
def test_labels_find_their_events(engine, shards, slice_s, pieces, texts):
    events, labels = make(shards)
    items = cut(events, slice_s * SECOND, pieces, texts) + cut(labels, slice_s * SECOND, pieces, texts)
    random.Random(0).shuffle(items)
    found = summary(*join([(items, END)], shards, engine), texts)
    assert found == by_definition_joined(events, labels)
    assert len(found[0]) > 60
    assert {rule for *_, rule in found[1]} == {NO_EVENT, ALREADY_KNOWN}


class Forgetful(dict):
    def __setitem__(self, key, value):
        """Nothing is kept."""


def test_labels_find_their_events_as_the_watermark_moves():
    events, labels = make(5, count=400, span=900)
    items = cut(events, 10 * SECOND) + cut(labels, 10 * SECOND, 2)
    steps = [([i for i in items if i[0] // SECOND == end], end * SECOND) for end in range(-10, 1000, 10)]
    expected = by_definition_joined(events, labels)
    assert summary(*join([*steps, ([], END)], 2)) == expected
    # With a log that is joined often and read each time, and hashes that many ids share.
    with (
        mock.patch.object(segments, "MAX_RECENT_SEGMENTS", 3),
        mock.patch.object(segments, "SEGMENT_ROWS", 20),
        mock.patch.object(holding.AdvanceSlices, "setup", lambda self: setattr(self, "_memories", Forgetful())),
        mock.patch.object(label_join, "_hashes", lambda ids: ids.to_numpy() % 5),
    ):
        assert summary(*join([*steps, ([], END)], 2)) == expected


def labels_worker():
    return make_worker(joining._Join(JoinLabels(PROJECT.label_type, "TX_FRAUD", ("CARD",), HORIZON, 1)))


def routed(events, labels, slice_us):
    """The items of each slice, as they come to one shard."""
    route = JoinLabels(PROJECT.label_type, "TX_FRAUD", ("CARD",), HORIZON, 1)
    items = [(end, part) for end, batch in cut(events, slice_us, 2) for *_, part in route._route_events(batch)]
    items += cut(labels, slice_us, 2)
    ends = sorted({end // slice_us for end, _ in items})
    return [[item for item in items if item[0] // slice_us == end] for end in ends]


def told(outputs):
    dead = [output.value.value for output in outputs if isinstance(output, beam.pvalue.TaggedOutput)]
    rows = [output.value for output in outputs if not isinstance(output, beam.pvalue.TaggedOutput)]
    return summary(*([row for batch in batches for row in batch.to_pylist()] for batches in (rows, dead)))


@pytest.mark.parametrize("recent", [3, 1000])
def test_workers_that_take_turns_over_a_state_that_is_restored(monkeypatch, recent):
    """The memory of each is of a state that the other has moved on since, or that never was."""
    monkeypatch.setattr(segments, "MAX_RECENT_SEGMENTS", recent)
    events, labels = make(8)
    workers, state, found = [labels_worker(), labels_worker()], State(), []
    for number, items in enumerate(routed(events, labels, 10 * SECOND)):
        worker = workers[number // 3 % 2]
        state.put(worker, items)
        checkpoint = state.copy()
        while state.timer.at is not None:  # a bundle that is lost
            list(state.fire(worker))
        state = checkpoint
        while state.timer.at is not None:
            found += state.fire(worker)
    assert told(found) == by_definition_joined(events, labels)


def test_a_bundle_of_labels_that_fails_half_way_is_done_again():
    events, labels = make(9)
    worker, state = labels_worker(), State()
    state.put(worker, [item for items in routed(events, labels, 30 * SECOND) for item in items])
    before = state.copy()
    half_way = state.fire(worker, END)
    for _ in range(6):
        next(half_way)
    half_way.close()
    assert told(list(before.fire(worker, END))) == by_definition_joined(events, labels)


def test_labels_of_one_slice_go_on_in_pieces(monkeypatch):
    monkeypatch.setattr(holding, "OUTPUT_ROWS", 16)
    events, labels = make(10)
    state, worker = State(), labels_worker()
    state.put(worker, [item for items in routed(events, labels, 1000 * SECOND) for item in items])
    outputs = list(state.fire(worker, END))
    assert told(outputs) == by_definition_joined(events, labels)
    sizes = [output.value.num_rows for output in outputs if not isinstance(output, beam.pvalue.TaggedOutput)]
    assert len(sizes) > 4
    assert max(sizes) == 16


def test_the_log_of_labels_stays_bounded(monkeypatch):
    monkeypatch.setattr(segments, "MAX_RECENT_SEGMENTS", 3)
    state, most = State(), 0
    worker = labels_worker()
    events = [an_event(n, n) for n in range(1500)]
    labels = [a_label(n, n + 3) for n in range(1500)]
    for items in routed(events, labels, 10 * SECOND):
        state.put(worker, items)
        while state.timer.at is not None:
            list(state.fire(worker))
        most = max(most, state.rows())
    assert 100 < most < 500  # two rows a second, for the horizon and as long again


def test_what_is_kept_stays_bounded():
    kept, sizes = (), []
    for second in range(0, 3000, 5):
        events = to_batch([an_event(second + n, second) for n in range(5)])
        named = pa.RecordBatch.from_arrays([events.column(i) for i in (0, 1, 2)], names=[ID, "CARD", EVENT_TIME])
        newest = max((part.index.last for part in kept), default=0)
        kept = label_join.keep_events(kept, named, newest - HORIZON)
        labels = to_batch([a_label(second + n, second + 1) for n in range(5)])
        _, faults, kept = label_join.join_labels(kept, labels, ID, "TX_FRAUD", HORIZON)
        assert not faults.bad.any()
        sizes.append(sum(map(len, kept)))
    assert 60 < max(sizes) < 300


def test_an_id_that_is_used_again_gets_the_label_of_its_latest_event():
    events = [an_event(1, 10, CARD="a"), an_event(1, 40, CARD="b")]
    labels = [a_label(1, 20), a_label(1, 39, 0), a_label(1, 41, 0), a_label(1, 99), a_label(1, 100), a_label(1, 9)]
    rows, dead = join([(cut(events, 5 * SECOND) + cut(labels, 5 * SECOND), END)])
    assert {(r["CARD"], r["TX_FRAUD"], us(r[LABEL_TIME]) // SECOND) for r in rows} == {("a", 1, 20), ("b", 0, 41)}
    said = sorted((us(d["event_time"]) // SECOND, json.loads(d["reasons"])[0]["rule"]) for d in dead)
    assert said == [(9, NO_EVENT), (39, ALREADY_KNOWN), (99, ALREADY_KNOWN), (100, NO_EVENT)]


def test_a_label_that_comes_late_is_taken_unless_there_is_one():
    events, first = [an_event(1, 10), an_event(2, 10), an_event(3, 95)], a_label(1, 50)
    late = [a_label(1, 40, 0), a_label(2, 40)]
    at = 100 * SECOND
    steps = [
        (cut([*events, an_event(4, 100)], at) + cut([first], at), at + SECOND),
        ([(at, to_batch(late))], at + SECOND),
        ([], END),
    ]
    rows, dead = join(steps, lateness_us=HORIZON)
    assert {(r[ID], us(r[LABEL_TIME]) // SECOND) for r in rows} == {(1, 50), (2, 40)}
    assert [(d["event_id"], json.loads(d["reasons"])[0]["rule"]) for d in dead] == [("1", ALREADY_KNOWN)]


def test_scores_can_be_joined_with_their_labels():
    """Score rows have the event's time under its own name."""
    scores = to_batch([an_event(n, n, CARD=None) for n in range(20)])
    score = pa.array(np.linspace(0, 1, 20, dtype=np.float32))
    decision = pa.array(["approve", "block"]).take(pa.array([n % 2 for n in range(20)])).dictionary_encode()
    columns = [scores.column(0), scores.column(2), score, decision]
    scores = pa.RecordBatch.from_arrays(columns, names=[ID, "TX_DATETIME", "score", "decision"])
    labels = to_batch([a_label(n, n + 5, n % 2) for n in (3, 4, 11)])
    rows, dead = join(
        [([(30 * SECOND, scores.slice(0, 9)), (30 * SECOND, scores.slice(9)), (30 * SECOND, labels)], END)],
        carried=("score", "decision"),
        event_time="TX_DATETIME",
        label_time="SEEN",
    )
    assert dead == []
    assert list(rows[0]) == [ID, "score", "decision", "TX_DATETIME", "SEEN", "TX_FRAUD"]
    found = sorted(
        (r[ID], us(r["TX_DATETIME"]) // SECOND, r["decision"], r["TX_FRAUD"], us(r["SEEN"]) // SECOND) for r in rows
    )
    assert found == [(3, 3, "block", 1, 8), (4, 4, "approve", 0, 9), (11, 11, "block", 1, 16)]
    assert {r[ID]: r["score"] for r in rows} == {n: score[n].as_py() for n in (3, 4, 11)}


def test_provisional_events_are_not_joined():
    event = to_batch([an_event(1, 1)])
    marked = pa.array([IS_PROVISIONAL], pa.int8())
    event = pa.RecordBatch.from_arrays([*event.columns[:-1], marked], names=event.schema.names)
    rows, dead = join([([(10 * SECOND, event), (10 * SECOND, to_batch([a_label(1, 5)]))], END)])
    assert (rows, len(dead)) == ([], 1)


def test_a_project_without_label_records_has_nothing_to_join():
    project, _ = parse_project(
        (CARD_FRAUD / "project.yaml").read_bytes(), lambda name: (CARD_FRAUD / name).read_bytes()
    )
    with pytest.raises(ValueError, match=r"the project declares no label\.events"):
        join_labels(None, None, None, GraphConfig(project, source=None, score=None, sink=None))
    assert FAULTS == []
