"""What people see of a run at its end."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from models.faults import how_many
from models.objectives import Least, Ratio
from models.predictors.evaluation import STANDARD, Evaluation, Measured
from models.predictors.measures import heading, shown
from models.predictors.versions import Version
from models.project.declarations import Project
from models.project.expressions import NOT_EXPECTED, NOT_FINITE, ROUNDED, UNKNOWN
from models.quality.expectations import BLIND_SPOT, estimate_text, estimated_figures, estimates_in, shown_beside
from models.quality.records import Verdict
from models.routes import ROUTED, UNSCORED

MAX_ESTIMATED = 10  # windows with estimates
MAX_FIGURES = 10  # that stand beside each other
# What is said of events that are counted by a column's name, beside what became of them.
_COUNTED_BESIDE = {
    NOT_FINITE: f"missing, as {NOT_FINITE}",
    UNKNOWN: "scored, with an unknown value of ",
    NOT_EXPECTED: NOT_EXPECTED,
    ROUNDED: f"more places than declared, {ROUNDED}",
    "dead letters of other days": "dead letters of other days, not written",
    UNSCORED: UNSCORED,
    ROUTED: ROUTED,
}


def objectives_table(found: Sequence[Ratio | Least]) -> Table:
    """What objectives ask for, what was found, and how much of the error budget that is."""
    table = Table(
        "objective", "of what", "target", "found", "budget used", "", title="Objectives", title_justify="left"
    )
    for each in found:
        verdict = {True: "met", False: "MISSED", None: "nothing to tell by"}[each.met]
        if isinstance(each, Least):
            table.add_row(each.name, each.text, f"{each.target:,}", f"{each.total:,}", "", verdict)
            continue
        share = "" if not each.total else f"{each.total - each.bad:,} of {each.total:,}"
        used = "" if each.burn is None else f"{100 * each.burn:,.0f} %"
        table.add_row(each.name, each.text, f"{100 * each.target:g} %", share, used, verdict)
    return table


def outcome_table(outcomes: Mapping[str, int], seconds: float) -> Table:
    """How many events were read, and what became of them."""
    table = Table("events", "number", title="Outcome", title_justify="left")
    table.columns[1].justify = "right"
    scored = "examples" if "examples" in outcomes else "scored"
    for name in (
        "read",
        "history",
        "beyond",
        "filtered",
        "standby",
        scored,
        "quarantined",
        "labelled",
        "reference",
        "duplicate",
        "dead-lettered",
    ):
        if outcomes.get(name) or name in ("read", scored, "dead-lettered"):
            table.add_row(name, f"{outcomes.get(name, 0):,}")
    for name, count in sorted(outcomes.items()):
        if name.startswith("dead-lettered: "):
            table.add_row("  " + name.removeprefix("dead-lettered: "), how_many(count, outcomes.get("read", 0)))
    for prefix, said in _COUNTED_BESIDE.items():
        for name, count in sorted(outcomes.items()):
            if name.startswith(prefix):
                table.add_row(f"{said}{name.removeprefix(prefix)}", f"{count:,}")
    table.add_row("read a second", f"{outcomes.get('read', 0) / seconds:,.0f}")
    return table


def split_table(splits: Sequence[tuple[str, str, str, Any]]) -> Table:
    """The spans of a training, [from, before): events, those that were used, and of a binary target their positives."""
    binary = all(split.positives is not None for *_, split in splits)
    counted = ("events", "used", *(["positives"] if binary else []))
    table = Table("split", "from", "before", *counted, title="Training", title_justify="left")
    for name, start, end, split in splits:
        positives = [f"{split.positives:,}"] if binary else []
        table.add_row(name, start, end, f"{split.events:,}", f"{split.rows:,}", *positives)
    return table


def decision_table(decisions: Mapping[str, int]) -> Table:
    """How many events got which decision."""
    table = Table("decision", "events", "share", title="Decisions", title_justify="left")
    total = sum(decisions.values())
    for name, count in decisions.items():
        table.add_row(name, f"{count:,}", f"{count / total:.2%}")
    return table


def evaluation_table(evaluation: Evaluation, title: str, label: str) -> Table:
    """All figures, overall and by slice, or if they are many overall alone; `label` names a binary one's positives."""
    figures, binary = evaluation.overall.figures(), evaluation.overall.positives is not None
    if len(figures) > MAX_FIGURES:
        table = Table("figure", f"all {evaluation.overall.rows:,} rows", title=title, title_justify="left")
        for name, figure in figures.items():
            table.add_row(heading(name), shown(name, figure))
        return table
    columns = ["events", "rows", *([label] if binary else []), *map(heading, figures)]
    table = Table(*columns, title=title, title_justify="left")

    def add(name: str, found: Measured) -> None:
        values = [shown(name, figure) for name, figure in found.figures().items()]
        positives = [f"{found.positives:,}"] if binary else []
        table.add_row(name, f"{found.rows:,}", *positives, *values)

    add("all", evaluation.overall)
    for column, values in evaluation.slices.items():
        for value, found in values.items():
            add(f"{column} = {value}", found)
    return table


def confusion_table(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> Table:
    """Events by true and predicted class."""
    table = Table("true class", *(f"predicted {name}" for name in classes), title="Confusion", title_justify="left")
    for name, counts in zip(classes, confusion, strict=True):
        table.add_row(name, *(f"{count:,}" for count in counts))
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


def label_line(records: Sequence[Mapping[str, Any]]) -> str:
    """Of how many rows in the windows of label metrics a label is known, and how long after its event one was."""
    overall = [record for record in records if not record["slice"]]
    rows, labelled = (sum(record[name] for record in overall) for name in ("rows", "labelled"))
    windows = len({record["window_end"] for record in overall})
    line = f"labels: known of {labelled:,} of {rows:,} rows in {windows} windows"
    delays = [record["delay_max_s"] for record in overall if record["delay_max_s"]]
    return f"{line}, up to {max(delays) / 86_400:.1f} days after their events" if delays else line


def estimate_table(records: Sequence[Mapping[str, Any]], project: Project) -> Table:
    """What figures of the newest windows are expected to be, and what they are of rows with a label."""
    overall = [record for record in records if not record["slice"]]
    several = len({record["bundle_id"] for record in overall}) > 1
    names = estimated_figures(project)
    beside = [column for name in names for column in (f"{heading(name)}, expected", "by labels")]
    first = ["window", *(["bundle"] if several else []), "rows", "labelled"]
    table = Table(*first, *beside, title="Expected before labels are known", title_justify="left", caption=BLIND_SPOT)
    table.caption_justify = "left"
    for record in overall[-MAX_ESTIMATED:]:
        start, end = (f"{record[name]:%Y-%m-%d}" for name in ("window_start", "window_end"))
        bundle = [record["bundle_id"]] if several else []
        row = [f"{start} to {end}", *bundle, f"{record['rows']:,}", f"{record['labelled']:,}"]
        found = estimates_in(record)
        for name in names:
            figure = record[name] if record["labelled"] else None
            row += [estimate_text(name, found.get(name)), shown_beside(name, figure)]
        table.add_row(*row)
    return table


_TEST = "metrics.test."


def version_lines(version: Version) -> list[str]:
    """What is known of a registered bundle: its name and aliases, its test's metrics, and the spans of its data."""
    facts, metrics = version.facts, version.metrics
    lines = [f"version {version.version}  {version.bundle_id}  {', '.join(version.aliases)}".rstrip()]
    if "target.kind" in facts:
        lines.append(f"  target {facts['target.kind']}")
    tested = {name.removeprefix(_TEST): value for name, value in metrics.items() if name.startswith(_TEST)}
    order = dict.fromkeys([*STANDARD, *sorted(tested)])  # a registry keeps none
    figures = [n for n in order if n in tested and n not in ("rows", "positives")]
    said = [f"{heading(name)} {shown(name, tested[name])}" for name in figures]
    lines.append(", ".join([f"  registered {version.created:%Y-%m-%d %H:%M} UTC", *said]))
    for part, what in (("train", "trained"), ("test", "tested")):
        if f"{part}_from" in facts:
            end = f" to before {facts[f'{part}_to'][:10]}" if f"{part}_to" in facts else ""
            rows = f" on {int(facts[f'{part}_rows']):,} events" if f"{part}_rows" in facts else ""
            positive = f", {int(facts[f'{part}_positives']):,} positive," if f"{part}_positives" in facts else ""
            lines.append(f"  {what}{rows}{positive} from {facts[f'{part}_from'][:10]}{end}")
    return lines
