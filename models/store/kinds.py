"""Kinds of tiles: for each entity that has rolling features, the columns of its events that its windows read.

Where windows read labels that come as records of their own, their labels are a kind beside it. A tile of labels stands
at the time of their events, so that it is needed and passes with those. The rows of each joined table are a kind, too,
see models.store.reference, and so are the ids of events, see models.store.ids.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from models.batches import as_column, as_float64, as_int64, column, key_column, times_us
from models.features.columns import with_keys
from models.features.labels import LabelledKernel
from models.features.row import rolling_kernels
from models.features.table_join import TIDY_US
from models.project.declarations import Project
from models.record import CONTENT, LABEL_TIME
from models.store.tiles import INTEGER, NUMBER, TEXT, Rows, encode_tiles, unite

Int64 = np.ndarray[Any, np.dtype[np.int64]]

# A tile has the least of these lengths of which a window is no longer than so many.
_TILES, _TILES_OF_IDS = 8, 2
_SECOND_US = 1_000_000
_LENGTHS_US = tuple(s * _SECOND_US for s in (1, 10, 60, 600, 3600, 6 * 3600, 86400, 5 * 86400, 30 * 86400, 366 * 86400))
LABELS_OF, ROWS_OF = "labels of ", "rows of "
IDS = "event ids"
_ALWAYS_US = 1 << 62


class Place(NamedTuple):
    """Where a tile is: the name of its kind, the entity's key, and the event time that it starts at, microseconds."""

    kind: str
    key: str
    start_us: int


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a store holds of each entity of one kind.

    Fields:
        name: the entity as `RollingFeature.entity` has it; of labels with `labels of ` before it; of a table its name
            with `rows of ` before it.
        keys: the columns whose values together are the entity's key; none where all events are of one entity.
        event_id: the column of the event's id.
        columns: the columns that windows read, and the kind of each in a tile, as models.store.tiles has them.
        text_ids: whether ids are texts.
        tile_us: the length of a tile in event time, microseconds.
        span_us: how far back of an event the longest window begins, microseconds.
    """

    name: str
    keys: tuple[str, ...]
    event_id: str
    columns: tuple[tuple[str, str], ...]
    text_ids: bool
    tile_us: int
    span_us: int

    @property
    def kinds(self) -> str:
        """Those of the id and the columns."""
        return (TEXT if self.text_ids else INTEGER) + "".join(kind for _, kind in self.columns)

    @property
    def is_of_labels(self) -> bool:
        """Whether its rows are labels and not events."""
        return self.name.startswith(LABELS_OF)

    @property
    def is_of_table(self) -> bool:
        """Whether its rows are those of a joined table."""
        return self.name.startswith(ROWS_OF)

    @property
    def is_of_events(self) -> bool:
        """Whether its rows are events."""
        return not (self.is_of_labels or self.is_of_table or self.name == IDS)

    def starts_us(self, time_us: int) -> range:
        """The starts of the tiles that windows of an event at a time read, microseconds since 1970 UTC."""
        return range((time_us - self.span_us + 1) // self.tile_us * self.tile_us, time_us + 1, self.tile_us)

    def passed_us(self, newest_us: int, lateness_us: int) -> int:
        """Tiles that start before this are in no window of an event `lateness_us` older than the newest, nor later.

        Of a table, rows that were replaced by then are not taken by such an event.
        """
        oldest_us = newest_us - lateness_us
        return oldest_us // TIDY_US * TIDY_US if self.is_of_table else self.starts_us(oldest_us).start

    def known_from_us(self, dropped_us: int) -> int:
        """The first time for which nothing is missing where what has passed was dropped before `dropped_us`."""
        return dropped_us if self.is_of_table else dropped_us + self.span_us - 1


def kinds_of(project: Project) -> dict[str, Kind]:
    """The kinds of tiles that a project's windows and joins read, by their names."""
    kinds = {}
    text_ids = project.contract.fields[project.event.id].kind == "string"
    for entity, kernel in rolling_kernels(project).items():
        columns = [(name, NUMBER) for name in kernel.numbers]
        columns += [(name, TEXT) for name in kernel.coded]
        span_us = kernel.horizon_us
        of, tile_us = project.key_fields[entity], _length_us(span_us, _TILES)
        kind = Kind(entity, of, project.event.id, tuple(columns), text_ids, tile_us, span_us)
        kinds[entity] = kind
        if isinstance(kernel, LabelledKernel):
            labels = ((LABEL_TIME, INTEGER), (kernel.label, NUMBER))
            kinds[LABELS_OF + entity] = dataclasses.replace(kind, name=LABELS_OF + entity, columns=labels)
    for table in project.tables:
        name, key = ROWS_OF + table, project.entities[project.tables[table].entity]
        columns = [(field, TEXT) for field in project.table_type(table).carried[1:]]
        kinds[name] = Kind(name, (key,), CONTENT, tuple(columns), False, _ALWAYS_US, _ALWAYS_US)
    within_us, content = project.event.deduplicate_within, ((CONTENT, INTEGER),)
    kinds[IDS] = Kind(IDS, (), project.event.id, content, text_ids, _length_us(within_us, _TILES_OF_IDS), within_us)
    return kinds


def _length_us(span_us: int, tiles: int) -> int:
    return next((us for us in _LENGTHS_US if us * tiles >= span_us), _LENGTHS_US[-1])


def keys_of(kind: Kind, batch: pa.RecordBatch) -> pa.Array:
    """The entity's key of each row as a text, null where there is none."""
    return key_column(batch, kind.keys).cast(pa.string())


def rows_of(kind: Kind, batch: pa.RecordBatch) -> Rows:
    """The rows of a batch, of which each has a key, with what windows read of them."""
    columns = [as_stored(column(batch, name), of) for name, of in kind.columns]
    return Rows(kind.kinds, times_us(batch), (as_stored(column(batch, kind.event_id), kind.kinds[0]), *columns))


def as_stored(values: pa.Array, kind: str) -> pa.Array:
    """A column as tiles have it; values that are told apart, and no numbers, as texts."""
    if kind == INTEGER:
        return as_column(as_int64(values))
    if kind == NUMBER:
        return as_column(as_float64(values))
    if pa.types.is_floating(values.type):  # no number and minus zero are not told apart from none and from zero
        numbers = as_float64(values) + 0.0
        values = pa.array(numbers, mask=np.isnan(numbers))
    return values.cast(pa.string())


def make_tiles(kind: Kind, batch: pa.RecordBatch) -> dict[Place, bytes]:
    """The tiles of a batch's rows, as far as these have a key: parts of those in the store, to be merged there."""
    known, _ = with_keys(batch, kind.keys)
    return tiles_of(kind.name, kind.tile_us, rows_of(kind, known), keys_of(kind, known))


def tiles_of(name: str, tile_us: int, rows: Rows, keys: pa.Array) -> dict[Place, bytes]:
    """The tiles of rows of a kind by the key of each, a text."""
    if not len(rows):
        return {}
    encoded = keys.dictionary_encode()
    start, entity = rows.time // tile_us, encoded.indices.to_numpy()
    order = np.lexsort((start, entity))
    begins = np.flatnonzero(np.concatenate([[True], _differ(entity[order]) | _differ(start[order])]))
    place = np.empty(len(rows), np.int64)
    place[order] = np.repeat(np.arange(len(begins)), np.diff([*begins, len(rows)]))
    first = order[begins]
    united, of_place = unite(rows, place)
    tiles = encode_tiles(united, np.searchsorted(of_place, np.arange(len(begins))))
    names, codes, starts = encoded.dictionary.to_pylist(), entity[first].tolist(), (start[first] * tile_us).tolist()
    return {Place(name, names[code], at): tile for code, at, tile in zip(codes, starts, tiles, strict=True)}


def _differ(values: Any) -> Any:
    return values[1:] != values[:-1]
