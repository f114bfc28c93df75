"""What trips by the clock: a running stream's metrics, window by window, against what a breaker declares.

Nothing of it can be known to a replay, so what follows is a release record, which a replay reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from models.metrics import Series
from models.objectives import Ratio, of_metrics
from models.project.breakers import Breaker, ByClock
from models.project.objectives import Objectives
from models.quality.circuit import State
from models.rollout.changes import with_canary
from models.rollout.records import SHARES, Release


@dataclass(frozen=True)
class Judged:
    """A window by the clock, in microseconds since 1970 UTC: whether it is bad, None of one of too little, and why."""

    start_us: int
    end_us: int
    bad: bool | None
    why: str = ""


class ClockWindows:
    """Cuts what a stream's metrics say into windows by the clock."""

    def __init__(self, declared: ByClock) -> None:
        self._declared = declared
        self._objectives = Objectives(latency=declared.latency, valid=declared.valid)
        self._start_us: int | None = None
        self._before: Mapping[Series, int] = {}

    def look(self, now_us: int, found: Mapping[Series, int]) -> Judged | None:
        """The window that is over by now, by the metrics so far; None if none is. A first look begins one."""
        start_us, before = self._start_us, self._before
        if start_us is not None and now_us < start_us + self._declared.every:
            return None
        self._start_us, self._before = now_us, dict(found)
        if start_us is None:
            return None
        new = {series: number - before.get(series, 0) for series, number in found.items()}
        told = [ratio for ratio in of_metrics(self._objectives, new) if isinstance(ratio, Ratio)]
        enough = [ratio for ratio in told if ratio.total >= self._minimum(ratio.name)]
        if not enough:
            return Judged(start_us, now_us, None)
        bad = [ratio for ratio in enough if not ratio.met]
        why = "; ".join(f"{r.text}: {r.total - r.bad} of {r.total}, and {r.target:g} is the target" for r in bad)
        return Judged(start_us, now_us, bool(bad), why)

    def _minimum(self, name: str) -> int:
        declared = self._declared.latency if name == "latency" else self._declared.valid
        return declared.minimum if declared else 1


def tried(state: Release, tripped: Release, breaker: Breaker, entity: str) -> Release:
    """The state in which what tripped scores a share of keys: that of the probe, or its own if that was smaller."""
    share = round(breaker.probe * SHARES)
    if tripped.canary is not None:
        share, entity = min(share, tripped.canary.per_10000), tripped.canary.entity
    return with_canary(state, tripped.challenger or tripped.champion, entity, share)


def restored(state: Release, tripped: Release) -> Release:
    """The state with all by which what tripped scored."""
    scoring = (tripped.champion, tripped.challenger)
    return replace(
        state,
        shadows=tuple(shadow for shadow in state.shadows if shadow not in scoring),
        champion=tripped.champion,
        challenger=tripped.challenger,
        canary=tripped.canary,
        thresholds=tripped.thresholds,
        fallback=tripped.fallback,
    )


def reason_of(state: State, judged: Judged) -> str:
    """What the release log says of a change of the circuit."""
    said = {"open": judged.why, "half_open": "tried again by a share of keys", "closed": "it has held"}
    return f"circuit breaker {state.replace('_', '-')}: {said[state]}"
