"""What the system says of, and to, this process, and what goes on in it beside its work."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

_STARTED = 19  # the place of its start among the fields of /proc/self/stat after its name, in ticks since the boot


def running_seconds() -> float | None:
    """For how long this process has run; None where the system does not say, as elsewhere than on Linux."""
    try:
        fields = pathlib.Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[_STARTED]) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, IndexError, ValueError):
        return None


@contextlib.contextmanager
def handled(numbers: Sequence[signal.Signals], handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Signals call `handler` as long as the block runs."""
    previous = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


@contextlib.contextmanager
def told_to_stop(
    numbers: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP),
) -> Iterator[threading.Event]:
    """What signals set: if not named SIGINT, SIGTERM and the end of the terminal."""
    stopped = threading.Event()
    with handled(numbers, lambda *_: stopped.set()):
        yield stopped


@contextlib.contextmanager
def repeated(work: Callable[[], object], seconds: float, name: str) -> Iterator[None]:
    """Do it every so many seconds as long as the block runs, in a thread of that name."""
    over = threading.Event()

    def keep_on() -> None:
        while not over.wait(seconds):
            work()

    thread = threading.Thread(target=keep_on, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
