"""Events from a message broker: an unbounded splittable DoFn that yields batches of raw records.

A message is acknowledged when the bundle it came in has been finished and, with a journal, after it is on disk.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.io.restriction_trackers import OffsetRange, OffsetRestrictionTracker
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import MAX_TIMESTAMP, Duration

from models import progress
from models.codecs import decode_json
from models.codecs.times import micros_of
from models.contract import Contract
from models.faults import RowFaults
from models.project import Project
from pipelines.brokers import Broker, Messages
from pipelines.sources.journal import JournalWriter
from pipelines.sources.watermark import Int64, StreamWatermark
from transforms.batches import (
    FORMAT,
    HISTORY,
    PAYLOAD,
    POSITION,
    SLICE,
    SOURCE,
    SYSTEM_FIELDS,
    column,
    concat_batches,
    take_rows,
    timestamp_of,
)

STEP_US = 100_000  # the watermark moves in steps of at least this much event time
MAX_MESSAGES = 10_000
WAIT_SECONDS = 0.02
REMEMBERED_IDS = 1_000_000
_EARLIEST_US = -(1 << 60)
_NO_TIME_US = -(1 << 61)  # of a record without a usable event time: it waits for nothing


@dataclasses.dataclass(eq=False)
class ReadStream(beam.PTransform):  # type: ignore[misc]
    """All messages of a subscription, as batches of raw JSON records in the order of event time.

    The watermark follows the project's event time field, `allowance_us` behind the newest event.
    After `idle_us` without a message, it moves up to the newest event; with `until_idle`, the stream then ends.
    Times that the project calls absurd do not move it.
    """

    broker: Broker
    project: Project
    allowance_us: int
    idle_us: int = 5_000_000
    until_idle: bool = False
    journal: str | None = None

    def expand(self, pbegin: Any) -> beam.PCollection:
        """Batches whose metadata names their format; see transforms.decode."""
        batches = (
            pbegin
            | "Subscription" >> beam.Create([self.broker.uri])
            | "Read" >> beam.ParDo(_ReadStream(self)).with_output_types(pa.RecordBatch)
        )
        batches.is_bounded = self.until_idle  # what ends may be grouped as a whole, by a file sink
        return batches


class _Endless(beam.transforms.core.RestrictionProvider):  # type: ignore[misc]
    """A restriction without an end; a position is a round of receiving."""

    def initial_restriction(self, element: str) -> OffsetRange:
        return OffsetRange(0, 1 << 62)

    def create_tracker(self, restriction: OffsetRange) -> OffsetRestrictionTracker:
        return OffsetRestrictionTracker(restriction)

    def restriction_size(self, element: str, restriction: OffsetRange) -> int:
        return 1

    def truncate(self, element: str, restriction: OffsetRange) -> None:
        """Draining a job ends the stream where it is."""


_ENDLESS = _Endless()
_MANUAL = ManualWatermarkEstimator.default_provider()


class _ReadStream(beam.DoFn):  # type: ignore[misc]
    """Receives, keeps what is ahead of the watermark, and yields what the watermark has passed as one slice.

    So the batches that come out are in the order of event time, and as large as the watermark's steps are.
    """

    def __init__(self, source: ReadStream) -> None:
        self._source = source

    def setup(self) -> None:
        source = self._source
        self._subscription = source.broker.subscribe()
        self._journal = JournalWriter(pathlib.Path(source.journal)) if source.journal else None
        self._watermark = StreamWatermark(source.allowance_us, source.idle_us)
        self._seen: dict[str, None] = {}  # message ids, oldest first
        self._ahead: list[_Ahead] = []
        self._slice_end_us: int | None = None
        self._received_us = _now_us()

    # The finalizer must stand before the restriction and the estimator: Beam 2.72 looks for it there.
    @beam.DoFn.unbounded_per_element()  # type: ignore[untyped-decorator]
    def process(
        self,
        element: str,
        finalizer: Any = beam.DoFn.BundleFinalizerParam,
        tracker: Any = beam.DoFn.RestrictionParam(_ENDLESS),
        estimator: Any = beam.DoFn.WatermarkEstimatorParam(_MANUAL),
    ) -> Iterator[TimestampedValue]:
        if not tracker.try_claim(tracker.current_restriction().start):
            return
        messages = self._subscription.receive(MAX_MESSAGES, WAIT_SECONDS)
        if messages is not None:
            self._take(messages, element)
        over = self._source.until_idle and _now_us() - self._received_us > self._source.idle_us
        passed = self._pass_watermark(over)
        if passed is not None:
            progress.advance("read", passed.num_rows)
            yield TimestampedValue(passed, timestamp_of(self._slice_end_us or 0))
        receipts = [ahead.receipt for ahead in self._ahead if not ahead.batch.num_rows]
        self._ahead = [ahead for ahead in self._ahead if ahead.batch.num_rows]
        if receipts:
            finalizer.register(functools.partial(self._acknowledge, receipts))
        if over:
            estimator.set_watermark(MAX_TIMESTAMP)
            tracker.try_claim((1 << 62) - 1)
            return
        if self._slice_end_us is not None:
            estimator.set_watermark(timestamp_of(self._slice_end_us + STEP_US // 2))
        tracker.defer_remainder(Duration(0))

    def teardown(self) -> None:
        self._subscription.close()
        if self._journal is not None:
            self._journal.close()

    def _acknowledge(self, receipts: list[Any]) -> None:
        for receipt in receipts:
            self._subscription.acknowledge(receipt)

    def _take(self, messages: Messages, uri: str) -> None:
        """Journal the messages that were not received before, and keep them for the watermark to pass."""
        self._received_us = _now_us()
        batch = self._to_batch(messages, uri)
        times = np.full(batch.num_rows, _NO_TIME_US)
        if batch.num_rows:
            if self._journal is not None:
                self._journal.append(batch)
            times = self._event_times(batch)
            known = times != _NO_TIME_US
            if known.any():
                partitions = np.zeros(len(times), np.int64)
                if len(messages) == len(times):
                    partitions = np.asarray(messages.partitions, np.int64)
                self._watermark.observe(partitions[known], times[known], self._received_us)
        self._ahead.append(_Ahead(batch, times, messages.receipt))

    def _pass_watermark(self, over: bool) -> pa.RecordBatch | None:
        """What the watermark has passed since the last time, as a batch of one slice; None if it is nothing."""
        reached = self._watermark.current(self._subscription.partitions(), _now_us())
        if over:
            reached = max([reached, *(int(ahead.times.max()) for ahead in self._ahead if len(ahead.times))])
        reached = (-(-reached // STEP_US) if over else reached // STEP_US) * STEP_US
        if self._slice_end_us is None or reached > self._slice_end_us:
            self._slice_end_us = max(reached, _EARLIEST_US)
        passed = []
        for ahead in self._ahead:
            due = ahead.times <= self._slice_end_us
            if due.all():
                passed.append(ahead.batch)
                ahead.batch, ahead.times = ahead.batch.slice(0, 0), ahead.times[:0]
            elif due.any():
                passed.append(take_rows(ahead.batch, np.flatnonzero(due)))
                ahead.batch = take_rows(ahead.batch, np.flatnonzero(~due))
                ahead.times = ahead.times[~due]
        batch = concat_batches(passed) if passed else None
        if batch is None or not batch.num_rows:
            return None
        metadata = {FORMAT: b"json", SLICE: f"={self._slice_end_us}".encode()}
        return batch.replace_schema_metadata(metadata)

    def _to_batch(self, messages: Messages, uri: str) -> pa.RecordBatch:
        """The messages that were not received before, as one batch."""
        new = [i for i, name in enumerate(messages.ids) if name not in self._seen]
        self._seen.update(dict.fromkeys(messages.ids))
        for name in list(itertools.islice(self._seen, max(len(self._seen) - REMEMBERED_IDS, 0))):
            del self._seen[name]
        payloads = messages.payloads if len(new) == len(messages) else [messages.payloads[i] for i in new]
        rows = len(new)
        arrays = [
            pa.array(payloads, pa.binary()),
            pa.array([_position(messages.ids[i]) for i in new], pa.int64()),
            pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([uri])),
            pa.array(np.zeros(rows, bool)),
        ]
        fields = [SYSTEM_FIELDS[name] for name in (PAYLOAD, POSITION, SOURCE, HISTORY)]
        return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields, {FORMAT: b"json"}))

    def _event_times(self, batch: pa.RecordBatch) -> Int64:
        """Event times in microseconds; records without one, or with an absurd one, tell the watermark nothing."""
        project = self._source.project
        micros = read_event_times(column(batch, PAYLOAD), project).fill_null(_NO_TIME_US).to_numpy()
        earliest, latest = micros_of(project.event.earliest), micros_of(project.event.latest)
        return np.where((micros < earliest) | (micros >= latest), _NO_TIME_US, micros)


def read_event_times(payloads: pa.BinaryArray, project: Project) -> pa.Array:
    """The event times int64[n] of JSON records in microseconds, and of nothing else; null where there is none."""
    name = project.event.time
    contract = Contract({name: project.contract.fields[name]}, b"")
    return decode_json(payloads, contract, False, RowFaults(len(payloads)))[name].cast(pa.int64())


@dataclasses.dataclass
class _Ahead:
    """Messages of one call that the watermark has not passed yet."""

    batch: pa.RecordBatch
    times: Int64
    receipt: Any


def _position(name: str) -> int | None:
    """A broker's number of a message, where its id ends in one: `17`, or `topic/partition/17`."""
    last = name.rsplit("/", 1)[-1]
    return int(last) if last.isdigit() and len(last) < 19 else None


def _now_us() -> int:
    return time.time_ns() // 1000
