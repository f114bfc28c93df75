"""Join tables: an event takes fields of the row that is known of its entity at its time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import apache_beam as beam
import numpy as np
import pyarrow as pa

from models.batches import Keys, column, marks_of, shard_of, times_us
from models.features.table_join import TIDY_US, Known, join_fields, learn, still_needed
from models.metrics import LOOKUP_MISSES
from models.record import EVENT_TIME, IS_HISTORY, IS_PROVISIONAL, MARKS, RecordType
from models.steps import Log, Shard, Step, spread
from transforms.metrics import count
from transforms.slices import Hold

_FOREVER = 1 << 60


@dataclasses.dataclass(eq=False)
class JoinTable(beam.PTransform[dict[str, beam.PCollection[pa.RecordBatch]], beam.PCollection[pa.RecordBatch]]):
    """{"events": batches, "rows": valid rows of the table `records`} → the events with `fields` at their end.

    `key` is the events' column that the table's key is looked up by; without a row or a key, the fields are missing. An
    event takes what is known at its own time, whatever else is here by then; a row that comes late changes what comes
    after it. An event may be `lateness_us` late and find what was known at its time.
    """

    records: RecordType
    key: str
    fields: tuple[str, ...]
    until: str | None
    shards: int
    lateness_us: int = 0
    deleted: str | None = None

    def expand(self, inputs: dict[str, beam.PCollection]) -> beam.PCollection:
        """Batches of one slice in and out."""
        routes = {"events": self._route_events, "rows": self._route_rows}
        return inputs | "Hold" >> Hold(_LookUp(self), routes, name=f"rows of {self.records.name}")

    def _route_events(self, batch: pa.RecordBatch) -> Iterator[tuple[int, None, pa.RecordBatch]]:
        return spread(batch, shard_of(column(batch, self.key), self.shards))

    def _route_rows(self, batch: pa.RecordBatch) -> Iterator[tuple[int, int, pa.RecordBatch]]:
        """Rows wait for less than their slice's end: no event takes one before its time, however early it is here."""
        names = [*self.records.carried, EVENT_TIME]
        rows = pa.RecordBatch.from_arrays([column(batch, name) for name in names], names=names)
        for shard, _, part in spread(rows, shard_of(rows.column(0), self.shards)):
            yield shard, int(times_us(part).min()) // TIDY_US * TIDY_US, part


@dataclasses.dataclass
class _Shard(Shard):
    newest_us: int = -_FOREVER  # the latest event


@dataclasses.dataclass
class _Memory:
    known: Known = ()


class _LookUp(Step[_Shard]):
    """The log has the rows of the table."""

    shard = _Shard
    horizon_us = TIDY_US

    def __init__(self, options: JoinTable) -> None:
        self._options = options
        kinds = options.records.contract.fields
        self._kinds = {name: kinds[name].arrow_type for name in options.fields}

    def kind_of(self, batch: pa.RecordBatch) -> int:
        """Rows of the table first: they have no marks."""
        return int(MARKS in batch.schema.names)

    def recall(self, memory: _Memory | None, log: Log[_Shard]) -> _Memory:
        """What is known."""
        if memory is None:
            memory = _Memory()
            for rows in log.read():
                memory.known = learn(memory.known, rows, self._cutoff_us(log.shard))
        return memory

    def advance(
        self, batch: pa.RecordBatch, due_us: int, memory: _Memory, log: Log[_Shard]
    ) -> Iterator[pa.RecordBatch]:
        """Events with the fields; of rows nothing."""
        if not self.kind_of(batch):
            memory.known = learn(memory.known, batch, self._cutoff_us(log.shard))
            log.append(batch)
            return
        times, options = times_us(batch), self._options
        joined, found = join_fields(batch, memory.known, options.key, self._kinds, options.until, options.deleted)
        marks = marks_of(batch)
        missed = ~found & ((marks & (IS_HISTORY | IS_PROVISIONAL)) == 0)
        count(LOOKUP_MISSES, int(np.count_nonzero(missed)), table=options.records.name)
        if not marks[0] & IS_PROVISIONAL:
            log.shard.newest_us = max(log.shard.newest_us, int(times.max()))
        yield joined

    def needed(self, segments: Sequence[pa.RecordBatch], shard: _Shard) -> list[Keys]:
        """The last row of each key, however old it is, and those that later events may take."""
        return [still_needed(rows, self._cutoff_us(shard)) for rows in segments]

    def passed_us(self, segments: Sequence[pa.RecordBatch], shard: _Shard) -> int:
        """No row passes for its age alone."""
        return -_FOREVER

    def _cutoff_us(self, shard: _Shard) -> int:
        return shard.newest_us - self._options.lateness_us
