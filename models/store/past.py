"""Rolling features of events by what a store has of their entities: the graph's kernels over tiles.

An event sees what is before it in the order (event time, event id), whatever else the tiles have. So its features are
those that the graph gives it after the same past, and a tile may already have the event itself, or later ones.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from models.batches import as_float64, as_int64, column, times_us
from models.features.columns import with_keys, with_rolling
from models.features.labels import LabelledKernel, Labels
from models.features.row import before_windows, rolling_kernels, with_row_features
from models.features.table_join import join_fields
from models.features.windows import Events, Float64, History, RollingKernel, Run
from models.project.declarations import Project
from models.store.kinds import LABELS_OF, ROWS_OF, Int64, Kind, Place, as_stored, keys_of, kinds_of
from models.store.large import LargeTiles, large_of, values_of
from models.store.reference import known_of
from models.store.tiles import Rows, decode_tiles, unite

# An entity's past is as old as it is: nothing of it has passed because another's events are later.
_NEVER_LATE_US = 1 << 60

Tiles = Mapping[Place, bytes]
_NONE: Tiles = {}
_BY_CODE_AND_START = operator.itemgetter(0, 1)


class PastFeatures:
    """A project's features of events, or as of times, from the tiles that a store has."""

    def __init__(self, project: Project) -> None:
        self._project = project
        self._kernels = rolling_kernels(project, _NEVER_LATE_US)
        self._large = LargeTiles()
        self.kinds = kinds_of(project)

    def places(self, batch: pa.RecordBatch) -> list[Place]:
        """The tiles that windows of a batch's events read, each once; many of them may not be there.

        The events have the fields of tables, see `join`.
        """
        return _places(batch, [kind for kind in self.kinds.values() if kind.is_of_events or kind.is_of_labels])

    def places_of_tables(self, batch: pa.RecordBatch) -> list[Place]:
        """The tiles of joined tables' rows that a batch's events take, each once."""
        return _places(batch, [kind for kind in self.kinds.values() if kind.is_of_table])

    def join(self, batch: pa.RecordBatch, tiles: Tiles, more: Tiles = _NONE) -> pa.RecordBatch:
        """Valid events with the fields of the tables that the project joins, as `compute` takes them.

        Rows of `more` may stand in `tiles` already. TileError if a tile is damaged.
        """
        project = self._project
        for name, table in project.tables.items():
            kind, records = self.kinds[ROWS_OF + name], project.table_type(name)
            codes = _Codes(list(filter(None, keys_of(kind, batch).to_pylist())))
            rows, owner = _rows_of(kind, codes, tiles, more)
            keys = pa.array(list(codes.by_key), pa.string()).take(pa.array(owner))
            kinds = {field: records.contract.fields[field].arrow_type for field in table.fields}
            known = known_of(records, rows, keys)
            batch, _ = join_fields(batch, known, project.entities[table.entity], kinds, table.until, table.deleted)
        return batch

    def places_of(self, entity: str, key: str, time_us: int) -> list[Place]:
        """The tiles that windows of an entity's key read at a time, microseconds since 1970 UTC."""
        kinds = [self.kinds[name] for name in (entity, LABELS_OF + entity) if name in self.kinds]
        return [place for kind in kinds for place in places_at(kind, key, time_us)]

    def compute(self, batch: pa.RecordBatch, tiles: Tiles, more: Tiles = _NONE) -> pa.RecordBatch:
        """Valid events with all of their features, in the columns that the graph gives them.

        They see each other, too, as those of the past. Rows of `more` are of the past as well, and may stand in `tiles`
        already. TileError if a tile is damaged.
        """
        project = self._project
        if project.before_windows or project.windows_only:
            batch = before_windows(batch, project)
        for entity, kernel in self._kernels.items():
            known, rows = with_keys(batch, self.kinds[entity].keys)
            batch = with_rolling(batch, kernel, self._windows(entity, kernel, known, tiles, more), rows)
        return with_row_features(batch, project)

    def answer(
        self, entity: str, keys: Sequence[str], times: Int64, tiles: Tiles, more: Tiles = _NONE
    ) -> dict[str, Int64 | Float64]:
        """The rolling features of an entity's keys as of times int64[n], as models.features.spine has them, by name.

        TileError if a tile is damaged.
        """
        kind, kernel, codes = self.kinds[entity], self._kernels[entity], _Codes(keys)
        rows, owner = _rows_of(kind, codes, tiles, more)
        history = History(_run_of(owner, rows, values_of(kind, rows, {})))
        asked = Events(codes.of_rows, times, pa.nulls(len(times)), {})
        columns = kernel.answer(self._with_labels(entity, kernel, codes, history, tiles, more), asked)
        return {feature.name: values for feature, values in zip(kernel.features, columns, strict=True)}

    def _windows(
        self, entity: str, kernel: RollingKernel, events: pa.RecordBatch, tiles: Tiles, more: Tiles
    ) -> list[Int64 | Float64]:
        """The features of events that all have the entity's key."""
        kind, times = self.kinds[entity], times_us(events)
        large = [] if kernel.needs_all else large_of(kind, tiles)
        codes = _Codes(keys_of(kind, events).to_pylist(), self._large.numbers(large))
        values_seen = self._large.codes if large else {}
        runs, apart = self._large_runs(kernel, kind, large, times, tiles, more) if large else ((), frozenset[Place]())
        rows, owner = _rows_of(kind, codes, tiles, more, apart)
        values = values_of(kind, rows, values_seen)
        ids = as_stored(column(events, kind.event_id), kind.kinds[0])
        mine = (as_stored(column(events, name), of) for name, of in kind.columns)
        own = values_of(kind, Rows(kind.kinds, times, (ids, *mine)), values_seen)
        asked = Events(codes.of_rows, times, ids, own)
        if len(rows) and len(times) and rows.time.max() >= times.min() and (found := np.isin(rows.time, times)).any():
            beside, again = _beside(asked, Events(owner, rows.time, rows.columns[0], {}), np.flatnonzero(found))
            asked = _with_rows(asked, owner, rows, values, beside)
            kept = np.ones(len(rows), bool)
            kept[beside] = kept[again] = False
            rows, owner = rows.take(np.flatnonzero(kept)), owner[kept]
            values = {name: numbers[kept] for name, numbers in values.items()}
        history = History((*runs, *_run_of(owner, rows, values)))
        history = self._with_labels(entity, kernel, codes, history, tiles, more)
        return [column[: len(times)] for column in kernel.features_of(history, asked)]

    def _large_runs(
        self, kernel: RollingKernel, kind: Kind, large: Sequence[Place], times: Int64, tiles: Tiles, more: Tiles
    ) -> tuple[tuple[Run, ...], frozenset[Place]]:
        """Runs of large tiles, and which these are; not those with a row that may be looked at by its id, nor, where
        the order of rows makes a difference, by the ids of rows of its time.
        """
        runs, apart = [], []
        for place in large:
            kept, added = self._large.keep(kind, place, tiles[place]), more.get(place)
            rows = None if added is None else decode_tiles(kind.kinds, [added])[0]
            mixed = rows is not None and (not kept.stands_before(rows) if kernel.needs_order else kept.has_row(rows))
            if not mixed and not kept.has_time(times):
                runs.append(kept.run)
                apart.append(place)
        return tuple(runs), frozenset(apart)

    def _with_labels(
        self, entity: str, kernel: RollingKernel, codes: _Codes, history: History, tiles: Tiles, more: Tiles
    ) -> History:
        """The history with the labels of its events, where windows read these."""
        if not isinstance(kernel, LabelledKernel):
            return history
        rows, owner = _rows_of(self.kinds[LABELS_OF + entity], codes, tiles, more)
        _, known, value = rows.columns
        return kernel.learn(history, Labels(owner, rows.time, as_int64(known), as_float64(value)))


class _Codes:
    """Numbers for the keys of a request, and int64[n] that of each row."""

    def __init__(self, keys: Sequence[str], known: Mapping[str, int] = {}) -> None:
        """Keys that are not `known` are counted from 0."""
        self.by_key = dict(known)
        of_rows = [self.by_key.setdefault(key, len(self.by_key)) for key in keys]
        self.of_rows = np.array(of_rows, np.int64)


def places_at(kind: Kind, key: str, time_us: int) -> list[Place]:
    """The tiles of a kind that windows of a key read at a time, microseconds since 1970 UTC."""
    return [Place(kind.name, key, start) for start in kind.starts_us(time_us)]


def _places(batch: pa.RecordBatch, kinds: Sequence[Kind]) -> list[Place]:
    times = times_us(batch).tolist()
    found: dict[Place, None] = {}
    for kind in kinds:
        for key, time_us in zip(keys_of(kind, batch).to_pylist(), times, strict=True):
            if key is not None:
                found.update(dict.fromkeys(places_at(kind, key, time_us)))
    return list(found)


def _rows_of(
    kind: Kind, codes: _Codes, tiles: Tiles, more: Tiles, without: Collection[Place] = ()
) -> tuple[Rows, Int64]:
    """The rows of tiles in the order (code of the key, time, id), each once, and the code of each."""
    found = [
        (code, place.start_us, tile)
        for some, left_out in ((tiles, without), (more, ()))
        for place, tile in some.items()
        if place.kind == kind.name and (code := codes.by_key.get(place.key)) is not None and place not in left_out
    ]
    found.sort(key=_BY_CODE_AND_START)
    rows, counts = decode_tiles(kind.kinds, [tile for _, _, tile in found])
    owner = np.repeat(np.array([code for code, _, _ in found], np.int64), counts)
    return unite(rows, owner) if more else (rows, owner)


def _run_of(owner: Int64, rows: Rows, values: dict[str, Any]) -> tuple[Run, ...]:
    return (Run(owner, rows.time, values),) if len(rows) else ()


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
