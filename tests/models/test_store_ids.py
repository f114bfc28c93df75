"""Ids of events in a store: what batch calls a duplicate is one, whatever its entity, and what is sent again is not."""

import random

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest

from models.record import EVENT_TIME, TIMESTAMP
from models.store.ids import content_column, find_repeated, places_of_ids, rows_of_ids
from models.store.kinds import IDS, kinds_of, tiles_of
from models.store.tiles import merge_tiles
from tests.kit.declared import declared

pytestmark = [pytest.mark.both_sets, pytest.mark.core_set]

SCHEMA = """
feature { name: "id" type: BYTES presence { min_fraction: 1.0 } }
feature { name: "at" type: INT presence { min_fraction: 1.0 } time_domain { integer_format: UNIX_SECONDS } }
feature { name: "card" type: INT }
feature { name: "tips" type: FLOAT }
feature { name: "fraud" type: INT int_domain { min: 0 max: 1 } }
"""
TEXT = """
name: shops
schema: schema.pbtxt
event: {id: id, time: at, deduplicate_within: 10s}
entities: {card: card}
derive: {large: tips > 5, same: card + 1}
available: {tips: after 1d}
label: {field: fraud, delay: 1d}
features:
  row: {}
  rolling:
    - {entity: card, windows: {D: 1d}, missing: skip, features: {number: count, known: count where same > 1}}
    - {entity: card, windows: {W: 1d}, delay: 1d, missing: skip, features: {great: count where large, risk: rate(fraud)}}
"""
PROJECT = declared(TEXT, SCHEMA)
KIND, NAMES = kinds_of(PROJECT)[IDS], PROJECT.identifying_fields
WITHIN = 10_000_000
events = st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 40), st.integers(1, 2)), min_size=1, max_size=12)


def batch_of(rows):
    kinds = {"id": pa.string(), "card": pa.int64(), "fraud": pa.int64()}
    columns = {"id": 0, "card": 2, "fraud": 3}
    arrays = [pa.array([row[columns[name]] for row in rows], kind) for name, kind in kinds.items()]
    times = pa.array([row[1] * 1_000_000 for row in rows], pa.int64()).cast(TIMESTAMP)
    fields = {**dict(zip(kinds, arrays, strict=True)), "same": pa.array([row[2] + 1 for row in rows])}
    return pa.RecordBatch.from_arrays([*fields.values(), times], names=[*fields, EVENT_TIME])


class Store:
    def __init__(self):
        self.tiles = {}

    def ask(self, rows):
        """Which of the events are duplicates, as an endpoint that absorbs them finds."""
        batch = batch_of(rows)
        content = content_column(batch, NAMES, np.zeros(len(rows), bool))
        places = places_of_ids(KIND, batch)
        repeated = find_repeated(KIND, batch, content, [self.tiles[place] for place in places if place in self.tiles])
        stored = rows_of_ids(KIND, batch, content_column(batch, NAMES, repeated))
        for place, tile in tiles_of(KIND.name, KIND.tile_us, *stored).items():
            assert place in places
            (self.tiles[place],) = merge_tiles(KIND.kinds, [self.tiles.get(place)], [tile])
        return repeated.tolist()


def expected(ordered):
    """By definition: another with that id is less than ten seconds before it, or of its time and stands before it."""
    return [any(b[0] == e[0] and e[1] - b[1] < 10 for b in ordered[:place]) for place, e in enumerate(ordered)]


def test_what_becomes_known_later_tells_no_events_apart():
    assert NAMES == ("card", "same")


@hypothesis.settings(deadline=None)
@hypothesis.given(events, st.randoms(use_true_random=False))
def test_events_in_order_one_by_one_or_in_parts_are_duplicates_as_in_batch(drawn, chosen):
    ordered = sorted({(i, at, card, 0) for i, at, card in drawn}, key=lambda e: (e[1], e[0], e[2]))
    found, store, left = [], Store(), ordered
    one = Store()
    wanted = [one.ask([event])[0] for event in ordered]
    assert wanted == expected(ordered)
    while left:
        size = chosen.randrange(1, 4)
        part = []  # an id that stands twice in one part is told there by its content's order, so it is cut there
        while left and len(part) < size and left[0][:2] not in [e[:2] for e in part]:
            part.append(left[0])
            left = left[1:]
        found += store.ask(part)
    assert found == wanted
    assert store.tiles == one.tiles
    # Sent again, alone, late and with the label that became known, each has the answer that it had.
    for place in chosen.sample(range(len(ordered)), len(ordered)):
        *event, _ = ordered[place]
        again = [other for other in ordered if other[:2] == ordered[place][:2]]
        if len(again) == 1:
            assert one.ask([(*event, 1)]) == [wanted[place]]
    assert store.tiles == one.tiles


def test_an_event_that_is_late_is_a_duplicate_of_one_that_was_answered():
    store = Store()
    assert store.ask([("a", 20, 1, 0)]) == [False]
    assert store.ask([("a", 11, 2, 0)]) == [True]
    assert store.ask([("a", 10, 2, 0)]) == [True]  # of that one
    assert store.ask([("a", 31, 2, 0)]) == [False]
    for event, repeated in ((("a", 20, 1, 0), False), (("a", 11, 2, 0), True), (("a", 31, 2, 0), False)):
        assert store.ask([event]) == [repeated]


def test_ids_are_in_tiles_of_many_and_no_one_asks_for_more_than_it_needs():
    rows = [(f"{n}", random.Random(n).randrange(10**6), 1, 0) for n in range(200)]
    store = Store()
    assert not any(store.ask(rows))
    assert not any(store.ask(rows))
    assert len(places_of_ids(KIND, batch_of(rows[:1]))) <= 5
    assert KIND.passed_us(50_000_000, 0) <= 50_000_000 - WITHIN + 1
