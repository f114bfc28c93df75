"""What a run's quality records say, kept small: verdicts, what they measured, how scores are spread."""

from __future__ import annotations

import dataclasses
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from models.project.declarations import Project
from models.quality.incidents import Alert, Incidents, Policy, raise_alerts
from models.quality.records import Distribution, Measure, Verdict, WindowStatistics
from models.record import SCORE
from pipelines.report.quality import Floats, Times, is_baseline, merge, read_records, thin
from pipelines.results import DAY_US

Key = tuple[str, str, str]  # kind, feature, measure
Window = tuple[int, int]  # start and end, microseconds since 1970 UTC
_KEYS: dict[Key, Key] = {}  # one object of each
RECENT_US = 7 * DAY_US  # of event time, whose scores are compared with the baseline


@dataclasses.dataclass(frozen=True)
class Points:
    """What verdicts measured, an entry of each list a point; arrays of numbers, as a year has many."""

    keys: list[Key] = dataclasses.field(default_factory=list)
    ends: array[int] = dataclasses.field(default_factory=lambda: array("q"))  # of windows, microseconds since 1970 UTC
    values: array[float] = dataclasses.field(default_factory=lambda: array("d"))
    thresholds: array[float] = dataclasses.field(default_factory=lambda: array("d"))

    def add(self, end_us: int, measures: Iterable[Measure]) -> None:
        """What a verdict on a window measured."""
        for m in measures:
            key = (sys.intern(m.kind), sys.intern(m.feature), sys.intern(m.measure))
            self.keys.append(_KEYS.setdefault(key, key))
            self.ends.append(end_us)
            self.values.append(m.value)
            self.thresholds.append(m.threshold)

    def extend(self, other: Points) -> None:
        """All of others, too."""
        self.keys.extend(other.keys)
        self.ends.extend(other.ends)
        self.values.extend(other.values)
        self.thresholds.extend(other.thresholds)


@dataclasses.dataclass(frozen=True)
class Part:
    """A file's records: verdicts without what they measured, that beside them, and how scores are spread."""

    verdicts: tuple[Verdict, ...]
    points: Points
    scores: dict[Window, Distribution]
    baseline: Distribution | None


@dataclasses.dataclass(frozen=True)
class Drift:
    """A measure over the windows, by their ends; `worst` is the largest value as a multiple of its threshold."""

    kind: str
    feature: str
    measure: str
    ends: Times
    values: Floats
    thresholds: Floats
    last: tuple[float, float]
    worst: float


@dataclasses.dataclass(frozen=True)
class Quality:
    """All of a run's records: those of drift the worst first, incidents as alerts tell of them."""

    verdicts: tuple[Verdict, ...]
    drift: tuple[Drift, ...]
    incidents: Incidents
    alerts: tuple[Alert, ...]
    recent: Distribution | None
    baseline: Distribution | None


def read_part(path: str, project: Project) -> Part:
    """A file of a run's `quality` folder; RunError if it holds anything else."""
    return part_of(read_records(path, project), is_baseline(path))


def part_of(records: Iterable[Verdict | WindowStatistics], of_baseline: bool = False) -> Part:
    """What records say together."""
    verdicts: list[Verdict] = []
    points = Points()
    scores: dict[Window, Distribution] = {}
    baseline = None
    for record in records:
        if isinstance(record, Verdict):
            points.add(record.window_end_us, record.measures)
            verdicts.append(dataclasses.replace(record, measures=(), counters={}))
        elif SCORE in record.distributions:
            if of_baseline:
                baseline = record.distributions[SCORE]
            else:
                scores[_window(record)] = record.distributions[SCORE]
    return Part(tuple(verdicts), points, scores, baseline)


def _window(record: WindowStatistics) -> Window:
    return record.window_start_us, record.window_end_us


def sum_up(parts: Iterable[Part], project: Project) -> Quality:
    """What the files of a run say together; what stands twice counts once."""
    verdicts: dict[str, Verdict] = {}
    points = Points()
    scores: dict[Window, Distribution] = {}
    baseline = None
    for part in parts:
        verdicts |= {verdict.verdict_id: verdict for verdict in part.verdicts}
        points.extend(part.points)
        scores |= part.scores
        baseline = part.baseline or baseline
    in_order = sorted(verdicts.values(), key=lambda v: (v.window_end_us, v.verdict_id))
    incidents, alerts = Incidents(), tuple[Alert, ...]()
    if project.quality is not None:
        policy = Policy(project.quality.alert_cool_down, project.quality.alert_clear_after)
        incidents, alerts = raise_alerts(in_order, policy, project.name)
    drift = sorted(
        _drift(points),
        key=lambda d: (-d.worst, d.kind, d.feature, d.measure),
    )
    recent = _recent(scores)
    fits = recent is not None and baseline is not None and (recent.kind, recent.cuts) == (baseline.kind, baseline.cuts)
    return Quality(tuple(in_order), tuple(drift), incidents, alerts, recent, baseline if fits else None)


def _drift(points: Points) -> Iterator[Drift]:
    """A series for each key, by the windows' ends, whatever the order of the points."""
    if not points.keys:
        return
    names = sorted(set(points.keys))
    places = {key: place for place, key in enumerate(names)}
    of = np.fromiter(map(places.__getitem__, points.keys), np.int64, len(points.keys))
    all_ends, all_values, all_thresholds = map(np.array, (points.ends, points.values, points.thresholds))
    order = np.lexsort((all_thresholds, all_values, all_ends, of))
    for key, some in zip(names, np.split(order, np.searchsorted(of[order], np.arange(1, len(names)))), strict=True):
        _, first = np.unique(all_ends[some], return_index=True)
        chosen = some[first]
        ends, values, thresholds = all_ends[chosen].astype("M8[us]"), all_values[chosen], all_thresholds[chosen]
        over = np.divide(values, thresholds, out=np.where(values > 0, np.inf, 0.0), where=thresholds > 0)
        last = float(values[-1]), float(thresholds[-1])
        yield Drift(*key, *thin(ends, values, thresholds), last, float(over.max()))


def _recent(scores: dict[Window, Distribution]) -> Distribution | None:
    if not scores:
        return None
    newest = max(end for _, end in scores)
    merged: Distribution | None = None
    for (_, end), part in sorted(scores.items()):
        if end > newest - RECENT_US:
            merged = part if merged is None else merge(merged, part)
    return merged


def shares(distribution: Distribution) -> list[float]:
    """The share of rows in each bin, 0 to 1."""
    total = sum(distribution.counts) or 1
    return [count / total for count in distribution.counts]


def told(alerts: Sequence[Alert], most: int) -> list[dict[str, Any]]:
    """The newest alerts, newest first."""
    names = ("event", "feature", "kind", "text", "window_end")
    return [{name: getattr(alert, name) for name in names} for alert in reversed(alerts[-most:])]
