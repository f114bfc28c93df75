"""Rows of tables in tiles: the same bytes however they come and whatever leaves, and the graph's own rows out of them."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest

from models.features.table_join import join_fields, learn
from models.project.contract import Contract, field_of_kind
from models.record import EVENT_TIME, TIMESTAMP, RecordType
from models.store.kinds import Kind, tiles_of
from models.store.reference import known_of, rows_of_table, without_replaced
from models.store.tiles import decode_tiles, merge_tiles

pytestmark = [pytest.mark.both_sets, pytest.mark.core_set]

KINDS = {"key": "string", "size": "int", "rate": "float", "town": "string", "until": "time", "gone": "bool"}
FIELDS = {name: field_of_kind(name, kind, False) for name, kind in KINDS.items()}
RECORDS = RecordType("t", 2, Contract(FIELDS, b""), "key", "at", tuple(KINDS), 0, 1 << 60, 999)
ALWAYS = 1 << 62
KIND = Kind("rows of t", ("who",), "__content", tuple((n, "t") for n in list(KINDS)[1:]), False, ALWAYS, ALWAYS)
TYPES = {name: field.arrow_type for name, field in FIELDS.items()}
JOINED = {name: TYPES[name] for name in ("size", "rate", "town")}

row_lists = st.lists(
    st.fixed_dictionaries(
        {
            "key": st.sampled_from(["a", "b", "é"]),
            "size": st.none() | st.sampled_from([0, -5, 2**63 - 1, 2**53 + 1]),
            "rate": st.none() | st.sampled_from([0.0, -0.0, 0.1, 1e300, 5e-324, 2 / 3]),
            "town": st.none() | st.sampled_from(["", "Rome", "zoë"]),
            "until": st.none() | st.integers(0, 40),
            "gone": st.none() | st.sampled_from([0, 0, 1]),
            EVENT_TIME: st.integers(-9, 30),
        }
    ),
    min_size=1,
    max_size=25,
)


def batch_of(rows):
    kinds = {**TYPES, EVENT_TIME: TIMESTAMP}
    return pa.RecordBatch.from_arrays([pa.array([r[n] for r in rows], kind) for n, kind in kinds.items()], list(kinds))


def tiles_in(rows):
    stored, keys = rows_of_table(KIND, RECORDS, batch_of(rows))
    return tiles_of(KIND.name, KIND.tile_us, stored, keys)


def united(tiles, more):
    merged = merge_tiles(KIND.kinds, [tiles.get(place) for place in more], list(more.values()))
    return {**tiles, **dict(zip(more, merged, strict=True))}


def shortened(tiles, before_us):
    return {place: without_replaced(tile, before_us) for place, tile in tiles.items()}


def bits(values):
    return [np.float64(v).tobytes() if isinstance(v, float) else v for v in values.to_pylist()]


def joined(known, asked):
    keys = pa.array([key for key, _ in asked], pa.string())
    events = pa.RecordBatch.from_arrays([keys, pa.array([t for _, t in asked], TIMESTAMP)], ["who", EVENT_TIME])
    batch, found = join_fields(events, known, "who", JOINED, "until", "gone")
    assert batch.schema.names == ["who", EVENT_TIME, *JOINED]
    return [bits(batch[name]) for name in JOINED], found.tolist()


@hypothesis.settings(deadline=None)
@hypothesis.given(row_lists, st.integers(-5, 30), st.randoms(use_true_random=False))
def test_the_same_rows_make_the_same_tiles_and_joins_however_they_come(rows, before_us, chosen):
    whole = shortened(tiles_in(rows), before_us)
    left, tiles = chosen.sample(rows, len(rows)) + chosen.sample(rows, len(rows) // 2), {}
    while left:
        number = chosen.randrange(1, 6)
        tiles, left = united(tiles, tiles_in(left[:number])), left[number:]
        tiles = shortened(tiles, chosen.randrange(-9, before_us + 1))
    assert shortened(tiles, before_us) == whole

    asked = [(chosen.choice(["a", "b", "é", "nobody", None]), chosen.randrange(before_us, 45)) for _ in range(12)]
    decoded, counts = decode_tiles(KIND.kinds, list(whole.values()))
    keys = pa.array([place.key for place in whole], pa.string()).take(
        pa.array(np.repeat(np.arange(len(whole)), counts))
    )
    assert joined(known_of(RECORDS, decoded, keys), asked) == joined(learn((), batch_of(rows), -100), asked)


def test_what_was_replaced_leaves_and_what_holds_stays():
    rows = [{**dict.fromkeys(KINDS), "key": "a", "size": n, EVENT_TIME: n} for n in range(10)]
    rows += [{**rows[4], "size": 99}]
    (tile,) = shortened(tiles_in(rows), 4).values()
    decoded, _ = decode_tiles(KIND.kinds, [tile])
    assert decoded.time.tolist() == [4, 4, 5, 6, 7, 8, 9]
    assert without_replaced(tile, 4) is tile
    (last,) = shortened(tiles_in(rows), 1000).values()
    assert decode_tiles(KIND.kinds, [last])[0].time.tolist() == [9]


def test_nothing_is_known_of_no_rows():
    decoded, _ = decode_tiles(KIND.kinds, [])
    assert known_of(RECORDS, decoded, pa.array([], pa.string())) == ()
