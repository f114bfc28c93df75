"""How a stream is doing, said now and then, and how it is stopped."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from models import progress
from models.project.expressions import NOT_FINITE
from pipelines.runners import Profile

STATUS_SECONDS = 10

_LOG = logging.getLogger("headrace")


@contextlib.contextmanager
def stopped_by_signals(runner: Any, profile: Profile) -> Iterator[None]:
    """Let SIGINT and SIGTERM stop the in-process engine, and a second one break off; others have their own ways."""
    if not profile.stops:
        yield
        return

    def stop(number: int, frame: object) -> None:
        if runner.stopped:  # it was asked before, and waits for something, such as a broker that is down
            raise KeyboardInterrupt
        runner.stop()

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def say_status(text: Callable[[], str] | None = None) -> Iterator[None]:
    """Log how far it has come, now and then and at the end; by `status`, if not by `text`."""
    over = threading.Event()
    started = time.monotonic()

    def say() -> None:
        _LOG.info("%.0f s: %s", time.monotonic() - started, (text or status)())

    def keep_saying() -> None:
        while not over.wait(STATUS_SECONDS):
            say()

    thread = threading.Thread(target=keep_saying, name="status", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        say()


def status() -> str:
    """One line on how a stream is doing: counts so far, what waits, and latencies since it was last asked."""
    done, gauges = progress.done(), progress.gauges()
    parts = [f"{done.get('read', 0):,} in", f"{done.get('written', 0):,} out", f"{done.get('dead-lettered', 0):,} dead"]
    parts += [
        f"{done[step]:,} {step}" for step in ("late", "corrected", "duplicate", "history", "missing") if step in done
    ]
    parts += [f"{int(gauges[name]):,} {name}" for name in ("waiting", "backlog") if name in gauges]
    parts += [f"{events:,} {step}" for step, events in sorted(done.items()) if " labelled " in step]
    parts += [f"{events:,} {name}" for name, events in sorted(done.items()) if name.startswith(NOT_FINITE)]
    if "watermark lag" in gauges:
        parts.append(f"watermark {gauges['watermark lag']:,.1f} s behind")
    if (latencies := progress.take_latencies()) is not None:
        parts.append(f"p50 {latencies[0]:,.0f} ms, p99 {latencies[1]:,.0f} ms from published to scored")
    return ", ".join(parts)
