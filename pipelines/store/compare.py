"""Whether a store has what it should: compared tile by tile with one that was filled anew."""

from __future__ import annotations

import dataclasses
import enum
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from models.batches import as_int64
from models.store.kinds import Kind, Place
from models.store.reference import first_needed
from models.store.tiles import Rows, TileError, decode_tiles, encode_tiles, unite
from pipelines.store import Store

Int64 = np.ndarray[Any, np.dtype[np.int64]]


class Fault(enum.StrEnum):
    """What is wrong with a tile."""

    MISSING = "missing"  # it is not there
    STALE = "stale"  # rows of it are not there
    WRONG = "wrong"  # it has rows that it should not have
    DAMAGED = "damaged"  # it can't be read


@dataclasses.dataclass(frozen=True)
class Difference:
    """A tile that is not as it should be, what is there, and what should be: what is later than was compared stays."""

    place: Place
    fault: Fault
    found: bytes | None
    mended: bytes | None


def compare(store: Store, expected: Store, kind: Kind, from_us: int, until_us: int) -> Iterator[Difference]:
    """The differences of a store's tiles of a kind that start from a time on, in what was known until a time.

    Both are in microseconds since 1970 UTC; rows later than `until_us`, and labels known later, are not looked at. Of a
    table, nor are rows that were replaced by `from_us`.
    """
    theirs, ours = (
        itertools.groupby(each.scan(kind.name), key=lambda tile: tile[0].start_us) for each in (store, expected)
    )
    for _, found, wanted in _together(theirs, ours):
        for place in sorted({*found, *wanted}):
            if (kind.is_of_table or place.start_us >= from_us) and found.get(place) != wanted.get(place):
                yield from _difference(kind, place, found.get(place), wanted.get(place), from_us, until_us)


def _together(theirs: Any, ours: Any) -> Iterator[tuple[int, dict[Place, bytes], dict[Place, bytes]]]:
    """The tiles of each start in both, ascending."""
    empty: tuple[int, Mapping[Place, bytes]] = (1 << 62, {})

    def after(groups: Any) -> tuple[int, dict[Place, bytes]]:
        start_us, tiles = next(groups, empty)
        return start_us, dict(tiles)

    one, other = after(theirs), after(ours)
    while (start_us := min(one[0], other[0])) != empty[0]:
        yield start_us, one[1] if one[0] == start_us else {}, other[1] if other[0] == start_us else {}
        one, other = after(theirs) if one[0] == start_us else one, after(ours) if other[0] == start_us else other


def _difference(
    kind: Kind, place: Place, found: bytes | None, wanted: bytes | None, from_us: int, until_us: int
) -> Iterator[Difference]:
    (should, _), (there, later), fault = _rows(kind, wanted, until_us), _rows(kind, None, until_us), None
    try:
        there, later = _rows(kind, found, until_us)
    except TileError:
        fault = Fault.DAMAGED
    if kind.is_of_table:
        should, there = _needed(should, there, later, from_us)
    if fault is None and _tile_of(there) != _tile_of(should):
        of_both = np.repeat([0, 1], [len(should), len(there)])
        both, _ = unite(_joined(kind, should, there), of_both * 0)
        more = len(both) > len(should) or _tile_of(both) != _tile_of(should)
        fault = Fault.WRONG if more else Fault.STALE if len(there) else Fault.MISSING
    if fault is not None:
        mended, _ = unite(_joined(kind, should, later), np.zeros(len(should) + len(later), np.int64))
        yield Difference(place, fault, found, _tile_of(mended))


def _needed(should: Rows, there: Rows, later: Rows, before_us: int) -> tuple[Rows, Rows]:
    """Rows of a table's key as they should be and as they are, without those that were replaced before a time."""
    times = np.concatenate([should.time, later.time])
    from_us = times[first_needed(times, before_us)] if len(times) else before_us
    return should.take(np.flatnonzero(should.time >= from_us)), there.take(np.flatnonzero(there.time >= from_us))


def _rows(kind: Kind, tile: bytes | None, until_us: int) -> tuple[Rows, Rows]:
    """A tile's rows until a time, and those after it; TileError if it is damaged."""
    rows, _ = decode_tiles(kind.kinds, [] if tile is None else [tile])
    known = as_int64(rows.columns[1]) if kind.is_of_labels else rows.time
    return rows.take(np.flatnonzero(known <= until_us)), rows.take(np.flatnonzero(known > until_us))


def _tile_of(rows: Rows) -> bytes | None:
    return encode_tiles(rows, np.zeros(1, np.int64))[0] if len(rows) else None


def _joined(kind: Kind, *parts: Rows) -> Rows:
    return decode_tiles(kind.kinds, [tile for part in parts if (tile := _tile_of(part)) is not None])[0]
