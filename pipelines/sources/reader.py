"""What a stream's source does: receives, journals, waits for the watermark, emits slices, acknowledges."""

from __future__ import annotations

import functools
import itertools
import pathlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import MAX_TIMESTAMP, Duration

from models import progress
from models.batches import as_int64, column, marks_of, partition, take_rows, with_column
from models.record import (
    INGESTED,
    IS_HISTORY,
    IS_LATE,
    IS_PROVISIONAL,
    MARKS,
    PARTITION,
    PAYLOAD,
    PUBLISHED,
    RECORD_SCHEMA,
    SLICE,
    SYSTEM_FIELDS,
)
from pipelines.brokers import Messages
from pipelines.sources.ahead import Ahead, Int64
from pipelines.sources.files import read_all
from pipelines.sources.journal import LABEL_PARTITION
from pipelines.sources.journal_writer import JournalWriter
from pipelines.sources.records import NO_TIME_US, has_labels, probe_records, read_event_times, type_of
from pipelines.sources.replay import Replay
from pipelines.sources.values import JsonValues, attribute_times_us
from pipelines.sources.watermark import StreamWatermark
from transforms.batches import timestamp_of

if TYPE_CHECKING:
    from pipelines.sources.stream import ReadStream

STEP_US = 100_000  # the watermark moves in steps of at least this much event time
AHEAD_US = 86_400_000_000  # an event later than its publication by more than this does not move the watermark
MAX_MESSAGES = 10_000
MAX_AHEAD = 5_000_000  # records that wait for the watermark; with more, no message is taken until some are out
LONGEST_ROUND_US = 1_000_000
WAIT_SECONDS = 0.02
REMEMBERED_IDS = 1_000_000
EVENTS, LABELS = "events", "labels"
_EARLIEST_US = -(1 << 60)


class Reader:
    """Receives, keeps what is ahead of the watermark, and yields what the watermark has passed as one slice.

    So the batches that come out are in the order of event time, and as large as the watermark's steps are.
    """

    def __init__(self, source: ReadStream) -> None:
        self._source = source
        self._subscription: Any = None
        self._label_subscription: Any = None
        self._journal: JournalWriter | None = None
        self._replay: Replay | None = None
        if source.journal:
            self._journal = JournalWriter(pathlib.Path(source.journal))
            look = functools.partial(probe_records, source.project)
            self._replay = Replay(self._journal.found, self._times, look, source.horizon_us)
        self._past = self._read_past()
        self._watermark = StreamWatermark(source.allowance_us, source.idle_us)
        self._seen: dict[str, None] = {}  # message ids, oldest first
        self._ahead, self._labels_ahead = Ahead(), Ahead()
        self._newest_us = _EARLIEST_US
        self._slice_end_us: int | None = None
        self._held_until_us = 0
        # A clock of how long messages were waited for: a round that takes long, as when the sink stalls, is no silence.
        self._round_us = monotonic_us()
        self._clock_us = self._received_us = 0

    def receive(self, element: str, finalizer: Any, tracker: Any, estimator: Any) -> Iterator[TimestampedValue]:
        """A round: what has become due."""
        over = False
        now_us = monotonic_us()
        self._clock_us += min(now_us - self._round_us, LONGEST_ROUND_US, self._source.idle_us // 4)
        self._round_us = now_us
        if self._subscription is None and (past := next(self._past, None)) is not None:
            self._slice_end_us, batches = past
            for batch in batches:
                yield from self._emit_past(batch)
            finalizer.register(_nothing)
        else:
            if self._subscription is None:
                yield from self._begin()
            messages = None
            if len(self._ahead) < MAX_AHEAD:
                messages = self._subscription.receive(MAX_MESSAGES, WAIT_SECONDS)
            if messages is not None:
                yield from self._take(messages, element)
            if self._label_subscription is not None:
                labels = self._label_subscription.receive(MAX_MESSAGES, 0.0)
                if labels is not None:
                    self._take_labels(labels)
            silent = messages is None and self._clock_us - self._received_us > self._source.idle_us
            over = self._source.until_idle and silent and bool(self._subscription.partitions())
            yield from self._pass_watermark(over, finalizer)
            for ahead, subscription in (
                (self._ahead, self._subscription),
                (self._labels_ahead, self._label_subscription),
            ):
                # Even without receipts: Prism asks to finalize every bundle, and a worker logs those that can't be.
                finalizer.register(functools.partial(_acknowledge, subscription, ahead.done()))
        if over and not len(self._ahead) and not len(self._labels_ahead):
            estimator.set_watermark(MAX_TIMESTAMP)
            tracker.try_claim((1 << 62) - 1)
            return
        if self._slice_end_us is not None:
            reached, before = timestamp_of(self._slice_end_us + STEP_US // 2), estimator.current_watermark()
            if before is None or reached > before:  # a new reader may be behind the one before a failure
                estimator.set_watermark(reached)
        tracker.defer_remainder(Duration(0))

    def close(self) -> None:
        """Give back what was not acknowledged."""
        for subscription in (self._subscription, self._label_subscription):
            if subscription is not None:
                subscription.close()
        if self._journal is not None:
            # A crash is told on while messages that the former process had received may still come.
            crashed = self._replay is not None and self._replay.crashed
            self._journal.close(in_order=not crashed or 0 < self._held_until_us <= monotonic_us())

    def _read_past(self) -> Iterator[tuple[int, list[pa.RecordBatch]]]:
        """Slices of history: the files' events as one, then the journal's as they were."""
        if self._source.history:
            yield _EARLIEST_US, list(read_all(self._source.history, self._source.project.event_type))
        if self._replay is not None:
            yield from self._replay.past()

    def _begin(self) -> Iterator[TimestampedValue]:
        """Take over what the journal left to do, and connect."""
        replay = self._replay
        if replay is not None and self._journal is not None:
            for number in replay.found:
                self._journal.mark(f"aside {number}")
            self._seen.update(dict.fromkeys(replay.message_ids))
            self._slice_end_us = replay.end_us if replay.end_us is not None else self._slice_end_us
            for batch, times in replay.pending:
                marked = self._observe(batch, times)
                if self._source.at_arrival and not has_labels(batch):
                    yield self._emit(marked, IS_HISTORY | IS_PROVISIONAL, self._slice_after(times))
                (self._labels_ahead if has_labels(batch) else self._ahead).add([(marked, times)])
            for batch in replay.set_aside:
                times = np.full(batch.num_rows, NO_TIME_US)
                (self._labels_ahead if has_labels(batch) else self._ahead).add([(batch, times)])
            replay.pending, replay.set_aside, replay.message_ids = [], [], []
            self._journal.mark("started")  # what the broker hands out from here on may be lost with the process
        self._subscription = self._source.broker.subscribe()
        if self._source.labels is not None:
            self._label_subscription = self._source.labels.subscribe()
        self._received_us = self._clock_us
        if replay is not None and replay.crashed:
            # Messages that the former process had received and not written down come again only after a while.
            self._held_until_us = monotonic_us() + int(self._subscription.redelivery_seconds * 1e6)

    def _take(self, messages: Messages, uri: str) -> Iterator[TimestampedValue]:
        """Journal the messages that were not received before, and keep them for the watermark to pass."""
        self._received_us = self._clock_us
        batches = self._to_batches(messages, uri)
        if self._journal is not None:
            if batches:
                self._journal.append([batch for batch, _ in batches])
            self._ahead.add([], messages.receipt)  # safe already
        kept = []
        for batch, heard in batches:
            times = self._times(batch)
            marked = self._observe(batch, times, heard)
            if self._source.at_arrival:
                yield self._emit(marked, IS_PROVISIONAL, self._slice_after(times))
            kept.append((marked, times))
        self._ahead.add(kept, None if self._journal is not None else messages.receipt)

    def _take_labels(self, messages: Messages) -> None:
        """Journal labels and keep them for the watermark, which they do not move, to pass."""
        self._received_us = self._clock_us
        batches = self._to_batches(messages, str(self._source.labels and self._source.labels.uri), labels=True)
        if self._journal is not None:
            if batches:
                self._journal.append([batch for batch, _ in batches])
            self._labels_ahead.add([], messages.receipt)
        timed = [(batch, self._times(batch)) for batch, _ in batches]
        kept = [(self._observe(batch, times), times) for batch, times in timed]
        self._labels_ahead.add(kept, None if self._journal is not None else messages.receipt)

    def _observe(self, batch: pa.RecordBatch, times: Int64, heard: Int64 | None = None) -> pa.RecordBatch:
        """Tell the watermark of records, by the times of their attributes if there are, and mark what it passed."""
        known = times != NO_TIME_US
        heard = times if heard is None else heard
        told = (
            (heard != NO_TIME_US) & (heard <= as_int64(column(batch, PUBLISHED)) + AHEAD_US) & (not has_labels(batch))
        )
        if told.any():
            partitions = column(batch, PARTITION).to_numpy().astype(np.int64)
            self._watermark.observe(partitions[told], heard[told], self._clock_us)
        self._newest_us = max(self._newest_us, int(times[known].max(initial=_EARLIEST_US)))
        passed = self._slice_end_us if self._slice_end_us is not None else _EARLIEST_US
        late = known & (times <= passed)
        if late.any() and not has_labels(batch):
            progress.advance("late", int(late.sum()))
        return with_column(batch, MARKS, pa.array(late * np.int8(IS_LATE)))

    def _pass_watermark(self, over: bool, finalizer: Any) -> Iterator[TimestampedValue]:
        """What the watermark has passed since the last time, as a slice."""
        reached = self._watermark.current(self._subscription.partitions(), self._clock_us)
        if monotonic_us() < self._held_until_us:
            reached = _EARLIEST_US
        if over:
            reached = max([reached, *(n for a in (self._ahead, self._labels_ahead) if (n := a.newest()) is not None)])
        if over:
            reached = -(-reached // STEP_US) * STEP_US
        elif self._watermark.silent:  # up to the newest event, and no further: the next may be a little later
            reached = -(-reached // 1000) * 1000
        else:
            reached = reached // STEP_US * STEP_US
        cut_us, oldest = self._source.cut_us, self._ahead.oldest(NO_TIME_US)
        if cut_us and oldest is not None:
            reached = min(reached, -(-oldest // cut_us) * cut_us)
        if self._slice_end_us is None or reached > self._slice_end_us:
            self._slice_end_us = max(reached, _EARLIEST_US)
        passed = [*self._ahead.take(self._slice_end_us), *self._labels_ahead.take(self._slice_end_us)]
        for batch in passed:
            progress.advance("labels" if has_labels(batch) else "read", batch.num_rows)
            yield from self._emit_kinds(batch, 0)
        if passed and self._journal is not None:
            line = f"emitted {self._journal.rows} {self._slice_end_us} {self._newest_us}"
            finalizer.register(functools.partial(self._journal.mark, line))
        progress.gauge("waiting", len(self._ahead))
        if self._slice_end_us > _EARLIEST_US:
            progress.gauge("watermark lag", (_now_us() - self._slice_end_us) / 1e6)
        progress.gauge("backlog", self._subscription.backlog())

    def _emit_kinds(self, batch: pa.RecordBatch, marks: int) -> Iterator[Any]:
        """The events and the labels of a batch, each to its output."""
        if PARTITION not in batch.schema.names:
            yield self._emit(batch, marks)
            return
        for is_label, part in partition(batch, (column(batch, PARTITION).to_numpy() == LABEL_PARTITION).astype(int)):
            value = self._emit(part, marks)
            yield beam.pvalue.TaggedOutput(LABELS, value) if is_label else value

    def _emit_past(self, batch: pa.RecordBatch) -> Iterator[Any]:
        """History, but for rows of the journal that the gate held until their window's end when the process ended."""
        quality = self._source.project.quality
        end_us = self._replay.end_us if self._replay is not None and self._slice_end_us != _EARLIEST_US else None
        if end_us is None or quality is None or quality.gate != "quarantine":
            yield from self._emit_kinds(batch, IS_HISTORY)
            return
        held = self._times(batch) >= end_us // quality.window * quality.window
        for is_held, part in partition(batch, held.astype(np.int64)):
            live = with_column(part, MARKS, pa.array(np.zeros(part.num_rows, np.int8)))
            yield from self._emit_kinds(live if is_held else part, 0 if is_held else IS_HISTORY)

    def _emit(self, batch: pa.RecordBatch, marks: int, slice_end_us: int | None = None) -> TimestampedValue:
        """A batch as one slice, with more marks."""
        end_us = slice_end_us if slice_end_us is not None else self._slice_end_us or 0
        if marks:
            former = marks_of(batch) if MARKS in batch.schema.names else np.zeros(batch.num_rows, np.int8)
            batch = with_column(batch, MARKS, pa.array(former | np.int8(marks)))
        if PUBLISHED not in batch.schema.names:  # history from files
            for name in (PUBLISHED, INGESTED):
                batch = with_column(batch, name, pa.nulls(batch.num_rows, SYSTEM_FIELDS[name].type))
        metadata = {**(batch.schema.metadata or {}), SLICE: f"={end_us}".encode()}
        return TimestampedValue(batch.replace_schema_metadata(metadata), timestamp_of(end_us))

    def _slice_after(self, times: Int64) -> int:
        """The end of a slice that the watermark has not reached, for what goes out ahead of it."""
        newest = max(int(times.max(initial=_EARLIEST_US)), (self._slice_end_us or _EARLIEST_US) + STEP_US)
        return -(-newest // STEP_US) * STEP_US

    def _to_batches(
        self, messages: Messages, uri: str, labels: bool = False
    ) -> list[tuple[pa.RecordBatch, Int64 | None]]:
        """The messages that were not received before, as batches of one format each, and the times of attributes."""
        names = [f"labels/{name}" for name in messages.ids] if labels else messages.ids
        new = np.array([place for place, name in enumerate(names) if name not in self._seen], np.int64)
        self._seen.update(dict.fromkeys(names))
        for name in list(itertools.islice(self._seen, max(len(self._seen) - REMEMBERED_IDS, 0))):
            del self._seen[name]
        if not len(new):
            return []
        rows = len(new)
        ids = pa.array(names, pa.string()).take(pa.array(new))
        partitions = np.full(rows, LABEL_PARTITION) if labels else np.asarray(messages.partitions)[new]
        arrays = [
            pa.nulls(rows, pa.binary()),
            # A broker's number of a message, where its id ends in one: `17`, or `topic/partition/17`.
            pc.struct_field(pc.extract_regex(ids, r"(?:^|/)(?P<n>[0-9]{1,18})$"), [0]).cast(pa.int64()),
            pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([uri])),
            pa.array(np.asarray(messages.published_us, np.int64)[new]).cast(pa.timestamp("us", tz="UTC")),
            pa.array(np.full(rows, _now_us())).cast(pa.timestamp("us", tz="UTC")),
            ids,
            pa.array(partitions.astype(np.int32)),
        ]
        about = pa.RecordBatch.from_arrays(arrays, schema=RECORD_SCHEMA)
        payloads = messages.payloads if rows == len(messages) else [messages.payloads[place] for place in new.tolist()]
        heard = None
        if messages.event_times is not None:
            heard = attribute_times_us([messages.event_times[place] for place in new.tolist()])
            heard = np.asarray(heard.fill_null(NO_TIME_US).to_numpy())
        batches = []
        for group in (JsonValues() if labels else self._source.values).split(payloads):
            batch = with_column(take_rows(about, group.rows), PAYLOAD, group.payloads)
            part = None if heard is None else heard[group.rows]
            batches.append((batch.replace_schema_metadata(group.metadata), part))
        return batches

    def _times(self, batch: pa.RecordBatch) -> Int64:
        """Times in microseconds; records without one, or with an absurd one, tell the watermark nothing."""
        return read_event_times(batch, type_of(batch, self._source.project))


def _nothing() -> None:
    """A finalizer for bundles that need none."""


def _acknowledge(subscription: Any, receipts: list[Any]) -> None:
    for receipt in receipts:
        if receipt is not None:
            subscription.acknowledge(receipt)


def _now_us() -> int:
    return time.time_ns() // 1000


def monotonic_us() -> int:
    return time.monotonic_ns() // 1000
