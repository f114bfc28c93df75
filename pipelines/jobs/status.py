"""How a stream is doing, said now and then, and how it is stopped."""

from __future__ import annotations

import contextlib
import logging
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

from models import metrics
from models.metrics import Series
from pipelines.process import handled, repeated
from pipelines.runners import Profile
from transforms.metrics import read

STATUS_SECONDS = 10

_LOG = logging.getLogger("headrace")
_WAY = (("read", "in"), ("written", "out"), ("dead-lettered", "dead"))  # steps, and what they are called
_SOMETIMES = (
    (metrics.LATE, "late"),
    (metrics.CORRECTED, "corrected"),
    (metrics.FALLBACKS, "fallback"),
    (metrics.MISSING, "missing"),
)


@contextlib.contextmanager
def stopped_by_signals(runner: Any, profile: Profile) -> Iterator[None]:
    """Let SIGINT and SIGTERM stop the in-process engine, and a second one break off; others have their own ways."""
    if not profile.ours:
        yield
        return

    def stop(number: int, frame: object) -> None:
        if runner.stopped:  # it was asked before, and waits for something, such as a broker that is down
            raise KeyboardInterrupt
        runner.stop()

    with handled((signal.SIGINT, signal.SIGTERM), stop):
        yield


@contextlib.contextmanager
def say_status(text: Callable[[], str]) -> Iterator[None]:
    """Log how far it has come, now and then and at the end."""
    started = time.monotonic()

    def say() -> None:
        _LOG.info("%.0f s: %s", time.monotonic() - started, text())

    try:
        with repeated(say, STATUS_SECONDS, "status"):
            yield
    finally:
        say()


class Status:
    """How a stream is doing, by the metrics of its runner, which only the in-process one tells while it runs."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self._before: dict[Series, int] = {}

    def read(self) -> dict[Series, int]:
        """The metrics so far."""
        results = getattr(self._runner, "metrics", None)
        return {} if results is None else read(results)

    def rows(self) -> dict[str, int]:
        """Rows that each step has handled."""
        return metrics.by_label(self.read(), metrics.ROWS)

    def __call__(self) -> str:
        """One line: counts so far, what waits, and latencies since it was last asked."""
        found = self.read()
        rows, outcomes = metrics.by_label(found, metrics.ROWS), metrics.by_label(found, metrics.EVENTS)
        parts = [f"{rows.get(step, 0):,} {word}" for step, word in _WAY]
        for metric, word in _SOMETIMES:
            parts += [f"{n:,.0f} {word}" for n in [metrics.value_of(found, metric)] if n]
        parts += [
            f"{outcomes[outcome]:,} {outcome}"
            for outcome in ("duplicate", "history", "filtered", "standby")
            if outcome in outcomes
        ]
        for metric, word in ((metrics.WAITING, "waiting"), (metrics.BACKLOG, "backlog")):
            parts += [f"{n:,.0f} {word}" for n in [metrics.value_of(found, metric)] if n is not None]
        labelled = [(name.rpartition(" "), n) for name, n in metrics.by_label(found, metrics.FEEDBACK).items()]
        parts += [
            f"{n:,} {decision} labelled {label}".replace("  ", " ") for (decision, _, label), n in sorted(labelled)
        ]
        for metric, word in ((metrics.IMPOSSIBLE, "not finite"), (metrics.UNKNOWN_VALUES, "unknown")):
            parts += [f"{n:,} {word}: {name}" for name, n in sorted(metrics.by_label(found, metric).items())]
        if level := metrics.value_of(found, metrics.CIRCUIT):
            parts.append(f"circuit {'open' if level > 1 else 'half-open'}")
        if (lag := metrics.lag(found)) is not None:
            resent = f" events that are sent again {_span(lag.delay)} later" if lag.is_resent else ""
            parts.append(f"watermark {_span(lag.seconds)} behind{resent}")
        latency = metrics.quantiles(found, self._before, metrics.LATENCY, (("stage", "written"),), (0.5, 0.99))
        if latency is not None:
            p50, p99 = (1000 * seconds for seconds in latency)
            parts.append(f"p50 {p50:,.0f} ms, p99 {p99:,.0f} ms from published to written")
        self._before = found
        return ", ".join(parts)


def _span(seconds: float) -> str:
    """A span of time as people read it."""
    for unit, length in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.0f} {unit}"
    return f"{seconds:,.1f} s"
