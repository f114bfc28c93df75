"""The decision report of `headrace rollout` as one HTML page, and as JSON."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from models.predictors.measures import heading
from models.rollout.figures import Estimate
from models.rollout.rules import Decided, Verdict
from models.rollout.tables import Shown, facts_of, notes_of, tables_of
from pipelines.report.files import check_output, write
from pipelines.report.page import fill
from pipelines.report.plots import plot_lines
from pipelines.report.shown import MAX_ROWS, breakable, cut, figure_of

_HTML_MARK, _JSON_MARK = b": rollout report</title>", b'"report": "rollout"'
_STATUS = {Verdict.PROMOTE: "ok", Verdict.HOLD: "warn", Verdict.ROLL_BACK: "alarm"}


def check_outputs(json_file: pathlib.Path | None, html_file: pathlib.Path | None) -> None:
    """RunError if a file is there that is no such report."""
    for path, mark in ((json_file, _JSON_MARK), (html_file, _HTML_MARK)):
        if path is not None:
            check_output(path, mark)


def write_reports(
    decided: Decided, versions: Mapping[str, int], json_file: pathlib.Path | None, html_file: pathlib.Path | None
) -> None:
    """Write those that are asked for; `versions` are those of bundles, by their ids."""
    if json_file is not None:
        _write_json(decided, json_file)
    if html_file is not None:
        _write_html(decided, versions, html_file)


def _write_json(decided: Decided, output: pathlib.Path) -> None:
    """All figures as JSON, times in microseconds since 1970 UTC; the same rows give the same bytes."""
    told = {"report": "rollout", **decided.as_dict()}
    write(output, json.dumps(told, indent=2, ensure_ascii=False, allow_nan=False) + "\n", _JSON_MARK)


def _write_html(decided: Decided, versions: Mapping[str, int], output: pathlib.Path) -> None:
    page = fill(
        "rollout.html",
        project=decided.project,
        facts=facts_of(decided, versions),
        verdict=f"Verdict: {decided.verdict}",
        status=_STATUS[decided.verdict],
        notes=list(notes_of(decided.comparison)),
        tables=list(map(_table, tables_of(decided))),
        plots=list(_plots(decided)),
    )
    write(output, page, _HTML_MARK)


def _table(shown: Shown) -> dict[str, Any]:
    rows = [
        [breakable(cell) if place < shown.texts else cut(cell) for place, cell in enumerate(row)]
        for row in shown.rows[:MAX_ROWS]
    ]
    return {**vars(shown), "rows": rows, "left": max(0, len(shown.rows) - MAX_ROWS)}


def _plots(decided: Decided) -> Iterator[dict[str, Any]]:
    """Both over the windows; of one window there is nothing to draw, and what is not known anywhere is left out."""
    windows, metric = decided.comparison.windows, decided.metric
    of_both: dict[str, list[Estimate | None]] = {}
    if metric is not None:
        of_both[heading(metric)] = [each.figures.get(metric) for each in windows]
    for action in decided.comparison.overall.decisions:
        of_both[f"share of {action}"] = [each.decisions.get(action) for each in windows]
    of_both["mean score"] = [each.mean_score for each in windows]
    of_both["without a finite score"] = [each.errors for each in windows]
    lines = {
        name: {"champion": [e and e.champion for e in found], "challenger": [e and e.challenger for e in found]}
        for name, found in of_both.items()
    }
    lines |= {"PSI of scores": {"": [w.psi for w in windows]}, "agreement": {"": [w.agreement for w in windows]}}
    starts = np.array([each.start_us for each in windows]).astype("M8[us]")
    for name, some in lines.items() if len(windows) > 1 else ():
        drawn = {of: np.array(values, float) for of, values in some.items()}
        if not all(np.isnan(values).all() for values in drawn.values()):
            yield figure_of(name, "", plot_lines(starts, drawn, fit=True))
