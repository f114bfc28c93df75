"""The circuit breaker by the clock: it looks at a running stream's metrics, and writes releases of what it decides."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping

from models.errors import HeadraceError
from models.metrics import Series
from models.quality.circuit import State
from models.rollout.changes import rolled_back
from models.rollout.clocked import METRICS, ClockWindows, Judged, Judgement, Watched, judge, reason_of, restored, tried
from models.rollout.labelled import LabelWindows, made_alike
from models.rollout.records import Release, ReleaseError, ReleaseLog
from pipelines.jobs.releasing import Change, Desk, move_alias, release, told_by
from pipelines.process import repeated

_LOG = logging.getLogger("headrace")
AUTHOR = "circuit-breaker"
LOOK_SECONDS = 1.0


class ClockBreaker:
    """Rolls back what is too slow, refuses too much or turns out wrong, tries it by a share of keys, then restores it.

    A release that others make is none of its own: with it the circuit is closed. A window in which the release changes,
    or that begins before what was written last is in effect, says nothing; nor does any of latency and dead letters up
    to the first good one: what has to be caught up with at the start is no fault of a model.
    """

    def __init__(
        self,
        desk: Desk,
        read: Callable[[], Mapping[Series, int]],
        clock_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        assert desk.project.breaker is not None
        assert desk.project.breaker.clock is not None
        self._desk, self._read, self._clock_us = desk, read, clock_us
        self._breaker = desk.project.breaker
        self._windows = ClockWindows(desk.project.breaker.clock)
        self._labels = LabelWindows(desk.project.breaker.clock.labels)
        self._watched = Watched()
        self._tripped: Release | None = None
        self._own: set[int] = set()  # the releases that it has made
        self._seq: int | None = None
        self._waits_until_us = 0
        self._caught_up = False

    def look(self) -> None:
        """Judge the window that is over, if one is, and do what follows; what fails is said, and tried again."""
        found = self._read()
        judged = self._windows.look(self._clock_us(), found)
        if judged is None:
            return
        try:
            self._judge(judged, found)
        except HeadraceError as error:
            _LOG.error("circuit breaker: %s", error)

    def _judge(self, judged: Judged, found: Mapping[Series, int]) -> None:
        log = self._desk.read()
        now = log.in_effect(judged.end_us)
        assert now is not None  # record 0 is
        if now.seq != self._seq:
            if now.seq not in self._own:
                self._watched, self._tripped = Watched(), None
            self._seq = now.seq
        since_us = max(self._waits_until_us, now.effective_from_us or 0)
        self._caught_up |= judged.said.bad is False
        told: dict[str, Judgement] = {}
        if judged.start_us >= since_us:
            labels = self._labels.look(found, made_alike(log, now))
            told = {name: judge([ratio] if ratio else []) for name, ratio in labels.items()}
            told |= {METRICS: judged.said} if self._caught_up else {}
        after = self._watched.advance(self._breaker, judged.end_us, told)
        if after.state != self._watched.state:
            self._change(after.state, "; ".join(each.why for each in told.values() if each.bad), now)
        self._watched = after

    def _change(self, state: State, why: str, now: Release) -> None:
        told = told_by(reason_of(state, why), AUTHOR)
        tripped = self._tripped or now
        log = release(self._desk, self._next(state, now, tripped), told)
        self._tripped = None if state == "closed" else tripped
        if log is not None:
            new = log.records[-1]
            assert new.effective_from_us is not None
            self._own.add(new.seq)
            self._waits_until_us = new.effective_from_us
            move_alias(self._desk, log)
            _LOG.warning("release %d: %s", new.seq, new.why)

    def _next(self, state: State, now: Release, tripped: Release) -> Change:
        entity = self._breaker.probed(self._desk.project.entities)

        def change(log: ReleaseLog, effective_us: int) -> Release:
            before = log.in_effect(effective_us)
            assert before is not None  # record 0 is
            if before.seq != now.seq:
                raise ReleaseError(
                    f"release {before.seq} takes the place of release {now.seq}, of which nothing is made"
                )
            if state == "open":
                return rolled_back(log, effective_us)
            return tried(before, tripped, self._breaker, entity) if state == "half_open" else restored(before, tripped)

        return change


def watching(breaker: ClockBreaker | None) -> contextlib.AbstractContextManager[None]:
    """Let a breaker look once a second, in a thread of its own, until what goes on meanwhile is over."""
    return contextlib.nullcontext() if breaker is None else repeated(breaker.look, LOOK_SECONDS, "breaker")
