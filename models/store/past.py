"""Rolling features of events by what a store has of their entities: the graph's kernels over tiles.

An event sees what is before it in the order (event time, event id), whatever else the tiles have. So its features are
those that the graph gives it after the same past, and a tile may already have the event itself, or later ones.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from models.batches import as_float64, as_int64, column, times_us
from models.features.aggregates import code_name
from models.features.columns import with_keys, with_rolling
from models.features.labels import LabelledKernel, Labels
from models.features.row import before_windows, rolling_kernels, with_row_features
from models.features.windows import Events, Float64, History, RollingKernel, Run, encode_values
from models.project.declarations import Project
from models.store.kinds import LABELS_OF, Int64, Kind, Place, as_stored, keys_of, kinds_of
from models.store.tiles import TEXT, Rows, decode_tiles

# An entity's past is as old as it is: nothing of it has passed because another's events are later.
_NEVER_LATE_US = 1 << 60

Tiles = Mapping[Place, bytes]
_BY_CODE_AND_START = operator.itemgetter(0, 1)


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

        They see each other, too, as those of the past. TileError if a tile is damaged.
        """
        project = self._project
        if project.before_windows or project.windows_only:
            batch = before_windows(batch, project)
        for entity, kernel in self._kernels.items():
            known, rows = with_keys(batch, self.kinds[entity].keys)
            batch = with_rolling(batch, kernel, self._windows(entity, kernel, known, tiles), rows)
        return with_row_features(batch, project)

    def answer(self, entity: str, keys: Sequence[str], times: Int64, tiles: Tiles) -> dict[str, Int64 | Float64]:
        """The rolling features of an entity's keys as of times int64[n], as models.features.spine has them, by name.

        TileError if a tile is damaged.
        """
        kernel, codes = self._kernels[entity], _Codes(keys)
        rows, owner = _rows_of(self.kinds[entity], codes, tiles)
        history = self._history(entity, kernel, codes, rows, owner, _values_of(self.kinds[entity], rows, {}), tiles)
        asked = Events(codes.of_rows, times, pa.nulls(len(times)), {})
        columns = kernel.answer(history, asked)
        return {feature.name: values for feature, values in zip(kernel.features, columns, strict=True)}

    def _windows(
        self, entity: str, kernel: RollingKernel, events: pa.RecordBatch, tiles: Tiles
    ) -> list[Int64 | Float64]:
        """The features of events that all have the entity's key."""
        kind, values_seen = self.kinds[entity], dict[Any, int]()
        codes, times = _Codes(keys_of(kind, events).to_pylist()), times_us(events)
        rows, owner = _rows_of(kind, codes, tiles)
        values = _values_of(kind, rows, values_seen)
        ids = as_stored(column(events, kind.event_id), kind.kinds[0])
        mine = (as_stored(column(events, name), of) for name, of in kind.columns)
        own = _values_of(kind, Rows(kind.kinds, times, (ids, *mine)), values_seen)
        asked = Events(codes.of_rows, times, ids, own)
        if len(rows) and rows.time.max() >= times.min() and (beside := np.isin(rows.time, times)).any():
            is_beside, is_again = _beside(asked, Events(owner, rows.time, rows.columns[0], {}), np.flatnonzero(beside))
            asked = _with_rows(asked, owner, rows, values, is_beside)
            kept = np.ones(len(rows), bool)
            kept[is_beside] = kept[is_again] = False
            rows, owner = rows.take(np.flatnonzero(kept)), owner[kept]
            values = {name: numbers[kept] for name, numbers in values.items()}
        history = self._history(entity, kernel, codes, rows, owner, values, tiles)
        return [column[: len(times)] for column in kernel.features_of(history, asked)]

    def _history(
        self,
        entity: str,
        kernel: RollingKernel,
        codes: _Codes,
        rows: Rows,
        owner: Int64,
        values: dict[str, Any],
        tiles: Tiles,
    ) -> History:
        """Rows of tiles, and the labels that are known of them, as the kernel reads them."""
        history = History((Run(owner, rows.time, values),) if len(rows) else ())
        if isinstance(kernel, LabelledKernel):
            rows, owner = _rows_of(self.kinds[LABELS_OF + entity], codes, tiles)
            _, known, value = rows.columns
            history = kernel.learn(history, Labels(owner, rows.time, as_int64(known), as_float64(value)))
        return history


class _Codes:
    """Numbers for the keys of a request, and int64[n] that of each row."""

    def __init__(self, keys: Sequence[str]) -> None:
        self.by_key: dict[str, int] = {}
        of_rows = [self.by_key.setdefault(key, len(self.by_key)) for key in keys]
        self.of_rows = np.array(of_rows, np.int64)


def places_at(kind: Kind, key: str, time_us: int) -> list[Place]:
    """The tiles of a kind that windows of a key read at a time, microseconds since 1970 UTC."""
    return [Place(kind.name, key, start) for start in kind.starts_us(time_us)]


def _rows_of(kind: Kind, codes: _Codes, tiles: Tiles) -> tuple[Rows, Int64]:
    """The rows of tiles in the order (code of the key, time, id), and the code of each."""
    found = [
        (code, place.start_us, tile)
        for place, tile in tiles.items()
        if place.kind == kind.name and (code := codes.by_key.get(place.key)) is not None
    ]
    found.sort(key=_BY_CODE_AND_START)
    rows, counts = decode_tiles(kind.kinds, [tile for _, _, tile in found])
    return rows, np.repeat(np.array([code for code, _, _ in found], np.int64), counts)


def _beside(asked: Events, past: Events, rows: Int64) -> tuple[list[int], list[int]]:
    """Of some rows of the past those that have entity and time of an event that is asked for: others, and itself."""
    ids = zip(asked.entity.tolist(), asked.time.tolist(), asked.ids.to_pylist(), strict=True)
    events: dict[tuple[int, int], set[Any]] = {}
    for code, time_us, event_id in ids:
        events.setdefault((code, time_us), set()).add(event_id)
    others: list[int] = []
    again: list[int] = []
    for row, event_id in zip(rows.tolist(), past.ids.take(pa.array(rows)).to_pylist(), strict=True):
        at = events.get((int(past.entity[row]), int(past.time[row])))
        if at is not None:
            (again if event_id in at else others).append(row)
    return others, again


def _with_rows(asked: Events, owner: Int64, rows: Rows, values: Mapping[str, Any], more: Sequence[int]) -> Events:
    """Events, and behind them some rows of the past."""
    if not more:
        return asked
    return Events(
        np.concatenate([asked.entity, owner[more]]),
        np.concatenate([asked.time, rows.time[more]]),
        pa.concat_arrays([asked.ids, rows.columns[0].take(pa.array(more))]),
        {name: np.concatenate([mine, values[name][more]]) for name, mine in asked.values.items()},
    )


def _values_of(kind: Kind, rows: Rows, codes: dict[Any, int]) -> dict[str, Any]:
    """Columns of rows by name as the kernel reads them."""
    return {
        code_name(name) if of == TEXT else name: encode_values(values, codes) if of == TEXT else as_float64(values)
        for (name, of), values in zip(kind.columns, rows.columns[1:], strict=True)
    }
