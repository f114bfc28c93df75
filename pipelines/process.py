"""What the system says of, and to, this process."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import threading
import time
from collections.abc import Iterator

_STARTED = 19  # the place of its start among the fields of /proc/self/stat after its name, in ticks since the boot


def running_seconds() -> float | None:
    """For how long this process has run; None where the system does not say, as elsewhere than on Linux."""
    try:
        fields = pathlib.Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[_STARTED]) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, IndexError, ValueError):
        return None


@contextlib.contextmanager
def told_to_stop() -> Iterator[threading.Event]:
    """What SIGINT, SIGTERM and the end of the terminal set."""
    stopped = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = {number: signal.signal(number, lambda *_: stopped.set()) for number in numbers}
    try:
        yield stopped
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
