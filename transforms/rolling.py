"""Rolling windows over an entity's events, event by event, in event time, whatever order they arrive in.

Events are spread over shards by a hash of the entity. A shard keeps events until the watermark has passed
the end of their slice, so that all earlier ones are there, and then hands a slice to the kernel at once.

A provisional event is not kept: it goes on at once, with what is known at its arrival, and comes once more.

Labels that come as records of their own are a second kind of batch, told by their column `__label_time`.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.coders import BytesCoder, TupleCoder, VarIntCoder
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import Timestamp

from models import progress
from models.labels import LABEL_TIME, LabelledKernel, Labels
from models.windows import Events, History, RollingKernel, encode_entities
from transforms.batches import (
    EVENT_TIME,
    RecordBatchCoder,
    as_float64,
    as_int64,
    column,
    concat_batches,
    is_provisional,
    partition,
    shard_of,
    take_rows,
    times_us,
    timestamp_of,
)

# So many small segments of a shard's history are joined into one; a join rewrites only those.
MAX_RECENT_SEGMENTS = 128
SEGMENT_ROWS = 65536
# So many rows go on at once: engines move and compress a few megabytes faster than hundreds.
OUTPUT_ROWS = 16384
# A watermark at a slice's end may still have batches of the slice behind it; a millisecond later it has none.
AFTER_SLICE_US = 1000

_CODER = RecordBatchCoder()


@dataclasses.dataclass(eq=False)
class RollingWindows(beam.PTransform):  # type: ignore[misc]
    """Batches → the same rows with one more column for each feature of `kernel`.

    `entity` and `tie_breaker` name columns: events of one entity at one time are ordered by `tie_breaker`.
    The result of a row depends on the set of events alone, not on shards, batches or slices.

    With a `LabelledKernel`, the input is {"events": batches, "labels": batches of transforms.labels.JoinLabels}; labels
    of a slice have the timestamp of its events.
    """

    entity: str
    tie_breaker: str
    kernel: RollingKernel
    shards: int

    def expand(self, inputs: beam.PCollection | dict[str, beam.PCollection]) -> beam.PCollection:
        """Batches of one slice in, timestamped with its end; those of events out, a millisecond later."""
        if isinstance(inputs, dict):
            inputs = (inputs["events"], inputs["labels"]) | "Both" >> beam.Flatten()
        return (
            inputs
            | "Route" >> beam.FlatMap(self._route).with_output_types(tuple[int, pa.RecordBatch])
            # Without this, in-process Beam fuses two stateful steps and loses what the first one's timer emits.
            | "Regroup" >> beam.Reshuffle().with_output_types(tuple[int, pa.RecordBatch])
            | "Advance"
            >> beam.ParDo(_Advance(self.entity, self.tie_breaker, self.kernel)).with_output_types(pa.RecordBatch)
        )

    def _route(self, batch: pa.RecordBatch) -> Iterator[tuple[int, pa.RecordBatch]]:
        yield from partition(batch, shard_of(column(batch, self.entity), self.shards))


@dataclasses.dataclass
class _Shard:
    """The small part of a shard's state, which is read and written each time; times are in microseconds."""

    timer_us: int | None = None  # when the next slice is due
    token: str = ""  # marks this very state of the history
    recent: int = 0  # segments that are not joined yet
    tidy_us: int | None = None  # the event time at which what has passed every window is next thrown out

    @staticmethod
    def from_bytes(data: bytes | None) -> _Shard:
        return _Shard(**json.loads(data)) if data else _Shard()

    def to_bytes(self) -> bytes:
        return json.dumps(dataclasses.asdict(self)).encode()


@dataclasses.dataclass
class _Memory:
    """A shard's history as the kernel wants it, kept between bundles; `token` says of which state."""

    token: str
    history: History
    codes: dict[Any, int]
    ahead: History = dataclasses.field(default_factory=History)  # provisional events, which are in no state


class _Advance(beam.DoFn):  # type: ignore[misc]
    PENDING = BagStateSpec("pending", TupleCoder((VarIntCoder(), _CODER)))
    BASE = BagStateSpec("base", _CODER)
    RECENT = BagStateSpec("recent", _CODER)
    SHARD = ReadModifyWriteStateSpec("shard", BytesCoder())
    RELEASE = TimerSpec("release", TimeDomain.WATERMARK)

    def __init__(self, entity: str, tie_breaker: str, kernel: RollingKernel) -> None:
        self._entity = entity
        self._tie_breaker = tie_breaker
        self._kernel = kernel
        self._label = kernel.label if isinstance(kernel, LabelledKernel) else ""

    def setup(self) -> None:
        self._memories: dict[int, _Memory] = {}

    def start_bundle(self) -> None:
        # When a shard's next slice is due, as this bundle has read or written it: a read of state is a round trip.
        self._timers: dict[int, int] = {}

    def process(
        self,
        element: tuple[int, pa.RecordBatch],
        slice_end: Timestamp = beam.DoFn.TimestampParam,
        pending: Any = beam.DoFn.StateParam(PENDING),
        base: Any = beam.DoFn.StateParam(BASE),
        recent: Any = beam.DoFn.StateParam(RECENT),
        shard_state: Any = beam.DoFn.StateParam(SHARD),
        release: Any = beam.DoFn.TimerParam(RELEASE),
    ) -> Iterator[pa.RecordBatch]:
        key, batch = element
        if is_provisional(batch):
            memory = self._recall(key, _Shard.from_bytes(shard_state.read()), base, recent)
            yield self._look_ahead(batch, memory)
            self._memories[key] = memory
            return
        due_us = slice_end.micros + AFTER_SLICE_US
        pending.add((due_us, batch))
        if due_us < self._timers.get(key, due_us + 1):
            shard = _Shard.from_bytes(shard_state.read())
            if shard.timer_us is None or due_us < shard.timer_us:
                shard.timer_us = due_us
                shard_state.write(shard.to_bytes())
                release.set(timestamp_of(due_us))
            self._timers[key] = shard.timer_us

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
    ) -> Iterator[TimestampedValue]:
        due: dict[tuple[int, bool], list[pa.RecordBatch]] = {}
        waiting = []
        for due_us, batch in pending.read():
            if due_us <= fired.micros:
                due.setdefault((due_us, not _has_labels(batch)), []).append(batch)
            else:
                waiting.append((due_us, batch))
        pending.clear()
        for item in waiting:
            pending.add(item)

        shard = _Shard.from_bytes(shard_state.read())
        memory = self._recall(key, shard, base, recent)
        for due_us, has_events in sorted(due):  # of one slice labels first
            batch = concat_batches(due[due_us, has_events])
            if not has_events:
                memory.history = self._learn(memory, batch)
                self._remember(batch, shard, base, recent)
                continue
            progress.advance("windowed", batch.num_rows)
            events = self._events(batch, memory, column(batch, self._tie_breaker))
            columns, memory.history = self._kernel.advance(memory.history, events)
            self._remember(batch, shard, base, recent)
            rows = _with_columns(batch, self._kernel, columns)
            for start in range(0, rows.num_rows, OUTPUT_ROWS):
                yield TimestampedValue(rows.slice(start, OUTPUT_ROWS), timestamp_of(due_us))
            reached = int(events.time.max())
            memory.ahead = History(tuple(run.after(reached) for run in memory.ahead.runs if run.last > reached))
        memory.token = shard.token
        self._memories[key] = memory
        shard.timer_us = min((due_us for due_us, _ in waiting), default=None)
        self._timers.pop(key, None)
        if shard.timer_us is not None:
            release.set(timestamp_of(shard.timer_us))
        shard_state.write(shard.to_bytes())

    def _recall(self, key: int, shard: _Shard, base: Any, recent: Any) -> _Memory:
        """The shard's history in memory, read from state where memory is not of this state.

        It is taken out of `_memories`: were the bundle to fail on the way, it would be ahead of the state.
        """
        memory = self._memories.pop(key, None)
        forgotten = memory is not None and len(memory.codes) > 2 * len(memory.history) + 10_000
        if memory is None or memory.token != shard.token or forgotten:
            memory = _Memory(shard.token, History(), {})
            segments = [*base.read(), *recent.read()]
            for past in self._still_needed(segments):
                if _has_labels(past):
                    memory.history = self._learn(memory, past)
                else:
                    events = self._events(past, memory, pa.nulls(past.num_rows))
                    memory.history = self._kernel.extend(memory.history, events)
        return memory

    def _look_ahead(self, batch: pa.RecordBatch, memory: _Memory) -> pa.RecordBatch:
        """Provisional events with their features, by the history and by what came before them."""
        events = self._events(batch, memory, column(batch, self._tie_breaker))
        known = dataclasses.replace(memory.history, runs=(*memory.history.runs, *memory.ahead.runs))
        columns, _ = self._kernel.advance(known, events)
        memory.ahead = self._kernel.extend(memory.ahead, events)
        return _with_columns(batch, self._kernel, columns)

    def _remember(self, batch: pa.RecordBatch, shard: _Shard, base: Any, recent: Any) -> None:
        """Append a batch's part of the history to the state."""
        fields = [LABEL_TIME, self._label] if _has_labels(batch) else self._kernel.fields
        names = dict.fromkeys([self._entity, EVENT_TIME, *fields])
        recent.add(pa.RecordBatch.from_arrays([column(batch, name) for name in names], names=list(names)))
        shard.recent += 1
        # A mark of this very state: one that was restored and went on otherwise has another.
        shard.token = os.urandom(16).hex()
        if shard.recent > MAX_RECENT_SEGMENTS:
            joined = _concat_kinds(list(recent.read()))
            recent.clear()
            shard.recent = 0
            self._add_base(joined, shard, base)

    def _add_base(self, joined: list[pa.RecordBatch], shard: _Shard, base: Any) -> None:
        """Add large segments; once in the longest window's time, throw out what has passed every window."""
        for segment in joined:
            base.add(segment)
        last = max(int(times_us(segment).max()) for segment in joined)
        if shard.tidy_us is not None and last >= shard.tidy_us:
            needed = self._still_needed(list(base.read()))
            base.clear()
            for kept in needed:
                for start in range(0, kept.num_rows, SEGMENT_ROWS):
                    base.add(kept.slice(start, SEGMENT_ROWS))
            shard.tidy_us = None
        if shard.tidy_us is None:
            shard.tidy_us = last + self._kernel.horizon_us

    def _still_needed(self, segments: list[pa.RecordBatch]) -> list[pa.RecordBatch]:
        """What some window may yet hold, events and labels apart; a label passes with its event."""
        parts = [(part, times_us(part)) for part in _concat_kinds(segments)]
        passed = max((int(times.max()) for _, times in parts), default=0) - self._kernel.horizon_us
        return [
            part if times.min() > passed else take_rows(part, np.flatnonzero(times > passed)) for part, times in parts
        ]

    def _learn(self, memory: _Memory, batch: pa.RecordBatch) -> History:
        labels = Labels(
            entity=encode_entities(column(batch, self._entity), memory.codes),
            time=times_us(batch),
            known=as_int64(column(batch, LABEL_TIME)),
            value=as_float64(column(batch, self._label)),
        )
        kernel: Any = self._kernel
        return kernel.learn(memory.history, labels)  # type: ignore[no-any-return]

    def _events(self, batch: pa.RecordBatch, memory: _Memory, ids: pa.Array) -> Events:
        return Events(
            entity=encode_entities(column(batch, self._entity), memory.codes),
            time=times_us(batch),
            ids=ids,
            values={name: as_float64(column(batch, name)) for name in self._kernel.fields},
        )


def _has_labels(batch: pa.RecordBatch) -> bool:
    return LABEL_TIME in batch.schema.names


def _concat_kinds(segments: list[pa.RecordBatch]) -> list[pa.RecordBatch]:
    """All events as one batch and all labels as another, events first, as far as there are any."""
    kinds = [[segment for segment in segments if _has_labels(segment) is labels] for labels in (False, True)]
    return [concat_batches(kind) for kind in kinds if kind]


def _with_columns(batch: pa.RecordBatch, kernel: RollingKernel, columns: list[Any]) -> pa.RecordBatch:
    added = [pa.field(f.name, pa.int64() if f.aggregate == "count" else pa.float64()) for f in kernel.features]
    arrays = [pa.array(values) for values in columns]
    return pa.RecordBatch.from_arrays([*batch.columns, *arrays], schema=pa.schema([*batch.schema, *added]))
