"""`headrace train`: the same graph up to features, then a model, its figures, and a registered bundle."""

from __future__ import annotations

import dataclasses
import datetime
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from models import registry, training
from models.booster import predict
from models.bundle import Bundle, library_versions
from models.codecs.times import micros_of
from models.evaluation import Evaluation, evaluate
from models.project import PROJECT_FILE, Project
from pipelines.display import working
from pipelines.identity import identify
from pipelines.options import DEFAULT_SHARDS, DIRECT, GraphConfig
from pipelines.run import RunResult, read_kind, run_graph
from pipelines.sinks.files import SCORES, WriteFiles
from pipelines.sources.files import JOURNALED_LABELS, ReadFiles, ReadLabelled, read_all
from transforms.batches import as_batch, as_float64, column, take_rows, with_column
from transforms.decode import decode_batch
from transforms.examples import CollectExamples
from transforms.score import DECISION, SCORE, decide
from transforms.statistics import make_baseline

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


class TrainingError(ValueError):
    """Events that no model can be trained on."""


@dataclasses.dataclass(frozen=True)
class Trained:
    """A bundle with the figures of its test, and the time from which it may score without having seen it."""

    bundle: Bundle
    evaluation: Evaluation
    examples: RunResult
    train_rows: int
    start_us: int
    test_from_us: int


def train(
    project: Project,
    folder: pathlib.Path,
    source: ReadFiles | ReadLabelled,
    *,
    start: datetime.datetime | None = None,
    examples: str | None = None,
    runner: str = DIRECT,
    shards: int = DEFAULT_SHARDS,
    threads: int = 2,
    replace: bool = False,
    beam_args: Sequence[str] = (),
) -> Trained:
    """Train and evaluate on the source's events; the examples stay in `examples`, if it is given.

    The output of another run in `examples` is refused, or replaced with `replace`.
    """
    if project.label is None:
        raise TrainingError(f"{project.name} declares no label: there is nothing to learn")
    with tempfile.TemporaryDirectory(prefix="headrace-") as scratch:
        directory = examples or scratch
        facts = {"project": project.name, **identify(project, source, {})}
        sink = WriteFiles(directory, project.event.id, project.event.time, facts=facts, replace=replace)
        config = GraphConfig(project, source, CollectExamples(project), sink, shards)
        result = run_graph(config, runner, beam_args, "computing features")
        if not result.outcomes.get("scored"):
            raise TrainingError("no event is left to train on; see the dead letters of `headrace run` for why")
        table = _ordered(_read_examples(directory, project), project)
        if isinstance(source, ReadLabelled):
            table = _with_labels(table, source.labels, project)
    with working("training"):
        return _fit(project, folder, table, result, start, threads)


def _read_examples(directory: str, project: Project) -> pa.Table:
    assert project.label is not None
    entity = [project.entities[project.training.group]] if project.training.group else []
    names = [project.event.id, project.event.time, project.label.field, *entity]
    watched = project.watched_columns if project.quality else ()
    columns = dict.fromkeys([*names, *project.model.inputs, *project.training.slices, *watched])
    return read_kind(directory, SCORES, list(columns))


def _with_labels(table: pa.Table, patterns: Sequence[str], project: Project) -> pa.Table:
    """The examples with the labels of label records, of which the first of an event counts; others are unknown."""
    records, label = project.label_records, project.label
    assert records is not None
    assert label is not None
    found: dict[Any, tuple[int, int]] = {}
    for batch in read_all(patterns, JOURNALED_LABELS):
        columns, faults = decode_batch(batch, records.contract, project.event.max_bytes, False)
        good = take_rows(columns, np.flatnonzero(~faults.bad))
        names = (project.event.id, records.event.time, label.field)
        for key, at, value in zip(*(column(good, name).to_pylist() for name in names), strict=True):
            if None not in (key, at, value):
                found[key] = min(found.get(key, (at, value)), (at, value))
    values = [found[key][1] if key in found else None for key in table.column(project.event.id).to_pylist()]
    place = table.schema.get_field_index(label.field)
    return table.set_column(place, label.field, pa.array(values, pa.int64()))


def _baseline(project: Project, examples: pa.Table, scores: Any) -> bytes | None:
    """What windows of scores are compared with: the tested examples, as scores of trained ones are too good."""
    if project.quality is None:
        return None
    batch = with_column(as_batch(examples), SCORE, pa.array(scores))
    if project.decisions:
        batch = with_column(batch, DECISION, decide(scores, project.decisions))
    return make_baseline([batch], project)


def _ordered(table: pa.Table, project: Project) -> pa.Table:
    """By event time, then id: a model depends on the order of its examples."""
    return table.sort_by([(project.event.time, "ascending"), (project.event.id, "ascending")])


def _fit(
    project: Project,
    folder: pathlib.Path,
    table: pa.Table,
    result: RunResult,
    start: datetime.datetime | None,
    threads: int,
) -> Trained:
    assert project.label is not None
    split = project.training
    time_us = table.column(project.event.time).cast(pa.int64()).to_numpy()
    label = table.column(project.label.field).fill_null(-1).to_numpy().astype(np.int64)
    group = table.column(project.entities[split.group]).to_numpy() if split.group else None
    start_us = _start_us(start or split.start, time_us, split.train + split.delay + split.test)
    test_from_us = start_us + split.train + split.delay
    train_rows, test_rows = training.split_by_time(
        time_us,
        group,
        label,
        start_us=start_us,
        train_us=split.train,
        delay_us=split.delay,
        test_us=split.test,
    )
    _require_both_classes(label[train_rows], "train on", start_us, start_us + split.train)
    _require_both_classes(label[test_rows], "test on", test_from_us, test_from_us + split.test)

    inputs = np.column_stack(
        [_as_float32(table.column(name)) for name in project.model.inputs],
    )
    booster = training.fit(
        inputs[train_rows],
        label[train_rows],
        project.model.params,
        feature_names=project.model.inputs,
        nthread=threads,
    )
    test_scores = predict(booster, np.ascontiguousarray(inputs[test_rows]))
    evaluation = evaluate(
        label[test_rows],
        test_scores,
        day=(time_us[test_rows] - start_us) // training.DAY_US,
        card=group[test_rows] if group is not None else None,
        slices={name: table.column(name).to_numpy()[test_rows] for name in split.slices},
    )
    model = training.model_bytes(booster)
    golden_features, golden_scores = training.golden(model, inputs[train_rows])
    bundle = Bundle(
        schema=project.contract.text,
        project=(folder / PROJECT_FILE).read_bytes(),
        feature_definitions=project.feature_definitions(),
        model=model,
        feature_names=tuple(project.model.inputs),
        golden_features=golden_features,
        golden_scores=golden_scores,
        baseline=_baseline(project, table.take(pa.array(test_rows)), test_scores),
        metadata={
            "metrics": {"test": _plain(evaluation.as_dict()["overall"])},
            "slices": evaluation.as_dict()["slices"],
            "train_from": to_iso(start_us),
            "test_from": to_iso(test_from_us),
            "train_rows": len(train_rows),
            "test_rows": len(test_rows),
            "versions": library_versions(),
        },
    )
    return Trained(bundle, evaluation, result, len(train_rows), start_us, test_from_us)


def register(trained: Trained, project: Project, tracking_uri: str, promote: bool) -> int:
    """Register a trained bundle; the version, which an equal bundle already registered keeps."""
    return registry.register(trained.bundle, project.name, tracking_uri, promote=promote)


def to_iso(time_us: int) -> str:
    """A time in ISO 8601, UTC."""
    return (_EPOCH + datetime.timedelta(microseconds=time_us)).isoformat().replace("+00:00", "Z")


def _start_us(start: datetime.datetime | None, time_us: np.ndarray[Any, np.dtype[np.int64]], length_us: int) -> int:
    """The declared start, or else the latest midnight UTC whose test ends with the last day of events."""
    if start is not None:
        return micros_of(start)
    after_last_day = (int(time_us.max()) // training.DAY_US + 1) * training.DAY_US
    first_day = int(time_us.min()) // training.DAY_US * training.DAY_US
    if after_last_day - length_us < first_day:
        days = (after_last_day - first_day) // training.DAY_US
        raise TrainingError(
            f"the events span {days} days, the declared training needs {length_us // training.DAY_US}: "
            "give more events, or shorten training.train, .delay or .test"
        )
    return after_last_day - length_us


def _require_both_classes(label: np.ndarray[Any, Any], purpose: str, start_us: int, stop_us: int) -> None:
    positives = int(label.sum())
    if positives in (0, len(label)):
        raise TrainingError(
            f"no events of both classes to {purpose}: {len(label)} labelled events, {positives} positive, "
            f"from {to_iso(start_us)} to {to_iso(stop_us)}"
        )


def _as_float32(values: pa.ChunkedArray) -> np.ndarray[Any, np.dtype[np.float32]]:
    return as_float64(values.combine_chunks()).astype(np.float32)


def _plain(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if value is not None}
