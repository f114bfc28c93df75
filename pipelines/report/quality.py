"""What a run's quality records say over all its windows: what was measured, what is wrong, how columns are spread."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from models.project.declarations import Project
from models.quality.records import Distribution, Finding, Verdict, WindowStatistics
from models.quality.window_statistics import read_baseline
from models.record import SCORE
from pipelines.results import RunError, paths_of
from pipelines.sinks.folder import open_file

QUALITY = "quality"
BASELINE = "baseline.json"
QUALITY_ENDINGS = (".json", ".jsonl")
MAX_LINE_BYTES = 64 << 20
MAX_POINTS = 240  # of a line in a plot

Floats = npt.NDArray[np.float64]
Times = npt.NDArray[np.datetime64]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What was measured of one feature in one way, window by window; times are the windows' ends."""

    feature: str
    kind: str
    measure: str
    times: Times
    values: Floats
    thresholds: Floats

    @property
    def excess(self) -> float:
        """The largest value as a multiple of its threshold."""
        ratios = np.divide(
            self.values, self.thresholds, out=np.where(self.values > 0, np.inf, 0.0), where=self.thresholds > 0
        )
        return float(ratios.max(initial=0.0))


@dataclasses.dataclass(frozen=True)
class Trouble:
    """All findings of one feature and kind: in how many windows, and the worst of them."""

    worst: Finding
    windows: int
    first_us: int
    last_us: int

    @property
    def excess(self) -> float:
        """The worst value as a multiple of its threshold; infinite where there is no such measure."""
        value, threshold = self.worst.value, self.worst.threshold
        return value / threshold if value is not None and threshold else float("inf")


@dataclasses.dataclass(frozen=True)
class Spread:
    """How a column is spread over the run, or over the `alarms` windows with alarms of it, and over the baseline."""

    name: str
    run: Distribution
    baseline: Distribution | None
    alarms: int = 0


def read_quality(
    run: str, project: Project
) -> tuple[tuple[Verdict, ...], tuple[WindowStatistics, ...], WindowStatistics | None]:
    """The verdicts and statistics in a run's `quality` folder by their windows' ends, and the baseline.

    What comes twice counts once.
    """
    verdicts: dict[str, Verdict] = {}
    windows: dict[tuple[int, int], WindowStatistics] = {}
    baseline: WindowStatistics | None = None
    for path in paths_of(run, QUALITY, QUALITY_ENDINGS):
        for record in read_records(path, project):
            if is_baseline(path):
                assert isinstance(record, WindowStatistics)
                baseline = record
            elif isinstance(record, Verdict):
                verdicts[record.verdict_id] = record
            else:
                windows[record.window_start_us, record.window_end_us] = record
    in_order = sorted(verdicts.values(), key=lambda v: (v.window_end_us, v.verdict_id))
    return tuple(in_order), tuple(windows[key] for key in sorted(windows)), baseline


def is_baseline(path: str) -> bool:
    """Whether a file of quality records is a bundle's baseline file."""
    return path.rsplit("/", 1)[-1] == BASELINE


def read_records(path: str, project: Project) -> Iterator[Verdict | WindowStatistics]:
    """The records of a file of a `quality` folder, a line each; RunError if one is none.

    A line is a verdict if it has a `verdict_id`, else statistics; that of `baseline.json` is a bundle's baseline.
    """
    for number, line in enumerate(_lines(path), 1):
        try:
            if is_baseline(path):
                yield read_baseline(line, project)
            elif "verdict_id" in json.loads(line):
                yield Verdict.from_json(line)
            else:
                yield WindowStatistics.from_json(line)
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"{path}:{number} is not a quality record: {type(error).__name__}: {error}") from None


def compare_windows(verdicts: Iterable[Verdict]) -> tuple[Comparison, ...]:
    """What verdicts measured, as a series for each kind, feature and measure; within a kind the worst first."""
    points: dict[tuple[str, str, str], list[tuple[int, float, float]]] = {}
    for verdict in verdicts:
        for m in verdict.measures:
            point = (verdict.window_end_us, m.value, m.threshold)
            points.setdefault((m.kind, m.feature, m.measure), []).append(point)
    found = []
    for (kind, feature, measure), rows in points.items():
        times, values, thresholds = map(np.array, zip(*sorted(rows), strict=True))
        times, values, thresholds = thin(times.astype("M8[us]"), values.astype(float), thresholds.astype(float))
        found.append(Comparison(feature, kind, measure, times, values, thresholds))
    return tuple(sorted(found, key=lambda c: (c.kind, -c.excess, c.feature, c.measure)))


def thin(times: Times, values: Floats, thresholds: Floats, most: int = MAX_POINTS) -> tuple[Times, Floats, Floats]:
    """At most `most` points: of so many neighbours the one that is furthest above its threshold."""
    step = -(-len(times) // most)
    if step <= 1:
        return times, values, thresholds
    above = values - thresholds
    kept = np.array([first + int(np.argmax(above[first : first + step])) for first in range(0, len(times), step)])
    return times[kept], values[kept], thresholds[kept]


def find_troubles(verdicts: Iterable[Verdict]) -> tuple[Trouble, ...]:
    """Findings by feature and kind: alarms before warnings, and the furthest above their thresholds first."""
    grouped: dict[tuple[str, str], list[tuple[int, Finding]]] = {}
    for verdict in verdicts:
        for finding in verdict.findings:
            grouped.setdefault((finding.feature, finding.kind), []).append((verdict.window_end_us, finding))
    troubles = []
    for found in grouped.values():
        ends = [end_us for end_us, _ in found]
        each = [Trouble(finding, len(set(ends)), min(ends), max(ends)) for _, finding in found]
        troubles.append(max(each, key=_rank))
    return tuple(sorted(troubles, key=lambda t: (_rank(t), t.worst.feature, t.worst.kind), reverse=True))


def _rank(trouble: Trouble) -> tuple[bool, float, str]:
    return trouble.worst.severity == "alarm", trouble.excess, trouble.worst.text


def spread(
    windows: Sequence[WindowStatistics], baseline: WindowStatistics | None, verdicts: Iterable[Verdict]
) -> tuple[Spread, ...]:
    """Each column over the windows with alarms of it, or without any over all, beside the baseline; alarms first."""
    alarms: dict[str, set[int]] = {}
    for verdict in verdicts:
        for finding in verdict.findings:
            if finding.severity == "alarm":
                alarms.setdefault(finding.feature, set()).add(verdict.window_end_us)
    merged: dict[str, Distribution] = {}
    for window in windows:
        for name, part in window.distributions.items():
            if name not in alarms or window.window_end_us in alarms[name]:
                merged[name] = merge(merged[name], part) if name in merged else part
    others = baseline.distributions if baseline else {}
    spreads = [
        Spread(name, run, _comparable(run, others.get(name)), len(alarms.get(name, ()))) for name, run in merged.items()
    ]
    return tuple(sorted(spreads, key=lambda s: (not s.alarms, s.name != SCORE)))


def merge(one: Distribution, two: Distribution) -> Distribution:
    """The counts of two parts of a column together; the first where the bins are not the same."""
    rows, missing = one.rows + two.rows, one.missing + two.missing
    if one.kind == two.kind == "text":
        counts: dict[str, int] = {}
        for part in (one, two):
            for value, count in zip(part.values, part.counts, strict=True):
                counts[value] = counts.get(value, 0) + count
        values = tuple(sorted(counts))
        return Distribution("text", rows, missing, tuple(counts[v] for v in values), (), values, one.other + two.other)
    if one.kind != two.kind or one.cuts != two.cuts or len(one.counts) != len(two.counts):
        return one
    summed = tuple(a + b for a, b in zip(one.counts, two.counts, strict=True))
    least = min((d.minimum for d in (one, two) if d.minimum is not None), default=None)
    most = max((d.maximum for d in (one, two) if d.maximum is not None), default=None)
    return Distribution("number", rows, missing, summed, one.cuts, minimum=least, maximum=most)


def _comparable(run: Distribution, baseline: Distribution | None) -> Distribution | None:
    if baseline is None or run.kind != baseline.kind or run.cuts != baseline.cuts:
        return None
    return baseline


def _lines(path: str) -> Iterator[bytes]:
    with open_file(path) as file:
        while line := file.readline(MAX_LINE_BYTES + 1):
            if len(line) > MAX_LINE_BYTES:
                raise RunError(f"{path} has a line of more than {MAX_LINE_BYTES} bytes")
            if line.strip():
                yield line
