"""What a stream's source does: receives, keeps, waits for the watermark, emits slices, acknowledges."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import MAX_TIMESTAMP, Duration

from models.batches import as_int64, column, marks_of, partition, with_column
from models.features.aggregates import end_of
from models.metrics import BACKLOG, LATE, PUBLISH_DELAY, REFUSED_RELEASES, ROUNDS, ROWS, WAITING, WATERMARK_LAG
from models.record import (
    INGESTED,
    IS_HISTORY,
    IS_LATE,
    IS_OPEN,
    IS_PROVISIONAL,
    MARKS,
    PARTITION,
    PUBLISHED,
    RELEASES,
    SLICE,
    SYSTEM_FIELDS,
)
from models.rollout.assign import to_batch
from models.rollout.records import Release
from pipelines.brokers import Messages
from pipelines.sources.acknowledge import STEP_US
from pipelines.sources.ahead import Int64
from pipelines.sources.files import read_all
from pipelines.sources.inlets import MAX_MESSAGES, Inlet, SeenIds
from pipelines.sources.records import NO_TIME_US, decode_raw, times_of, type_number
from pipelines.sources.release_feed import EARLIEST_US, Follower
from pipelines.sources.watermark import StreamWatermark
from transforms.batches import timestamp_of
from transforms.metrics import count, gauge

if TYPE_CHECKING:
    from pipelines.sources.stream import ReadStream

AHEAD_US = 86_400_000_000  # an event later than its publication by more than this does not move the watermark
LONGEST_ROUND_US = 1_000_000
WAIT_SECONDS = 0.02
HELD_MESSAGES = 100_000  # the most that are taken, of a backlog, before the watermark may move after a failure


class Reader:
    """Receives, keeps what is ahead of the watermark, and yields what the watermark has passed as one slice.

    So the batches that come out are in the order of event time, and as large as the watermark's steps are.
    """

    def __init__(self, source: ReadStream) -> None:
        self._source = source
        self._seen = SeenIds()
        self._inlets = [Inlet(feed, self._seen) for feed in source.feeds]
        self._driving = [inlet for inlet in self._inlets if inlet.feed.drives_watermark]
        self._by_number = {inlet.records.number: inlet for inlet in self._inlets}
        self._keeper = source.acknowledge.open({number: i.records for number, i in self._by_number.items()})
        self._releases = Follower(source.releases) if source.releases else None
        self._has_releases = False
        self._past = self._read_past()
        self._watermark = StreamWatermark(source.allowance_us, source.idle_us)
        self._newest_us = EARLIEST_US
        self._delay_us: int | None = None  # from the newest event to its publication
        self._slice_end_us: int | None = None
        self._is_open = False
        self._held_until_us = 0
        self._held_messages = 0  # of those that were here by then, the most that are still to be taken
        # A clock of how long messages were waited for: a round that takes long, as when the sink stalls, is no silence.
        self._round_us = monotonic_us()
        self._clock_us = self._received_us = 0

    def receive(self, finalizer: Any, tracker: Any, estimator: Any) -> Iterator[Any]:
        """A round: what has become due."""
        finalizer = self._keeper.begin_round(finalizer, estimator)
        over = False
        now_us = monotonic_us()
        self._clock_us += min(now_us - self._round_us, LONGEST_ROUND_US, self._source.idle_us // 4)
        self._round_us = now_us
        if self._releases is not None and not self._has_releases:
            # A round of their own: they are known before the first event, whenever that goes out.
            self._releases.start()
            yield from self._emit_releases(self._take_releases(self._releases, EARLIEST_US)[0], EARLIEST_US)
            self._has_releases = True
            self._slice_end_us = EARLIEST_US
            finalizer.register(_nothing)
        elif not self._is_open and (past := next(self._past, None)) is not None:
            self._slice_end_us, batches = past
            for batch in batches:
                yield from self._emit_past(batch)
            finalizer.register(_nothing)
        else:
            if not self._is_open:
                yield from self._begin()
            heard, most, all_came = False, 0, monotonic_us() >= self._held_until_us
            for place, inlet in enumerate(self._inlets):
                messages = inlet.receive(0.0 if place else WAIT_SECONDS)
                if messages is not None:
                    heard, most = True, max(most, len(messages))
                    yield from self._take(inlet, messages)
            if all_came:
                self._held_messages = max(self._held_messages - most, 0) if most >= MAX_MESSAGES else 0
            silent = not heard and self._clock_us - self._received_us > self._source.idle_us
            over = self._source.until_idle and silent and bool(self._partitions())
            yield from self._pass_watermark(over, finalizer)
            for inlet in self._inlets:
                # Even without receipts: Prism asks to finalize every bundle, and a worker logs those that can't be.
                finalizer.register(functools.partial(inlet.acknowledge, inlet.ahead.done()))
        if over and not any(len(inlet.ahead) for inlet in self._inlets):
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
        for inlet in self._inlets:
            inlet.close()
        if self._releases is not None:
            self._releases.close()
        # A former process is told on while messages that it had received may still come.
        self._keeper.close(not self._keeper.was_cut_off or (self._is_open and not self._is_held()))

    def _read_past(self) -> Iterator[tuple[int, list[pa.RecordBatch]]]:
        """Slices of history: the files' records as one, then those that went out before as they were."""
        if self._source.history and not self._keeper.is_restored:
            yield EARLIEST_US, [batch for feed in self._source.history for batch in read_all(feed)]
        yield from self._keeper.past()

    def _begin(self) -> Iterator[Any]:
        """Take over what a former process left to do, and connect."""
        keeper = self._keeper
        self._seen.add(keeper.take_ids())
        self._slice_end_us = keeper.end_us if keeper.end_us is not None else self._slice_end_us
        for batch, times in keeper.left():
            if (inlet := self._by_number.get(type_number(batch))) is not None:
                marks = self._observe(inlet, batch, times, times)
                yield from self._wait(inlet, [(with_column(batch, MARKS, marks), times)], IS_HISTORY | IS_PROVISIONAL)
        for inlet in self._inlets:
            inlet.open()
        self._is_open = True
        self._received_us = self._clock_us
        if keeper.was_cut_off:
            # Messages that the former process had received and not kept come again only after a while.
            seconds = max(inlet.subscription.redelivery_seconds for inlet in self._inlets)
            self._held_until_us = monotonic_us() + int(seconds * 1e6)
            self._held_messages = HELD_MESSAGES if seconds else 0

    def _take(self, inlet: Inlet, messages: Messages) -> Iterator[Any]:
        """Keep the messages that were not received before until the watermark has passed their records."""
        self._received_us = self._clock_us
        received = inlet.to_batches(messages)
        is_safe = self._keeper.keep([each.batch for each in received])
        waiting = []
        for batch, heard, traceparents in received:
            decoded = decode_raw(batch, inlet.records)
            times = times_of(decoded, inlet.records)
            if self._source.traces is not None and traceparents is not None and any(traceparents):
                self._source.traces.tracer().remember(column(decoded, inlet.records.id), traceparents)
            marks = self._observe(inlet, batch, times, times if heard is None else heard)
            waiting.append((with_column(decoded, MARKS, marks), times))
        if is_safe:
            inlet.ahead.add([], messages.receipt)
        yield from self._wait(inlet, waiting, IS_PROVISIONAL, None if is_safe else messages.receipt)

    def _wait(
        self, inlet: Inlet, batches: list[tuple[pa.RecordBatch, Int64]], marks: int, receipt: Any = None
    ) -> Iterator[Any]:
        """Put records where they wait for the watermark; at arrival they go out at once, too, with `marks`."""
        inlet.ahead.add(batches, receipt)
        if self._source.at_arrival and inlet.feed.drives_watermark:
            for batch, times in batches:
                yield self._emit(inlet, batch, marks, self._slice_after(times))

    def _observe(self, inlet: Inlet, batch: pa.RecordBatch, times: Int64, heard: Int64) -> pa.Array:
        """Tell the watermark of raw records by the times `heard`, and mark those late that it has passed."""
        known = times != NO_TIME_US
        newest_us = int(times[known].max(initial=EARLIEST_US))
        if newest_us > self._newest_us and inlet.feed.drives_watermark:
            published_us = as_int64(column(batch, PUBLISHED))[times == newest_us].max()
            self._delay_us = max(int(published_us) - newest_us, 0)
        self._newest_us = max(self._newest_us, newest_us)
        late = known & (times <= (self._slice_end_us if self._slice_end_us is not None else EARLIEST_US))
        if inlet.feed.drives_watermark:
            told = (heard != NO_TIME_US) & (heard <= as_int64(column(batch, PUBLISHED)) + AHEAD_US)
            if told.any():
                partitions = inlet.apart(column(batch, PARTITION).to_numpy().astype(np.int64))
                self._watermark.observe(partitions[told], heard[told], self._clock_us)
            count(LATE, int(late.sum()))
        return pa.array(late * np.int8(IS_LATE))

    def _is_held(self) -> bool:
        """Whether messages that a former process had received may still come, or are here and were not taken."""
        return self._held_messages > 0 or monotonic_us() < self._held_until_us

    def _partitions(self) -> set[int]:
        return set().union(*(inlet.partitions() for inlet in self._driving))

    def _pass_watermark(self, over: bool, finalizer: Any) -> Iterator[Any]:
        """What the watermark has passed since the last time, as a slice."""
        reached = self._watermark.current(self._partitions(), self._clock_us)
        if self._is_held():
            reached = EARLIEST_US
        if over:
            newest = (inlet.ahead.newest() for inlet in self._inlets)
            reached = max([reached, *(time for time in newest if time is not None)])
            reached = -(-reached // STEP_US) * STEP_US
        elif self._watermark.silent:  # up to the newest event, and no further: the next may be a little later
            reached = -(-reached // 1000) * 1000
        else:
            reached = reached // STEP_US * STEP_US
        oldest = [time for i in self._driving if (time := i.ahead.oldest(NO_TIME_US)) is not None]
        if (cut_us := self._source.cut_us) and oldest:
            reached = min(reached, -(-min(oldest) // cut_us) * cut_us)
        news: list[Release] = []
        if self._releases is not None:
            news, complete_us = self._take_releases(self._releases, self._slice_end_us or EARLIEST_US, over)
            reached = min(reached, complete_us // 1000 * 1000)
        if self._slice_end_us is None or reached > self._slice_end_us:
            self._slice_end_us = max(reached, EARLIEST_US)
        yield from self._emit_releases(news, self._slice_end_us)
        passed = [(inlet, batch) for inlet in self._inlets for batch in inlet.ahead.take(self._slice_end_us)]
        for inlet, batch in passed:
            count(ROWS, batch.num_rows, step="read" if inlet.feed.drives_watermark else inlet.feed.name)
            yield self._emit(inlet, batch, 0)
        records = sum(batch.num_rows for _, batch in passed)
        self._keeper.passed(records, self._slice_end_us, self._newest_us, finalizer)
        self._show()

    def _take_releases(self, log: Follower, passed_us: int, over: bool = False) -> tuple[list[Release], int]:
        """What is new, and the event time up to which that is all."""
        count(REFUSED_RELEASES, log.take_refused())
        return log.take(passed_us, over)

    def _emit_releases(self, releases: Sequence[Release], end_us: int) -> Iterator[Any]:
        """Records for their output, before the events of the slice."""
        if releases:
            yield beam.pvalue.TaggedOutput(RELEASES, TimestampedValue(to_batch(releases), timestamp_of(end_us)))

    def _show(self) -> None:
        """Tell how it goes."""
        count(ROUNDS, 1)
        gauge(WAITING, sum(len(inlet.ahead) for inlet in self._driving))
        if self._slice_end_us is not None and self._slice_end_us > EARLIEST_US:
            gauge(WATERMARK_LAG, (time.time_ns() // 1000 - self._slice_end_us) / 1e6)
            gauge(PUBLISH_DELAY, None if self._delay_us is None else self._delay_us / 1e6)
        backlogs = [inlet.subscription.backlog() for inlet in self._driving]
        gauge(BACKLOG, None if None in backlogs else sum(backlogs))

    def _emit_past(self, batch: pa.RecordBatch) -> Iterator[Any]:
        """History, but for rows that the gate held until their window's end when the process before ended."""
        inlet = self._by_number.get(type_number(batch))
        if inlet is None:  # of a feed that this stream is run without
            return
        end_us, window_us = self._keeper.end_us, self._source.held_us
        if end_us is not None and inlet.feed.drives_watermark and self._source.periods:
            times = times_of(batch, inlet.records)
            opened = sum(np.int8(IS_OPEN[p]) * (end_of(p, times) > end_us) for p in self._source.periods)
            former = marks_of(batch) if MARKS in batch.schema.names else np.zeros(batch.num_rows, np.int8)
            batch = with_column(batch, MARKS, pa.array((former | opened).astype(np.int8)))
        if end_us is None or window_us is None or self._slice_end_us == EARLIEST_US:
            yield self._emit(inlet, batch, IS_HISTORY)
            return
        held = times_of(batch, inlet.records) >= end_us // window_us * window_us
        for is_held, part in partition(batch, held.astype(np.int64)):
            live = with_column(part, MARKS, pa.array(np.zeros(part.num_rows, np.int8)))
            yield self._emit(inlet, live if is_held else part, 0 if is_held else IS_HISTORY)

    def _emit(self, inlet: Inlet, batch: pa.RecordBatch, marks: int, slice_end_us: int | None = None) -> Any:
        """A batch as one slice, with more marks, for its feed's output."""
        end_us = slice_end_us if slice_end_us is not None else self._slice_end_us or 0
        if marks:
            former = marks_of(batch) if MARKS in batch.schema.names else np.zeros(batch.num_rows, np.int8)
            batch = with_column(batch, MARKS, pa.array(former | np.int8(marks)))
        if PUBLISHED not in batch.schema.names:  # history from files
            for name in (PUBLISHED, INGESTED):
                batch = with_column(batch, name, pa.nulls(batch.num_rows, SYSTEM_FIELDS[name].type))
        metadata = {**(batch.schema.metadata or {}), SLICE: f"={end_us}".encode()}
        value = TimestampedValue(batch.replace_schema_metadata(metadata), timestamp_of(end_us))
        return value if inlet is self._inlets[0] else beam.pvalue.TaggedOutput(inlet.feed.name, value)

    def _slice_after(self, times: Int64) -> int:
        """The end of a slice that the watermark has not reached, for what goes out ahead of it."""
        newest = max(int(times.max(initial=EARLIEST_US)), (self._slice_end_us or EARLIEST_US) + STEP_US)
        return -(-newest // STEP_US) * STEP_US


def _nothing() -> None:
    """A finalizer for bundles that need none."""


def monotonic_us() -> int:
    return time.monotonic_ns() // 1000
