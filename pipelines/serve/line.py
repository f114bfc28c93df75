"""Requests in a line: done by one thread in their order, so many of them, and none for longer than a deadline."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from models.errors import HeadraceError

T = TypeVar("T")


class ServiceDown(HeadraceError):
    """An endpoint that can't answer now: its store does not answer, or too many requests wait."""


@dataclasses.dataclass(frozen=True, eq=False)
class Waiting:
    """What waits in a line: what is to be done, of which argument of which size, and who waits for it, if anyone."""

    do: Together
    argument: Any
    size: int
    future: asyncio.Future[Any] | None = None

    @property
    def is_gone(self) -> bool:
        """Whether who waited for it waits no more."""
        return self.future is not None and self.future.done()


# What is done of things that wait one after another: their results in this order, as soon as some are there. A result
# that is an exception is raised where it is waited for.
Together = Callable[[Sequence[Waiting]], Iterator[Sequence[Any]]]


class Line:
    """A thread, and what waits for it."""

    def __init__(self, name: str, most: int, deadline_seconds: float, together: int = 1) -> None:
        """`most` may wait, and `deadline_seconds` is how long one may wait and take.

        What is to be done alike is done at once, up to the size `together`.
        """
        self._most, self._deadline, self._together = most, deadline_seconds, together
        self._queue: queue.SimpleQueue[Waiting | None] = queue.SimpleQueue()
        self._taken: collections.deque[Waiting | None] = collections.deque()
        self._begun: float | None = None  # when what the thread is at was begun, by the monotonic clock
        self.waiting = 0
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    @property
    def is_stuck(self) -> bool:
        """Whether the thread is at one thing for most of a deadline: more is wrong than that many wait."""
        begun = self._begun
        return begun is not None and time.monotonic() - begun > self._deadline / 2

    async def run(self, work: Callable[[], T]) -> T:
        """Do it in the thread; ServiceDown if there is no room or time for it."""
        found: T = await self.run_together(_each, work, self._together)
        return found

    async def run_together(self, do: Together, argument: Any, size: int) -> Any:
        """What `do` makes in the thread of an argument, and at once of those that wait next to it.

        ServiceDown if there is no room or time for it.
        """
        if self.waiting >= self._most:
            raise ServiceDown("too many requests wait")
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        timer = loop.call_later(self._deadline, _expire, future)
        self.waiting += 1
        try:
            self._queue.put(Waiting(do, argument, size, future))
            return await future
        finally:
            self.waiting -= 1
            timer.cancel()

    def add(self, work: Callable[[], None]) -> None:
        """Do it in the thread when its turn comes; no one waits for it."""
        self._queue.put(Waiting(_each, work, self._together))

    def close(self) -> None:
        """End when all that was begun is done."""
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        while self._gather():
            some = self._next()
            left = collections.deque(some)
            self._begun = time.monotonic()
            try:
                for results in some[0].do(some) if some else ():
                    _tell([(left.popleft(), result) for result in results])
                    self._begun = time.monotonic()
            except BaseException as error:  # noqa: BLE001  who waits is told
                _tell([(one, error) for one in left])
            self._begun = None

    def _gather(self) -> bool:
        """Take what waits; False at the end."""
        taken = self._taken
        if not taken:
            taken.append(self._queue.get())
        while not self._queue.empty():
            taken.append(self._queue.get())
        return taken[0] is not None

    def _next(self) -> list[Waiting]:
        """What is done next, at once: of what was taken the first, and what follows and is done alike."""
        found: list[Waiting] = []
        size = 0
        while self._taken and (one := self._taken[0]) is not None:
            if found and (one.do != found[0].do or size + one.size > self._together):
                break
            self._taken.popleft()
            if not one.is_gone:
                found.append(one)
                size += one.size
        return found


def _each(some: Sequence[Waiting]) -> Iterator[Sequence[Any]]:
    for one in some:
        yield [one.argument()]


def _tell(results: Sequence[tuple[Waiting, Any]]) -> None:
    """Hand results over to the loops in which they are waited for."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any]]] = {}
    for one, result in results:
        if one.future is not None:
            by_loop.setdefault(one.future.get_loop(), []).append((one.future, result))
    for loop, found in by_loop.items():
        with contextlib.suppress(RuntimeError):  # a loop that has ended, where no one waits any more
            loop.call_soon_threadsafe(_resolve, found)


def _resolve(results: Sequence[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, result in results:
        if future.done():  # no one waits any more
            continue
        if isinstance(result, BaseException):
            future.set_exception(result)
        else:
            future.set_result(result)


def _expire(future: asyncio.Future[Any]) -> None:
    if not future.done():
        future.set_exception(ServiceDown("too many requests wait"))
