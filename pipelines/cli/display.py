"""What people see of a run: a live line while it works, where there is a terminal, and tables at its end."""

from __future__ import annotations

import collections
import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from models.faults import how_many
from models.predictors.evaluation import Evaluation, Metrics
from models.predictors.versions import Version
from models.project.expressions import NOT_FINITE
from models.quality.records import Verdict

console = Console(highlight=False)
_REFRESH_SECONDS = 0.2
STEPS = ("read", "windowed", "scored", "written")  # as they are shown


@contextlib.contextmanager
def working(title: str, read: Callable[[], Mapping[str, int]] | None = None) -> Iterator[collections.Counter[str]]:
    """Show a spinner, the time and how much was done; nothing where the output is no terminal.

    What was done is what `read` tells, or, without it, what the caller adds to the counter.
    """
    counted: collections.Counter[str] = collections.Counter()
    if not console.is_terminal:
        yield counted
        return
    over = threading.Event()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(title)

        def refresh() -> None:
            while not over.wait(_REFRESH_SECONDS):
                done = read() if read else counted
                parts = [f"{done[step]:,} {step}" for step in STEPS if step in done]
                bar.update(task, description=" · ".join([title, *parts]))

        thread = threading.Thread(target=refresh, name="progress", daemon=True)
        thread.start()
        try:
            yield counted
        finally:
            over.set()
            thread.join()


def outcome_table(outcomes: Mapping[str, int], seconds: float) -> Table:
    """How many events were read, and what became of them."""
    table = Table("events", "number", title="Outcome", title_justify="left")
    table.columns[1].justify = "right"
    scored = "examples" if "examples" in outcomes else "scored"
    for name in ("read", "history", scored, "quarantined", "labelled", "duplicate", "dead-lettered"):
        if outcomes.get(name) or name in ("read", scored, "dead-lettered"):
            table.add_row(name, f"{outcomes.get(name, 0):,}")
    for name, count in sorted(outcomes.items()):
        if name.startswith("dead-lettered: "):
            table.add_row("  " + name.removeprefix("dead-lettered: "), how_many(count, outcomes.get("read", 0)))
    for name, count in sorted(outcomes.items()):
        if name.startswith(NOT_FINITE):
            table.add_row(f"missing, as {name}", f"{count:,}")
    table.add_row("read a second", f"{outcomes.get('read', 0) / seconds:,.0f}")
    return table


def split_table(splits: Sequence[tuple[str, str, str, Any]]) -> Table:
    """The spans of a training, [from, before): their events, those that were used, and the positives of these."""
    table = Table("split", "from", "before", "events", "used", "positives", title="Training", title_justify="left")
    for name, start, end, split in splits:
        table.add_row(name, start, end, f"{split.events:,}", f"{split.rows:,}", f"{split.positives:,}")
    return table


def decision_table(decisions: Mapping[str, int]) -> Table:
    """How many events got which decision."""
    table = Table("decision", "events", "share", title="Decisions", title_justify="left")
    total = sum(decisions.values())
    for name, count in decisions.items():
        table.add_row(name, f"{count:,}", f"{count / total:.2%}")
    return table


def evaluation_table(evaluation: Evaluation, title: str, label: str) -> Table:
    """ROC AUC, average precision and precision at 100 a day, overall and by slice; `label` names the positives."""
    table = Table("events", "rows", label, "AUC", "AP", "P@100", title=title, title_justify="left")

    def add(name: str, metrics: Metrics) -> None:
        figures = (metrics.roc_auc, metrics.average_precision, metrics.precision_at_k)
        shown = ["-" if figure is None else f"{figure:.3f}" for figure in figures]
        table.add_row(name, f"{metrics.rows:,}", f"{metrics.positives:,}", *shown)

    add("all", evaluation.overall)
    for column, values in evaluation.slices.items():
        for value, metrics in values.items():
            add(f"{column} = {value}", metrics)
    return table


def quality_line(verdicts: Sequence[Verdict]) -> str:
    """How many windows were judged, and which alarms they raised most often."""
    judged = [verdict for verdict in verdicts if verdict.judged]
    alarms = collections.Counter(
        f"{finding.feature} {finding.kind}" for v in judged for finding in v.findings if finding.severity == "alarm"
    )
    bad = sum(verdict.status == "alarm" for verdict in judged)
    most = ", ".join(f"{name} in {count}" for name, count in alarms.most_common(3))
    return f"quality: {len(judged)} windows judged, {bad} with alarms{': ' + most if most else ''}"


def version_lines(version: Version) -> list[str]:
    """What is known of a registered bundle: its name and aliases, its test's metrics, and the spans of its data."""
    facts, metrics = version.facts, version.metrics
    lines = [f"version {version.version}  {version.bundle_id}  {', '.join(version.aliases)}".rstrip()]
    figures = {"AUC": "roc_auc", "AP": "average_precision", "P@100": "precision_at_k"}
    shown = [f"{n} {metrics[f'metrics.test.{m}']:.3f}" for n, m in figures.items() if f"metrics.test.{m}" in metrics]
    lines.append(", ".join([f"  registered {version.created:%Y-%m-%d %H:%M} UTC", *shown]))
    for part, what in (("train", "trained"), ("test", "tested")):
        if f"{part}_from" in facts:
            end = f" to before {facts[f'{part}_to'][:10]}" if f"{part}_to" in facts else ""
            rows = f" on {int(facts[f'{part}_rows']):,} events" if f"{part}_rows" in facts else ""
            positive = f", {int(facts[f'{part}_positives']):,} positive," if f"{part}_positives" in facts else ""
            lines.append(f"  {what}{rows}{positive} from {facts[f'{part}_from'][:10]}{end}")
    return lines


def facts_table(rows: Sequence[tuple[str, str]]) -> Table:
    """Names and values, without a frame."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in rows:
        table.add_row(name, value)
    return table
