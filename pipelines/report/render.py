"""A report as one HTML file that asks for nothing from anywhere; the same report gives the same bytes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from models.faults import how_many
from models.predictors.evaluation import Measured
from models.predictors.measures import heading, shown
from models.project.expressions import NOT_FINITE, UNKNOWN
from models.quality.records import Distribution, Verdict
from pipelines.report.gather import Report
from pipelines.report.page import fill
from pipelines.report.performance import Caught, Performance
from pipelines.report.plots import is_steep, plot_comparison, plot_lines, plot_spread, short_number
from pipelines.report.quality import Comparison, Spread, Trouble
from pipelines.report.render_estimates import show_estimates
from pipelines.report.render_labels import show_label_metrics
from pipelines.report.scores import LATENCY_QUANTILES, Series
from pipelines.report.shown import MAX_PLOTS, MAX_ROWS, breakable, cut, figure_of, time_text

MAX_CELLS = 240  # windows in the strip of verdicts
MAX_CLASSES = 20  # of a table

_KINDS = {
    "skew": "Skew: against the baseline",
    "drift": "Drift: against the window before",
    "psi": "Scores against the baseline (PSI)",
    "decision_share": "Decisions",
    "null_rate": "Missing values",
    "unseen": "Unseen entities",
    "season": "Against the same hour and weekday before",
    "slow_drift": "Slow drift: sums of small deviations",
    "score_range": "Range of scores",
    "schema": "Schema",
}
_MEASURES = {"jensen_shannon": "Jensen-Shannon", "infinity_norm": "L-infinity", "psi": "PSI"}
_STATUS_ORDER = ("ok", "unjudged", "warn", "alarm")


def render(report: Report) -> str:
    """The whole page. All texts are escaped; only the plots are put in as they are."""
    spreads = report.spreads[:MAX_PLOTS]
    status, headline = sum_up(report.verdicts)
    reasons = list_reasons(report.events or {})
    return fill(
        "report.html",
        r=report,
        facts=_facts(report),
        status=status,
        headline=headline,
        strip=_strip(report.verdicts),
        troubles=[_trouble(trouble) for trouble in report.troubles[:MAX_ROWS]],
        troubles_left=max(0, len(report.troubles) - MAX_ROWS),
        outcomes=_outcomes(report.events) if report.events else [],
        reasons=reasons[:MAX_ROWS],
        reasons_left=max(0, len(reasons) - MAX_ROWS),
        impossible=_counted(report.events or {}, NOT_FINITE)[:MAX_ROWS],
        unknown=_counted(report.events or {}, UNKNOWN)[:MAX_ROWS],
        performance=_performance(report.performance) if report.performance else None,
        known=show_label_metrics(report.label_metrics) if report.label_metrics else None,
        expected=show_estimates(report.label_metrics) if report.label_metrics else None,
        step=_duration(report.series.size_us) if report.series else "",
        series=_series_plots(report.series) if report.series else [],
        comparisons=_comparison_plots(report.comparisons),
        spreads=[_spread_plot(spread) for spread in spreads],
        spreads_left=len(report.spreads) - len(spreads),
        compared=any(spread.baseline for spread in spreads),
        baseline_span=" to ".join(time_text(us) for us in report.baseline_us or ()),
        baseline_overlaps=_overlaps(report),
        latency_heads=["most" if q == 1 else f"{100 * q:g}%" for q in LATENCY_QUANTILES],
        latencies=[
            {
                "start": x.start,
                "end": x.end,
                "rows": f"{x.rows:,}",
                "quantiles": [_milliseconds(v) for v in x.quantiles_ms],
            }
            for x in report.latencies
        ],
        late=f"{report.late:,} events came late; {report.corrections:,} score rows are corrections.",
    )


def _overlaps(report: Report) -> bool:
    """Whether the run's events reach into the time of the baseline's."""
    if report.baseline_us is None or report.period is None:
        return False
    first, last = (int(time.astype("M8[us]").astype(np.int64)) for time in report.period)
    return first < report.baseline_us[1] and last >= report.baseline_us[0]


def _facts(report: Report) -> list[tuple[str, str, str]]:
    facts = [("bundle", ", ".join(report.bundles) or "none", "")]
    if report.period:
        first, last = (str(time.astype("M8[s]")).replace("T", " ") for time in report.period)
        facts.append(("scored events are of (UTC)", f"{first[:10]} to {last[:10]}", f"{first[11:]} to {last[11:]}"))
    if report.events:
        facts.append(("events read", f"{report.events.get('read', 0):,}", ""))
    facts.append(("events scored", f"{report.scored:,}", ""))
    if report.events:
        dead, read = report.events.get("dead-lettered", 0), max(report.events.get("read", 0), 1)
        facts.append(("dead letters", f"{dead:,}", f"{dead / read:.2%} of the events read"))
    return facts


def sum_up(verdicts: Iterable[Verdict]) -> tuple[str, str]:
    """The worst status, and one sentence on all verdicts."""
    judged = [verdict for verdict in verdicts if verdict.judged]
    counts = {status: sum(v.status == status for v in judged) for status in ("alarm", "warn")}
    size = f"{len(judged):,} window{'s' * (len(judged) != 1)}"
    if counts["alarm"]:
        first = next(v for v in judged if v.status == "alarm")
        warned = f" {counts['warn']:,} more with warnings." if counts["warn"] else ""
        start = time_text(first.window_start_us)
        return "alarm", f"Alarms in {counts['alarm']:,} of {size}, first in the one from {start}.{warned}"
    if counts["warn"]:
        return "warn", f"Warnings in {counts['warn']:,} of {size}, no alarm."
    if not judged:
        return "", "No window had enough events to be judged."
    return "ok", f"Nothing found in {size}."


def _strip(verdicts: tuple[Verdict, ...]) -> list[dict[str, str]]:
    """A cell a window, or where there are too many, one for several, as bad as the worst of them."""
    size = max(1, -(-len(verdicts) // MAX_CELLS))
    cells = []
    for place in range(0, len(verdicts), size):
        some = verdicts[place : place + size]
        statuses = [v.status if v.judged else "unjudged" for v in some]
        worst = max(statuses, key=_STATUS_ORDER.index)
        start, end = time_text(some[0].window_start_us), time_text(some[-1].window_end_us)
        features = sorted({f.feature for v in some for f in v.findings})
        named = cut(f": {', '.join(features)}") if features else ""
        cells.append({"status": worst, "start": start, "end": end, "title": f"{start} to {end}: {worst}{named}"})
    return cells


def _trouble(trouble: Trouble) -> dict[str, Any]:
    worst = trouble.worst
    return {
        "severity": worst.severity,
        "feature": breakable(worst.feature),
        "kind": worst.kind.replace("_", " "),
        "windows": f"{trouble.windows:,}",
        "value": "" if worst.value is None else short_number(worst.value),
        "threshold": "" if worst.threshold is None else short_number(worst.threshold),
        "first": time_text(trouble.first_us),
        "last": time_text(trouble.last_us),
        "text": cut(worst.text),
    }


def _outcomes(events: dict[str, int]) -> list[dict[str, Any]]:
    read = max(events.get("read", 0), 1)
    names = ["scored", "history", "duplicate", "dead-lettered"]
    names += sorted(name for name in events if name not in (*names, "read") and ": " not in name)
    return [
        {
            "name": name,
            "count": f"{events.get(name, 0):,}",
            "share": f"{events.get(name, 0) / read:.2%}",
            "width": f"{100 * events.get(name, 0) / read:.2f}",
            "bad": name == "dead-lettered",
        }
        for name in names
        if events.get(name) or name in ("scored", "dead-lettered")
    ]


def list_reasons(events: dict[str, int]) -> list[dict[str, str]]:
    """Dead letters by step, field and rule, the most frequent first."""
    prefix = "dead-lettered: "
    counts = {name.removeprefix(prefix): count for name, count in events.items() if name.startswith(prefix)}
    most = max(counts.values(), default=1)
    rows = []
    for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        step, field, rule = [*name.split(": ", 2), "", ""][:3]
        width = f"{100 * count / most:.2f}"
        rows.append(
            {
                "step": step,
                "field": cut(field),
                "rule": cut(rule),
                "count": how_many(count, events.get("read", 0)),
                "width": width,
            }
        )
    return rows


def _counted(events: dict[str, int], prefix: str) -> list[dict[str, Any]]:
    """What is counted by the name of a feature or input."""
    found = [(name.removeprefix(prefix), n) for name, n in sorted(events.items()) if name.startswith(prefix)]
    return [{"name": breakable(name), "count": f"{count:,}"} for name, count in found]


def _performance(performance: Performance) -> dict[str, Any]:
    metrics = []
    if performance.evaluation is not None:
        metrics.append(_metrics("all", performance.evaluation.overall))
        for column, by_value in performance.evaluation.slices.items():
            metrics += [_metrics(f"{column} = {value}", found) for value, found in by_value.items()]
    figures = performance.evaluation.overall.figures() if performance.evaluation else {}
    confusion = performance.evaluation.overall.as_dict().get("confusion", []) if performance.evaluation else []
    plots = []
    for name, values in performance.lines.items():
        if not np.isnan(values).all():
            plots.append(figure_of(name, "", plot_lines(performance.starts, {"": values}, fit=True)))
    return {
        "fault": cut(performance.fault),
        "note": performance.note,
        "binary": performance.binary,
        "headings": [breakable(heading(name)) for name in figures],
        "metrics": metrics[:MAX_ROWS],
        "left": max(0, len(metrics) - MAX_ROWS),
        "caught_headings": _caught_headings(performance),
        "caught": [{"action": cut(c.action), "cells": _caught_cells(c, performance)} for c in performance.caught],
        "classes": [cut(name) for name in performance.classes[:MAX_CLASSES]],
        "confusion": [
            {"name": cut(name), "counts": [f"{count:,}" for count in counts[:MAX_CLASSES]]}
            for name, counts in zip(performance.classes[:MAX_CLASSES], confusion, strict=False)
        ],
        "calibration": [
            {
                "span": f"{bin.start:.1f} to {bin.end:.1f}",
                "rows": f"{bin.rows:,}",
                "mean": f"{bin.mean_score:.3f}",
                "share": f"{bin.share:.3f}",
            }
            for bin in performance.calibration
        ],
        "step": _duration(performance.size_us),
        "plots": plots,
    }


def _caught_headings(performance: Performance) -> list[str]:
    if performance.binary:
        return ["events", "positive", "share of its events", "share of all positives"]
    if performance.classes:
        return ["events", *(f"of class {cut(name)}" for name in performance.classes[:MAX_CLASSES])]
    return ["events", "mean label"]


def _caught_cells(caught: Caught, performance: Performance) -> list[str]:
    events = f"{caught.events:,}"
    if performance.binary:
        every = sum(each.positives for each in performance.caught)
        shares = [f"{caught.positives / of:.2%}" if of else "-" for of in (caught.events, every)]
        return [events, f"{caught.positives:,}", *shares]
    if performance.classes:
        return [events, *(f"{count:,}" for count in caught.classes[:MAX_CLASSES])]
    return [events, "-" if caught.mean is None else short_number(caught.mean)]


def _metrics(name: str, found: Measured) -> dict[str, Any]:
    figures = [shown(name, figure) for name, figure in found.figures().items()]
    positives = f"{found.positives or 0:,}"
    return {"name": breakable(name), "rows": f"{found.rows:,}", "positives": positives, "figures": figures}


def _series_plots(series: Series) -> list[dict[str, Any]]:
    plots = [figure_of("Events", f"in each {_duration(series.size_us)}", plot_lines(series.starts, {"": series.rows}))]
    lines = {f"{100 * q:g}%": values for q, values in series.scores.items()}
    svg = plot_lines(series.starts, lines, log=True)
    plots.append(figure_of("Scores", "so many percent of the events are at or below the line", svg))
    for action, shares in series.decisions.items():
        svg = plot_lines(series.starts, {"": 100 * shares}, fit=True)
        plots.append(figure_of(action, "percent of the events", svg))
    return plots


def _comparison_plots(comparisons: tuple[Comparison, ...]) -> list[dict[str, Any]]:
    """A section for each kind; what stayed at 0 in all windows needs no plot."""
    known = list(_KINDS)
    kinds = sorted({c.kind for c in comparisons}, key=lambda k: (known.index(k) if k in known else len(known), k))
    sections = []
    for kind in kinds:
        some = [c for c in comparisons if c.kind == kind]
        moved = [c for c in some if c.values.any()]
        plots = []
        for c in moved[:MAX_PLOTS]:
            above = bool((c.values > c.thresholds).any())
            plots.append(figure_of(c.feature, _MEASURES.get(c.measure, c.measure), plot_comparison(c), above))
        still = _name_some([c.feature for c in some if not c.values.any()])
        left = len(moved) - len(plots)
        sections.append({"title": _KINDS.get(kind, kind), "plots": plots, "left": left, "still": still})
    return sections


def _name_some(names: list[str], most: int = 6) -> str:
    left = len(names) - most
    return ", ".join(map(cut, names[:most])) + (f" and {left} more" if left > 0 else "")


def _spread_plot(spread: Spread) -> dict[str, Any]:
    run, baseline = spread.run, spread.baseline
    notes = []
    if spread.alarms:
        notes.append(f"in the {spread.alarms} window{'s' * (spread.alarms > 1)} with alarms")
    if baseline is not None and (run.missing or baseline.missing):
        notes.append(f"{_missing(run)} missing, {_missing(baseline)} in the baseline")
    elif run.missing:
        notes.append(f"{_missing(run)} missing")
    if is_steep(run):
        notes.append("logarithmic scale")
    return figure_of(spread.name, ", ".join(notes), plot_spread(run, baseline), bool(spread.alarms))


def _missing(distribution: Distribution) -> str:
    return f"{distribution.missing / max(distribution.rows + distribution.missing, 1):.1%}"


def _duration(duration_us: int) -> str:
    for name, size in (("day", 86_400), ("hour", 3_600), ("minute", 60), ("second", 1)):
        count = duration_us // (size * 1_000_000)
        if count:
            return name if count == 1 else f"{count} {name}s"
    return f"{duration_us} µs"


def _milliseconds(value: float) -> str:
    return f"{value:,.1f} ms" if abs(value) < 10_000 else f"{value / 1000:,.1f} s"
