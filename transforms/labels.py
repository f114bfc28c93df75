"""Join labels that come as records of their own with what was kept of their events."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.coders import BooleanCoder, BytesCoder, TupleCoder, VarIntCoder
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import Timestamp

from models.faults import RowFaults
from models.labels import LABEL_TIME
from models.project import Project
from models.windows import Int64, Run
from transforms.batches import (
    EVENT_TIME,
    POSITION,
    SOURCE,
    SYSTEM_FIELDS,
    RecordBatchCoder,
    as_float64,
    column,
    concat_batches,
    hash_keys,
    is_provisional,
    partition,
    shard_of,
    take_rows,
    times_us,
    timestamp_of,
)
from transforms.dead_letters import make_dead_letters
from transforms.decode import DEAD
from transforms.rolling import AFTER_SLICE_US, MAX_RECENT_SEGMENTS, SEGMENT_ROWS

NO_EVENT = "no event with this id"
ALREADY_KNOWN = "label already known"

# Kept events are joined to those kept before once these are no longer so many times more.
_KEPT_RATIO = 8

_FOREVER = 1 << 62
_CODER = RecordBatchCoder()
_Routed = tuple[int, tuple[bool, pa.RecordBatch]]
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
            >> beam.ParDo(_Join(self))
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
        for shard, part in partition(kept, shard_of(event_id, self.shards)):
            yield shard, (False, part)

    def _route_labels(self, batch: pa.RecordBatch) -> Iterator[_Routed]:
        for shard, part in partition(batch, shard_of(column(batch, self.project.event.id), self.shards)):
            yield shard, (True, part)


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
class _Shard:
    """The small part of a shard's state, which is read and written each time; times are in microseconds."""

    timer_us: int | None = None  # when the next slice is due
    token: str = ""  # marks this very state of the log
    recent: int = 0  # segments of the log that are not joined yet
    tidy_us: int | None = None  # the event time at which what no label can come for is next thrown out
    slice_us: int = -_FOREVER  # when the latest slice of events was due
    newest_us: int = -_FOREVER  # the latest event
    passed_us: int = -_FOREVER  # the latest event before that slice, whose labels may still come

    @staticmethod
    def from_bytes(data: bytes | None) -> _Shard:
        return _Shard(**json.loads(data)) if data else _Shard()

    def to_bytes(self) -> bytes:
        return json.dumps(dataclasses.asdict(self)).encode()


class _Join(beam.DoFn):  # type: ignore[misc]
    """The state is a log: a row for an event, and one more with the label's time once it has a label."""

    PENDING = BagStateSpec("pending", TupleCoder((VarIntCoder(), BooleanCoder(), _CODER)))
    BASE = BagStateSpec("base", _CODER)
    RECENT = BagStateSpec("recent", _CODER)
    SHARD = ReadModifyWriteStateSpec("shard", BytesCoder())
    RELEASE = TimerSpec("release", TimeDomain.WATERMARK)

    def __init__(self, options: JoinLabels) -> None:
        project = options.project
        if project.label is None or project.label_records is None:
            raise ValueError(f"{project.name} declares no label.events")
        self._event_id, self._label = project.event.id, project.label.field
        self._records = project.label_records.event
        self._names = {EVENT_TIME: options.event_time, LABEL_TIME: options.label_time}
        self._horizon_us = options.horizon_us
        self._keep_us = options.horizon_us + options.lateness_us

    def setup(self) -> None:
        self._memories: dict[int, tuple[str, Kept]] = {}

    def process(
        self,
        element: _Routed,
        slice_end: Timestamp = beam.DoFn.TimestampParam,
        pending: Any = beam.DoFn.StateParam(PENDING),
        shard_state: Any = beam.DoFn.StateParam(SHARD),
        release: Any = beam.DoFn.TimerParam(RELEASE),
    ) -> None:
        due_us = slice_end.micros + AFTER_SLICE_US
        pending.add((due_us, *element[1]))
        shard = _Shard.from_bytes(shard_state.read())
        if shard.timer_us is None or due_us < shard.timer_us:
            shard.timer_us = due_us
            shard_state.write(shard.to_bytes())
            release.set(timestamp_of(due_us))

    @on_timer(RELEASE)  # type: ignore[untyped-decorator]
    def release(
        self,
        key: int = beam.DoFn.KeyParam,
        fired: Timestamp = beam.DoFn.TimestampParam,
        pending: Any = beam.DoFn.StateParam(PENDING),
        base: Any = beam.DoFn.StateParam(BASE),
        recent: Any = beam.DoFn.StateParam(RECENT),
        shard_state: Any = beam.DoFn.StateParam(SHARD),
        release: Any = beam.DoFn.TimerParam(RELEASE),
    ) -> Iterator[Any]:
        due: dict[tuple[int, bool], list[pa.RecordBatch]] = {}
        waiting = []
        for due_us, is_label, batch in pending.read():
            if due_us <= fired.micros:
                due.setdefault((due_us, is_label), []).append(batch)
            else:
                waiting.append((due_us, is_label, batch))
        pending.clear()
        for item in waiting:
            pending.add(item)

        shard = _Shard.from_bytes(shard_state.read())
        kept = self._recall(key, shard, base, recent)
        for due_us, is_label in sorted(due):  # of one slice events first
            batch = concat_batches(due[due_us, is_label])
            if not is_label:
                if due_us > shard.slice_us:
                    shard.slice_us, shard.passed_us = due_us, shard.newest_us
                shard.newest_us = max(shard.newest_us, int(times_us(batch).max()))
                kept = keep_events(kept, batch, shard.passed_us - self._keep_us)
                self._remember(batch, pa.nulls(batch.num_rows, SYSTEM_FIELDS[EVENT_TIME].type), shard, base, recent)
                continue
            joined, faults, kept = join_labels(kept, batch, self._event_id, self._label, self._horizon_us)
            if faults.bad.any():
                dead = make_dead_letters(batch, faults.rows, faults.reasons(), "JoinLabels", self._records)
                yield beam.pvalue.TaggedOutput(DEAD, dead)
            if joined is not None:
                *events, label_time, _ = joined.columns
                names = joined.schema.names[: len(events)]
                self._remember(pa.RecordBatch.from_arrays(events, names=names), label_time, shard, base, recent)
                named = [self._names.get(name, name) for name in joined.schema.names]
                yield TimestampedValue(pa.RecordBatch.from_arrays(joined.columns, names=named), timestamp_of(due_us))
        self._memories[key] = (shard.token, kept)
        shard.timer_us = min((due_us for due_us, _, _ in waiting), default=None)
        if shard.timer_us is not None:
            release.set(timestamp_of(shard.timer_us))
        shard_state.write(shard.to_bytes())

    def _recall(self, key: int, shard: _Shard, base: Any, recent: Any) -> Kept:
        """What is kept, from memory or, where that is not of this state, from the log."""
        token, kept = self._memories.pop(key, ("", ()))
        if token == shard.token:
            return kept
        segments = [*base.read(), *recent.read()]
        if not segments:
            return ()
        log = self._still_needed(concat_batches(segments), shard)
        is_event = column(log, LABEL_TIME).is_null().to_numpy(zero_copy_only=False)
        events, labels = (take_rows(log, np.flatnonzero(rows)) for rows in (is_event, ~is_event))
        events = pa.RecordBatch.from_arrays(events.columns[:-1], names=events.schema.names[:-1])
        all_events = KeptEvents.of(events)
        rows = all_events.find(labels.column(0), times_us(labels))
        all_events.labelled[rows[rows >= 0]] = True
        return (all_events,)

    def _remember(self, batch: pa.RecordBatch, label_time: pa.Array, shard: _Shard, base: Any, recent: Any) -> None:
        """Append to the log; join small segments, and at times throw out what no label can come for."""
        names = [*batch.schema.names, LABEL_TIME]
        recent.add(pa.RecordBatch.from_arrays([*batch.columns, label_time], names=names))
        shard.recent += 1
        shard.token = os.urandom(16).hex()  # a state that was restored and went on otherwise has another
        if shard.recent <= MAX_RECENT_SEGMENTS:
            return
        joined = concat_batches(list(recent.read()))
        recent.clear()
        shard.recent = 0
        base.add(joined)
        last = int(times_us(joined).max())
        if shard.tidy_us is not None and last >= shard.tidy_us:
            needed = self._still_needed(concat_batches(list(base.read())), shard)
            base.clear()
            for start in range(0, needed.num_rows, SEGMENT_ROWS):
                base.add(needed.slice(start, SEGMENT_ROWS))
            shard.tidy_us = None
        if shard.tidy_us is None:
            shard.tidy_us = last + self._keep_us

    def _still_needed(self, log: pa.RecordBatch, shard: _Shard) -> pa.RecordBatch:
        needed = times_us(log) > shard.passed_us - self._keep_us
        return log if needed.all() else take_rows(log, np.flatnonzero(needed))
