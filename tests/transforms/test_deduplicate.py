"""Deduplication: of the events with one id the first goes on, the same one each time, and none is lost."""

import datetime
import json
import random

import numpy as np
import pyarrow as pa
import pytest

from models.batches import partition, slice_ends, times_us
from models.features.duplicates import DUPLICATE
from models.record import EVENT_TIME, MARKS, POSITION, SOURCE, SYSTEM_FIELDS
from pipelines.runners import DIRECT
from tests.kit.steps import END, through
from tests.kit.support import card_fraud
from transforms.deduplicate import Deduplicate

pytestmark = pytest.mark.slow

PROJECT = card_fraud()
DAY = 86_400_000_000
HOUR = DAY // 24
WITHIN = PROJECT.event.deduplicate_within
START = 17_600 * DAY


def event(number, time, *, amount=1.0, source="s", position=0, history=False):
    return {
        "TRANSACTION_ID": number,
        "CUSTOMER_ID": 1,
        "TX_AMOUNT": amount,
        EVENT_TIME: START + time,
        SOURCE: source,
        POSITION: position,
        MARKS: int(history),
    }


def to_batch(events, texts=False):
    names = list(event(0, 0))
    columns = {name: [e[name] for e in events] for name in names}
    if texts:
        columns["TRANSACTION_ID"] = [f"tx {number}" for number in columns["TRANSACTION_ID"]]
    arrays = {name: pa.array(values) for name, values in columns.items()}
    arrays[EVENT_TIME] = arrays[EVENT_TIME].cast(SYSTEM_FIELDS[EVENT_TIME].type)
    arrays[MARKS] = arrays[MARKS].cast(pa.int8())
    arrays[SOURCE] = arrays[SOURCE].dictionary_encode()
    return pa.RecordBatch.from_arrays(list(arrays.values()), names=names)


def cut(events, slice_us=3 * DAY, pieces=1, texts=False):
    batches = [to_batch(events[n::pieces], texts) for n in range(pieces) if events[n::pieces]]
    return [item for batch in batches for item in partition(batch, slice_ends(times_us(batch), slice_us))]


def deduplicate(steps, shards=1, engine=DIRECT):
    """(rows that go on, dead letters), as lists of dictionaries."""
    rows, dead = through(Deduplicate(PROJECT.event_type, shards), steps, engine)
    return (rows.to_pylist() if rows else []), (dead.to_pylist() if dead else [])


def all_at_once(events, **options):
    return deduplicate([(cut(events), END)], **options)


def key(row):
    return tuple(str(row[name]) for name in sorted(row))


def make_events(seed, count=150):
    """Ids that come again: as copies, with another content, at another time, or after more than a week."""
    choose = random.Random(seed)
    events = []
    for number in range(count):
        first = event(number % 60, choose.randrange(40 * 24) * HOUR, amount=choose.randrange(3) / 4, position=number)
        events.append(first)
        if choose.random() < 0.4:
            changes = {
                POSITION: 1000 + number,
                SOURCE: choose.choice("ab"),
                "TX_AMOUNT": choose.choice([first["TX_AMOUNT"], 7.5]),
                EVENT_TIME: first[EVENT_TIME] + choose.choice([0, 0, HOUR, WITHIN - 1, WITHIN]),
            }
            events.append({**first, **changes})
    return events


@pytest.mark.parametrize("seed", range(3))
def test_an_event_goes_on_if_none_with_its_id_came_just_before(seed):
    events = make_events(seed)
    rows, dead = all_at_once(events)
    assert len(rows) + len(dead) == len(events)
    kept = {(row["TRANSACTION_ID"], row[SOURCE], row[POSITION]) for row in rows}
    assert len(kept) == len(rows)
    for e in events:
        others = [o for o in events if o["TRANSACTION_ID"] == e["TRANSACTION_ID"] and o is not e]
        ages = [e[EVENT_TIME] - o[EVENT_TIME] for o in others]
        is_kept = (e["TRANSACTION_ID"], e[SOURCE], e[POSITION]) in kept
        if any(0 < age < WITHIN for age in ages):
            assert not is_kept
        elif 0 not in ages:
            assert is_kept
        else:
            twins = [e, *(o for o, age in zip(others, ages, strict=True) if age == 0)]
            assert sum((t["TRANSACTION_ID"], t[SOURCE], t[POSITION]) in kept for t in twins) == 1


@pytest.mark.parametrize(
    ("shards", "slice_us", "pieces", "texts"),
    [(1, 3 * DAY, 4, False), (3, HOUR, 2, False), (8, 100 * DAY, 9, False), (3, DAY, 3, True)],
)
def test_the_same_events_go_on(engine, shards, slice_us, pieces, texts):
    events = make_events(9)
    expected_rows, expected_dead = deduplicate([(cut(events, texts=texts), END)])
    shuffled = list(events)
    random.Random(shards).shuffle(shuffled)
    rows, dead = deduplicate([(cut(shuffled, slice_us, pieces, texts), END)], shards, engine)
    assert sorted(map(key, rows)) == sorted(map(key, expected_rows))
    assert sorted(map(key, dead)) == sorted(map(key, expected_dead))


def test_the_same_events_go_on_as_the_watermark_moves():
    events = make_events(9)
    expected_rows, expected_dead = all_at_once(events)
    items = sorted(cut(events, 6 * HOUR), key=lambda item: item[0])
    rows, dead = deduplicate([*(([item], item[0]) for item in items), ([], END)], shards=2)
    assert sorted(map(key, rows)) == sorted(map(key, expected_rows))
    assert sorted(map(key, dead)) == sorted(map(key, expected_dead))


def test_dead_letters_say_what_was_a_duplicate_of_what():
    rows, dead = all_at_once([event(5, HOUR, position=1), event(5, 0, position=2), event(6, 0, position=3)])
    assert {(row["TRANSACTION_ID"], row[POSITION]) for row in rows} == {(5, 2), (6, 3)}
    (letter,) = dead
    assert json.loads(letter["reasons"]) == [{"field": "TRANSACTION_ID", "rule": DUPLICATE, "value": "5"}]
    assert (letter["step"], letter["source"], letter["position"], letter["event_id"]) == ("Deduplicate", "s", 1, "5")
    assert letter["event_time"] == datetime.datetime.fromtimestamp((START + HOUR) / 1e6, datetime.UTC)


def test_the_rows_that_go_on_have_the_columns_they_came_with():
    rows, _ = through(Deduplicate(PROJECT.event_type, 1), [(cut([event(1, 0), event(1, 0, position=2)]), END)])
    assert rows.schema.names == list(event(0, 0))


def test_of_contents_at_one_time_the_same_one_wins_wherever_it_comes_from():
    winners = set()
    for seed in range(8):
        choose = random.Random(seed)
        copies = [
            event(1, 0, amount=amount, source=choose.choice("abc"), position=choose.randrange(99))
            for amount in (1.0, 2.0, 3.0)
        ]
        choose.shuffle(copies)
        rows, dead = all_at_once(copies, shards=choose.choice([1, 3]))
        assert (len(rows), len(dead)) == (1, 2)
        winners.add(rows[0]["TX_AMOUNT"])
    assert len(winners) == 1


def test_of_equal_copies_the_one_that_is_history_wins():
    """It was scored when it was live."""
    for position in range(8):
        copies = [event(1, 0, position=position), event(1, 0, position=position + 1, history=True)]
        rows, dead = all_at_once(copies)
        assert [row[MARKS] for row in rows] == [1]
        assert len(dead) == 1


def test_a_copy_that_comes_late_is_a_duplicate_wherever_it_comes_from():
    """A broker delivers a message again, after its first copy has gone on; their order by origin may be any."""
    for position in range(8):
        first, again = event(1, 0, position=100), event(1, 0, position=position)
        steps = [(cut([first]), START + 9 * DAY), (cut([again]), START + 9 * DAY), ([], END)]
        rows, dead = deduplicate(steps)
        assert [row[POSITION] for row in rows] == [100]
        assert [letter["position"] for letter in dead] == [position]


def test_an_earlier_event_that_comes_late_is_a_duplicate_of_the_one_that_has_gone_on():
    for earlier, is_duplicate in ((HOUR, True), (WITHIN - 1, True), (WITHIN, False)):
        first, late = event(1, 20 * DAY), event(1, 20 * DAY - earlier)
        steps = [(cut([first]), START + 30 * DAY), (cut([late]), START + 30 * DAY), ([], END)]
        rows, dead = deduplicate(steps)
        assert (len(rows), len(dead)) == ((1, 1) if is_duplicate else (2, 0))
        at_once, _ = all_at_once([first, late])
        assert len(at_once) == len(rows)


def test_no_id_goes_on_twice_within_the_time_however_batches_come():
    for seed in range(4):
        choose = random.Random(seed)
        events = [event(choose.randrange(9), choose.randrange(int(WITHIN / 2)), position=n) for n in range(60)]
        watermark, steps = START, []
        for item in cut(events, HOUR, pieces=20):
            watermark += choose.randrange(12) * HOUR
            steps.append(([item], watermark))
        rows, dead = deduplicate([*steps, ([], END)])
        assert sorted(row["TRANSACTION_ID"] for row in rows) == sorted({e["TRANSACTION_ID"] for e in events})
        assert len(rows) + len(dead) == len(events)


def test_a_whole_file_read_twice_takes_no_time():
    """Many ties: two copies of every event."""
    count = 30_000
    rng = np.random.default_rng(0)
    events = [event(n, int(t)) for n, t in enumerate(rng.integers(0, DAY, count))]
    copies = [*events, *({**events[n], POSITION: count + n} for n in rng.permutation(count).tolist())]
    twice = to_batch(copies)
    rows, dead = through(Deduplicate(PROJECT.event_type, 1), [([(START + DAY, twice)], END)])
    assert rows.num_rows == dead.num_rows == count
    assert sorted(rows["TRANSACTION_ID"].to_pylist()) == list(range(count))
