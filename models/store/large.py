"""Large tiles of entities with very many events: decoded once, and looked up by their edges from then on.

A request reads of such a tile but how many rows stand below each edge of its windows, and the running sums up to there.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np
import pyarrow as pa

from models.batches import as_float64
from models.features.windows import Float64, Int64, Run
from models.store.kinds import Kind, Place
from models.store.tiles import Rows, decode_tiles

# Tiles of so many bytes are large, here and where a store keeps them; of a row with an amount it is 1,300 rows.
LARGE_BYTES = 1 << 15
_MOST_ROWS = 1 << 22


@dataclasses.dataclass(frozen=True, eq=False)
class Kept:
    """A tile, its rows, and these as a run of the entity's number."""

    tile: bytes
    rows: Rows
    run: Run

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
    """Those that were asked for last, as long as a store gives the same object of bytes for them."""

    def __init__(self) -> None:
        self._kept: collections.OrderedDict[Place, Kept] = collections.OrderedDict()
        self._numbers: dict[tuple[str, str], int] = {}
        self._rows = 0

    def numbers(self, places: Iterable[Place]) -> dict[str, int]:
        """The number of each key of one kind's places, below 0 and always the same."""
        return {p.key: self._numbers.setdefault((p.kind, p.key), -1 - len(self._numbers)) for p in places}

    def keep(self, kind: Kind, place: Place, tile: bytes) -> Kept:
        """The tile, decoded if it was not before, of a kind whose columns are numbers; TileError if it is damaged."""
        kept = self._kept.get(place)
        if kept is not None and kept.tile is tile:
            self._kept.move_to_end(place)
            return kept
        rows, _ = decode_tiles(kind.kinds, [tile])
        number = self.numbers([place])[place.key]
        run = Run(np.full(len(rows), number), rows.time, numbers_of(kind, rows))
        self._forget(place)
        kept = self._kept[place] = Kept(tile, rows, run)
        self._rows += len(rows)
        while self._rows > _MOST_ROWS and len(self._kept) > 1:
            self._forget(next(iter(self._kept)))
        return kept

    def _forget(self, place: Place) -> None:
        gone = self._kept.pop(place, None)
        self._rows -= 0 if gone is None else len(gone.rows)


def numbers_of(kind: Kind, rows: Rows) -> dict[str, Float64]:
    """The columns of rows whose columns are all numbers, by name, as the kernel reads them."""
    return {name: as_float64(values) for (name, _), values in zip(kind.columns, rows.columns[1:], strict=True)}


def large_of(kind: Kind, tiles: Mapping[Place, bytes]) -> list[Place]:
    """The places of a kind whose tiles are large."""
    return [place for place, tile in tiles.items() if len(tile) >= LARGE_BYTES and place.kind == kind.name]
