"""Tiles: sets of rows whose bytes are the same whatever they were made of, and which tell when they are damaged."""

import math
import random
import struct
import zlib

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest

from models.store.tiles import MAX_TILE_BYTES, Rows, TileError, decode_tiles, encode_tiles, merge_tiles, unite

pytestmark = [pytest.mark.both_sets, pytest.mark.core_set]

KINDS = ["iftf", "tftf", "iif"]
TEXTS = st.none() | st.sampled_from(["", "a", "é", "ab", "a\0b"])
NUMBERS = st.sampled_from([0.0, -0.0, 1.5, -2.5, math.nan, math.inf])
VALUES = {"i": st.integers(0, 3), "f": NUMBERS, "t": TEXTS}


@st.composite
def row_lists(draw, kinds):
    ids = st.integers(-2, 3) if kinds[0] == "i" else st.sampled_from(["", "a", "b", "é"])
    return draw(st.lists(st.tuples(st.integers(-2, 5), ids, *(VALUES[kind] for kind in kinds[1:])), max_size=20))


def rows_of(kinds, rows):
    types = {"i": pa.int64(), "f": pa.float64(), "t": pa.string()}
    columns = (pa.array([row[place + 1] for row in rows], types[kind]) for place, kind in enumerate(kinds))
    return Rows(kinds, np.array([row[0] for row in rows], np.int64), tuple(columns))


def tile_of(kinds, rows):
    united, _ = unite(rows_of(kinds, rows), np.zeros(len(rows), np.int64))
    return encode_tiles(united, np.zeros(1, np.int64))[0]


def plain(kinds, tile):
    rows, _ = decode_tiles(kinds, [tile])
    return list(zip(rows.time.tolist(), *(column.to_pylist() for column in rows.columns), strict=True))


def bits(values):
    return [struct.pack("<d", value) if isinstance(value, float) else value for value in values]


@hypothesis.given(
    st.sampled_from(KINDS).flatmap(lambda kinds: st.tuples(st.just(kinds), row_lists(kinds), st.integers(0, 99)))
)
def test_the_same_rows_make_the_same_bytes_however_they_come(drawn):
    kinds, rows, seed = drawn
    whole, shuffled = tile_of(kinds, rows), random.Random(seed)
    found = plain(kinds, whole)
    assert [row[:2] for row in found] == sorted({row[:2] for row in rows})
    assert all(bits(row) in [bits(each) for each in rows] for row in found)
    assert merge_tiles(kinds, [whole], [whole]) == [whole]
    # In parts of any size and order, some of them twice.
    twice = [*rows, *shuffled.sample(rows, len(rows) // 2)]
    shuffled.shuffle(twice)
    made = None
    while twice:
        number = shuffled.randint(1, len(twice))
        (made,) = merge_tiles(kinds, [made], [tile_of(kinds, twice[:number])])
        twice = twice[number:]
    assert made is None or made == whole


def test_tiles_are_merged_each_with_its_own():
    chosen = random.Random(0)
    rows = [
        [(chosen.randrange(9), n % 5, chosen.random(), "xyz"[: n % 4]) for n in range(size)] for size in (1, 30, 7, 1)
    ]
    halves = [(each[::2], each[1::2]) for each in rows]
    before = [tile_of("ift", one) for one, _ in halves]
    before[3] = None
    more = [tile_of("ift", other) if other else tile_of("ift", one) for one, other in halves]
    merged = merge_tiles("ift", before, more)
    assert merged == [tile_of("ift", each) for each in rows]
    decoded, counts = decode_tiles("ift", merged)
    assert counts.sum() == len(decoded)
    assert len(decode_tiles("ift", [])[0]) == 0


def test_of_two_contents_of_one_event_the_smaller_values_stay():
    one, other = (1, 7, 5, 2.0), (1, 7, 4, 9.0)  # as of a label, the first that was known
    assert plain("iif", tile_of("iif", [one, other])) == plain("iif", tile_of("iif", [other, one])) == [other]
    assert plain("if", tile_of("if", [(1, 7, -1.0), (1, 7, -2.0)])) == [(1, 7, -2.0)]


ROWS = [(1, "a", 0.5, "xy"), (1, "b", math.nan, None), (2, "c", 7.0, "")]


def test_a_tile_is_the_bytes_that_are_written_down():
    content = b"".join(
        [
            struct.pack("<4sIIB", b"hrt1", 2, 4, 3),
            b"tft",
            struct.pack("<qidi", 1, 1, 0.5, 2),
            struct.pack("<qidi", 2, 1, 7.0, -1),
            b"axyc",
        ]
    )
    assert tile_of("tft", [(2, "c", 7.0, None), (1, "a", 0.5, "xy")]) == content + struct.pack(
        "<I", zlib.crc32(content)
    )


def test_each_bit_that_is_changed_is_told():
    tile = tile_of("tft", ROWS)
    for place in range(len(tile) * 8):
        changed = bytearray(tile)
        changed[place // 8] ^= 1 << place % 8
        with pytest.raises(TileError):
            decode_tiles("tft", [bytes(changed)])
    for length in range(len(tile)):
        with pytest.raises(TileError, match="damaged"):
            decode_tiles("tft", [tile[:length]])


def signed(content):
    return content + struct.pack("<I", zlib.crc32(content))


HEAD = struct.Struct("<4sIIB")
HOSTILE = {
    "more rows than bytes": HEAD.pack(b"hrt1", 1 << 31, 0, 1) + b"i",
    "longer texts than bytes": HEAD.pack(b"hrt1", 0, 1 << 31, 1) + b"i",
    "texts without a column": HEAD.pack(b"hrt1", 0, 3, 1) + b"i" + b"abc",
    "another magic": HEAD.pack(b"hrt2", 0, 0, 1) + b"i",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_what_is_no_tile_is_refused_before_it_is_read(content):
    with pytest.raises(TileError, match="damaged"):
        decode_tiles("i", [signed(content)])


@pytest.mark.parametrize(("lengths", "text"), [((5, -2), b"abc"), ((1, 1), b"abc"), ((2, 2), b"a\xffbc")])
def test_texts_of_other_lengths_or_that_are_no_utf8_are_refused(lengths, text):
    rows = b"".join(struct.pack("<qi", 1, length) for length in lengths)
    with pytest.raises(TileError, match="damaged"):
        decode_tiles("t", [signed(HEAD.pack(b"hrt1", 2, len(text), 1) + b"t" + rows + text)])


def test_other_columns_and_tiles_that_are_too_large_are_told(monkeypatch):
    with pytest.raises(TileError, match="other columns"):
        decode_tiles("if", [tile_of("ii", [(1, 2, 3)])])
    with pytest.raises(TileError, match="other columns"):
        decode_tiles("if", [tile_of("iff", [(1, 2, 3.0, 4.0)])])
    with pytest.raises(TileError, match="damaged"):
        decode_tiles("i", [b"\0" * (MAX_TILE_BYTES + 1)])
    monkeypatch.setattr("models.store.tiles.MAX_TILE_BYTES", 1000)
    with pytest.raises(TileError, match="larger than"):
        tile_of("i", [(n, n) for n in range(100)])
