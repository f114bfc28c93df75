"""Rolling features of events by what a store has of their entities: the graph's kernels over tiles.

An event sees what is before it in the order (event time, event id), whatever else the tiles have. So its features are
those that the graph gives it after the same past, and a tile may already have the event itself, or later ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.batches import as_float64, as_int64, column, times_us
from models.features.aggregates import code_name
from models.features.columns import with_keys, with_rolling
from models.features.labels import LabelledKernel, Labels
from models.features.row import before_windows, rolling_kernels, with_row_features
from models.features.windows import Events, Float64, History, RollingKernel, encode_values
from models.project.declarations import Project
from models.store.kinds import LABELS_OF, Int64, Kind, Place, as_stored, keys_of, kinds_of
from models.store.tiles import TEXT, Rows, decode_tiles

# An entity's past is as old as it is: nothing of it has passed because another's events are later.
_NEVER_LATE_US = 1 << 60

Tiles = Mapping[Place, bytes]


class PastFeatures:
    """A project's features of events, or as of times, from the tiles that a store has."""

    def __init__(self, project: Project) -> None:
        self._project = project
        self._kernels = rolling_kernels(project, _NEVER_LATE_US)
        self.kinds = kinds_of(project)

    def places(self, batch: pa.RecordBatch) -> list[Place]:
        """The tiles that windows of a batch's events read, each once; many of them may not be there."""
        times = times_us(batch).tolist()
        found: dict[Place, None] = {}
        for kind in self.kinds.values():
            for key, time_us in zip(keys_of(kind, batch).to_pylist(), times, strict=True):
                if key is not None:
                    found.update(dict.fromkeys(places_at(kind, key, time_us)))
        return list(found)

    def places_of(self, entity: str, key: str, time_us: int) -> list[Place]:
        """The tiles that windows of an entity's key read at a time, microseconds since 1970 UTC."""
        kinds = [self.kinds[name] for name in (entity, LABELS_OF + entity) if name in self.kinds]
        return [place for kind in kinds for place in places_at(kind, key, time_us)]

    def compute(self, batch: pa.RecordBatch, tiles: Tiles) -> pa.RecordBatch:
        """Valid events with all of their features, in the columns that the graph gives them.

        TileError if a tile is damaged.
        """
        project = self._project
        if project.before_windows or project.windows_only:
            batch = before_windows(batch, project)
        for entity, kernel in self._kernels.items():
            kind = self.kinds[entity]
            known, rows = with_keys(batch, kind.keys)
            keys, times, ids = keys_of(kind, known).to_pylist(), times_us(known), column(known, kind.event_id)
            values = {(name, of): as_stored(column(known, name), of) for name, of in kind.columns}
            history, codes = self._history(entity, kernel, keys, times, as_stored(ids, kind.kinds[0]), tiles)
            events = Events(np.arange(len(times)), times, ids, _values_of(values, codes))
            columns, _ = kernel.advance(history, events)
            batch = with_rolling(batch, kernel, columns, rows)
        return with_row_features(batch, project)

    def answer(self, entity: str, keys: Sequence[str], times: Int64, tiles: Tiles) -> dict[str, Int64 | Float64]:
        """The rolling features of an entity's keys as of times int64[n], as models.features.spine has them, by name.

        TileError if a tile is damaged.
        """
        kernel = self._kernels[entity]
        history, _ = self._history(entity, kernel, keys, times, None, tiles)
        asked = Events(np.arange(len(times)), times, pa.nulls(len(times)), {})
        columns = kernel.answer(history, asked)
        return {feature.name: values for feature, values in zip(kernel.features, columns, strict=True)}

    def _history(
        self,
        entity: str,
        kernel: RollingKernel,
        keys: Sequence[str],
        times: Int64,
        ids: pa.Array | None,
        tiles: Tiles,
    ) -> tuple[History, dict[Any, int]]:
        """What is before each of the events, with its number as the entity; and codes of values."""
        kind, codes = self.kinds[entity], dict[Any, int]()
        rows, owner = _before(kind, keys, times, ids, tiles)
        values = dict(zip(kind.columns, rows.columns[1:], strict=True))
        events = Events(owner, rows.time, pa.nulls(len(rows)), _values_of(values, codes))
        history = kernel.extend(History(), events)
        if isinstance(kernel, LabelledKernel):
            rows, owner = _before(self.kinds[LABELS_OF + entity], keys, times, None, tiles)
            _, known, value = rows.columns
            history = kernel.learn(history, Labels(owner, rows.time, as_int64(known), as_float64(value)))
        return history, codes


def places_at(kind: Kind, key: str, time_us: int) -> list[Place]:
    """The tiles of a kind that windows of a key read at a time, microseconds since 1970 UTC."""
    return [Place(kind.name, key, start) for start in kind.starts_us(time_us)]


def _before(kind: Kind, keys: Sequence[str], times: Int64, ids: pa.Array | None, tiles: Tiles) -> tuple[Rows, Int64]:
    """The rows of each key before an event of that time and id, or up to the time; and of which one each is."""
    parts, owners = [], []
    for number, (key, time_us) in enumerate(zip(keys, times.tolist(), strict=True)):
        for place in places_at(kind, key, time_us):
            if tile := tiles.get(place):
                parts.append(tile)
                owners.append(number)
    rows, counts = decode_tiles(kind.kinds, parts)
    owner = np.repeat(np.asarray(owners, np.int64), counts)
    until = times[owner]
    seen = rows.time <= until
    if ids is not None:
        at = np.flatnonzero(rows.time == until)
        mine, others = ids.take(pa.array(owner[at])), rows.columns[0].take(pa.array(at))
        seen[at] = np.asarray(pc.less(others, mine))
    chosen = np.flatnonzero(seen)
    return rows.take(chosen), owner[chosen]


def _values_of(columns: Mapping[tuple[str, str], pa.Array], codes: dict[Any, int]) -> dict[str, Any]:
    """Columns of tiles, by name and kind, as the kernel reads them."""
    return {
        code_name(name) if kind == TEXT else name: encode_values(values, codes) if kind == TEXT else as_float64(values)
        for (name, kind), values in columns.items()
    }
