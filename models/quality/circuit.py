"""The circuit breaker: closed, open or half-open, by what is said of one window after another.

It is closed at first. After `after` bad windows in a row it opens: from the end of the last one on, releases fall back.
After `wait` windows in a row that are not bad it is half-open: a share of entities is tried again. After `good` windows
more it closes, and at a bad one it is open anew. Another release is no continuation of the one before: with it the
circuit is closed. A window counts if it was judged, and is of one release alone.

All of it follows from the windows, in the order of their ends: by event time the same in batch, stream and replay.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Literal

from models.rollout.records import time_text

if TYPE_CHECKING:  # verdicts have a circuit, and a breaker names kinds of their findings
    from models.project.breakers import Breaker
    from models.quality.records import Verdict

State = Literal["closed", "open", "half_open"]
LEVELS: dict[State, int] = {"closed": 0, "half_open": 1, "open": 2}


@dataclasses.dataclass(frozen=True)
class Circuit:
    """The state after a window.

    Fields:
        state: closed, open or half_open.
        since_us: when what scores took effect, in microseconds since 1970 UTC; None where no release log is followed.
        windows: closed, how many were bad in a row; else, how many were not bad since that state began.
        from_us: the end of the window with which the state began; None of the first.
    """

    state: State = "closed"
    since_us: int | None = None
    windows: int = 0
    from_us: int | None = None

    @staticmethod
    def from_data(data: dict[str, Any] | None) -> Circuit | None:
        """From the fields by name."""
        return None if data is None else Circuit(**data)


def advance(circuit: Circuit, declared: Breaker, end_us: int, since_us: Collection[int], bad: bool | None) -> Circuit:
    """The circuit after the window that ends at `end_us`.

    Args:
        circuit: that after the window before.
        declared: after how many windows it changes.
        end_us: event time, or time of the clock, in microseconds since 1970 UTC.
        since_us: when those releases took effect that scored rows of the window; none where no log is followed.
        bad: whether the window is bad; None of one of which nothing is said.
    """
    if since_us and (circuit.since_us is None or max(since_us) > circuit.since_us):
        circuit = Circuit(since_us=max(since_us), from_us=end_us if circuit.state != "closed" else None)
    if bad is None or len(since_us) > 1 or (circuit.since_us is not None and circuit.since_us not in since_us):
        return circuit
    if circuit.state == "closed":
        windows, limit, then = (circuit.windows + 1 if bad else 0), declared.after, "open"
    elif circuit.state == "open":
        windows, limit, then = (0 if bad else circuit.windows + 1), declared.wait, "half_open"
    elif bad:
        windows, limit, then = 0, 0, "open"
    else:
        windows, limit, then = circuit.windows + 1, declared.good, "closed"
    if windows < limit:
        return dataclasses.replace(circuit, windows=windows)
    state: Any = then
    return Circuit(state, circuit.since_us, 0, end_us)


@dataclasses.dataclass(frozen=True)
class Noted:
    """A change of the circuit, and why."""

    circuit: Circuit
    reason: str


def change_line(noted: Noted) -> str:
    """A change of the circuit as people read it."""
    state = noted.circuit.state.replace("_", "-")
    return f"circuit breaker {state} from {time_text(noted.circuit.from_us)}: {noted.reason}"


def noted_of(verdict: Verdict) -> Noted | None:
    """What is to be noted of a window: that the circuit has changed with its end, and why; None if it has not.

    Alarms are why it opens. Other changes follow from windows that are not bad, or from another release.
    """
    circuit = verdict.circuit
    if circuit is None or circuit.from_us != verdict.window_end_us:
        return None
    alarms = [finding.text for finding in verdict.findings[:3] if finding.severity == "alarm"]
    texts = "; ".join(alarms if circuit.state == "open" else [])
    return Noted(circuit, f"verdict {verdict.verdict_id}{': ' if texts else ''}{texts}")


def circuit_at(changes: Sequence[Circuit], time_us: int) -> Circuit | None:
    """The last of some changes, in the order of their times, that were before or at an event time; None if none was."""
    return next((change for change in reversed(changes) if (change.from_us or 0) <= time_us), None)
