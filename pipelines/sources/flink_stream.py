"""Events from a message broker on Flink: what came of a message is in a checkpoint before it is acknowledged."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.transforms.window import TimestampedValue

from pipelines.sources.reader import STEP_US, Reader, monotonic_us
from pipelines.sources.stream import ReadRounds, ReadStream


@dataclasses.dataclass(eq=False)
class ReadFlinkStream(ReadStream):
    """A ReadStream that goes on from a checkpoint of Flink's; ValueError for a journal, which would be a second one.

    A message is acknowledged when a checkpoint holds what came of it. Those that were not come again after a
    failure; what the checkpoint holds of them makes them duplicates. It needs the job server of deploy/flink.
    """

    def __post_init__(self) -> None:
        if self.journal is not None:
            raise ValueError("on Flink, checkpoints take the place of a journal: leave it out")

    def reader(self) -> beam.DoFn:
        """The DoFn that reads."""
        return ReadRounds(functools.partial(_FlinkReader, self))


class _FlinkReader(Reader):
    def __init__(self, source: ReadFlinkStream) -> None:
        super().__init__(source)
        self._restored = False
        # Called back once, and to be called at the next checkpoint; appended to by another thread.
        self._ripe: collections.deque[Callable[[], None]] = collections.deque()

    def receive(self, element: str, finalizer: Any, tracker: Any, estimator: Any) -> Iterator[TimestampedValue]:
        reached = estimator.current_watermark()
        if self._slice_end_us is None and reached is not None:
            self._restored = True
            self._past = iter(())  # it came in the very first round
            self._slice_end_us = int(reached.micros) - STEP_US // 2
        while self._ripe:
            finalizer.register(self._ripe.popleft())
        yield from super().receive(element, _AtSecondCheckpoint(finalizer, self._ripe), tracker, estimator)

    def _begin(self) -> Iterator[TimestampedValue]:
        yield from super()._begin()
        if self._restored:
            # Messages that the former process had received come again only after a while: wait with the watermark.
            self._held_until_us = monotonic_us() + int(self._subscription.redelivery_seconds * 1e6)


@dataclasses.dataclass
class _AtSecondCheckpoint:
    """A finalizer that puts what it is called with into `ripe`.

    At the end of a checkpoint, Beam finalizes every bundle that was finished by then, even those that began after
    the checkpoint did. So what a bundle wants to have acknowledged goes into the first bundle after that, and is
    acknowledged with it.
    """

    finalizer: Any
    ripe: collections.deque[Callable[[], None]]

    def register(self, callback: Callable[[], None]) -> None:
        ripe = self.ripe
        self.finalizer.register(lambda: ripe.append(callback))
