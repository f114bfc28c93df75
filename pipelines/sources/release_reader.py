"""Release records as they are written, beside a source of the engine's own."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import MAX_TIMESTAMP, Duration

from models.metrics import REFUSED_RELEASES
from models.record import RELEASES
from models.rollout.assign import to_batch
from pipelines.sources.release_feed import ALWAYS_US, EARLIEST_US, POLL_SECONDS, Followed, Follower
from pipelines.sources.shared_reader import SharedReader
from pipelines.sources.stream import ENDLESS, MANUAL
from transforms.batches import timestamp_of
from transforms.metrics import count


@dataclasses.dataclass(eq=False)
class FollowReleases(beam.PTransform):
    """The feeds of a stream, and the records of a log: their watermark stays where the log is complete."""

    source: beam.PTransform
    releases: Followed

    def expand(self, pbegin: Any) -> dict[str, beam.PCollection]:
        """{name of a feed: its batches}."""
        read = beam.ParDo(ReadReleases(self.releases)).with_output_types(pa.RecordBatch)
        releases = pbegin | "Release log" >> beam.Impulse() | "Releases" >> read
        return {**(pbegin | "Feeds" >> self.source), RELEASES: releases}


class ReadReleases(beam.DoFn):
    """Takes what a process's follower has found, once a second. Another process begins with all records again."""

    def __init__(self, log: Followed) -> None:
        self._follower = SharedReader(functools.partial(_follow, log))

    def setup(self) -> None:
        self._follower.join()

    @beam.DoFn.unbounded_per_element()
    def process(
        self,
        element: bytes,
        tracker: Any = beam.DoFn.RestrictionParam(ENDLESS),
        estimator: Any = beam.DoFn.WatermarkEstimatorParam(MANUAL),
    ) -> Iterator[Any]:
        """Releases as one batch, timestamped with the watermark, which then goes on to where the log is complete."""
        number = tracker.current_restriction().start
        if not tracker.try_claim(number):
            return
        follower: Follower = self._follower.at(number)
        before = estimator.current_watermark()
        passed_us = max(before.micros, EARLIEST_US) if before is not None else EARLIEST_US
        news, complete_us = follower.take(passed_us)
        count(REFUSED_RELEASES, follower.take_refused())
        if news:
            yield TimestampedValue(to_batch(news), timestamp_of(passed_us))
        if complete_us >= ALWAYS_US - 1:
            estimator.set_watermark(MAX_TIMESTAMP)
            tracker.try_claim(tracker.current_restriction().stop - 1)
            return
        if complete_us > passed_us:
            estimator.set_watermark(timestamp_of(complete_us // 1000 * 1000))
        tracker.defer_remainder(Duration(POLL_SECONDS))

    def teardown(self) -> None:
        self._follower.leave()


def _follow(log: Followed) -> Follower:
    follower = Follower(log)
    follower.start()
    return follower
