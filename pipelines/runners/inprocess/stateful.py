"""Nodes that call a DoFn with state and timers."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from apache_beam.pipeline import AppliedPTransform
from apache_beam.transforms import userstate
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.timestamp import Timestamp
from apache_beam.utils.windowed_value import PANE_INFO_UNKNOWN, WindowedValue

from pipelines.runners.inprocess.lanes import HandOver, Lane
from pipelines.runners.inprocess.nodes import MIN_US, UnsupportedGraph, check_windowing, key_coder, passed
from pipelines.runners.inprocess.pardo import RunParDo
from pipelines.runners.inprocess.state import CELLS, State

if TYPE_CHECKING:
    from pipelines.runners.inprocess.engine import Run

Placed = tuple[int, WindowedValue]  # an element, and its number in the order that elements came


class RunStateful(RunParDo):
    """Has state and timers by key and window; late elements are dropped, as their window's state is gone."""

    def __init__(self, applied: AppliedPTransform, run: Run) -> None:
        super().__init__(applied, run)
        windowing = check_windowing(applied)
        self._lateness = windowing.allowed_lateness.micros
        self._is_global = isinstance(windowing.windowfn, GlobalWindows)
        states, timers = userstate.get_dofn_specs(self._fn)
        for spec in states:
            if type(spec) not in CELLS:
                raise UnsupportedGraph(self.label, f"keep a {type(spec).__name__}")
        self._timers = {spec.name: spec for spec in timers}
        self._states = [State(key_coder(applied)) for _ in run.lanes.all]
        self._encode_key = key_coder(applied).get_impl().encode
        self._parts: list[list[Placed]] = [[] for _ in run.lanes.all]
        self.receive = self._waiting.put  # type: ignore[method-assign]

    def state_of(self, number: int) -> State:
        return self._states[number]

    def gather(self) -> None:
        for number, element in enumerate(self._waiting.take()):
            timely = self._timely(element) if self._ready and not self._is_global else element
            if timely is not None:
                # Keys that are numbers in a row go to one lane after another.
                lane = sum(self._encode_key(element.value[0])) % len(self._parts)
                self._parts[lane].append((number, timely))

    def _timely(self, element: WindowedValue) -> WindowedValue | None:
        """The element in those of its windows that were not over when it came."""
        over = self.input_watermark
        windows = [w for w in element.windows if not passed(w.max_timestamp().micros + self._lateness, over)]
        return WindowedValue(element.value, element.timestamp, windows, element.pane_info) if windows else None

    def process_due(self) -> bool:
        self._now_us = round(time.time() * 1_000_000)
        busy = [lane for lane in self._run.lanes.all if self._has_work(lane.number)]
        if busy:
            self._run_lanes(busy)
        if not self._is_global:
            watermark = min(self.input_watermark, self.hold())  # so that a window outlives the timers set in it
            for state in self._states:
                state.forget(lambda end_us: passed(end_us + self._lateness, watermark))
        return bool(busy)

    def _run_lanes(self, busy: list[Lane]) -> None:
        """Have lanes do their work, and those that have none what comes of it."""
        lanes = self._run.lanes
        handed = HandOver(len(busy)) if len(busy) < len(lanes.all) else None
        for receiver in self._receivers.values():
            receiver.handed = handed
        try:
            lanes.run(self._work, busy, handed)
        finally:
            for receiver in self._receivers.values():
                receiver.handed = None

    def _is_due(self, domain: str, time_us: int) -> bool:
        """Whether a timer's time has come."""
        return time_us <= self._now_us if domain == TimeDomain.REAL_TIME else passed(time_us, self.input_watermark)

    def _has_work(self, number: int) -> bool:
        firsts = ((domain, agenda.first()) for domain, agenda in self._states[number].agendas.items())
        return bool(self._parts[number]) or any(first and self._is_due(d, first.time_us) for d, first in firsts)

    def _work(self, lane: Lane) -> Iterator[None]:
        (turn, *_), instance = lane.place, self.instance()
        part, self._parts[lane.number] = self._parts[lane.number], []
        for number, element in part:
            lane.place = (turn, 0, number)
            instance.in_bundle().call(instance.runner.process, element)
            yield
        for place, domain in enumerate((TimeDomain.REAL_TIME, TimeDomain.WATERMARK), 1):
            yield from self._fire(lane, (turn, place), domain)

    def _fire(self, lane: Lane, place: tuple[int, int], domain: str) -> Iterator[None]:
        instance, state, reached = self.instance(), self._states[lane.number], MIN_US
        is_due = functools.partial(self._is_due, domain)
        while (timer := state.agendas[domain].take(is_due)) is not None:
            state.clear_timer(domain, timer.place)
            name, _, window, tag = timer.place
            at = Timestamp(micros=timer.time_us)
            reached = max(reached, timer.time_us)  # what a timer sets for a time before its own comes after it
            lane.place = (*place, reached)
            fire = instance.in_bundle().runner.process_user_timer
            instance.call(fire, self._timers[name], timer.key, window, at, PANE_INFO_UNKNOWN, tag)
            yield

    def hold(self) -> int:
        return min(super().hold(), *(state.hold() for state in self._states))

    def rest_seconds(self) -> float:
        firsts = [state.agendas[TimeDomain.REAL_TIME].first() for state in self._states]
        return min((first.time_us / 1e6 - time.time() for first in firsts if first is not None), default=math.inf)
