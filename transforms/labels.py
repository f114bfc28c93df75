"""Join labels that come as records of their own with what was kept of their events."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import Timestamp

from models.batches import (
    as_float64,
    column,
    concat_batches,
    hash_keys,
    is_provisional,
    shard_of,
    take_rows,
    times_us,
    with_column,
    without,
)
from models.faults import RowFaults
from models.features.windows import Int64, Run
from models.project.project import Project
from models.record import EVENT_TIME, LABEL_TIME, POSITION, SOURCE, SYSTEM_FIELDS
from transforms.batches import LazyBatch, timestamp_of
from transforms.dead_letters import make_dead_letters
from transforms.decode import DEAD
from transforms.slices import AFTER_SLICE_US, AdvanceSlices, Log, Shard, spread

NO_EVENT = "no event with this id"
ALREADY_KNOWN = "label already known"

# Kept events are joined to those kept before once these are no longer so many times more.
_KEPT_RATIO = 8

_FOREVER = 1 << 62
_Routed = tuple[int, LazyBatch]
_Rows = np.ndarray[Any, np.dtype[np.bool_]]


@dataclasses.dataclass(eq=False)
class JoinLabels(beam.PTransform):  # type: ignore[misc]
    """{"events": batches, "labels": valid label records} → batches of labels, and dead letters for the others.

    A label belongs to the latest event of its id that is not later than the label and less than `horizon_us` earlier.
    An event has one label: the first in label time, the smaller one of two of the same time. A label that comes late,
    when its event has one, is refused even if it is the earlier. `lateness_us` is how much longer events are kept, for
    labels that come that late.

    Both inputs must be cut into the same slices, so that a label's event is in its slice or in one before it; of a
    slice the labels' timestamp must not be before the events'. Provisional events are left out.

    A row of the output is the event's id, its `carried` columns, its time, the label and the label's time; the times
    are named `event_time`, as in the events, and `label_time`.
    """

    project: Project
    carried: tuple[str, ...]
    horizon_us: int
    shards: int
    lateness_us: int = 0
    event_time: str = EVENT_TIME
    label_time: str = LABEL_TIME

    def expand(self, inputs: dict[str, beam.PCollection]) -> beam.DoOutputsTuple:
        """Main output: batches of labels, a millisecond after their slice; output `dead`: dead letters."""
        events = inputs["events"] | "Route events" >> beam.FlatMap(self._route_events).with_output_types(_Routed)
        labels = inputs["labels"] | "Route labels" >> beam.FlatMap(self._route_labels).with_output_types(_Routed)
        return (
            (events, labels)
            | "Both" >> beam.Flatten()
            | "Regroup" >> beam.Reshuffle().with_output_types(_Routed)
            | "Join"
            >> beam.ParDo(AdvanceSlices(_Join(self)))
            .with_output_types(pa.RecordBatch, dead=pa.RecordBatch)
            .with_outputs(DEAD, main="rows")
        )

    def _route_events(self, batch: pa.RecordBatch) -> Iterator[_Routed]:
        if is_provisional(batch):  # it comes once more
            return
        names = [self.project.event.id, *self.carried, self.event_time]
        event_id, *carried, times = (column(batch, name) for name in names)
        arrays = [event_id, *carried, times.cast(SYSTEM_FIELDS[EVENT_TIME].type)]
        kept = pa.RecordBatch.from_arrays(arrays, names=[*names[:-1], EVENT_TIME])
        yield from spread(kept, shard_of(event_id, self.shards))

    def _route_labels(self, batch: pa.RecordBatch) -> Iterator[_Routed]:
        yield from spread(batch, shard_of(column(batch, self.project.event.id), self.shards))


@dataclasses.dataclass(eq=False)
class MoveLater(beam.PTransform):  # type: ignore[misc]
    """Batches → the same, timestamped as if they had gone through one more step that waits for the end of a slice."""

    def expand(self, pcoll: beam.PCollection) -> beam.PCollection:
        """What goes beside such a step and meets its output again."""
        return pcoll | "Move" >> beam.Map(_move_later).with_output_types(pa.RecordBatch)


def _move_later(batch: pa.RecordBatch, timestamp: Timestamp = beam.DoFn.TimestampParam) -> TimestampedValue:
    return TimestampedValue(batch, timestamp_of(timestamp.micros + AFTER_SLICE_US))


@dataclasses.dataclass(frozen=True, eq=False)
class KeptEvents:
    """Events that labels may still come for: id first, __event_time last; and which of them have one, bool[n].

    `index` has the hash of each id as entity, and as value "row" which row of `events` it is.
    """

    events: pa.RecordBatch
    labelled: _Rows
    index: Run

    @staticmethod
    def of(events: pa.RecordBatch, labelled: _Rows | None = None) -> KeptEvents:
        """At least one event."""
        hashes, times = _hashes(events.column(0)), times_us(events)
        order = np.lexsort((times, hashes))
        index = Run(hashes[order], times[order], {"row": order.astype(np.float64)})
        return KeptEvents(events, np.zeros(len(order), bool) if labelled is None else labelled, index)

    def __len__(self) -> int:
        return len(self.labelled)

    def merge(self, later: KeptEvents) -> KeptEvents:
        """The events of both."""
        moved = dataclasses.replace(later.index, values={"row": later.index.values["row"] + len(self)})
        events = concat_batches([self.events, later.events])
        return KeptEvents(events, np.concatenate([self.labelled, later.labelled]), self.index.merge(moved))

    def after(self, time_us: int) -> KeptEvents:
        """The events later than `time_us`, of which there must be one."""
        if self.index.first > time_us:
            return self
        rows = np.flatnonzero(times_us(self.events) > time_us)
        return KeptEvents.of(take_rows(self.events, rows), self.labelled[rows])

    def find(self, ids: pa.Array, until_us: Int64) -> Int64:
        """The row int64[n] of the latest event of each id that is not later than `until_us`; -1 where there is none."""
        if not len(ids):
            return np.empty(0, np.int64)
        hashes = _hashes(ids)
        query = Run(hashes, until_us, {})
        place = self.index.rows_until(query, [0], query.first)[0] - 1
        while True:
            place[(place >= 0) & (self.index.entity[place] != hashes)] = -1
            found = np.flatnonzero(place >= 0)
            rows = self.index.values["row"][place[found]].astype(np.int64)
            same = pc.equal(self.events.column(0).take(pa.array(rows)), ids.take(pa.array(found)))
            other = found[~same.to_numpy(zero_copy_only=False).astype(bool)]
            if not len(other):  # else two ids have one hash
                break
            place[other] -= 1
        result = np.full(len(ids), -1)
        result[found] = rows
        return result


Kept = tuple[KeptEvents, ...]


def keep_events(kept: Kept, events: pa.RecordBatch, passed_us: int) -> Kept:
    """What is kept and at least one event more; those up to `passed_us` may be thrown out."""
    parts = [part for part in (*kept, KeptEvents.of(events)) if part.index.last > passed_us]
    while len(parts) > 1 and len(parts[-2]) < _KEPT_RATIO * len(parts[-1]):
        last = parts.pop()
        parts[-1] = parts[-1].merge(last)
        if len(parts) == 1:
            parts = [parts[0].after(passed_us)]
    return tuple(parts)


def join_labels(
    kept: Kept, labels: pa.RecordBatch, event_id: str, label: str, horizon_us: int
) -> tuple[pa.RecordBatch | None, RowFaults, Kept]:
    """Labels with their events, the other rows of `labels` with the reason, and what is kept with what has a label.

    `labels` has the id, the label, where it came from, and its time as __event_time. The result, None for no rows,
    has the columns of events, then __label_time and the label.
    """
    ids, times, faults = column(labels, event_id), times_us(labels), RowFaults(labels.num_rows)
    starts = np.cumsum([0, *map(len, kept)])
    event, event_us = np.full(len(ids), -1), np.full(len(ids), np.iinfo(np.int64).min)
    for part, start in zip(kept, starts[:-1].tolist(), strict=True):
        rows = part.find(ids, times)
        part_us = times_us(part.events)[rows]
        later = (rows >= 0) & (part_us >= event_us) & (times - part_us < horizon_us)
        event[later], event_us[later] = rows[later] + start, part_us[later]
    faults.add(np.flatnonzero(event < 0), event_id, NO_EVENT, ids)

    origin = hash_keys(column(labels, SOURCE)) + hash_keys(column(labels, POSITION)) * np.uint64(31)
    order = np.lexsort((origin, as_float64(column(labels, label)), times, event))
    order = order[event[order] >= 0]
    repeated = np.concatenate([[False], event[order[1:]] == event[order[:-1]]]) if len(order) else np.empty(0, bool)
    labelled = np.concatenate([part.labelled for part in kept]) if kept else np.empty(0, bool)
    repeated |= labelled[event[order]]
    faults.add(np.sort(order[repeated]), event_id, ALREADY_KNOWN, ids)
    first = order[~repeated]
    if not len(first):
        return None, faults, kept

    labelled[event[first]] = True
    edges = np.searchsorted(event[first], starts)  # `first` is in the order of `event`
    pieces, marked = [], []
    for number, part in enumerate(kept):
        rows = event[first[edges[number] : edges[number + 1]]] - starts[number]
        pieces.append(take_rows(part.events, rows))
        marked.append(dataclasses.replace(part, labelled=labelled[starts[number] : starts[number + 1]]))
    events, chosen = concat_batches(pieces), pa.array(first)
    known = [column(labels, name).take(chosen) for name in (EVENT_TIME, label)]
    names = [*events.schema.names, LABEL_TIME, label]
    return pa.RecordBatch.from_arrays([*events.columns, *known], names=names), faults, tuple(marked)


def _hashes(ids: pa.Array) -> Int64:
    return np.asarray(hash_keys(ids).view(np.int64))


@dataclasses.dataclass
class _Shard(Shard):
    slice_us: int = -_FOREVER  # when the latest slice of events was due
    newest_us: int = -_FOREVER  # the latest event
    passed_us: int = -_FOREVER  # the latest event before that slice, whose labels may still come


@dataclasses.dataclass
class _Memory:
    kept: Kept


class _Join:
    """A Step. Its log has a row for an event, and one more with the label's time once it has a label."""

    shard = _Shard

    def __init__(self, options: JoinLabels) -> None:
        project = options.project
        if project.label is None or project.label_type is None:
            raise ValueError(f"{project.name} declares no label.events")
        self._event_id, self._label = project.event.id, project.label.field
        self._records = project.label_type
        self._names = {EVENT_TIME: options.event_time, LABEL_TIME: options.label_time}
        self._join_us = options.horizon_us
        self.horizon_us = options.horizon_us + options.lateness_us

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
        joined, faults, memory.kept = join_labels(memory.kept, batch, self._event_id, self._label, self._join_us)
        if faults.bad.any():
            dead = make_dead_letters(batch, faults.rows, faults.reasons(), "JoinLabels", self._records)
            yield beam.pvalue.TaggedOutput(DEAD, dead)
        if joined is not None:
            log.append(without(joined, self._label))
            names = [self._names.get(name, name) for name in joined.schema.names]
            yield pa.RecordBatch.from_arrays(joined.columns, names=names)

    def passed_us(self, segments: Sequence[pa.RecordBatch], shard: _Shard) -> int:
        """That for which no label can come."""
        return shard.passed_us - self.horizon_us
