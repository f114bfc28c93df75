"""Tiles: rows of one entity in a fixed length of event time, as bytes that are the same whoever wrote them.

A tile is a set of rows in the order (event time, event id), of two with both the same the one with the smaller values
in the order of the columns. So the union of tiles is idempotent and has no order. Its bytes, little-endian:

- 4 bytes `hrt1`, the number of rows uint32, the length of the texts uint32, the number of kinds uint8, the kinds
- the rows, all of one width: the event time int64, then a value for each kind, the event id first: of `i` an int64, of
  `f` a float64, NaN where there is none, of `t` the length of a text in bytes int32, -1 where there is none
- the texts in UTF-8, row by row
- the CRC-32 of all before, uint32
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.batches import as_column, as_int64, ranks_of
from models.errors import HeadraceError
from models.order import sort_order

Int64 = np.ndarray[Any, np.dtype[np.int64]]

INTEGER, NUMBER, TEXT = "i", "f", "t"
MAX_TILE_BYTES = 64 << 20
_MAGIC = b"hrt1"
_HEAD = struct.Struct("<4sIIB")
_CRC = struct.Struct("<I")
_CHECKED = 0x2144DF1C  # the CRC-32 of whatever ends with its own
_TYPES = {INTEGER: "<i8", NUMBER: "<f8", TEXT: "<i4"}


class TileError(HeadraceError, ValueError):
    """A tile of a store that is damaged, or of other columns than are asked for."""


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Rows of tiles: event times int64[n], microseconds since 1970 UTC, and a column for each of `kinds`, ids first.

    A column is an array of int64, of float64 with NaN where there is none, or of texts with nulls.
    """

    kinds: str
    time: Int64
    columns: tuple[pa.Array, ...]

    def __len__(self) -> int:
        return len(self.time)

    def take(self, rows: Any) -> Rows:
        """The given rows, in that order."""
        return Rows(self.kinds, self.time[rows], tuple(column.take(pa.array(rows)) for column in self.columns))

    def slice(self, low: int, high: int) -> Rows:
        """The rows from one until another, without a copy."""
        return Rows(self.kinds, self.time[low:high], tuple(column.slice(low, high - low) for column in self.columns))


def encode_tiles(rows: Rows, starts: Int64) -> list[bytes]:
    """A tile of the rows from each of `starts`, ascending, until the next; they must be in a tile's order.

    TileError for one larger than MAX_TILE_BYTES.
    """
    head, width = _head_of(rows.kinds)
    records = np.empty(len(rows), _dtype(rows.kinds))
    records["time"] = rows.time
    texts = [place for place, kind in enumerate(rows.kinds) if kind == TEXT]
    lengths, heap = _heap_of([rows.columns[place] for place in texts], len(rows))
    for place, kind in enumerate(rows.kinds):
        if kind != TEXT:
            records[f"c{place}"] = rows.columns[place].to_numpy(zero_copy_only=False)
    for number, place in enumerate(texts):
        records[f"c{place}"] = lengths[:, number]
    ends = np.concatenate([[0], np.cumsum(np.maximum(lengths, 0).sum(axis=1))]).tolist()
    body, edges = records.tobytes(), [*starts.tolist(), len(rows)]
    tiles = []
    for start, stop in itertools.pairwise(edges):
        text = heap[ends[start] : ends[stop]]
        begin = _HEAD.pack(_MAGIC, stop - start, len(text), len(head)) + head
        made = b"".join([begin, body[start * width : stop * width], text])
        if len(made) >= MAX_TILE_BYTES:
            raise TileError(f"a tile of {stop - start:,} rows is larger than {MAX_TILE_BYTES >> 20} MiB")
        tiles.append(made + _CRC.pack(zlib.crc32(made)))
    return tiles


def kinds_in(tile: bytes) -> str:
    """The kinds of a tile's columns, as it says itself; TileError if it says none."""
    if len(tile) < _HEAD.size or not tile.startswith(_MAGIC):
        raise TileError("a tile is damaged")
    kinds = tile[_HEAD.size : _HEAD.size + tile[_HEAD.size - 1]].decode("latin-1")
    if not kinds or not set(kinds) <= set(_TYPES):
        raise TileError("a tile is damaged")
    return kinds


def decode_tiles(kinds: str, tiles: Sequence[bytes]) -> tuple[Rows, Int64]:
    """The rows of tiles one after another, and how many each has, int64[tiles].

    TileError if one is damaged, or of other kinds.
    """
    head, width = _head_of(kinds)
    begin = _HEAD.size + len(head)
    bodies, heaps, counts, sizes = [], [], [], []
    unpack, crc32 = _HEAD.unpack_from, zlib.crc32
    for tile in tiles:
        if not begin + _CRC.size <= len(tile) <= MAX_TILE_BYTES:
            raise TileError(f"a tile of {len(tile):,} bytes is damaged")
        magic, count, size, told = unpack(tile)
        body = begin + count * width
        if magic != _MAGIC or body + size + _CRC.size != len(tile):
            kind = tile[_HEAD.size : _HEAD.size + told]
            raise TileError("a tile is of other columns" if magic == _MAGIC and kind != head else "a tile is damaged")
        if crc32(tile) != _CHECKED:
            raise TileError("a tile is damaged: its checksum is of other bytes")
        if told != len(head) or tile[_HEAD.size : begin] != head:
            raise TileError("a tile is of other columns")
        bodies.append(tile[begin:body])
        counts.append(count)
        sizes.append(size)
        if size:
            heaps.append(tile[body : body + size])
    records = np.frombuffer(b"".join(bodies), _dtype(kinds))
    rows = Rows(kinds, records["time"].astype(np.int64), _columns_of(kinds, records, b"".join(heaps), counts, sizes))
    return rows, np.asarray(counts, np.int64)


def merge_tiles(kinds: str, before: Sequence[bytes | None], more: Sequence[bytes]) -> list[bytes]:
    """The union of each tile with another of the same place, if there is one; TileError as `decode_tiles`."""
    both = [place for place, old in enumerate(before) if old is not None and old != more[place]]
    merged = list(more)
    if both:
        rows, counts = decode_tiles(kinds, [tile for place in both for tile in (before[place] or b"", more[place])])
        of_tile = np.repeat(np.arange(len(both)), counts.reshape(-1, 2).sum(axis=1))
        rows, of_tile = unite(rows, of_tile)
        starts = np.searchsorted(of_tile, np.arange(len(both)))
        for place, tile in zip(both, encode_tiles(rows, starts), strict=True):
            merged[place] = tile
    return merged


def unite(rows: Rows, place: Int64) -> tuple[Rows, Int64]:
    """The rows in the order (place, event time, event id), each once; and their places, ascending."""
    order = sort_order(rows.columns[0], place, rows.time)
    again = _same_event(rows, place, order)
    if again.any():  # of rows with one time and id, those with the smallest values first
        values = np.lexsort([*map(_rank, rows.columns[:0:-1])]) if len(rows.columns) > 1 else np.arange(len(rows))
        sorted_rows, sorted_place = rows.take(values), place[values]
        order = values[sort_order(sorted_rows.columns[0], sorted_place, sorted_rows.time)]
        order = order[~_same_event(rows, place, order)]
    return rows.take(order), place[order]


def _same_event(rows: Rows, place: Int64, order: Int64) -> Any:
    """Which rows in that order have the place, time and id of the row before, bool[n]."""
    earlier, later = order[:-1], order[1:]
    ids = rows.columns[0]
    same = np.asarray(pc.equal(ids.take(pa.array(later)), ids.take(pa.array(earlier))))
    for values in (place, rows.time):
        same = same & (values[later] == values[earlier])
    return np.concatenate([np.zeros(min(len(order), 1), bool), same])


def _rank(values: pa.Array) -> Int64:
    """Numbers int64[n] that order values; equal ones have one number, and only those of the same bits are equal."""
    if pa.types.is_string(values.type):
        return np.where(np.asarray(values.is_null()), 0, ranks_of(values.fill_null("")).astype(np.int64))
    if pa.types.is_integer(values.type):
        return as_int64(values)
    bits = np.asarray(values.to_numpy()).view(np.int64)
    return np.asarray(bits ^ ((bits >> 63) & np.iinfo(np.int64).max))


@functools.cache
def _dtype(kinds: str) -> np.dtype[Any]:
    return np.dtype([("time", "<i8"), *((f"c{place}", _TYPES[kind]) for place, kind in enumerate(kinds))])


def _head_of(kinds: str) -> tuple[bytes, int]:
    return kinds.encode(), _dtype(kinds).itemsize


def _heap_of(columns: Sequence[pa.Array], rows: int) -> tuple[Any, bytes]:
    """The lengths int32[rows, columns] of texts, -1 of none, and all of them row by row."""
    if not columns or not rows:
        return np.zeros((rows, len(columns)), np.int32), b""
    every = pa.concat_arrays([column.cast(pa.large_string()) for column in columns])
    by_row = np.arange(len(every)).reshape(len(columns), rows).T.ravel()
    texts = every.take(pa.array(by_row))
    lengths = np.asarray(pc.binary_length(texts).fill_null(-1)).astype(np.int32)
    _, _, heap = texts.fill_null("").buffers()  # of what was just taken, which starts where its buffer does
    size = int(np.maximum(lengths, 0).sum(dtype=np.int64))
    return lengths.reshape(rows, len(columns)), heap[:size].to_pybytes() if size else b""


def _columns_of(
    kinds: str, records: Any, heap: bytes, counts: Sequence[int], sizes: Sequence[int]
) -> tuple[pa.Array, ...]:
    texts = [place for place, kind in enumerate(kinds) if kind == TEXT]
    columns: list[Any] = [
        None if kind == TEXT else as_column(np.ascontiguousarray(records[f"c{place}"]))
        for place, kind in enumerate(kinds)
    ]
    if not texts:
        if heap:
            raise TileError("a tile is damaged: it has texts")
        return tuple(columns)
    lengths = np.stack([records[f"c{place}"] for place in texts], axis=1).astype(np.int64)
    long = np.maximum(lengths, 0)
    ends = np.concatenate([[0], np.cumsum(long.sum(axis=1))])
    edges = np.concatenate([[0], np.cumsum(np.asarray(counts, np.int64))])
    if (lengths < -1).any() or (np.diff(ends[edges]) != np.asarray(sizes, np.int64)).any():
        raise TileError("a tile is damaged: its texts have other lengths")
    offsets = np.concatenate([[0], np.cumsum(long.ravel())]).astype(np.int64)
    there = pa.array(lengths.ravel() >= 0)
    buffers = [there.buffers()[1], pa.py_buffer(offsets), pa.py_buffer(heap)]
    every = pa.LargeStringArray.from_buffers(len(there), buffers[1], buffers[2], buffers[0])
    try:
        every.validate(full=True)
    except pa.ArrowInvalid:
        raise TileError("a tile is damaged: a text of it is not UTF-8") from None
    every = every.cast(pa.string())
    for number, place in enumerate(texts):
        columns[place] = every.take(pa.array(np.arange(number, len(every), len(texts))))
    return tuple(columns)
