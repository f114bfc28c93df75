"""Rows that were added to a store and stand in no tile yet: a log of entries, each of many entities' rows of one kind.

An entry is the length of the kind's name uint16, the name in UTF-8, the length of a tile int64 in microseconds, the
CRC-32 of all that uint32, and as a tile of models.store.tiles all rows, by key, with the key as a last column of texts.
Numbers are little-endian.
"""

from __future__ import annotations

import dataclasses
import itertools
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from models.store.kinds import Int64, Kind, Place, tiles_of
from models.store.tiles import TEXT, Rows, TileError, decode_tiles, encode_tiles, kinds_in

_NAME, _LENGTH, _CRC = struct.Struct("<H"), struct.Struct("<q"), struct.Struct("<I")


class Named(NamedTuple):
    """The name of a kind, the length of its tiles, and the kinds of its columns."""

    name: str
    tile_us: int
    kinds: str


@dataclasses.dataclass(frozen=True, eq=False)
class Entry:
    """An entry of a log that is read: rows in the order of their keys, and those."""

    named: Named
    rows: Rows
    keys: pa.Array


def write_entry(kind: Named | Kind, rows: Rows, keys: pa.Array) -> bytes:
    """An entry of rows of a kind, of which there must be one, and the key of each, a text."""
    order = np.argsort(keys.dictionary_encode().indices.to_numpy(), kind="stable")
    sorted_rows = rows.take(order)
    with_keys = Rows(rows.kinds + TEXT, sorted_rows.time, (*sorted_rows.columns, keys.take(pa.array(order))))
    name = kind.name.encode()
    (tile,) = encode_tiles(with_keys, np.zeros(1, np.int64))
    head = _NAME.pack(len(name)) + name + _LENGTH.pack(kind.tile_us)
    return head + _CRC.pack(zlib.crc32(head)) + tile


def read_entry(content: bytes) -> Entry:
    """What `write_entry` wrote; TileError if it is damaged."""
    damaged = "an entry of a store's log is damaged"
    try:
        (size,) = _NAME.unpack_from(content)
        end = _NAME.size + size
        (tile_us,), (told,) = _LENGTH.unpack_from(content, end), _CRC.unpack_from(content, end + _LENGTH.size)
    except struct.error:
        raise TileError(damaged) from None
    if zlib.crc32(content[: end + _LENGTH.size]) != told:
        raise TileError(damaged)
    name, tile = content[_NAME.size : end].decode(), content[end + _LENGTH.size + _CRC.size :]
    kinds = kinds_in(tile)
    if len(kinds) < 2 or kinds[-1] != TEXT:
        raise TileError(damaged)
    rows, _ = decode_tiles(kinds, [tile])
    if rows.columns[-1].null_count:
        raise TileError(f"{damaged}: it has rows without a key")
    return Entry(Named(name, tile_us, kinds[:-1]), Rows(kinds[:-1], rows.time, rows.columns[:-1]), rows.columns[-1])


def tiles_in(entries: Iterable[Entry]) -> list[tuple[Named, dict[Place, bytes]]]:
    """The tiles of all rows of entries, by kind."""
    found = []
    for named, same in itertools.groupby(sorted(entries, key=lambda entry: entry.named), key=lambda entry: entry.named):
        parts = list(same)
        rows = _concat(named.kinds, [entry.rows for entry in parts])
        keys = pa.concat_arrays([entry.keys for entry in parts])
        found.append((named, tiles_of(named.name, named.tile_us, rows, keys)))
    return found


def entry_of(named: Named, tiles: Mapping[Place, bytes]) -> bytes:
    """An entry of the rows of tiles of a kind, of which there must be one."""
    rows, counts = decode_tiles(named.kinds, list(tiles.values()))
    of_row = pa.array(np.repeat(np.arange(len(counts)), counts))
    return write_entry(named, rows, pa.array([place.key for place in tiles], pa.string()).take(of_row))


class Recent:
    """Entries that were read, from which the rows of one key are found without a look at the others."""

    def __init__(self) -> None:
        self._entries: dict[Any, Entry] = {}  # by the numbers of the log, ascending
        self._by_key: dict[tuple[str, str], list[tuple[Any, int, int]]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def learn(self, number: Any, entry: Entry) -> None:
        """One more entry, with a number that is larger than those before."""
        self._entries[number] = entry
        encoded = entry.keys.dictionary_encode()
        edges = [*np.flatnonzero(np.diff(encoded.indices.to_numpy(), prepend=-1)).tolist(), len(entry.keys)]
        for key, (low, high) in zip(encoded.dictionary.to_pylist(), itertools.pairwise(edges), strict=True):
            self._by_key.setdefault((entry.named.name, key), []).append((number, low, high))

    def forget(self, until: Any) -> None:
        """Let go of entries up to a number."""
        gone = [number for number in self._entries if number <= until]
        for number in gone:
            del self._entries[number]
        if gone:
            kept = {at: [part for part in parts if part[0] > until] for at, parts in self._by_key.items()}
            self._by_key = {at: parts for at, parts in kept.items() if parts}

    def tiles(self, places: Sequence[Place]) -> list[tuple[Named, dict[Place, bytes]]]:
        """Of the places those that entries have rows of, as tiles, by kind."""
        wanted = set(places)
        of_kind: dict[Named, list[tuple[str, Any, int, int]]] = {}
        for name, key in dict.fromkeys((place.kind, place.key) for place in places):
            for number, low, high in self._by_key.get((name, key), ()):
                of_kind.setdefault(self._entries[number].named, []).append((key, number, low, high))
        found = []
        for named, parts in of_kind.items():
            rows = _concat(named.kinds, [self._entries[number].rows.slice(low, high) for _, number, low, high in parts])
            of_row = np.repeat(np.arange(len(parts)), [high - low for _, _, low, high in parts])
            keys = pa.array([key for key, *_ in parts], pa.string()).take(pa.array(of_row))
            tiles = tiles_of(named.name, named.tile_us, rows, keys)
            found.append((named, {place: tile for place, tile in tiles.items() if place in wanted}))
        return found


def _concat(kinds: str, parts: Sequence[Rows]) -> Rows:
    times: Int64 = np.concatenate([part.time for part in parts])
    columns = zip(*(part.columns for part in parts), strict=True)
    return Rows(kinds, times, tuple(pa.concat_arrays(list(column)) for column in columns))
