"""Nodes that call a DoFn with state and timers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from apache_beam.pipeline import AppliedPTransform
from apache_beam.transforms import userstate
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.timestamp import Timestamp
from apache_beam.utils.windowed_value import PANE_INFO_UNKNOWN, WindowedValue

from pipelines.runners.inprocess.nodes import UnsupportedGraph, check_windowing, key_coder, passed
from pipelines.runners.inprocess.pardo import RunParDo
from pipelines.runners.inprocess.state import CELLS, State

if TYPE_CHECKING:
    from pipelines.runners.inprocess.engine import Run


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
        self._state = self._user_state = State(key_coder(applied))

    def accept(self, element: WindowedValue) -> None:
        if not self._is_global:
            over = self.input_watermark
            windows = [w for w in element.windows if not passed(w.max_timestamp().micros + self._lateness, over)]
            if not windows:
                return
            element = WindowedValue(element.value, element.timestamp, windows, element.pane_info)
        super().accept(element)

    def process_due(self) -> bool:
        now_us = round(time.time() * 1_000_000)
        fired = self._fire(TimeDomain.REAL_TIME, lambda time_us: time_us <= now_us)
        fired |= self._fire(TimeDomain.WATERMARK, lambda time_us: passed(time_us, self.input_watermark))
        if not self._is_global:
            watermark = min(self.input_watermark, self.hold())  # so that a window outlives the timers set in it
            self._state.forget(lambda end_us: passed(end_us + self._lateness, watermark))
        return fired

    def _fire(self, domain: str, is_due: Callable[[int], bool]) -> bool:
        fired = False
        while (timer := self._state.agendas[domain].take(is_due)) is not None:
            fired = True
            self._state.clear_timer(domain, timer.place)
            self.open_bundle()
            name, _, window, tag = timer.place
            at = Timestamp(micros=timer.time_us)
            fire = self._runner.process_user_timer
            self.call(fire, self._timers[name], timer.key, window, at, PANE_INFO_UNKNOWN, tag)
        return fired

    def hold(self) -> int:
        return min(super().hold(), self._state.hold())

    def rest_seconds(self) -> float:
        first = self._state.agendas[TimeDomain.REAL_TIME].first()
        return math.inf if first is None else first.time_us / 1e6 - time.time()
