"""Records from message brokers: an unbounded splittable DoFn that yields batches of records.

Each message is decoded once, when it comes; pipelines.sources.acknowledge says when it is acknowledged.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.io.restriction_trackers import OffsetRange, OffsetRestrictionTracker
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator

from models.record import RELEASES
from pipelines.monitoring.traces import Traces
from pipelines.sources.acknowledge import Acknowledge, AfterBundle
from pipelines.sources.feeds import Feed, Topic
from pipelines.sources.listing import Files
from pipelines.sources.reader import Reader
from pipelines.sources.release_feed import Followed
from pipelines.sources.shared_reader import SharedReader


@dataclasses.dataclass(eq=False)
class ReadStream(beam.PTransform):
    """All messages of the feeds, as batches of records in the order of event time.

    The watermark follows the event times of the feeds that drive it, `allowance_us` behind the newest record.
    After `idle_us` without a message, it moves up to the newest record; with `until_idle`, the stream then ends.
    Times that the record type calls absurd do not move it, nor do those of a day after their publication.

    Before the first message, what `history` and the journal hold fills the windows. With `at_arrival`, each record of
    a feed that drives the watermark goes out twice: provisionally when it comes, and when the watermark passes it.
    A slice ends at a multiple of `cut_us` at the latest; of windows of `held_us`, the gate holds rows until their end.
    Of `periods`, tables of aggregates are written at their end. With `releases`, the watermark stays where that log is
    complete, and its records are a feed, too. With `traces`, a message's `traceparent` is heeded.
    """

    feeds: tuple[Feed[Topic], ...]
    allowance_us: int
    idle_us: int = 5_000_000
    until_idle: bool = False
    acknowledge: Acknowledge = AfterBundle()  # noqa: RUF009, it is frozen
    history: tuple[Feed[Files], ...] = ()
    at_arrival: bool = False
    cut_us: int | None = None
    held_us: int | None = None
    periods: tuple[str, ...] = ()
    releases: Followed | None = None
    traces: Traces | None = None

    def expand(self, pbegin: Any) -> dict[str, beam.PCollection]:
        """{name of a feed: its batches}; their metadata names their format, see transforms.decode."""
        first, *others = (feed.name for feed in self.feeds)
        others += [RELEASES] if self.releases else []
        read = beam.ParDo(ReadRounds(functools.partial(Reader, self))).with_output_types(pa.RecordBatch)
        subscription = pbegin | "Subscription" >> beam.Create([self.feeds[0].source.broker.uri])
        if others:
            tagged = subscription | "Read" >> read.with_outputs(*others, main=first)
            found = {name: tagged[name] for name in (first, *others)}
        else:
            found = {first: subscription | "Read" >> read}
        for batches in found.values():
            batches.is_bounded = self.until_idle  # what ends may be grouped as a whole, by a file sink
        return found


class _Rounds(OffsetRestrictionTracker):
    """Rounds of one reader: what is left can be put off, but not be given to a second reader."""

    def try_split(self, fraction_of_remainder: float) -> Any:
        return super().try_split(0) if fraction_of_remainder == 0 else None


class _Endless(beam.transforms.core.RestrictionProvider):
    """A restriction without an end; a position is a round of receiving."""

    def initial_restriction(self, element: str) -> OffsetRange:
        return OffsetRange(0, 1 << 62)

    def create_tracker(self, restriction: OffsetRange) -> _Rounds:
        return _Rounds(restriction)

    def restriction_size(self, element: str, restriction: OffsetRange) -> int:
        return 1

    def truncate(self, element: str, restriction: OffsetRange) -> None:
        """Draining a job ends the stream where it is."""


ENDLESS = _Endless()
MANUAL = ManualWatermarkEstimator.default_provider()


class ReadRounds(beam.DoFn):
    """Lets the process's reader go on by a round for each position."""

    def __init__(self, open_reader: Callable[[], Reader]) -> None:
        self._reader = SharedReader(open_reader)

    def setup(self) -> None:
        self._reader.join()

    # The finalizer must stand before the restriction and the estimator: Beam 2.72 looks for it there.
    @beam.DoFn.unbounded_per_element()
    def process(
        self,
        element: str,
        finalizer: Any = beam.DoFn.BundleFinalizerParam,
        tracker: Any = beam.DoFn.RestrictionParam(ENDLESS),
        estimator: Any = beam.DoFn.WatermarkEstimatorParam(MANUAL),
    ) -> Iterator[Any]:
        number = tracker.current_restriction().start
        if tracker.try_claim(number):
            yield from self._reader.at(number).receive(finalizer, tracker, estimator)

    def teardown(self) -> None:
        self._reader.leave()
