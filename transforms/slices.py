"""The state of a step that goes from slice to slice: what waits for its slice's end, and a history of what has passed.

A shard's batches are kept until the watermark has passed the end of their slice, so that all of it and all earlier
ones are there. Its history is a log of segments, of which a worker makes what the step wants and keeps that in memory.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.coders import BytesCoder, TupleCoder, VarIntCoder
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import Timestamp

from models.batches import Keys, concat_batches, partition, take_rows, times_us
from models.record import LABEL_TIME
from transforms.batches import LazyBatch, LazyBatchCoder, RecordBatchCoder, timestamp_of

# So many small segments of a shard's history are joined into one; a join rewrites only those.
MAX_RECENT_SEGMENTS = 128
SEGMENT_ROWS = 65536
# So many rows go on at once: engines move and compress a few megabytes faster than hundreds.
OUTPUT_ROWS = 16384
# A watermark at a slice's end may still have batches of the slice behind it; a millisecond later it has none.
AFTER_SLICE_US = 1000
# So many slices wait where each release reads them; those after them are read once for so many releases.
NEAR_SLICES = 16

_CODER = RecordBatchCoder()


@dataclasses.dataclass
class Shard:
    """The small part of a shard's state, which is read and written each time; times are in microseconds."""

    timer_us: int | None = None  # when the next slice is due
    token: str = ""  # marks this very state of the history
    recent: int = 0  # segments that are not joined yet
    tidy_us: int | None = None  # the event time at which what has passed is next thrown out
    later_us: int | None = None  # slices that are due then or later are in the second bag of those that wait

    @classmethod
    def from_bytes(cls: type[S], data: bytes | None) -> S:
        """What `to_bytes` gave, or that of a shard without state."""
        return cls(**json.loads(data)) if data else cls()

    def to_bytes(self) -> bytes:
        """JSON."""
        return json.dumps(dataclasses.asdict(self)).encode()


S = TypeVar("S", bound=Shard)


class Step(Protocol[S]):
    """What a step does with slices. `memory` is what it makes of a shard's history, and changes."""

    shard: type[S]
    horizon_us: int  # how far back the history goes

    def kind_of(self, batch: pa.RecordBatch) -> int:
        """Batches of one kind have one schema; of a slice's, those of the lowest kind are first."""

    def recall(self, memory: Any, log: Log[S]) -> Any:
        """The given memory, which may be made anew; None is given where there is none of this state."""

    def advance(
        self, batch: pa.RecordBatch, due_us: int, memory: Any, log: Log[S]
    ) -> Iterator[pa.RecordBatch | beam.pvalue.TaggedOutput]:
        """What comes of all of a slice of one kind, or of a provisional batch at its arrival."""

    def passed_us(self, segments: Sequence[pa.RecordBatch], shard: S) -> int:
        """Rows of the whole history that are not later than this are no longer needed."""


@dataclasses.dataclass
class Log(Generic[S]):
    """A shard's history as segments in two bags, many small ones and some large ones; those of labels are apart."""

    base: Any
    recent: Any
    shard: S
    step: Step[S]

    def read(self) -> list[pa.RecordBatch]:
        """What is still needed as one batch of events and one of labels, as far as there are any."""
        return self._still_needed([*self.base.read(), *self.recent.read()])

    def append(self, segment: pa.RecordBatch) -> None:
        """Add a slice's part; join small segments; once in the horizon's time, throw out what has passed."""
        self.recent.add(segment)
        self.shard.recent += 1
        # A mark of this very state: one that was restored and went on otherwise has another.
        self.shard.token = os.urandom(16).hex()
        if self.shard.recent <= MAX_RECENT_SEGMENTS:
            return
        joined = _concat_kinds(list(self.recent.read()))
        self.recent.clear()
        self.shard.recent = 0
        for segment in joined:
            self.base.add(segment)
        last = max(int(times_us(segment).max()) for segment in joined)
        if self.shard.tidy_us is not None and last >= self.shard.tidy_us:
            needed = self._still_needed(list(self.base.read()))
            self.base.clear()
            for part in needed:
                for piece in _pieces(part, SEGMENT_ROWS):
                    self.base.add(piece)
            self.shard.tidy_us = None
        if self.shard.tidy_us is None:
            self.shard.tidy_us = last + self.step.horizon_us

    def _still_needed(self, segments: list[pa.RecordBatch]) -> list[pa.RecordBatch]:
        parts = _concat_kinds(segments)
        passed_us = self.step.passed_us(parts, self.shard)
        needed = [times_us(part) > passed_us for part in parts]
        return [
            part if rows.all() else take_rows(part, np.flatnonzero(rows))
            for part, rows in zip(parts, needed, strict=True)
        ]


class AdvanceSlices(beam.DoFn):  # type: ignore[misc]
    """(shard, batch of one slice, timestamped with its end) → what the step makes of it, a millisecond later.

    A provisional batch is not kept: it goes on at once.
    """

    PENDING = BagStateSpec("pending", TupleCoder((VarIntCoder(), LazyBatchCoder())))
    LATER = BagStateSpec("later", TupleCoder((VarIntCoder(), LazyBatchCoder())))
    BASE = BagStateSpec("base", _CODER)
    RECENT = BagStateSpec("recent", _CODER)
    SHARD = ReadModifyWriteStateSpec("shard", BytesCoder())
    RELEASE = TimerSpec("release", TimeDomain.WATERMARK)

    def __init__(self, step: Step[Any]) -> None:
        self._step = step

    def setup(self) -> None:
        self._memories: dict[int, tuple[str, Any]] = {}  # with the token of the state that each is of

    def start_bundle(self) -> None:
        # As this bundle has read or written them: a read of state is a round trip.
        self._shards: dict[int, Shard] = {}

    def process(
        self,
        element: tuple[int, LazyBatch],
        slice_end: Timestamp = beam.DoFn.TimestampParam,
        pending: Any = beam.DoFn.StateParam(PENDING),
        later: Any = beam.DoFn.StateParam(LATER),
        base: Any = beam.DoFn.StateParam(BASE),
        recent: Any = beam.DoFn.StateParam(RECENT),
        shard_state: Any = beam.DoFn.StateParam(SHARD),
        release: Any = beam.DoFn.TimerParam(RELEASE),
    ) -> Iterator[Any]:
        key, batch = element
        due_us = slice_end.micros + AFTER_SLICE_US
        shard = self._shards.get(key)
        if shard is None:
            shard = self._shards[key] = self._step.shard.from_bytes(shard_state.read())
        if batch.provisional:
            log = Log(base, recent, shard, self._step)
            memory = self._recall(key, log)
            yield from self._step.advance(batch.batch, due_us, memory, log)
            self._memories[key] = (log.shard.token, memory)
            return
        (pending if shard.later_us is None or due_us < shard.later_us else later).add((due_us, batch))
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
        later: Any = beam.DoFn.StateParam(LATER),
        base: Any = beam.DoFn.StateParam(BASE),
        recent: Any = beam.DoFn.StateParam(RECENT),
        shard_state: Any = beam.DoFn.StateParam(SHARD),
        release: Any = beam.DoFn.TimerParam(RELEASE),
    ) -> Iterator[Any]:
        shard = self._step.shard.from_bytes(shard_state.read())
        slices: dict[tuple[int, int], list[LazyBatch]] = {}
        self._take(pending, slices)
        if shard.later_us is not None and all(due_us <= fired.micros for due_us, _ in slices):
            self._take(later, slices)
            shard.later_us = None
        ends = sorted({due_us for due_us, _ in slices if due_us > fired.micros})
        if len(ends) > NEAR_SLICES:
            shard.later_us = ends[NEAR_SLICES]
        for due_us, kind in slices:
            if due_us > fired.micros:
                bag = pending if shard.later_us is None or due_us < shard.later_us else later
                bag.add((due_us, _joined(slices[due_us, kind])))

        log = Log(base, recent, shard, self._step)
        memory = self._recall(key, log)
        for due_us, kind in sorted(place for place in slices if place[0] <= fired.micros):
            for output in self._step.advance(_joined(slices[due_us, kind]).batch, due_us, memory, log):
                if isinstance(output, beam.pvalue.TaggedOutput):
                    yield output
                    continue
                for piece in _pieces(output, OUTPUT_ROWS):
                    yield TimestampedValue(piece, timestamp_of(due_us))
        self._memories[key] = (shard.token, memory)
        self._shards.pop(key, None)
        shard.timer_us = ends[0] if ends else None
        if shard.timer_us is not None:
            release.set(timestamp_of(shard.timer_us))
        shard_state.write(shard.to_bytes())

    def _take(self, bag: Any, slices: dict[tuple[int, int], list[LazyBatch]]) -> None:
        """Move all of a bag into `slices`, by when they are due and their kind."""
        for due_us, batch in bag.read():
            slices.setdefault((due_us, self._step.kind_of(batch.batch)), []).append(batch)
        bag.clear()

    def _recall(self, key: int, log: Log[Any]) -> Any:
        """The shard's history in memory, read from state where memory is not of this state.

        It is taken out of `_memories`: were the bundle to fail on the way, it would be ahead of the state.
        """
        token, memory = self._memories.pop(key, ("", None))
        return self._step.recall(memory if token == log.shard.token else None, log)


def spread(batch: pa.RecordBatch, shards: Keys) -> Iterator[tuple[int, LazyBatch]]:
    """What goes to each shard, by the shard int64[n] of each row, as AdvanceSlices takes it."""
    for shard, part in partition(batch, shards):
        yield shard, LazyBatch(part)


def has_labels(batch: pa.RecordBatch) -> bool:
    """Whether a batch's rows have the time of a label."""
    return LABEL_TIME in batch.schema.names


def _concat_kinds(segments: list[pa.RecordBatch]) -> list[pa.RecordBatch]:
    """All events as one batch and all labels as another, events first, as far as there are any."""
    kinds = [[segment for segment in segments if has_labels(segment) is labels] for labels in (False, True)]
    return [concat_batches(kind) for kind in kinds if kind]


def _joined(batches: list[LazyBatch]) -> LazyBatch:
    return batches[0] if len(batches) == 1 else LazyBatch(concat_batches([each.batch for each in batches]))


def _pieces(batch: pa.RecordBatch, rows: int) -> Iterator[pa.RecordBatch]:
    return (batch.slice(start, rows) for start in range(0, batch.num_rows, rows))
