"""Lanes: what the engine's threads work in, side by side, and how that gives the order of a single one.

Each lane has its own instance of every DoFn, its own state and its own metrics, and one thread at a time works in it.
All that lanes give to a step that all share goes through an Inbox, which hands it on in the order of what it was made
of: so no order depends on which lane was faster.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import itertools
import operator
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from apache_beam.metrics.execution import MetricsContainer
from apache_beam.runners.worker import statesampler
from apache_beam.utils.windowed_value import WindowedValue


class Lane:
    """What one thread at a time works in; while it does, Beam's Metrics in that thread report to the lane."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.place: tuple[int, ...] = ()  # of what is worked on, in the order that a single lane would work in
        self.metrics_container = MetricsContainer("")  # of the step that is being called

    def update_metric(self, name: Any, value: Any) -> None:
        self.metrics_container.get_metric_cell(name).update(value)

    def current_state(self) -> Lane:
        return self

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Let this thread work in the lane."""
        outer = statesampler.get_current_tracker()
        statesampler.set_current_tracker(self)
        try:
            yield
        finally:
            statesampler.set_current_tracker(outer)


def lane_here() -> Lane:
    """The lane that this thread works in."""
    lane: Lane = statesampler.get_current_tracker()
    return lane


# What is to be done in a lane, step by step.
Work = Callable[[Lane], Iterator[None]]


class HandOver:
    """What lanes with work of their own emit: lanes without deliver it beside them, and they themselves once they have
    done that work.
    """

    def __init__(self, makers: int) -> None:
        self._changed = threading.Condition()
        self._making = makers
        self._waiting: collections.deque[tuple[tuple[int, ...], Callable[[WindowedValue], None], WindowedValue]]
        self._waiting = collections.deque()
        self._numbers = itertools.count()
        self.call_help: Callable[[], None] = lambda: None  # once there is something for others to do

    def put(self, deliver: Callable[[WindowedValue], None], element: WindowedValue) -> None:
        """Have an element that the lane at hand has made delivered in its place."""
        lane = lane_here()
        with self._changed:
            number = next(self._numbers)
            self._waiting.append(((*lane.place, lane.number, number), deliver, element))
            self._changed.notify()
        if number == 1:  # of a single one its maker takes care
            self.call_help()

    def around(self, work: Work) -> Work:
        """Some work, and then a part in what it and others have made."""

        def both(lane: Lane) -> Iterator[None]:
            try:
                yield from work(lane)
            finally:
                with self._changed:
                    self._making -= 1
                    self._changed.notify_all()
            yield from self.deliver(lane)

        return both

    def deliver(self, lane: Lane) -> Iterator[None]:
        """Deliver one element after another, until none is left and none will be made."""
        while True:
            with self._changed:
                while not self._waiting and self._making:
                    self._changed.wait()
                if not self._waiting:
                    return
                lane.place, deliver, element = self._waiting.popleft()
            deliver(element)
            yield


class Lanes:
    """The lanes of a run. The first to have work has it done by the thread that asks, the others by threads of ours."""

    def __init__(self, count: int) -> None:
        self.all = [Lane(number) for number in range(count)]
        self._lock = threading.RLock()
        self._pool = concurrent.futures.ThreadPoolExecutor(count, "headrace-lane")  # makes none before it is asked

    def run(self, work: Work, lanes: Sequence[Lane], handed: HandOver | None = None) -> None:
        """Do the work of these lanes, side by side, and return when all is done.

        What they hand over is delivered by the others. What is raised first is raised here, once the others have ended
        the step that they are at.
        """
        failures: list[BaseException] = []

        def walk(work: Work, lane: Lane) -> None:
            with lane.entered(), contextlib.closing(work(lane)) as steps:  # type: ignore[type-var]
                try:
                    for _ in steps:
                        if failures:
                            return
                except BaseException as error:  # noqa: BLE001  Ctrl-C and SystemExit too: `run` raises it
                    failures.append(error)

        others: list[concurrent.futures.Future[None]] = []
        if handed is not None:
            helped, idle = handed, [lane for lane in self.all if lane not in lanes]
            helped.call_help = lambda: others.extend(self._pool.submit(walk, helped.deliver, lane) for lane in idle)
            work = helped.around(work)
        others += [self._pool.submit(walk, work, lane) for lane in lanes[1:]]
        for lane in lanes[:1]:
            walk(work, lane)
        while unfinished := [other for other in others if not other.done()]:
            try:
                concurrent.futures.wait(unfinished)
            except BaseException as error:  # noqa: BLE001  Ctrl-C: the others are to end first
                failures.append(error)
        if failures:
            raise failures[0]

    def share(self, tasks: Sequence[Callable[[], None]]) -> None:
        """Do each task in the lane that is free first, in their order."""
        (turn,) = {lane.place[:1] for lane in self.all}
        queue = iter(enumerate(tasks))

        def work(lane: Lane) -> Iterator[None]:
            for number, task in queue:  # one lane at a time gets the next, as both are of C
                lane.place = (*turn, number)
                task()
                yield

        self.run(work, self.all[: len(tasks)])

    def alone(self, call: Callable[..., Any], *args: Any) -> Any:
        """Call what is not known to bear two lanes at once, such as the loading of pickles."""
        with self._lock:
            return call(*args)

    def begin_turn(self, number: int) -> None:
        """All that is put into an Inbox from now on comes after what was put there before."""
        for lane in self.all:
            lane.place = (number,)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()


class Inbox:
    """Elements that lanes have put in, in the order that a single lane would have put them in."""

    def __init__(self, lanes: Lanes) -> None:
        self._parts: list[list[tuple[tuple[int, ...], WindowedValue]]] = [[] for _ in lanes.all]

    def put(self, element: WindowedValue) -> None:
        """Add an element that the lane at hand has made."""
        lane = lane_here()
        self._parts[lane.number].append((lane.place, element))

    def take(self) -> list[WindowedValue]:
        """All that is there, which is there no more; no lane may be putting in."""
        filled = [part for part in self._parts if part]
        if not filled:
            return []
        placed = filled[0] if len(filled) == 1 else sorted(itertools.chain(*filled), key=operator.itemgetter(0))
        elements = [element for _, element in placed]
        for part in filled:
            part.clear()
        return elements
