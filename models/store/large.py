"""Large tiles of entities with very many events: decoded once, and looked up by their edges from then on.

A request reads of such a tile but how many rows stand below each edge of its windows, and the running sums up to there.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from models.batches import as_float64
from models.features.aggregates import code_name
from models.features.windows import Int64, Run, encode_values
from models.store.kinds import Kind, Place
from models.store.tiles import TEXT, Rows, decode_tiles

# Tiles of so many bytes are large, here and where a store keeps them; of a row with an amount it is 1,300 rows.
LARGE_BYTES = 1 << 15
_MOST_ROWS = 1 << 22


@dataclasses.dataclass(frozen=True, eq=False)
class Kept:
    """A tile, its rows, and these as a run of the entity's number."""

    tile: bytes
    rows: Rows
    run: Run

    def stands_before(self, more: Rows) -> bool:
        """Whether of rows of one time those of the tile have smaller ids than these, in the order of (time, id)."""
        first = np.flatnonzero(np.diff(more.time, prepend=more.time[:1] - 1))
        low, high = (self.run.time.searchsorted(more.time[first], side) for side in ("left", "right"))
        there = np.flatnonzero(low < high)
        ours = self.rows.columns[0].take(pa.array(high[there] - 1)).to_pylist()
        theirs = more.columns[0].take(pa.array(first[there])).to_pylist()
        return all(one < other for one, other in zip(ours, theirs, strict=True))

    def has_time(self, times: Int64) -> bool:
        """Whether a row has one of the times."""
        place = self.run.time.searchsorted(times)
        return bool((self.run.time[np.minimum(place, len(self.run) - 1)] == times).any())

    def has_row(self, more: Rows) -> bool:
        """Whether a row has the time and the id of one of these."""
        low, high = (self.run.time.searchsorted(more.time, side) for side in ("left", "right"))
        there = np.flatnonzero(low < high)
        ids = more.columns[0].take(pa.array(there)).to_pylist()
        spans = zip(low[there].tolist(), high[there].tolist(), ids, strict=True)
        return any(each in self.rows.columns[0].slice(a, b - a).to_pylist() for a, b, each in spans)


class LargeTiles:
    """Those that were asked for last, as long as a store gives the same bytes for them, best the same object."""

    def __init__(self) -> None:
        self.codes: dict[Any, int] = {}  # of values that are only told apart
        self._kept: collections.OrderedDict[Place, Kept] = collections.OrderedDict()
        self._numbers: dict[tuple[str, str], int] = {}
        self._rows = 0

    def numbers(self, places: Iterable[Place]) -> dict[str, int]:
        """The number of each key of one kind's places, below 0 and always the same; called before tiles are kept."""
        if len(self.codes) > _MOST_ROWS:
            self.codes.clear()
            self._kept.clear()
            self._rows = 0
        return {p.key: self._numbers.setdefault((p.kind, p.key), -1 - len(self._numbers)) for p in places}

    def keep(self, kind: Kind, place: Place, tile: bytes) -> Kept:
        """The tile, decoded if it was not before; TileError if it is damaged."""
        kept = self._kept.get(place)
        if kept is not None and (kept.tile is tile or kept.tile == tile):
            kept = self._kept[place] = dataclasses.replace(kept, tile=tile)
            self._kept.move_to_end(place)
            return kept
        rows, _ = decode_tiles(kind.kinds, [tile])
        number = self.numbers([place])[place.key]
        run = Run(np.full(len(rows), number), rows.time, values_of(kind, rows, self.codes))
        self._forget(place)
        kept = self._kept[place] = Kept(tile, rows, run)
        self._rows += len(rows)
        while self._rows > _MOST_ROWS and len(self._kept) > 1:
            self._forget(next(iter(self._kept)))
        return kept

    def _forget(self, place: Place) -> None:
        gone = self._kept.pop(place, None)
        self._rows -= 0 if gone is None else len(gone.rows)


def values_of(kind: Kind, rows: Rows, codes: dict[Any, int]) -> dict[str, Any]:
    """Columns of rows by name as the kernel reads them; of a new value, `codes` has the next free number."""
    return {
        code_name(name) if of == TEXT else name: encode_values(values, codes) if of == TEXT else as_float64(values)
        for (name, of), values in zip(kind.columns, rows.columns[1:], strict=True)
    }


def large_of(kind: Kind, tiles: Mapping[Place, bytes]) -> list[Place]:
    """The places of a kind whose tiles are large."""
    return [place for place, tile in tiles.items() if len(tile) >= LARGE_BYTES and place.kind == kind.name]
