"""State and timers of a step of the in-process engine, in memory."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

from apache_beam.transforms import userstate
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.utils.timestamp import MAX_TIMESTAMP, Timestamp

MAX_US: int = MAX_TIMESTAMP.micros


class _Entry(NamedTuple):
    time_us: int
    number: int  # in order of setting, where times are equal
    place: Any
    key: Any


class Agenda:
    """Places by time, the earliest first. An entry that was moved or removed is passed over when it comes up."""

    def __init__(self) -> None:
        self._heap: list[_Entry] = []
        self._live: dict[Any, _Entry] = {}
        self._numbers = itertools.count()

    def put(self, place: Any, time_us: int, key: Any = None) -> None:
        """Add or move."""
        entry = self._live[place] = _Entry(time_us, next(self._numbers), place, key)
        heapq.heappush(self._heap, entry)
        if len(self._heap) > 2 * len(self._live) + 100:
            self._heap = sorted(self._live.values())

    def remove(self, place: Any) -> None:
        """Take away if it is there."""
        self._live.pop(place, None)

    def first(self) -> _Entry | None:
        """The earliest."""
        while self._heap and self._live.get(self._heap[0].place) is not self._heap[0]:
            heapq.heappop(self._heap)
        return self._heap[0] if self._heap else None

    def take(self, is_due: Callable[[int], bool]) -> _Entry | None:
        """Take the earliest away if its time is due."""
        first = self.first()
        if first is None or not is_due(first.time_us):
            return None
        self.remove(first.place)
        return first


class State(userstate.UserStateContext):
    """State and timers of one step, in memory. As on other engines, keys are the same if their encodings are."""

    def __init__(self, key_coder: Any) -> None:
        self._encode_key = key_coder.get_impl().encode
        self._last: tuple[Any, bytes] = (object(), b"")
        self._windows: dict[Any, dict[Any, Any]] = {}  # window → (cell's name, encoded key) → what the cell holds
        self._ends = Agenda()  # of windows
        self.agendas = {TimeDomain.WATERMARK: Agenda(), TimeDomain.REAL_TIME: Agenda()}
        self._clock_holds = Agenda()  # where timers by the clock hold the watermark

    def get_state(self, state_spec: Any, key: Any, window: Any) -> Any:
        """The cell of a key and window."""
        cells = self._windows.get(window)
        if cells is None:
            cells = self._windows[window] = {}
            self._ends.put(window, window.max_timestamp().micros)
        return CELLS[type(state_spec)](cells, (state_spec.name, self._encode(key)), state_spec)

    def forget(self, is_over: Callable[[int], bool]) -> None:
        """Drop the cells of windows that are over by their end."""
        while (end := self._ends.take(is_over)) is not None:
            del self._windows[end.place]

    def get_timer(self, timer_spec: Any, key: Any, window: Any, timestamp: Timestamp, pane: Any) -> _Timer:
        """A timer that can be set or cleared."""
        return _Timer(self, timer_spec, key, (timer_spec.name, self._encode(key), window), timestamp)

    def _encode(self, key: Any) -> bytes:
        if self._last[0] is not key:
            self._last = (key, self._encode_key(key))
        return self._last[1]

    def set_timer(self, domain: str, place: Any, time_us: int, hold_us: int, key: Any) -> None:
        """Set or move a timer; a place is (name, encoded key, window, tag)."""
        self.agendas[domain].put(place, time_us, key)
        if domain == TimeDomain.REAL_TIME:
            self._clock_holds.put(place, hold_us)

    def clear_timer(self, domain: str, place: Any) -> None:
        """Take a timer back if it is set."""
        self.agendas[domain].remove(place)
        self._clock_holds.remove(place)

    def hold(self) -> int:
        """The least time that a timer holds the watermark at."""
        firsts = (self.agendas[TimeDomain.WATERMARK].first(), self._clock_holds.first())
        return min([first.time_us for first in firsts if first is not None], default=MAX_US)


class _Timer(userstate.BaseTimer):
    def __init__(self, state: State, spec: Any, key: Any, place: tuple[str, bytes, Any], at: Timestamp) -> None:
        self._state, self._domain, self._key, self._place, self._at = state, spec.time_domain, key, place, at

    def set(self, timestamp: Any, dynamic_timer_tag: str = "") -> None:
        time_us = Timestamp.of(timestamp).micros
        # As everywhere in Beam, a timer by the clock holds the watermark at its element's time.
        self._state.set_timer(self._domain, (*self._place, dynamic_timer_tag), time_us, self._at.micros, self._key)

    def clear(self, dynamic_timer_tag: str = "") -> None:
        self._state.clear_timer(self._domain, (*self._place, dynamic_timer_tag))


class _Value(userstate.RuntimeState):
    """A view of one place in `cells`; an empty place is not there."""

    def __init__(self, cells: dict[Any, Any], place: Any, spec: Any) -> None:
        self._cells, self._place, self._spec = cells, place, spec

    def clear(self) -> None:
        self._cells.pop(self._place, None)

    def read(self) -> Any:
        return self._cells.get(self._place)

    def write(self, value: Any) -> None:
        self._cells[self._place] = value


class _Bag(_Value):
    def read(self) -> list[Any]:
        return list(self._cells.get(self._place, ()))

    def add(self, value: Any) -> None:
        self._cells.setdefault(self._place, []).append(value)


class _Set(_Bag):
    def add(self, value: Any) -> None:
        self._cells.setdefault(self._place, {})[value] = None


class _Combining(_Value):
    def _accumulator(self) -> Any:
        fresh = self._spec.combine_fn.create_accumulator
        return self._cells[self._place] if self._place in self._cells else fresh()

    def read(self) -> Any:
        return self._spec.combine_fn.extract_output(self._accumulator())

    def add(self, value: Any) -> None:
        self.write(self._spec.combine_fn.add_input(self._accumulator(), value))


CELLS = {
    userstate.BagStateSpec: _Bag,
    userstate.SetStateSpec: _Set,
    userstate.ReadModifyWriteStateSpec: _Value,
    userstate.CombiningValueStateSpec: _Combining,
}
