"""Join labels that come as records of their own with what was kept of their events."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa

from models.batches import (
    Keys,
    column,
    is_provisional,
    shard_of,
    take_rows,
    times_us,
    with_column,
    without,
)
from models.dead_letters import make_dead_letters
from models.features.label_join import Kept, KeptEvents, join_labels, keep_events
from models.record import EVENT_TIME, LABEL_TIME, SOURCE, SYSTEM_FIELDS, RecordType
from models.steps import Log, Shard, Step, spread
from transforms.refused import DEAD
from transforms.slices import Hold
from transforms.state import States

_FOREVER = 1 << 62


@dataclasses.dataclass(eq=False)
class JoinLabels(beam.PTransform[dict[str, beam.PCollection[pa.RecordBatch]], beam.pvalue.DoOutputsTuple]):
    """{"events": batches, "labels": valid `records`} → batches of labels, and dead letters for the others.

    A label belongs to the latest event of its id that is not later than the label and less than `horizon_us` earlier.
    An event has one label: the first in label time, the smaller one of two of the same time. A label that comes late,
    when its event has one, is refused even if it is the earlier. `lateness_us` is how much longer events are kept, for
    labels that come that late.

    Both inputs must be cut into the same slices, so that a label's event is in its slice or in one before it.
    Provisional events are left out.

    A row of the output is the event's id, its `carried` columns, its time, the label and the label's time; the times
    are named `event_time`, as in the events, and `label_time`.
    """

    records: RecordType
    label_field: str
    carried: tuple[str, ...]
    horizon_us: int
    shards: int
    lateness_us: int = 0
    event_time: str = EVENT_TIME
    label_time: str = LABEL_TIME
    states: States | None = None  # events and labels are kept under `name`
    name: str = "labels"
    refuse: bool = True  # without it, labels that belong to no event here are left out, and there are no dead letters

    def expand(self, inputs: dict[str, beam.PCollection]) -> Any:
        """Main output: batches of labels; output `dead`: dead letters, where there are any."""
        routes = {"events": self._route_events, "labels": self._route_labels}
        tagged = {DEAD: pa.RecordBatch} if self.refuse else {}
        hold = Hold(_Join(self), routes, tagged=tagged, states=self.states, name=self.name, shards=self.shards)
        return inputs | "Hold" >> hold

    def _route_events(self, batch: pa.RecordBatch) -> Iterator[tuple[int, None, pa.RecordBatch]]:
        if is_provisional(batch):  # it comes once more
            return
        names = [self.records.id, *self.carried, self.event_time]
        event_id, *carried, times = (column(batch, name) for name in names)
        arrays = [event_id, *carried, times.cast(SYSTEM_FIELDS[EVENT_TIME].type)]
        kept = pa.RecordBatch.from_arrays(arrays, names=[*names[:-1], EVENT_TIME])
        yield from spread(kept, shard_of(event_id, self.shards))

    def _route_labels(self, batch: pa.RecordBatch) -> Iterator[tuple[int, None, pa.RecordBatch]]:
        return spread(batch, shard_of(column(batch, self.records.id), self.shards))


@dataclasses.dataclass
class _Shard(Shard):
    slice_us: int = -_FOREVER  # when the latest slice of events was due
    newest_us: int = -_FOREVER  # the latest event
    passed_us: int = -_FOREVER  # the latest event before that slice, whose labels may still come


@dataclasses.dataclass
class _Memory:
    kept: Kept


class _Join(Step[_Shard]):
    """The log has a row for an event, and one more with the label's time once it has a label."""

    shard = _Shard

    def __init__(self, options: JoinLabels) -> None:
        self._records, self._label = options.records, options.label_field
        self._names = {EVENT_TIME: options.event_time, LABEL_TIME: options.label_time}
        self._join_us = options.horizon_us
        self._refuse = options.refuse
        self.horizon_us = options.horizon_us + options.lateness_us

    def places(self, segment: pa.RecordBatch, shards: int) -> Keys:
        """By the event's id."""
        return shard_of(segment.column(0), shards)

    def kind_of(self, batch: pa.RecordBatch) -> int:
        """Of one slice events first; only labels still say where they came from."""
        return int(SOURCE in batch.schema.names)

    def recall(self, memory: _Memory | None, log: Log[_Shard]) -> _Memory:
        """What is kept."""
        if memory is not None:
            return memory
        memory = _Memory(())
        for past in log.read():  # all have one schema: it is one batch
            is_event = column(past, LABEL_TIME).is_null().to_numpy(zero_copy_only=False)
            events, labels = (take_rows(past, np.flatnonzero(rows)) for rows in (is_event, ~is_event))
            kept = KeptEvents.of(without(events, LABEL_TIME))
            rows = kept.find(labels.column(0), times_us(labels))
            kept.labelled[rows[rows >= 0]] = True
            memory.kept = (kept,)
        return memory

    def advance(self, batch: pa.RecordBatch, due_us: int, memory: _Memory, log: Log[_Shard]) -> Iterator[Any]:
        """Labels with their events, and dead letters; of events nothing."""
        if not self.kind_of(batch):
            shard = log.shard
            if due_us > shard.slice_us:
                shard.slice_us, shard.passed_us = due_us, shard.newest_us
            shard.newest_us = max(shard.newest_us, int(times_us(batch).max()))
            memory.kept = keep_events(memory.kept, batch, self.passed_us((), shard))
            log.append(with_column(batch, LABEL_TIME, pa.nulls(batch.num_rows, SYSTEM_FIELDS[EVENT_TIME].type)))
            return
        joined, faults, memory.kept = join_labels(memory.kept, batch, self._records.id, self._label, self._join_us)
        if self._refuse and faults.bad.any():
            dead = make_dead_letters(batch, faults.rows, faults.reasons(), "JoinLabels", self._records)
            yield beam.pvalue.TaggedOutput(DEAD, dead)
        if joined is not None:
            log.append(without(joined, self._label))
            names = [self._names.get(name, name) for name in joined.schema.names]
            yield pa.RecordBatch.from_arrays(joined.columns, names=names)

    def passed_us(self, segments: Sequence[pa.RecordBatch], shard: _Shard) -> int:
        """That for which no label can come."""
        return shard.passed_us - self.horizon_us
