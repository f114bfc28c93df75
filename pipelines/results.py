"""What a run has left in its folder, read again. Nothing here imports Beam or XGBoost, but for remote folders."""

from __future__ import annotations

import collections
import datetime
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from models.batches import as_batch
from models.codecs.times import micros_of
from models.errors import HeadraceError
from models.partitions import Span
from models.predictors.bundle import Bundle
from models.predictors.evaluation import Evaluation, TopOfDay, evaluate
from models.predictors.measures import Numbers, evaluate_target, label_numbers
from models.project.declarations import Project
from models.quality.records import Verdict
from models.quality.window_statistics import read_baseline
from models.record import DECISION
from pipelines.sinks.folder import Folder, SinkError
from pipelines.sinks.publish import AGGREGATES, QUALITY, SCORES, SPANS, SUCCESS

MAX_SUCCESS_BYTES = 64 << 20
VERDICTS = "verdicts.jsonl"
DAY_US = 86_400_000_000
_HIDDEN = (".", "_")


class RunError(HeadraceError, ValueError):
    """A run that can't start as it is asked for, or has not left what a run leaves."""


def read_success(directory: str) -> dict[str, Any]:
    """What the sink wrote at the end of a run; RunError if there is none, or it is not what a run writes."""
    folder = Folder(directory)
    try:
        content = folder.read(SUCCESS, MAX_SUCCESS_BYTES)
    except SinkError as error:
        raise RunError(str(error)) from None
    path = folder.join(SUCCESS)
    if content is None:
        raise RunError(f"{directory}: has no {SUCCESS}: it is not the folder of a finished run")
    try:
        said = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is not what a run writes: {error}") from None
    events, files = (said.get(name) for name in ("events", "files")) if isinstance(said, dict) else (None, None)
    if not (
        isinstance(events, dict)
        and all(type(count) is int for count in events.values())
        and isinstance(files, list)
        and all(isinstance(file, dict) and {"kind", "name", "rows"} <= file.keys() for file in files)
    ):
        raise RunError(f"{path} is not what a run writes: it has no events with their numbers, or no list of files")
    return dict(said)


def read_spans(directory: str) -> list[Span]:
    """The spans of event time of which a sink has all; none if no run has finished there."""
    if not Folder(directory).is_file(SUCCESS):
        return []
    return [Span.of_facts(each) for each in read_success(directory).get(SPANS, [])]


def paths_of(directory: str, kind: str, endings: tuple[str, ...] = (".parquet",)) -> list[str]:
    """The paths of a run's files of a kind, in order; none is fine."""
    folder = Folder(directory)
    names = [name for name in folder.names(kind) if name.endswith(endings)]
    return [folder.join(kind, name) for name in names if not name.rsplit("/", 1)[-1].startswith(_HIDDEN)]


def read_kind(directory: str, kind: str, columns: Sequence[str] | None = None) -> pa.Table:
    """A run's scores or dead letters, in the files' order, as written to Parquet; of `columns` those there are."""
    tables = []
    for path in paths_of(directory, kind):
        there = pq.read_schema(path).names
        tables.append(
            pq.read_table(
                path, columns=there if columns is None else [n for n in columns if n in there], partitioning=None
            )
        )
    return pa.concat_tables(tables) if tables else pa.table({})


def read_aggregates(directory: str) -> dict[str, pa.Table]:
    """A run's tables of aggregates by their names, as written to Parquet."""
    tables: dict[str, list[pa.Table]] = {}
    start = len(Folder(directory).join(AGGREGATES, ""))
    for path in paths_of(directory, AGGREGATES):
        tables.setdefault(path[start:].split("/", 1)[0], []).append(pq.read_table(path, partitioning=None))
    return {name: pa.concat_tables(parts) for name, parts in tables.items()}


def read_verdicts(directory: str) -> list[Verdict]:
    """The verdicts on a run's windows, in their order."""
    files = [path for path in paths_of(directory, QUALITY, (".jsonl",)) if path.endswith(f"/{VERDICTS}")]
    lines = [line for path in files for line in (Folder("").read(path) or b"").decode().splitlines()]
    return [Verdict.from_json(line) for line in lines]


def count_decisions(directory: str, project: Project) -> dict[str, int]:
    """Events by decision, in the order of the bands."""
    counts: collections.Counter[str] = collections.Counter()
    for path in paths_of(directory, SCORES) if project.decisions else ():
        if DECISION in pq.read_schema(path).names:  # as a dictionary: no text is made for each row
            table = pq.read_table(path, columns=[DECISION], read_dictionary=[DECISION], partitioning=None)
            for value in table.column(DECISION).value_counts().to_pylist():
                counts[value["values"]] += value["counts"]
    if not counts:
        return {}
    return {band.action: counts[band.action] for band in project.decisions}


def read_evaluated(directory: str, project: Project, labels: Sequence[str] = ()) -> pa.Table | None:
    """A run's score rows whose label is known, with what it takes to evaluate them; None if there are none.

    The label is in the column of its name: as an output field, or by the records of `labels`.
    """
    if project.label is None or not (labels or project.label.field in project.output):
        return None
    ranked = [project.entities[metric.entity] for metric in project.declared_metrics.values()]
    wanted = [*project.score_columns, DECISION, project.event.id, project.event.time]
    wanted += [] if labels else [project.label.field]
    table = read_kind(directory, SCORES, list(dict.fromkeys([*wanted, *ranked, *project.training.slices])))
    if not {*project.score_columns, project.event.id, project.event.time} <= set(table.schema.names):
        return None
    if labels:
        from pipelines.jobs.known_labels import with_labels  # it imports Beam

        table = with_labels(table, labels, project)
    if project.label.field not in table.schema.names:
        return None
    table = table.filter(pc.is_valid(table.column(project.label.field)))
    return table if table.num_rows else None


def evaluate_table(table: pa.Table, project: Project) -> Evaluation:
    """How good the scores of `read_evaluated` were; EvaluationError if a declared slice is none."""
    label, outputs = evaluated_columns(table, project)
    days = table.column(project.event.time).cast(pa.int64()).to_numpy() // DAY_US
    return evaluate_columns(label, outputs, table, days, project)


def evaluated_columns(table: pa.Table, project: Project) -> tuple[Numbers, Numbers]:
    """The labels [n] of `read_evaluated` as numbers, and what the model said, [n] or [n, o] of several outputs."""
    assert project.label is not None
    label, _ = label_numbers(as_batch(table.select([project.label.field])).column(0), project)
    names = project.score_columns[1:] or project.score_columns
    outputs = [table.column(name).to_numpy() for name in names]
    return label, np.column_stack(outputs) if project.outputs else outputs[0]


def evaluate_columns(
    label: Numbers, outputs: Numbers, rows: pa.Table | pa.RecordBatch, days: Numbers, project: Project
) -> Evaluation:
    """How good outputs are, overall and by those slices that `rows` has columns for; EvaluationError if one is none."""

    def values(name: str) -> Numbers:
        found = rows.column(name)
        return np.asarray(found.to_numpy() if isinstance(rows, pa.Table) else found.to_numpy(zero_copy_only=False))

    slices = {name: values(name) for name in project.training.slices if name in rows.schema.names}
    if not project.has_positives:
        return evaluate_target(label, outputs, project.target, slices)
    ranked = {name: (project.entities[m.entity], m.k) for name, m in project.declared_metrics.items()}
    tops = {name: TopOfDay(days, values(of), k) for name, (of, k) in ranked.items() if of in rows.schema.names}
    return evaluate(label, outputs, declared=tops, slices=slices)


def evaluate_scores(directory: str, project: Project, labels: Sequence[str] = ()) -> Evaluation | None:
    """How good the scores of a run were, where labels are known; else None."""
    table = read_evaluated(directory, project, labels)
    return None if table is None else evaluate_table(table, project)


def find_seen(directory: str, project: Project, bundle: Bundle) -> Iterator[str]:
    """A sentence for each part of a run's score rows that the bundle knows: what it learned from, or its baseline."""
    times = read_kind(directory, SCORES, [project.event.time])
    if not times.num_rows:
        return
    time_us = times.column(project.event.time).cast(pa.int64()).to_numpy()
    facts = bundle.metadata
    spans = {}
    if "train_from" in facts and "train_to" in facts:
        spans["that the model was trained on: their scores are too good"] = (
            _micros(facts["train_from"]),
            _micros(facts["train_to"]),
        )
    if bundle.baseline and project.quality:
        baseline = read_baseline(bundle.baseline, project)
        what = "that the baseline was made of: skew and PSI compare them with themselves"
        spans[what] = (baseline.window_start_us, baseline.window_end_us)
    for what, (start, end) in spans.items():
        events = int(np.count_nonzero((time_us >= start) & (time_us < end)))
        if events:
            first, last = (np.datetime64(us, "us").astype("M8[s]") for us in (start, end - 1))
            yield f"{events:,} of the scored events are of the time, {first} to {last}, {what}"


def _micros(text: str) -> int:
    return micros_of(datetime.datetime.fromisoformat(text))
