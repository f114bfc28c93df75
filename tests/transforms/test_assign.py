"""Releases assigned as a watermark moves: by an event's own time, in whatever parts events and records come."""

import random

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest

from models.record import EVENT_TIME, IS_HISTORY, IS_PROVISIONAL, MARKS, SYSTEM_FIELDS
from models.rollout.assign import RECORD, to_batch
from models.rollout.records import order
from pipelines.runners import DIRECT
from tests.kit.declared import declared
from tests.kit.releases import canary, make_log
from tests.kit.steps import END, through
from transforms.assign import AssignReleases

SECOND = 1_000_000
SLICE = 10 * SECOND
PROJECT = declared(
    """
name: cards
schema: schema.pbtxt
event: {id: id, time: at}
entities: {card: card}
features: {row: {large: card > 3}}
model: {inputs: [large]}
""",
    """
feature { name: "id" type: INT presence { min_fraction: 1.0 } }
feature { name: "at" type: INT presence { min_fraction: 1.0 } time_domain { integer_format: UNIX_SECONDS } }
feature { name: "card" type: INT presence { min_fraction: 1.0 } }
""",
)
LOG = make_log(
    "old",
    {"at": 25 * SECOND, "challenger": "new", "canary": canary("card", 5000)},
    {"at": 40 * SECOND, "champion": "new", "challenger": None, "canary": None},
    {"at": 40 * SECOND, "champion": "newer"},
    {"at": 55 * SECOND, "champion": "old"},
    lead_us=0,
)


class Both(beam.PTransform):
    """Events and releases from one source that a test moves."""

    def __init__(self, shards):
        self._shards = shards

    def expand(self, pcoll):
        inputs = {
            "releases": pcoll | "Releases" >> beam.Filter(lambda batch: RECORD in batch.schema.names),
            "events": pcoll | "Events" >> beam.Filter(lambda batch: RECORD not in batch.schema.names),
        }
        return inputs | AssignReleases(PROJECT, self._shards)


def batch_of(events, marks=0):
    ids, times, cards = zip(*events, strict=True)
    columns = {
        "id": pa.array(ids),
        "card": pa.array(cards),
        EVENT_TIME: pa.array(times, pa.int64()).cast(SYSTEM_FIELDS[EVENT_TIME].type),
        MARKS: pa.array(np.full(len(ids), marks, np.int8)),
    }
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def events(chosen, number=120):
    """Ids, times of 70 seconds, some at a slice's very end, and cards."""
    return [(n, chosen.choice([chosen.randrange(70), chosen.randrange(8) * 10]) * SECOND, n % 9) for n in range(number)]


def end_of(time_us):
    return (time_us // SLICE + 1) * SLICE


def found_of(rows):
    return {row["id"]: (row["__release"], row["__role"], row["__bundle"]) for row in rows.to_pylist()}


def expected(made):
    """By definition; the shares are tested with the pure function."""
    seqs = {n: LOG.in_effect(time).seq for n, time, _ in made}
    assert set(seqs.values()) == {0, 1, 3, 4}  # of two from one time the later
    return seqs


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shards", [1, 3])
def test_parts_and_order_of_what_comes_change_nothing(engine, seed, shards):
    chosen = random.Random(seed)
    made = events(chosen)
    late = set(chosen.sample(range(len(made)), 20))
    arrival = {n: end_of(time) + (SLICE * chosen.randrange(1, 4) if n in late else 0) for n, time, _ in made}
    # A record is here by the end of the slice in which it takes effect; some are earlier, some come twice.
    known = [(min(end_of(max(order(r)[0], 0)), chosen.randrange(1, 8) * SLICE), r) for r in LOG.records]
    known = [(0 if r.seq == 0 else end, r) for end, r in known]
    known += [(end + SLICE, r) for end, r in known if chosen.random() < 0.5]
    steps = []
    for end in range(0, 13 * SLICE, SLICE):
        batches = [(end, to_batch([r])) for at, r in known if at == end]
        part = [event for event in made if arrival[event[0]] == end]
        chosen.shuffle(part)
        cut = chosen.randrange(len(part) + 1)
        batches += [(end, batch_of(piece)) for piece in (part[:cut], part[cut:]) if piece]
        chosen.shuffle(batches)
        steps.append((batches, end + SECOND // 20))
    steps.append(([], END))
    rows, _ = through(Both(shards), steps, engine)
    found = found_of(rows)
    assert {n: seq for n, (seq, *_) in found.items()} == expected(made)
    assert len(rows) == len(made)
    whole, _ = through(Both(1), [([(SLICE, to_batch(LOG.records)), (20 * SLICE, batch_of(made))], END)], engine)
    assert found_of(whole) == found
    assert {(bundle, role) for seq, role, bundle in found.values() if seq == 1} == {
        ("old", "champion"),
        ("new", "canary"),
    }


def test_history_is_left_out_and_what_comes_before_any_release_at_arrival_is_too():
    made = events(random.Random(9))
    steps = [
        ([(SLICE, batch_of(made[:5], IS_PROVISIONAL))], SLICE - 1),
        ([(SLICE, to_batch(LOG.records))], SLICE + SECOND),
        ([(8 * SLICE, batch_of(made[5:9], IS_PROVISIONAL)), (8 * SLICE, batch_of(made[9:20], IS_HISTORY))], 2 * SLICE),
        ([(8 * SLICE, batch_of(made[20:]))], END),
    ]
    rows, _ = through(Both(1), steps, DIRECT)
    assert sorted(row["id"] for row in rows.to_pylist()) == [*range(5, 9), *range(20, len(made))]
    assert all(seq == LOG.in_effect(made[n][1]).seq for n, (seq, *_) in found_of(rows).items())


def test_an_event_without_a_release_fails_and_is_not_passed_over():
    with pytest.raises(Exception, match="record 0 is missing"):
        through(Both(1), [([(SLICE, to_batch(LOG.records[1:])), (SLICE, batch_of([(1, 5, 5)]))], END)], DIRECT)
