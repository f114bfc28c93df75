"""Steps of the hold (transforms.slices): what one does with slices, the state of a shard, and its history."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa

from models.batches import Keys, concat_batches, partition, take_rows, times_us
from models.record import LABEL_TIME

# So many small segments of a shard's history are joined into one; a join rewrites only those.
MAX_RECENT_SEGMENTS = 128
SEGMENT_ROWS = 65536


@dataclasses.dataclass
class Shard:
    """The small part of a shard's state, which is read and written each time; times are in microseconds."""

    timer_us: int | None = None  # when the next slice is due
    later_us: int | None = None  # slices that are due then or later are in the second bag of those that wait
    token: str = ""  # marks this very state of the history
    recent: int = 0  # segments of the history that are not joined yet
    tidy_us: int | None = None  # the event time at which what has passed is next thrown out
    kept_us: int | None = None  # when the state was last kept
    history_bytes: int = 0  # as Arrow has it

    @classmethod
    def from_bytes(cls: type[S], data: bytes | None) -> S:
        """What `to_bytes` gave, or that of a shard without state."""
        return cls(**json.loads(data)) if data else cls()

    def to_bytes(self) -> bytes:
        """JSON."""
        return json.dumps(self.values()).encode()

    def values(self) -> dict[str, Any]:
        """The fields by name, as JSON has them."""
        return vars(self)


S = TypeVar("S", bound=Shard)


class Step(Generic[S]):
    """What a step does with slices. One with a history has a `memory`, what it makes of the history, and changes it."""

    shard: type[S]
    horizon_us: int = 0  # how far back the history goes
    join_after: int | None = None  # so many batches of a shard are joined while they wait; None: they never are

    def kind_of(self, batch: pa.RecordBatch) -> int:
        """Batches of one kind have one schema; of what is due at one time, those of the lowest kind are first."""
        return 0

    def join(self, batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
        """Batches of one kind that are due at one time as one."""
        return concat_batches(batches)

    def recall(self, memory: Any, log: Log[S]) -> Any:
        """The given memory, which may be made anew; None is given where there is none of this state."""

    def advance(self, batch: pa.RecordBatch, due_us: int, memory: Any, log: Log[S]) -> Iterator[Any]:
        """What comes of all of one kind that is due at one time, or of a provisional batch at its arrival."""
        raise NotImplementedError

    def places(self, segment: pa.RecordBatch, shards: int) -> Keys:
        """The shard int[n] of each row of a segment of the history, or of a batch that waits."""
        return np.zeros(segment.num_rows, np.int64)

    def needed(self, segments: Sequence[pa.RecordBatch], shard: S) -> list[Keys]:
        """Which rows of each segment of the whole history, bool[n], are still needed."""
        passed_us = self.passed_us(segments, shard)
        return [times_us(part) > passed_us for part in segments]

    def passed_us(self, segments: Sequence[pa.RecordBatch], shard: S) -> int:
        """Rows of the whole history that are not later than this are no longer needed."""
        raise NotImplementedError


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

    def restore(self, segments: Sequence[pa.RecordBatch]) -> None:
        """Begin with the segments of a history that was kept."""
        for segment in _concat_kinds(list(segments)):
            self.base.add(segment)
            self.shard.history_bytes += segment.nbytes
        self.shard.token = os.urandom(16).hex()

    def append(self, segment: pa.RecordBatch) -> None:
        """Add a slice's part; join small segments; once in the horizon's time, throw out what has passed."""
        self.recent.add(segment)
        self.shard.recent += 1
        self.shard.history_bytes += segment.nbytes
        # A mark of this very state: one that was restored and went on otherwise has another.
        self.shard.token = os.urandom(16).hex()
        last = int(times_us(segment).max())
        is_due = self.shard.tidy_us is not None and last >= self.shard.tidy_us
        if self.shard.tidy_us is None or is_due:
            self.shard.tidy_us = last + self.step.horizon_us
        if self.shard.recent <= MAX_RECENT_SEGMENTS and not is_due:
            return
        joined = _concat_kinds(list(self.recent.read()))
        self.recent.clear()
        self.shard.recent = 0
        for segment in joined:
            self.base.add(segment)
        if is_due:
            needed = self._still_needed(list(self.base.read()))
            self.base.clear()
            self.shard.history_bytes = sum(part.nbytes for part in needed)
            for part in needed:
                for piece in pieces(part, SEGMENT_ROWS):
                    self.base.add(piece)

    def _still_needed(self, segments: list[pa.RecordBatch]) -> list[pa.RecordBatch]:
        if not (parts := _concat_kinds(segments)):
            return []
        return [
            part if rows.all() else take_rows(part, np.flatnonzero(rows))
            for part, rows in zip(parts, self.step.needed(parts, self.shard), strict=True)
        ]


def has_labels(batch: pa.RecordBatch) -> bool:
    """Whether a batch's rows have the time of a label."""
    return LABEL_TIME in batch.schema.names


def _concat_kinds(segments: list[pa.RecordBatch]) -> list[pa.RecordBatch]:
    """All events as one batch and all labels as another, events first, as far as there are any."""
    kinds = [[segment for segment in segments if has_labels(segment) is labels] for labels in (False, True)]
    return [concat_batches(kind) for kind in kinds if kind]


def pieces(batch: pa.RecordBatch, rows: int) -> Iterator[pa.RecordBatch]:
    """A batch in parts of at most so many rows."""
    return (batch.slice(start, rows) for start in range(0, batch.num_rows, rows))


def spread(batch: pa.RecordBatch, shards: Keys) -> Iterator[tuple[int, None, pa.RecordBatch]]:
    """What goes to each shard, by the shard int64[n] of each row, to wait for the end of its own slice."""
    for shard, part in partition(batch, shards):
        yield shard, None, part
