"""Requests in a line: one after another in a thread, so many of them, and none for longer than a deadline."""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from collections.abc import Callable
from typing import TypeVar

from models.errors import HeadraceError

T = TypeVar("T")


class ServiceDown(HeadraceError):
    """An endpoint that can't answer now: its store does not answer, or too many requests wait."""


class Line:
    """A thread, and what waits for it."""

    def __init__(self, name: str, most: int, deadline_seconds: float) -> None:
        """`most` may wait, and `deadline_seconds` is how long one may wait and take."""
        self._thread = concurrent.futures.ThreadPoolExecutor(1, name)
        self._most, self._deadline = most, deadline_seconds
        self._begun: float | None = None  # when what the thread is at was begun, by the monotonic clock
        self.waiting = 0

    @property
    def is_stuck(self) -> bool:
        """Whether the thread is at one thing for most of a deadline: more is wrong than that many wait."""
        begun = self._begun
        return begun is not None and time.monotonic() - begun > self._deadline / 2

    async def run(self, work: Callable[[], T]) -> T:
        """Do it in the thread; ServiceDown if there is no room or time for it."""
        if self.waiting >= self._most:
            raise ServiceDown("too many requests wait")
        self.waiting += 1
        future = self._thread.submit(self._at, work)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self._deadline)
        except TimeoutError:
            raise ServiceDown("too many requests wait") from None
        finally:
            self.waiting -= 1

    def _at(self, work: Callable[[], T]) -> T:
        self._begun = time.monotonic()
        try:
            return work()
        finally:
            self._begun = None

    def close(self) -> None:
        """End when all that was begun is done."""
        self._thread.shutdown()
