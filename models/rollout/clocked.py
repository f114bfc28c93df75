"""What trips by the clock: a running stream's metrics, window by window, against what a breaker declares.

Nothing of it can be known to a replay, so what follows is a release record, which a replay reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from models.metrics import Series
from models.objectives import Ratio, of_metrics
from models.project.breakers import Breaker, ByClock
from models.project.objectives import Objectives
from models.quality.circuit import Circuit, State, advance
from models.rollout.changes import with_canary
from models.rollout.records import SHARES, Release, ReleaseError

METRICS = ""  # the name of what a stream does now, beside those of what labels tell


@dataclass(frozen=True)
class Judgement:
    """Whether something is bad, None of too little, and why."""

    bad: bool | None = None
    why: str = ""


@dataclass(frozen=True)
class Judged:
    """A window by the clock, in microseconds since 1970 UTC, and whether what the stream did in it is bad."""

    start_us: int
    end_us: int
    said: Judgement


def judge(ratios: Iterable[Ratio]) -> Judgement:
    """Whether one of those that have enough misses its target."""
    enough = list(ratios)
    bad = [ratio for ratio in enough if not ratio.met]
    why = "; ".join(f"{r.text}: {r.total - r.bad} of {r.total}, and {r.target:g} is the target" for r in bad)
    return Judgement(bool(bad) if enough else None, why)


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
        return Judged(start_us, now_us, judge(ratio for ratio in told if ratio.total >= self._minimum(ratio.name)))

    def _minimum(self, name: str) -> int:
        declared = self._declared.latency if name == "latency" else self._declared.valid
        return declared.minimum if declared else 1


@dataclass(frozen=True)
class Watched:
    """One circuit for several things that are judged, each in its own time, by their names.

    Each opens it when it is bad `after` times in a row. Then it goes on once each that opened it was not bad so many
    times as are declared, and begins anew when anything is bad.
    """

    state: State = "closed"
    each: Mapping[str, Circuit] = field(default_factory=dict)  # while it is not closed, of those that opened it alone

    def advance(self, declared: Breaker, end_us: int, told: Mapping[str, Judgement]) -> Watched:
        """What follows from the window that ends then, in microseconds since 1970 UTC."""
        bad = {name for name, said in told.items() if said.bad}
        if self.state != "closed" and bad:
            return _opened({*self.each, *bad})
        names = told if self.state == "closed" else self.each
        each = dict(self.each)
        for name in names:
            circuit = each.get(name, Circuit())
            if circuit.state == self.state:  # else it waits for the others
                each[name] = advance(circuit, declared, end_us, (), told.get(name, Judgement()).bad)
        on = {name: circuit.state for name, circuit in each.items() if circuit.state != self.state}
        if self.state == "closed":
            return _opened(on) if on else replace(self, each=each)
        if len(on) < len(each):
            return replace(self, each=each)
        state = next(iter(on.values()))
        return Watched() if state == "closed" else Watched(state, each)


def _opened(names: Iterable[str]) -> Watched:
    return Watched("open", {name: Circuit("open") for name in names})


def tried(state: Release, tripped: Release, breaker: Breaker, entity: str) -> Release:
    """The state in which what tripped scores a share of keys: that of the probe, or its own if that was smaller.

    Raises:
        ReleaseError: if it is what scores, and had but other thresholds.
    """
    share = round(breaker.probe * SHARES)
    if tripped.canary is not None:
        share, entity = min(share, tripped.canary.per_10000), tripped.canary.entity
    bundle = tripped.challenger or tripped.champion
    if bundle == state.champion:
        raise ReleaseError(
            f"release {tripped.seq} is of the bundle that scores, by other thresholds, which no share of keys can try: "
            "it stays rolled back until somebody releases it again"
        )
    return with_canary(state, bundle, entity, share)


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


def reason_of(state: State, why: str) -> str:
    """What the release log says of a change of the circuit, of which a bad window tells why."""
    said = {"open": why, "half_open": "tried again by a share of keys", "closed": "it has held"}
    return f"circuit breaker {state.replace('_', '-')}: {said[state]}"
