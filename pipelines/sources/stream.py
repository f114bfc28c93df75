"""Events from a message broker: an unbounded splittable DoFn that yields batches of raw records.

With a journal, a message is acknowledged when it is on disk there; without one, when the bundle that it was
scored in has been finished.
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
from apache_beam.transforms.window import TimestampedValue

from models.project.project import Project
from pipelines.brokers import Broker
from pipelines.sources.reader import EVENTS, LABELS, Reader
from pipelines.sources.shared_reader import SharedReader
from pipelines.sources.values import JsonValues, Values


@dataclasses.dataclass(eq=False)
class ReadStream(beam.PTransform):  # type: ignore[misc]
    """All messages of a subscription, as batches of raw records in the order of event time.

    The watermark follows the project's event time field, `allowance_us` behind the newest event.
    After `idle_us` without a message, it moves up to the newest event; with `until_idle`, the stream then ends.
    Times that the project calls absurd do not move it, nor do those of a day after their publication.

    Before the first message, what `history` (paths of event files) and the journal hold fills the windows, as far
    as it is not older than `horizon_us`. With `at_arrival`, each record goes out twice: provisionally when it
    comes, and when the watermark passes it.

    `labels` is where labels come as JSON records of their own. They go out with the events of their slice, and do not
    move the watermark.
    """

    broker: Broker
    project: Project
    allowance_us: int
    idle_us: int = 5_000_000
    until_idle: bool = False
    journal: str | None = None
    history: tuple[str, ...] = ()
    horizon_us: int = 1 << 60
    at_arrival: bool = False
    cut_us: int | None = None
    values: Values = JsonValues()  # noqa: RUF009, it is frozen
    labels: Broker | None = None

    def expand(self, pbegin: Any) -> beam.PCollection | dict[str, beam.PCollection]:
        """Batches whose metadata names their format (see transforms.decode); with labels, {"events", "labels"}."""
        read = beam.ParDo(self.reader()).with_output_types(pa.RecordBatch)
        subscription = pbegin | "Subscription" >> beam.Create([self.broker.uri])
        if self.labels is None:
            batches = subscription | "Read" >> read
            batches.is_bounded = self.until_idle  # what ends may be grouped as a whole, by a file sink
            return batches
        both = subscription | "Read" >> read.with_outputs(LABELS, main=EVENTS)
        for batches in (both[EVENTS], both[LABELS]):
            batches.is_bounded = self.until_idle
        return {EVENTS: both[EVENTS], LABELS: both[LABELS]}

    def reader(self) -> beam.DoFn:
        """The DoFn that reads."""
        return ReadRounds(functools.partial(Reader, self))


class _Rounds(OffsetRestrictionTracker):  # type: ignore[misc]
    """Rounds of one reader: what is left can be put off, but not be given to a second reader."""

    def try_split(self, fraction_of_remainder: float) -> Any:
        return super().try_split(0) if fraction_of_remainder == 0 else None


class _Endless(beam.transforms.core.RestrictionProvider):  # type: ignore[misc]
    """A restriction without an end; a position is a round of receiving."""

    def initial_restriction(self, element: str) -> OffsetRange:
        return OffsetRange(0, 1 << 62)

    def create_tracker(self, restriction: OffsetRange) -> _Rounds:
        return _Rounds(restriction)

    def restriction_size(self, element: str, restriction: OffsetRange) -> int:
        return 1

    def truncate(self, element: str, restriction: OffsetRange) -> None:
        """Draining a job ends the stream where it is."""


_ENDLESS = _Endless()
_MANUAL = ManualWatermarkEstimator.default_provider()


class ReadRounds(beam.DoFn):  # type: ignore[misc]
    """Lets the process's reader go on by a round for each position."""

    def __init__(self, open_reader: Callable[[], Reader]) -> None:
        self._reader = SharedReader(open_reader)

    def setup(self) -> None:
        self._reader.join()

    # The finalizer must stand before the restriction and the estimator: Beam 2.72 looks for it there.
    @beam.DoFn.unbounded_per_element()  # type: ignore[untyped-decorator]
    def process(
        self,
        element: str,
        finalizer: Any = beam.DoFn.BundleFinalizerParam,
        tracker: Any = beam.DoFn.RestrictionParam(_ENDLESS),
        estimator: Any = beam.DoFn.WatermarkEstimatorParam(_MANUAL),
    ) -> Iterator[TimestampedValue]:
        number = tracker.current_restriction().start
        if tracker.try_claim(number):
            yield from self._reader.at(number).receive(element, finalizer, tracker, estimator)

    def teardown(self) -> None:
        self._reader.leave()
