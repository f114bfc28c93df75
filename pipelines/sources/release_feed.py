"""Release records as a feed: all of a log at once over files, and as they are written in a stream."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import apache_beam as beam
import pyarrow as pa
from apache_beam.transforms.window import TimestampedValue

from models.record import RELEASES
from models.rollout.assign import to_batch
from models.rollout.records import Release, ReleaseError, ReleaseLog, time_text
from pipelines.databases import DatabaseError
from transforms.batches import timestamp_of

_LOG = logging.getLogger("headrace")
EARLIEST_US = -(1 << 60)
ALWAYS_US = 1 << 60
POLL_SECONDS = 1.0


@dataclasses.dataclass(eq=False)
class WithReleases(beam.PTransform):
    """The feeds of a source, and beside them release records, all before the first event."""

    source: beam.PTransform
    releases: tuple[Release, ...]

    def expand(self, pbegin: Any) -> dict[str, beam.PCollection]:
        """{name of a feed: its batches}."""
        give = beam.FlatMap(self._give).with_output_types(pa.RecordBatch)
        releases = pbegin | "Start releases" >> beam.Impulse() | "Releases" >> give
        return {**(pbegin | "Feeds" >> self.source), RELEASES: releases}

    def _give(self, _: bytes) -> list[TimestampedValue]:
        return [TimestampedValue(to_batch(self.releases), timestamp_of(EARLIEST_US))]


class Followed(Protocol):
    """A release log that a stream follows; it pickles."""

    @property
    def grows(self) -> bool:
        """Whether records may be added while it is followed."""

    def newest(self) -> str | None:
        """What changes with each record that is added; None if it is not known. It raises as `read` does."""

    def read(self) -> ReleaseLog:
        """The log as it is now, checked; ReleaseError if it can't be, DatabaseError or OSError if it can't be read."""

    def accept(self, releases: Iterable[Release]) -> Iterator[Release]:
        """Releases as they are in effect, their bundles loaded and proven, but for those that are refused."""


class Follower:
    """Looks at a log once a second, in a thread of its own, and says up to which event time it is complete.

    A record takes effect at least `lead` after it was made. So a log with the clock `wall` is complete up to the lead
    after it was looked at, and one with the clock `event` up to the lead after its last record was made, as the next
    one is made no earlier. One that does not grow is complete. For clocks that differ, and for the time from when a
    record is made to when it can be read, `headrace release` adds a second to the lead.
    """

    def __init__(self, log: Followed, clock_us: Callable[[], int] = lambda: time.time_ns() // 1000) -> None:
        self._log = log
        self._clock_us = clock_us
        self._lock = threading.Lock()
        self._read: ReleaseLog | None = None
        self._newest: str | None = None
        self._news: list[Release] = []
        self._refused = 0
        self._taken = False
        self._complete_us = EARLIEST_US
        self._failure: Exception | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Read the log; what can't be read is raised."""
        self.look()
        if self._log.grows:
            self._thread = threading.Thread(target=self._follow, name="releases", daemon=True)
            self._thread.start()

    def look(self) -> None:
        """Read what is new in the log, and load what it names.

        Raises:
            ReleaseError: if what was read before has changed, or the log is not as it was written.
            DatabaseError, OSError: if it can't be read now.
        """
        looked_us, newest, before = self._clock_us(), self._log.newest(), self._read
        log = before if before and newest and newest == self._newest else self._log.read()
        seen = before.records if before else ()
        if log.records[: len(seen)] != seen:
            raise ReleaseError("the release log was changed where it had been read before")
        written = log.records[len(seen) :]
        accepted = list(self._log.accept(written))
        with self._lock:
            self._read, self._newest = log, newest
            self._news += accepted
            self._refused += sum(release not in accepted for release in written)
            self._complete_us = self._complete_until(log, looked_us) - 1

    def _complete_until(self, log: ReleaseLog, looked_us: int) -> int:
        """The event time before which no record is missing."""
        if not self._log.grows:
            return ALWAYS_US
        if log.clock == "wall":
            return looked_us + log.lead_us
        made = [release.made_at_us for release in log.records if release.made_at_us is not None]
        return max(made) + log.lead_us if made else EARLIEST_US

    def take(self, passed_us: int, over: bool = False) -> tuple[list[Release], int]:
        """The records that are new, and the event time up to which none is missing; no events are past `passed_us`.

        What is there the first time may be of a time that has passed: of a stream that starts again it is.
        When a stream is `over`, a log of event times counts as complete as it is.

        Raises:
            ReleaseError: if a new record takes effect where events have passed already, or the log can't be followed.
        """
        with self._lock:
            if self._failure is not None:
                raise self._failure
            news, self._news = self._news, []
            again, self._taken = self._taken, True
            complete_us = self._complete_us
            if over and self._read is not None and self._read.clock == "event":
                complete_us = ALWAYS_US
        for release in news if again else ():
            if release.effective_from_us is not None and release.effective_from_us <= passed_us:
                raise ReleaseError(
                    f"release {release.seq} takes effect at {time_text(release.effective_from_us)}, and was seen when "
                    f"events up to {time_text(passed_us)} had been scored: the clocks of this machine and of the one "
                    "that wrote it differ"
                )
        return news, complete_us

    def take_refused(self) -> int:
        """How many records, since the last time, are refused or in effect otherwise than as they were written.

        Metrics are counted by the thread that works on a bundle, which is not the one that looks.
        """
        with self._lock:
            refused, self._refused = self._refused, 0
        return refused

    def close(self) -> None:
        """Look no more."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _follow(self) -> None:
        unreachable = False
        while not self._stop.wait(POLL_SECONDS):
            try:
                self.look()
                unreachable = False
            except ReleaseError as error:
                with self._lock:
                    self._failure = error
                return
            except (DatabaseError, OSError) as error:
                if not unreachable:
                    _LOG.warning("the release log can't be read, and the stream waits for it soon: %s", error)
                unreachable = True
