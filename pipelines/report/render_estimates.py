"""How a report shows what figures are expected to be before labels are known, beside what labels say."""

from __future__ import annotations

from typing import Any

import numpy as np

from models.predictors.measures import heading
from models.quality.expectations import BLIND_SPOT, estimate_text, shown_beside
from pipelines.report.labels import LabelMetrics, Said
from pipelines.report.plots import plot_lines
from pipelines.report.shown import MAX_PLOTS, MAX_ROWS, breakable, figure_of, time_text

MOST = 0.9  # of the rows have a label: what they say is that of the window
FEW = 100  # rows with a label, of which nothing is marked: an interval is of many


def show_estimates(metrics: LabelMetrics) -> dict[str, Any] | None:
    """What the template needs of them; None if no window has any."""
    names = next((list(each.estimates) for each in metrics.windows if each.estimates), None)
    if names is None:
        return None
    bundles = sorted({each.bundle for each in metrics.windows})
    windows, slices = metrics.windows[:MAX_ROWS], metrics.newest[:MAX_ROWS]
    plots = [plot for bundle in bundles for plot in _plots(metrics, bundle, names, len(bundles) > 1)]
    return {
        "blind_spot": BLIND_SPOT,
        "several": len(bundles) > 1,
        "headings": [heading(name) for name in names],
        "windows": [{"start": _day(each.start_us), "end": _day(each.end_us), **_row(each, names)} for each in windows],
        "left": len(metrics.windows) - len(windows),
        "plots": plots[:MAX_PLOTS],
        "plots_left": max(0, len(plots) - MAX_PLOTS),
        "slices": [{"name": breakable(f"{each.slice} = {each.value}"), **_row(each, names)} for each in slices],
        "slices_left": len(metrics.newest) - len(slices),
    }


def _row(said: Said, names: list[str]) -> dict[str, Any]:
    figures = []
    for name in names:
        estimate, realised = said.estimates.get(name), said.realised(name)
        outside = estimate is not None and realised is not None and not estimate[1] <= realised <= estimate[2]
        figures.append(
            {
                "expected": estimate_text(name, estimate),
                "realised": "" if realised is None else shown_beside(name, realised),
                "outside": outside and said.labelled >= max(FEW, MOST * said.rows),
            }
        )
    numbers = {"rows": f"{said.rows:,}", "labelled": f"{said.labelled:,}"}
    return {"bundle": breakable(said.bundle), **numbers, "figures": figures}


def _plots(metrics: LabelMetrics, bundle: str, names: list[str], several: bool) -> list[dict[str, Any]]:
    windows = [each for each in reversed(metrics.windows) if each.bundle == bundle and each.estimates]
    if not windows:
        return []
    ends = np.array([each.end_us for each in windows]).astype("M8[us]")
    plots = []
    for name in names:
        known = [each.realised(name) for each in windows]
        expected = np.array([each.estimates.get(name, (np.nan,) * 3) for each in windows], float).T
        if np.isnan(expected).all():
            continue
        lines = {"by labels": np.array(known, float), "expected": expected[0]}
        svg = plot_lines(ends, lines, fit=True, band=(expected[1], expected[2]))
        plots.append(figure_of(heading(name), bundle if several else "", svg))
    return plots


def _day(time_us: int) -> str:
    return time_text(time_us).removesuffix(" 00:00")
