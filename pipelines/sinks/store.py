"""The online store as a sink: tiles of what windows read, as each slice is released, and how far they go."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import apache_beam as beam
import pyarrow as pa

from models.batches import as_int64, column, is_provisional, times_us
from models.features.columns import with_keys
from models.features.row import before_windows
from models.metrics import ROWS
from models.project.declarations import Project
from models.record import CONTENT, EVENTS, LABELS, RecordType
from models.steps import Log, Shard, Step
from models.store.ids import rows_of_ids
from models.store.kinds import IDS, ROWS_OF, Kind, keys_of, kinds_of, rows_of
from models.store.reference import rows_of_table
from pipelines.store import Progress, Store, go_on, open_store
from transforms.metrics import count
from transforms.slices import Hold


@dataclasses.dataclass(eq=False)
class WriteStore(beam.PTransform[dict[str, beam.PCollection[pa.RecordBatch]], beam.PCollection[int]]):
    """{"events": unique events, "event ids": those of all events, where windows read them "labels": joined labels, and
    by their names rows of tables} → a store that has their tiles.

    What comes out is the time of the latest event of each slice, microseconds since 1970 UTC, once the store has all of
    the slice and has gone on to there. Tiles that an event `lateness_us` older does not need are dropped then. A slice
    that is written again changes nothing.
    """

    uri: str
    project: Project
    lateness_us: int

    def expand(self, inputs: Mapping[str, beam.PCollection]) -> beam.PCollection:
        """One number for each slice that has events."""
        by_name = kinds_of(self.project)
        kinds, feature_set = tuple(by_name.values()), self.project.feature_set
        steps: dict[str, _OfStore] = {EVENTS: _Write(self.uri, feature_set, tuple(k for k in kinds if k.is_of_events))}
        steps[IDS] = _WriteIds(self.uri, feature_set, (by_name[IDS],))
        if of_labels := tuple(kind for kind in kinds if kind.is_of_labels):
            steps[LABELS] = _Write(self.uri, feature_set, of_labels)
        for name in self.project.tables:
            steps[name] = _WriteTable(self.uri, feature_set, by_name[ROWS_OF + name], self.project.table_type(name))
        batches = dict(inputs)
        if self.project.before_windows or self.project.windows_only:
            before = beam.Map(before_windows, self.project).with_output_types(pa.RecordBatch)
            batches[EVENTS] = inputs[EVENTS] | "Before windows" >> before
        written = {
            name: batch | f"Write {name}" >> beam.ParDo(steps[name]) for name, batch in batches.items() if name in steps
        }
        routes = {name: _to_one if name == EVENTS else _to_none for name in written}
        reached = written | "Hold" >> Hold(_Newest(), routes, output=int)
        advance = _Advance(self.uri, feature_set, kinds, self.lateness_us)
        return reached | "Go on" >> beam.ParDo(advance).with_output_types(int)


def _to_one(batch: pa.RecordBatch) -> Iterator[tuple[int, None, pa.RecordBatch]]:
    yield 0, None, batch


def _to_none(batch: pa.RecordBatch) -> Iterator[tuple[int, None, pa.RecordBatch]]:
    """Ids, labels and tables are but waited for: how far the store goes, events tell."""
    return iter(())


def _newest_of(batch: pa.RecordBatch) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array([int(times_us(batch).max())])], names=["newest"])


class _OfStore(beam.DoFn):
    """Has a store open."""

    def __init__(self, uri: str, feature_set: str, kinds: tuple[Kind, ...]) -> None:
        self._uri, self._feature_set, self._kinds = uri, feature_set, kinds

    def setup(self) -> None:
        self._store: Store = open_store(self._uri, self._feature_set, create=True)

    def teardown(self) -> None:
        self._store.close()


class _Write(_OfStore):
    """Batches → the time of the latest row of each, once the store has it."""

    def process(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        if is_provisional(batch):  # it comes once more
            return
        for kind in self._kinds:
            known, _ = with_keys(batch, kind.keys)
            self._store.append(kind, rows_of(kind, known), keys_of(kind, known))
        count(ROWS, batch.num_rows, step="stored")
        yield _newest_of(batch)


class _WriteIds(_OfStore):
    """Ids of events, see models.store.ids → the time of the latest of each batch, once the store has them."""

    def process(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        if not is_provisional(batch):
            (kind,) = self._kinds
            self._store.append(kind, *rows_of_ids(kind, batch, column(batch, CONTENT)))
            yield _newest_of(batch)


class _WriteTable(_OfStore):
    """Rows of a table → the time of the latest of each batch, once the store has it."""

    def __init__(self, uri: str, feature_set: str, kind: Kind, records: RecordType) -> None:
        super().__init__(uri, feature_set, (kind,))
        self._records = records

    def process(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        (kind,) = self._kinds
        self._store.append(kind, *rows_of_table(kind, self._records, batch))
        yield _newest_of(batch)


class _Newest(Step[Shard]):
    """The latest of the times of a slice, when all of it is written."""

    shard = Shard

    def advance(self, batch: pa.RecordBatch, due_us: int, memory: None, log: Log[Shard]) -> Iterator[int]:
        """One number."""
        yield int(as_int64(batch.column(0)).max())


class _Advance(_OfStore):
    """Goes on to the latest event of a slice, and drops what has passed."""

    def __init__(self, uri: str, feature_set: str, kinds: tuple[Kind, ...], lateness_us: int) -> None:
        super().__init__(uri, feature_set, kinds)
        self._lateness_us = lateness_us

    def process(self, newest_us: int) -> Iterator[int]:
        go_on(self._store, self._kinds, Progress(newest_us + 1, newest_us), self._lateness_us)
        yield newest_us
