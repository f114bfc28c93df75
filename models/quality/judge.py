"""The verdict on a window: against the schema, the window before and the baseline, chance allowed for.

A measure is raised if it is beyond its declared threshold and beyond what chance makes of so few rows. Chance is
shared out: with m measures in a window each may be wrong with false_alarm_rate / m (Bonferroni), so that a window
whose rows are independent draws of an unchanged distribution is alarming at most as often as declared.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np

from models.project.breakers import Breaker
from models.project.declarations import Project
from models.quality import backend
from models.quality.circuit import Circuit, advance
from models.quality.distances import (
    chance_of_infinity_norm,
    chance_of_jensen_shannon,
    chance_of_share,
    chance_of_stability_index,
    infinity_norm,
    jensen_shannon,
    stability_index,
)
from models.quality.records import Distribution, Finding, Kind, Measure, Status, Verdict, WindowStatistics
from models.quality.series import Past, Seen, chance_of_deviation, points_of, sum_limit

_NAMES = {"infinity_norm": "L-infinity", "jensen_shannon": "Jensen-Shannon divergence", "psi": "PSI"}
_SAID = {
    "drift": "its distribution has moved from the window before",
    "skew": "its distribution is not the baseline's",
    "psi": "its distribution is not the baseline's",
    "null_rate": "more rows have no value",
    "decision_share": "it is decided for another share of the rows",
    "unseen": "more rows are the first of their entity",
    "score_range": "there are rows without a finite score",
    "season": "it is not what it was at this hour and weekday",
    "slow_drift": "it has kept to one side of what it was at the same hours and weekdays",
}


@dataclasses.dataclass(frozen=True)
class Memory:
    """What is carried from window to window."""

    previous: WindowStatistics | None = None  # the last window with enough rows
    circuit_open: bool = False
    good: int = 0  # judged windows in a row that were ok since the circuit opened
    past: Past | None = None  # of the series, where they are declared
    circuit: Circuit | None = None  # where a breaker is declared

    def to_json(self) -> str:
        """One line of JSON."""
        previous = self.previous.to_json() if self.previous else None
        past = {"past": self.past.to_data()} if self.past else {}
        circuit = {"circuit": vars(self.circuit)} if self.circuit else {}
        told = {"previous": previous, "circuit_open": self.circuit_open, "good": self.good, **past, **circuit}
        return json.dumps(told)

    @staticmethod
    def from_json(text: str | bytes) -> Memory:
        """The inverse of to_json."""
        data = json.loads(text)
        previous = WindowStatistics.from_json(data["previous"]) if data["previous"] else None
        past = Past.from_data(data["past"]) if "past" in data else None
        return Memory(previous, data["circuit_open"], data["good"], past, Circuit.from_data(data.get("circuit")))


@dataclasses.dataclass(frozen=True)
class _Comparison:
    """A measure that is to be made, its chance not yet known."""

    feature: str
    kind: Kind
    measure: str
    value: float
    declared: float
    chance: Callable[[float], float]  # of a probability: what the measure is beyond with that probability at most


def judge(
    current: WindowStatistics,
    memory: Memory,
    baseline: WindowStatistics | None,
    project: Project,
    since_us: Collection[int] = (),
) -> tuple[Verdict, Memory]:
    """The verdict on a window that follows `memory`, and the memory for the window after it.

    `since_us` tells when those releases took effect that scored the window's rows, for a circuit breaker.
    """
    quality = project.quality
    assert quality is not None
    judged = current.rows >= quality.min_rows
    findings: list[Finding] = []
    measures: list[Measure] = []
    bundle_id = min(current.bundles, key=lambda name: (-current.bundles[name], name), default="")
    seen = _see_series(current, memory, project, bundle_id) if judged and quality.series else None
    if judged:
        findings += _schema_findings(current, project)
        findings += _score_range(current, project)
        comparisons = list(_compare(current, memory.previous, baseline, project))
        comparisons += _deviations(seen, project) if seen else []
        measures += [_measure(each, quality.false_alarm_rate / len(comparisons)) for each in comparisons]
        measures += _sums(seen, project) if seen else []
        findings += [_finding(measure) for measure in measures if measure.value > measure.threshold]
    status: Status = "ok"
    if findings:
        status = "alarm" if any(finding.severity == "alarm" for finding in findings) else "warn"
    after = _next_memory(current, memory, status, judged, quality.hold_off)
    after = dataclasses.replace(after, past=seen.past) if seen else after
    if project.breaker is not None:
        bad = any(is_bad(finding, project.breaker) for finding in findings) if judged else None
        before = memory.circuit or Circuit()
        circuit = advance(before, project.breaker, current.window_end_us, since_us, bad)
        after = dataclasses.replace(after, circuit=circuit)
    verdict = Verdict.make(
        window_start_us=current.window_start_us,
        window_end_us=current.window_end_us,
        rows=current.rows,
        status=status,
        judged=judged,
        circuit_open=after.circuit_open,
        bundle_id=bundle_id,
        findings=tuple(findings),
        measures=tuple(measures),
        counters=_counters(current),
        circuit=after.circuit,
    )
    return verdict, after


def is_bad(finding: Finding, breaker: Breaker) -> bool:
    """Whether a finding makes a window bad for a circuit breaker."""
    return finding.severity == "alarm" and (not breaker.kinds or finding.kind in breaker.kinds)


def _next_memory(current: WindowStatistics, memory: Memory, status: Status, judged: bool, hold_off: int) -> Memory:
    if not judged:
        return memory
    if status == "alarm":
        return dataclasses.replace(memory, previous=current, circuit_open=True, good=0)
    good = memory.good + 1 if status == "ok" else 0
    is_open = memory.circuit_open and good < hold_off
    return dataclasses.replace(memory, previous=current, circuit_open=is_open, good=good)


def _see_series(current: WindowStatistics, memory: Memory, project: Project, bundle_id: str) -> Seen:
    quality = project.quality
    assert quality is not None
    assert quality.series is not None
    places = quality.series.season // quality.window
    place = current.window_start_us // quality.window % places
    points = points_of(current, project)
    limit = sum_limit(quality.series.run_length * len(points))
    return (memory.past or Past()).see(points, place, (places, quality.series.seasons), bundle_id, limit)


def _deviations(seen: Seen, project: Project) -> Iterator[_Comparison]:
    assert project.quality is not None
    assert project.quality.series is not None
    declared = project.quality.series.deviations
    for each in seen.deviations:
        chance = functools.partial(chance_of_deviation, each.errors)
        yield _Comparison(each.name, "season", "deviation", abs(each.deviation), declared, chance)


def _sums(seen: Seen, project: Project) -> Iterator[Measure]:
    """Those of slow drifts, whose limits are of a run length and no window's chance."""
    assert project.quality is not None
    assert project.quality.series is not None
    limit = sum_limit(project.quality.series.run_length * len(seen.past.names))
    for each in seen.deviations:
        yield Measure(each.name, "slow_drift", "sum", each.total, limit, limit)


def _measure(comparison: _Comparison, alpha: float) -> Measure:
    threshold = max(comparison.declared, comparison.chance(alpha))
    return Measure(
        comparison.feature, comparison.kind, comparison.measure, comparison.value, comparison.declared, threshold
    )


def _finding(measure: Measure) -> Finding:
    name = _NAMES.get(measure.measure, measure.measure)
    text = f"{measure.feature}: {_SAID[measure.kind]}: {name} {measure.value:.4g}, threshold {measure.threshold:.4g}"
    return Finding(measure.feature, measure.kind, "alarm", measure.value, measure.threshold, text)


def _schema_findings(current: WindowStatistics, project: Project) -> list[Finding]:
    with contextlib.suppress(backend.BackendOff):  # `headrace` says what is off
        return list(backend.schema_findings(current.dataset, project.contract.text, project.watched_columns))
    return []


def _score_range(current: WindowStatistics, project: Project) -> Iterator[Finding]:
    for name in project.score_columns:
        bad = current.nulls.get(name, 0)
        if bad:
            text = f"{name}: {_SAID['score_range']}: {bad} of {current.rows}"
            yield Finding(name, "score_range", "alarm", float(bad), 0.0, text)


def _compare(
    current: WindowStatistics, previous: WindowStatistics | None, baseline: WindowStatistics | None, project: Project
) -> Iterator[_Comparison]:
    quality = project.quality
    assert quality is not None
    declared, scores = declared_thresholds(project.contract.text), project.score_columns
    if previous is not None:
        yield from _distances(current, previous, "drift", declared, quality.drift, scores)
    if baseline is not None:
        yield from _distances(current, baseline, "skew", declared, quality.skew, scores)
        for name in scores:
            yield from _psi(name, current, baseline, quality.psi)
    reference = baseline or previous
    if reference is not None:
        yield from _shares(current, reference, project)


@functools.lru_cache(maxsize=16)
def declared_thresholds(schema_text: bytes) -> dict[tuple[str, str], dict[str, float]]:
    """The thresholds of the schema's comparators by (column, kind) and measure."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for feature in backend.parse_schema(schema_text).feature:
        for kind in ("drift", "skew"):
            comparator = getattr(feature, f"{kind}_comparator")
            measures = {"infinity_norm": "infinity_norm", "jensen_shannon_divergence": "jensen_shannon"}
            asked = {ours: getattr(comparator, name).threshold for name, ours in measures.items()
                     if comparator.HasField(name)}  # fmt: skip
            if asked:
                found[feature.name, kind] = asked
    return found


def _distances(
    current: WindowStatistics,
    reference: WindowStatistics,
    kind: Kind,
    declared: dict[tuple[str, str], dict[str, float]],
    default: float,
    scores: Sequence[str],
) -> Iterator[_Comparison]:
    for name, distribution in current.distributions.items():
        other = reference.distributions.get(name)
        if other is None or not distribution.rows or not other.rows:
            continue  # all rows without a value: that is the null rate's to say
        aligned = align(distribution, other)
        if aligned is None or (name in scores and kind == "skew"):  # scores have their PSI
            continue
        usual = "infinity_norm" if distribution.kind == "text" else "jensen_shannon"
        for measure, threshold in declared.get((name, kind), {usual: default}).items():
            distance, chance = {
                "infinity_norm": (infinity_norm, chance_of_infinity_norm),
                "jensen_shannon": (jensen_shannon, chance_of_jensen_shannon),
            }[measure]
            yield _Comparison(name, kind, measure, distance(*aligned), threshold, _of_counts(chance, *aligned))


def _psi(name: str, current: WindowStatistics, baseline: WindowStatistics, threshold: float) -> Iterator[_Comparison]:
    score, other = current.distributions.get(name), baseline.distributions.get(name)
    aligned = align(score, other) if score and other and score.rows and other.rows else None
    if aligned is not None:
        value = stability_index(*aligned)
        yield _Comparison(name, "psi", "psi", value, threshold, _of_counts(chance_of_stability_index, *aligned))


def align(one: Distribution, other: Distribution) -> tuple[Any, Any] | None:
    """The counts of both over the same bins or values; None if they are not comparable.

    All but a text's most frequent values are one more bin. A value that is not among those of one side may still be
    there: it is taken to be as frequent as on the other side, as far as that is possible.
    """
    if one.kind != other.kind or one.cuts != other.cuts:
        return None
    if one.kind == "number":
        return np.array(one.counts, np.float64), np.array(other.counts, np.float64)
    values = sorted({*one.values, *other.values})
    return _text_counts(one, other, values), _text_counts(other, one, values)


def _text_counts(side: Distribution, facing: Distribution, values: list[str]) -> Any:
    known = dict(zip(side.values, side.counts, strict=True))
    seen = dict(zip(facing.values, facing.counts, strict=True))
    most = min(side.counts) if side.other else 0
    assumed = {name: min(most, seen[name] * side.rows / facing.rows) for name in values if name not in known}
    rest = max(side.other - sum(assumed.values()), 0.0)
    return np.array([*(known.get(name, assumed.get(name, 0)) for name in values), rest], np.float64)


def _shares(current: WindowStatistics, reference: WindowStatistics, project: Project) -> Iterator[_Comparison]:
    """Shares of all rows, not of a sample; a lower null rate or fewer unseen entities are no worry."""
    quality = project.quality
    assert quality is not None
    chance, said = _of_counts(chance_of_share, current.rows, reference.rows), project.said_columns

    def share(counts: dict[str, int], name: str, rows: int) -> float:
        return counts.get(name, 0) / rows

    for name in sorted(current.nulls.keys() & reference.nulls.keys()):
        if name not in said:
            rise = share(current.nulls, name, current.rows) - share(reference.nulls, name, reference.rows)
            yield _Comparison(name, "null_rate", "rate", max(rise, 0.0), quality.null_rate, chance)
    for name in sorted(current.decisions.keys() | reference.decisions.keys()):
        change = share(current.decisions, name, current.rows) - share(reference.decisions, name, reference.rows)
        yield _Comparison(name, "decision_share", "share", abs(change), quality.decision_share, chance)
    for name in sorted(current.unseen.keys() & reference.unseen.keys()):
        rise = share(current.unseen, name, current.rows) - share(reference.unseen, name, reference.rows)
        yield _Comparison(name, "unseen", "rate", max(rise, 0.0), quality.unseen, chance)


def _of_counts(chance: Callable[..., float], one: Any, other: Any) -> Callable[[float], float]:
    return lambda alpha: chance(one, other, alpha)


def _counters(current: WindowStatistics) -> dict[str, int]:
    counters = {"rows": current.rows, "sampled": current.sampled, "late": current.late}
    for kind, counts in (("null", current.nulls), ("decision", current.decisions), ("unseen", current.unseen)):
        counters |= {f"{kind}.{name}": count for name, count in counts.items()}
    return counters
