"""How far event time has come in a stream: behind the newest event by the disorder that is allowed for."""

from __future__ import annotations

import dataclasses
from collections.abc import Set

import numpy as np

Int64 = np.ndarray[tuple[int], np.dtype[np.int64]]

_START_US = -(1 << 62)


@dataclasses.dataclass
class StreamWatermark:
    """The watermark over partitions that each have their own newest event; all times in microseconds.

    It is the least of the partitions' newest event times less `allowance_us`. A partition that was silent for
    `idle_us` of clock time holds nothing back; once all are silent, the watermark moves up to the newest event.
    It never moves back.
    """

    allowance_us: int
    idle_us: int
    _newest: dict[int, int] = dataclasses.field(default_factory=dict)
    _heard: dict[int, int] = dataclasses.field(default_factory=dict)
    _reached: int = _START_US
    silent: bool = False  # all partitions were silent when it was last asked for

    def observe(self, partitions: Int64, event_times_us: Int64, now_us: int) -> None:
        """Take note of events that were received."""
        for partition in np.unique(partitions).tolist():
            newest = int(event_times_us[partitions == partition].max())
            self._newest[partition] = max(self._newest.get(partition, _START_US), newest)
            self._heard[partition] = now_us

    def current(self, assigned: Set[int], now_us: int) -> int:
        """The watermark now; partitions that are no longer assigned count no more."""
        for partition in set(self._newest) - set(assigned):
            del self._newest[partition], self._heard[partition]
        for partition in set(assigned) - set(self._heard):
            self._heard[partition] = now_us  # a new one has `idle_us` to show what it has
        if not self._heard:
            return self._reached
        busy = [p for p, heard in self._heard.items() if now_us - heard < self.idle_us]
        self.silent = not busy
        if busy:
            least = min(self._newest.get(p, _START_US) for p in busy)
            self._reached = max(self._reached, least - self.allowance_us if least > _START_US else _START_US)
        elif self._newest:
            self._reached = max(self._reached, max(self._newest.values()))
        return self._reached
