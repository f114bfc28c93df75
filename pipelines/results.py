"""What a run has left in its folder, read again. Nothing here imports Beam or XGBoost, but for remote folders."""

from __future__ import annotations

import collections
import datetime
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from models.batches import as_batch
from models.codecs.times import micros_of
from models.errors import HeadraceError
from models.objectives import Least, of_days
from models.partitions import Span
from models.predictors.bundle import Bundle
from models.predictors.evaluation import Evaluation, Evaluator, TopOfDay, evaluate
from models.predictors.measures import Numbers, evaluate_target, label_numbers
from models.predictors.weighted import evaluate_weighted
from models.project.declarations import Project
from models.quality.circuit import Noted, noted_of
from models.quality.label_metrics import AS_OF, last_revisions, sort_records
from models.quality.records import Verdict
from models.quality.window_statistics import read_baseline
from models.record import DECISION, WEIGHT
from models.rollout.holdout import weights_of
from models.routes import LABEL_METRICS
from pipelines.sinks.delta import active_names, is_delta
from pipelines.sinks.folder import Folder, SinkError, Stamp
from pipelines.sinks.listed import AGGREGATES, QUALITY, SCORES, SPANS, SUCCESS

MAX_SUCCESS_BYTES = 64 << 20
VERDICTS = "verdicts.jsonl"
DAY_US = 86_400_000_000
_HIDDEN = (".", "_")


class RunError(HeadraceError, ValueError):
    """A run that can't start as it is asked for, or has not left what a run leaves."""


def read_success(directory: str, project: str | None = None) -> dict[str, Any]:
    """What the sink wrote at the end of a run.

    Raises:
        RunError: if there is none, it is not what a run writes, or it is of another project than the one that is named.
    """
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
    if project is not None and said.get("project", project) != project:
        raise RunError(f"{directory} is a run of the project {said['project']}, not of {project}")
    return dict(said)


def read_spans(directory: str) -> list[Span]:
    """The spans of event time of which a sink has all; none if no run has finished there."""
    if not Folder(directory).is_file(SUCCESS):
        return []
    return [Span.of_facts(each) for each in read_success(directory).get(SPANS, [])]


def days_done(directory: str, project: Project, now_us: int) -> Least:
    """Of the days that should be in a sink by a time, as the project declares `slo.done_within`, those that are."""
    return judge_days(project, read_spans(directory), Folder(directory).names(SCORES), now_us)


def judge_days(project: Project, spans: Sequence[Span], names: Iterable[str], now_us: int) -> Least:
    """`days_done` of a sink that has these spans, and files of scores of these names, or paths."""
    assert project.slo is not None
    assert project.slo.done_within is not None
    partitions = project.partitions
    starts = {partitions.start_of(f"{SCORES}/{name}") for name in names} - {None}
    known = [start_us for start_us in starts if start_us is not None]
    return of_days(project.slo.done_within, partitions, spans, known, now_us)


def paths_of(directory: str, kind: str, endings: tuple[str, ...] = (".parquet",)) -> list[str]:
    """The paths of a run's files of a kind, in order; none is fine."""
    folder = Folder(directory)
    return [folder.join(kind, name) for name in _shown(folder, kind, folder.names(kind), endings)]


def stamps_of(directory: str, kind: str, endings: tuple[str, ...] = (".parquet",)) -> dict[str, Stamp]:
    """The same paths, each with what tells that its file is another than before."""
    folder = Folder(directory)
    found = folder.stamps(kind)
    return {folder.join(kind, n): found[n] for n in _shown(folder, kind, list(found), endings) if n in found}


def _shown(folder: Folder, kind: str, found: Sequence[str], endings: tuple[str, ...]) -> list[str]:
    """Of the names of files that were found those that are a run's."""
    names = [name for name in found if name.endswith(endings)]
    if kind == SCORES and is_delta(folder):
        names = active_names(folder)
    return [name for name in names if not name.rsplit("/", 1)[-1].startswith(_HIDDEN)]


def read_kind(directory: str, kind: str, columns: Sequence[str] | None = None) -> pa.Table:
    """A run's scores or dead letters, in the files' order, as written to Parquet; of `columns` those there are."""
    tables = list(read_files(directory, kind, columns))
    return pa.concat_tables(tables) if tables else pa.table({})


def read_files(directory: str, kind: str, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """`read_kind`, a file at a time."""
    for path in paths_of(directory, kind):
        there = pq.read_schema(path).names
        chosen = there if columns is None else [name for name in columns if name in there]
        yield pq.read_table(path, columns=chosen, partitioning=None)


def read_aggregates(directory: str) -> dict[str, pa.Table]:
    """A run's tables of aggregates by their names, as written to Parquet."""
    tables: dict[str, list[pa.Table]] = {}
    start = len(Folder(directory).join(AGGREGATES, ""))
    for path in paths_of(directory, AGGREGATES):
        tables.setdefault(path[start:].split("/", 1)[0], []).append(pq.read_table(path, partitioning=None))
    return {name: pa.concat_tables(parts) for name, parts in tables.items()}


def read_label_metrics(directory: str, until_us: int | None = None) -> pa.Table:
    """A run's records of label metrics, of each window the last, as written to Parquet; none is fine.

    With `until_us`, microseconds since 1970 UTC, the last of those that know labels up to then.
    """
    records = read_kind(directory, LABEL_METRICS)
    if len(records) and until_us is not None:
        records = records.filter(pc.less_equal(records[AS_OF].cast(pa.int64()), until_us))
    return pa.Table.from_batches([last_revisions(sort_records(as_batch(records)))]) if len(records) else records


def read_verdicts(directory: str) -> list[Verdict]:
    """The verdicts on a run's windows, in their order; RunError if a file of them is not what a run writes."""
    found: list[Verdict] = []
    for path in paths_of(directory, QUALITY, (".jsonl",)):
        if path.endswith(f"/{VERDICTS}"):
            try:
                found += map(Verdict.from_json, (Folder("").read(path) or b"").splitlines())
            except (KeyError, TypeError, ValueError, RecursionError) as error:
                raise RunError(f"{path} is not what a run writes: {error}") from None
    return found


def circuits_of_run(directory: str, project: str) -> tuple[Noted, ...]:
    """What the circuit breaker did in a run over files, in the order of its windows.

    Raises:
        RunError: if the folder is not of a finished run, or another project's.
    """
    read_success(directory, project)
    return tuple(filter(None, map(noted_of, read_verdicts(directory))))


def count_decisions(directory: str, project: Project) -> dict[str, int]:
    """Events by decision, in the order of the bands, and then what releases decide beside them."""
    counts: collections.Counter[str] = collections.Counter()
    for path in paths_of(directory, SCORES) if project.decisions else ():
        if DECISION in pq.read_schema(path).names:  # as a dictionary: no text is made for each row
            table = pq.read_table(path, columns=[DECISION], read_dictionary=[DECISION], partitioning=None)
            for value in table.column(DECISION).value_counts().to_pylist():
                counts[value["values"]] += value["counts"]
    if not counts:
        return {}
    declared = {band.action: counts[band.action] for band in project.decisions}
    return declared | {name: counts[name] for name in sorted(counts)}


def read_evaluated(directory: str, project: Project, labels: Sequence[str] = ()) -> pa.Table | None:
    """A run's score rows whose label is known, with what it takes to evaluate them; None if there are none.

    The label is in the column of its name: as an output field, or by the records of `labels`.
    """
    tables = list(read_evaluated_files(directory, project, labels))
    return pa.concat_tables(tables) if tables else None


def read_evaluated_files(directory: str, project: Project, labels: Sequence[str] = ()) -> Iterator[pa.Table]:
    """`read_evaluated`, a file at a time that has such rows; with `labels`, all at once."""
    if project.label is None or not (labels or project.label.field in project.output):
        return
    ranked = [project.entities[metric.entity] for metric in project.declared_metrics.values()]
    needed = {*project.score_columns, project.event.time, *([project.event.id] if labels else [])}
    weight = [WEIGHT] if project.rollout.blocks else []
    wanted = [*needed, DECISION, *weight, *ranked, *project.training.slices, *([] if labels else [project.label.field])]
    names = list(dict.fromkeys(wanted))
    for table in [read_kind(directory, SCORES, names)] if labels else read_files(directory, SCORES, names):
        if not needed <= set(table.schema.names):
            continue
        if labels:
            from pipelines.jobs.known_labels import with_labels  # it imports Beam

            table = with_labels(table, labels, project)
        if project.label.field in table.schema.names:
            table = table.filter(pc.is_valid(table.column(project.label.field)))
            if table.num_rows:
                yield table


def evaluate_tables(tables: Iterable[pa.Table], project: Project) -> Evaluation | None:
    """How good the scores of `read_evaluated_files` were, None without rows; EvaluationError if a slice is none.

    Of a target with positives no more than a table is held at once, unless rows are weighed as some are held out.
    """
    if not project.has_positives or project.rollout.blocks:
        held = list(tables)
        tables = [pa.concat_tables(held, promote_options="default")] if held else []
    evaluator = Evaluator()
    for table in tables:
        label, outputs = evaluated_columns(table, project)
        weight = weights_of(table, project)
        days = table.column(project.event.time).cast(pa.int64()).to_numpy() // DAY_US
        if not project.has_positives:
            return evaluate_columns(label, outputs, table, days, project)
        tops, slices = _measured(table, days, project)
        if weight is not None:
            return evaluate_weighted(label, outputs, weight, slices)
        evaluator.add(label, outputs, declared=tops, slices=slices)
    return evaluator.evaluation() if evaluator.has_rows else None


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
    tops, slices = _measured(rows, days, project)
    if not project.has_positives:
        return evaluate_target(label, outputs, project.target, slices)
    if (weight := weights_of(rows, project)) is not None:
        return evaluate_weighted(label, outputs, weight, slices)
    return evaluate(label, outputs, declared=tops, slices=slices)


def _measured(
    rows: pa.Table | pa.RecordBatch, days: Numbers, project: Project
) -> tuple[dict[str, TopOfDay], dict[str, Numbers]]:
    """What is measured beside the standard figures, and the columns of slices, as far as `rows` has them."""

    def values(name: str) -> Numbers:
        found = rows.column(name)
        return np.asarray(found.to_numpy() if isinstance(rows, pa.Table) else found.to_numpy(zero_copy_only=False))

    ranked = {name: (project.entities[m.entity], m.k) for name, m in project.declared_metrics.items()}
    tops = {name: TopOfDay(days, values(of), k) for name, (of, k) in ranked.items() if of in rows.schema.names}
    return tops, {name: values(name) for name in project.training.slices if name in rows.schema.names}


def evaluate_scores(directory: str, project: Project, labels: Sequence[str] = ()) -> Evaluation | None:
    """How good the scores of a run were, where labels are known; else None."""
    return evaluate_tables(read_evaluated_files(directory, project, labels), project)


def find_seen(directory: str, project: Project, bundle: Bundle) -> Iterator[str]:
    """A sentence for each part of a run's score rows that the bundle knows: what it learned from, or its baseline."""
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
    seen: collections.Counter[str] = collections.Counter()
    for table in read_files(directory, SCORES, [project.event.time]) if spans else ():
        time_us = table.column(0).cast(pa.int64()).to_numpy()
        for what, (start, end) in spans.items():
            seen[what] += int(np.count_nonzero((time_us >= start) & (time_us < end)))
    for what, (start, end) in spans.items():
        if events := seen[what]:
            first, last = (np.datetime64(us, "us").astype("M8[s]") for us in (start, end - 1))
            yield f"{events:,} of the scored events are of the time, {first} to {last}, {what}"


def _micros(text: str) -> int:
    return micros_of(datetime.datetime.fromisoformat(text))
