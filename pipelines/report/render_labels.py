"""How a report shows label metrics."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np

from models.predictors.measures import heading, shown
from models.quality.label_metrics import COVERAGE
from pipelines.report.labels import LabelMetrics, Said
from pipelines.report.plots import plot_lines
from pipelines.report.shown import MAX_PLOTS, MAX_ROWS, breakable, figure_of, time_text


def show_label_metrics(metrics: LabelMetrics) -> dict[str, Any]:
    """What the template needs of them."""
    windows, slices = metrics.windows[:MAX_ROWS], metrics.slices[:MAX_ROWS]
    plots = []
    several = len({each.bundle for each in metrics.windows}) > 1
    for course in metrics.courses[:MAX_PLOTS]:
        lines = {"said first": course.first, "now": course.last}
        name = "coverage" if course.name == COVERAGE else heading(course.name)
        moves = len(np.unique([value for each in lines.values() for value in each if not np.isnan(value)])) > 1
        plots.append(figure_of(name, course.bundle if several else "", plot_lines(course.ends, lines, fit=moves)))
    return {
        "several": several,
        "headings": [breakable(heading(name)) for name in (windows[0].figures if windows else ())],
        "windows": [_window(now, first) for now, first in zip(windows, metrics.first, strict=False)],
        "left": len(metrics.windows) - len(windows),
        "plots": plots,
        "plots_left": len(metrics.courses) - len(plots),
        "slices": [{"name": breakable(f"{each.slice} = {each.value}"), **_row(each, each)} for each in slices],
        "slices_left": len(metrics.slices) - len(slices),
        "corrected": _corrected(metrics.corrected),
    }


def _corrected(windows: int) -> str:
    if not windows:
        return "No window was said again."
    return f"Late labels corrected {windows:,} window{'s' * (windows > 1)}: the small figures are what was said first."


def _window(now: Said, first: Said) -> dict[str, Any]:
    times = {"start": now.start_us, "end": now.end_us, "as_of": now.as_of_us}
    return {
        **{name: time_text(us).removesuffix(" 00:00") for name, us in times.items()},
        "said": f"{now.revision + 1:,}",
        "bare": not now.labelled,
        "median": _delay(now.delay_median_s),
        "longest": _delay(now.delay_max_s),
        **_row(now, first),
    }


def _row(now: Said, first: Said) -> dict[str, Any]:
    figures = []
    for name, value in now.figures.items():
        text, before = shown(name, value), shown(name, first.figures[name])
        figures.append({"now": text, "first": before if before != text else ""})
    return {
        "bundle": breakable(now.bundle),
        "rows": f"{now.rows:,}",
        "labelled": f"{now.labelled:,}",
        "coverage": "-" if now.coverage is None else f"{now.coverage:.1%}",
        "figures": figures,
    }


def _delay(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    delay = datetime.timedelta(seconds=seconds)
    if delay.days:
        return f"{delay / datetime.timedelta(days=1):.1f} d"
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds:.0f} s"
