"""What watches a project from outside: Prometheus's rules of its objectives, and a dashboard of Grafana's.

An objective is recorded as `headrace:slo_errors:ratio`, by `slo` and `window`, and alerts when a long window and a
short one both burn the budget too fast (models/objectives.py), unless there was too little to tell.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import yaml

from models import metrics
from models.objectives import BURNS, SCORE, WRITTEN, Burn, Counter, Promise, promises_of
from models.project.declarations import Project
from models.project.objectives import Objectives

_RATIO = "headrace:slo_errors:ratio"


def rules(project: Project, scale: float = 1) -> str:
    """Prometheus's rules of a project's objectives, as YAML; with `scale`, all windows are so many times as long."""
    groups = []
    windows = sorted({window for burn in BURNS for window in (burn.long_s, burn.short_s)})
    for promise in promises_of(project.slo, project.serving):
        recorded = [
            {
                "record": _RATIO,
                "labels": {"project": project.name, "slo": promise.name, "window": _span(seconds * scale)},
                "expr": f"({_increase(promise.bad, seconds * scale)}) / {_increase((promise.total,), seconds * scale)}",
            }
            for seconds in windows
        ]
        alerts = [_alert(project, promise, burn, scale) for burn in BURNS]
        groups.append({"name": f"headrace-{project.name}-{promise.name}", "rules": [*recorded, *alerts]})
    return yaml.safe_dump({"groups": groups}, sort_keys=False, width=1000)


def dashboard(project: Project) -> str:
    """A dashboard of Grafana's, as JSON: rows, latency, lag, decisions, verdicts, and burn rates of objectives."""
    panels = [
        {
            "id": place + 1,
            "type": "timeseries",
            "title": title,
            "datasource": {"type": "prometheus", "uid": "${datasource}"},
            "gridPos": {"h": 8, "w": 12, "x": 12 * (place % 2), "y": 8 * (place // 2)},
            "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
            "targets": [{"refId": "A", "expr": expr, "legendFormat": legend}],
        }
        for place, (title, unit, expr, legend) in enumerate(_panels(project))
    ]
    made = {
        "uid": f"headrace-{project.name}",
        "title": f"headrace: {project.name}",
        "schemaVersion": 39,
        "time": {"from": "now-6h", "to": "now"},
        "refresh": "30s",
        "annotations": {"list": []},
        "templating": {"list": [{"name": "datasource", "type": "datasource", "query": "prometheus"}]},
        "panels": panels,
    }
    return json.dumps(made, indent=2) + "\n"


def expressions(project: Project) -> list[str]:
    """What the panels of the dashboard ask for."""
    return [expr for _, _, expr, _ in _panels(project)]


def _budget(promise: Promise) -> str:
    return f"{round(1 - promise.objective.target, 12):g}"


def _selector(counter: Counter) -> str:
    """What Prometheus is asked for, such as `headrace_dead_letters_total{step!="Deduplicate"}`."""
    told = [f'{counter.label}{"!=" if counter.is_other else "="}"{counter.value}"'] if counter.label else []
    if counter.within is not None:
        told.append(f'le="{"+Inf" if counter.within == math.inf else repr(counter.within)}"')
    return counter.name + (f"{{{','.join(told)}}}" if told else "")


def _alert(project: Project, promise: Promise, burn: Burn, scale: float) -> dict[str, object]:
    rate = f"{burn.rate((project.slo or Objectives()).period):g}"
    long, short = (_span(seconds * scale) for seconds in (burn.long_s, burn.short_s))
    chosen = f'project="{project.name}",slo="{promise.name}"'
    slow, fast = (f'{_RATIO}{{{chosen},window="{window}"}} > {rate} * {_budget(promise)}' for window in (long, short))
    enough = f"{_increase((promise.total,), burn.long_s * scale)} >= {promise.objective.minimum}"
    return {
        "alert": "HeadraceBudgetBurns",
        "expr": f"{slow} and ignoring(window) {fast} and on() {enough}",
        "labels": {"project": project.name, "slo": promise.name, "severity": burn.severity, "burn": rate},
        "annotations": {
            "summary": f"{project.name}: the error budget of {promise.name} burns {rate} times too fast",
            "description": f"Over {long} and {short}; the target is {promise.objective.target:g}.",
        },
    }


def _increase(counters: tuple[Counter, ...], seconds: float) -> str:
    """The increase of the first counter over a window, without that of the others."""
    return " - ".join(f"sum(increase({_selector(counter)}[{_span(seconds)}]))" for counter in counters)


def _span(seconds: float) -> str:
    """A span as Prometheus writes it."""
    millis = max(round(seconds * 1000), 1)
    units = (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1))
    return next(f"{millis // length}{unit}" for unit, length in units if millis % length == 0)


def _panels(project: Project) -> Iterator[tuple[str, str, str, str]]:
    """Title, unit, what is asked for, and what its lines are called."""
    rate = "$__rate_interval"
    bucket = f'{metrics.LATENCY.name}_bucket{{stage="{WRITTEN}"}}'
    yield "Rows a second", "short", f"sum by (step) (rate({metrics.ROWS.name}[{rate}]))", "{{step}}"
    yield "Latency, 99th percentile", "s", f"histogram_quantile(0.99, sum by (le) (rate({bucket}[{rate}])))", "p99"
    delay = metrics.PUBLISH_DELAY.name
    resent = f"{delay} * ({delay} > bool {metrics.RESENT_SECONDS})"  # of these that they are old is no lag
    yield "Watermark behind", "s", f"{metrics.WATERMARK_LAG.name} - {resent}", "lag"
    yield "Messages that wait at the broker", "short", metrics.BACKLOG.name, "backlog"
    yield "Decisions a second", "short", f"sum by (decision) (rate({metrics.SCORES.name}[{rate}]))", "{{decision}}"
    yield "Scores a second by bundle", "short", f"sum by (bundle) (rate({metrics.SCORES.name}[{rate}]))", "{{bundle}}"
    yield "Dead letters a second", "short", f"sum by (step) (rate({metrics.DEAD_LETTERS.name}[{rate}]))", "{{step}}"
    reasons = f"sum by (step, field, rule) (rate({metrics.REASONS.name}[{rate}]))"
    yield "Reasons of dead letters a second", "short", reasons, "{{step}}: {{field}} {{rule}}"
    yield "Windows by verdict", "short", f"sum by (status) ({metrics.VERDICTS.name})", "{{status}}"
    yield "Open incidents", "short", metrics.OPEN.name, "open"
    if project.serving is not None:
        bucket = f'{metrics.REQUEST_SECONDS.name}_bucket{{path="{SCORE}"}}'
        yield "Requests, 99th percentile", "s", f"histogram_quantile(0.99, sum by (le) (rate({bucket}[{rate}])))", "p99"
        yield (
            "Events served a second",
            "short",
            f"sum by (outcome) (rate({metrics.SERVED.name}[{rate}]))",
            "{{outcome}}",
        )
        yield "Requests that wait", "short", metrics.QUEUED.name, "{{instance}} {{worker}}"
    yield "History of windows", "bytes", f"sum by (step) ({metrics.STATE.name})", "{{step}}"
    yield "Memory", "bytes", metrics.MEMORY.name, "{{instance}}"
    for promise in promises_of(project.slo, project.serving):
        chosen = f'{_RATIO}{{project="{project.name}",slo="{promise.name}"}}'
        yield f"Burn rate of {promise.name}", "short", f"{chosen} / {_budget(promise)}", "{{window}}"
