"""What a report says, gathered from a run's folder: numbers and names only, nothing of how they are shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from models.project.declarations import Project
from models.quality.records import Verdict
from models.record import CORRECTION, LATE, SCORE
from pipelines.report.labels import LabelMetrics, read_label_metrics
from pipelines.report.performance import Performance, measure
from pipelines.report.quality import Comparison, Spread, Trouble, compare_windows, find_troubles, read_quality, spread
from pipelines.report.scores import Latency, Scores, Series
from pipelines.results import RunError, read_success
from pipelines.sinks.folder import Folder
from pipelines.sinks.listed import SCORES, SUCCESS


@dataclasses.dataclass(frozen=True)
class Report:
    """All of a report; `events` is None without a `_SUCCESS.json`, `verdicts` empty without quality records."""

    project: str
    bundles: tuple[str, ...]
    events: dict[str, int] | None
    scored: int
    period: tuple[np.datetime64, np.datetime64] | None
    series: Series | None
    verdicts: tuple[Verdict, ...]
    comparisons: tuple[Comparison, ...]
    troubles: tuple[Trouble, ...]
    spreads: tuple[Spread, ...]
    latencies: tuple[Latency, ...]
    late: int
    corrections: int
    baseline_us: tuple[int, int] | None  # the time, [start, end), of the events that the baseline is made of
    performance: Performance | None
    labels: str  # where labels are, if there is no performance
    label_metrics: LabelMetrics | None


def gather(project: Project, run: str, labels: Sequence[str] = ()) -> Report:
    """Read a run's folder; RunError if it is none, or another project's, or a file in it is not what it should be."""
    said = read_success(run, project.name) if Folder(run).is_file(SUCCESS) else None
    verdicts, statistics, baseline = read_quality(run, project)
    scores = Scores.open(run)
    if said is None and not verdicts and scores is None:
        raise RunError(f"{run}: has no {SUCCESS}, no scores and no quality records: not the folder of a finished run")
    if said is not None and scores is None and any(f["kind"] == SCORES for f in said.get("files", ())):
        raise RunError(f"{run}: its scores are not Parquet; a report needs a run with --sink-format parquet")
    performance = measure(run, project, labels) if scores and scores.rows and SCORE in scores.names else None
    return Report(
        project=project.name,
        bundles=scores.bundles() if scores else tuple(sorted({v.bundle_id for v in verdicts})),
        events=None if said is None else {name: int(count) for name, count in said["events"].items()},
        scored=scores.rows if scores else 0,
        period=scores.period(project.event.time) if scores else None,
        series=scores.series(project) if scores else None,
        verdicts=verdicts,
        comparisons=compare_windows(verdicts),
        troubles=find_troubles(verdicts),
        spreads=spread(statistics, baseline, verdicts) or (scores.spreads(project) if scores else ()),
        latencies=scores.latencies() if scores else (),
        late=scores.count(LATE) if scores else 0,
        corrections=scores.count(CORRECTION) if scores else 0,
        baseline_us=(baseline.window_start_us, baseline.window_end_us) if baseline else None,
        performance=performance,
        labels="" if performance else _where_labels_are(project, labels),
        label_metrics=read_label_metrics(run),
    )


def _where_labels_are(project: Project, labels: Sequence[str]) -> str:
    """Why there is no performance, and what to do about it."""
    if project.label is None:
        return "the project declares no label"
    if project.label_type is not None and not labels:
        return "labels come as records of their own: name them to headrace report by --labels"
    if not labels and project.label.field not in project.output:
        return f"the label {project.label.field} is not among the output fields that project.yaml declares"
    return "no scored event has a known label"
