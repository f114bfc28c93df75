"""`headrace train`: the same graph up to features, then a model, its figures, and a registered bundle."""

from __future__ import annotations

import dataclasses
import datetime
import json
import pathlib
import tempfile
import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import xgboost

from models.batches import as_batch, with_column
from models.codecs.times import micros_of
from models.faults import how_many
from models.predictors import registry, training
from models.predictors.booster import predict
from models.predictors.bundle import Bundle, library_versions
from models.predictors.evaluation import Evaluation, evaluate
from models.predictors.training import TrainingError
from models.project.declarations import Project
from models.project.project import PROJECT_FILE
from models.quality.parts import make_baseline
from models.record import DECISION, SCORE
from models.score import decide, model_inputs
from pipelines.cli.display import working
from pipelines.config import GraphConfig, RunSpec
from pipelines.jobs.identity import identify
from pipelines.jobs.known_labels import with_labels
from pipelines.jobs.score import RunResult, describe, open_files, run_graph
from pipelines.results import read_kind, read_success
from pipelines.sinks.files import WriteFiles
from pipelines.sinks.folder import Folder, staging_of
from pipelines.sinks.publish import DEAD_LETTERS, SCORES, Written, publish
from transforms.examples import CollectExamples

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
REASON = "dead-lettered: "  # before step, field and rule, where they are counted
_MOST_REASONS = 3  # that an error names


@dataclasses.dataclass(frozen=True)
class Span:
    """One span of the training, [from, to) in microseconds: its events, those of them that were used, and positives."""

    name: str
    from_us: int
    to_us: int
    events: int
    rows: int
    positives: int


@dataclasses.dataclass(frozen=True)
class Trained:
    """A bundle with the figures of its test, and the time from which it may score without having seen it."""

    bundle: Bundle
    evaluation: Evaluation
    examples: RunResult
    splits: tuple[Span, ...]  # train, baseline, test
    dead_letters: str | None  # the folder that they are kept in, if there are any

    @property
    def test_from_us(self) -> int:
        """The start of the test."""
        return self.splits[-1].from_us


def train(
    spec: RunSpec,
    folder: pathlib.Path,
    *,
    start: datetime.datetime | None = None,
    dead_letters: pathlib.Path | None = None,
) -> Trained:
    """Train and evaluate on the spec's events.

    The examples stay in the spec's sink, if it names one, where the output of another run is refused, or replaced with
    `replace`. With them stay the dead letters, which else go to the sink `dead_letters`, in place of those of the
    training before.
    """
    project, examples = spec.project, spec.sink
    if project.label is None:
        raise TrainingError(f"{project.name} declares no label: there is nothing to learn")
    source = open_files(spec)
    with tempfile.TemporaryDirectory(prefix="headrace-") as scratch:
        directory = examples or scratch
        facts = {"project": project.name, **describe(spec), **identify(project, source, {})}
        sink = WriteFiles(
            directory,
            project.event.id,
            project.event.time,
            facts=facts,
            source_format=source.format,
            replace=spec.replace,
        )
        config = GraphConfig(project, source, CollectExamples(project), sink, spec.shards)
        result = run_graph(config, spec.runner, spec.beam_args, "computing features")
        kept = f"{examples.rstrip('/')}/{DEAD_LETTERS}" if examples else _keep(scratch, dead_letters)
        kept = kept if result.outcomes.get("dead-lettered") or result.outcomes.get("duplicate") else None
        _check_dead_letters(project, result, kept)
        table = _ordered(_read_examples(directory, project), project)
        if spec.labels:
            table = with_labels(table, spec.labels, project)
    with working("training"):
        return _fit(project, folder, table, result, kept, start, spec.threads)


def _keep(scratch: str, folder: pathlib.Path | None) -> str | None:
    """Publish the dead letters, of which there may be none, to a sink of their own; where they are."""
    if folder is None:
        return None
    said = read_success(scratch)
    letters = [Written(**file) for file in said["files"] if file["kind"] == DEAD_LETTERS]
    run_id, kept = uuid.uuid4().hex, Folder(str(folder))
    for letter in letters:
        with kept.create(f"{staging_of(run_id)}/{letter.place}") as file:
            file.write(pathlib.Path(scratch, letter.place).read_bytes())
    facts = {"events": said["events"], "files": [dataclasses.asdict(letter) for letter in letters]}
    publish(kept, run_id, letters, {}, json.dumps(facts, indent=2), replace=True)
    return kept.join(DEAD_LETTERS)


def _check_dead_letters(project: Project, result: RunResult, kept: str | None) -> None:
    """TrainingError if there is nothing left to train on, or more was refused than is declared."""
    outcomes = result.outcomes
    read, dead = outcomes.get("read", 0), outcomes.get("dead-lettered", 0)
    reasons = {name: count for name, count in outcomes.items() if name.startswith(REASON)}
    most = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))[:_MOST_REASONS]
    why = "; ".join(f"{name.removeprefix(REASON)} ({how_many(count, read)})" for name, count in most)
    why += f" and {len(reasons) - len(most)} other reasons" if len(reasons) > len(most) else ""
    where = f"; they are kept in {kept}" if kept else ""
    allowed = project.training.max_dead_letters
    if dead > allowed * read:
        raise TrainingError(
            f"{dead:,} of {read:,} records are dead letters ({dead / read:.1%}), more than training.max_dead_letters "
            f"({allowed:.1%}): {why}{where}. Give other files, or declare a larger share"
        )
    if not outcomes.get("scored"):
        raise TrainingError(f"no event is left to train on, of {read:,} read" + (f": {why}{where}" if dead else ""))


def _read_examples(directory: str, project: Project) -> pa.Table:
    assert project.label is not None
    entity = [project.entities[project.training.group]] if project.training.group else []
    names = [project.event.id, project.event.time, project.label.field, *entity]
    watched = project.watched_columns if project.quality else ()
    columns = dict.fromkeys([*names, *project.model.inputs, *project.training.slices, *watched])
    return read_kind(directory, SCORES, list(columns))


def _baseline(project: Project, examples: pa.Table, booster: xgboost.Booster) -> bytes | None:
    """What windows of scores are compared with, of examples that the model has not seen; None without any."""
    if project.quality is None or not examples.num_rows:
        return None
    batch = as_batch(examples)
    scores = predict(booster, model_inputs(batch, project.model.inputs))
    batch = with_column(batch, SCORE, pa.array(scores))
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
    dead_letters: str | None,
    start: datetime.datetime | None,
    threads: int,
) -> Trained:
    assert project.label is not None
    split = project.training
    time_us = table.column(project.event.time).cast(pa.int64()).to_numpy()
    label = table.column(project.label.field).fill_null(-1).to_numpy().astype(np.int64)
    group = table.column(project.entities[split.group]).to_numpy() if split.group else None
    start_us = _start_us(start or split.start, time_us, split.train + split.delay + split.test)
    train_to_us, test_from_us = start_us + split.train, start_us + split.train + split.delay
    test_to_us = test_from_us + split.test
    train_rows, test_rows = training.split_by_time(
        time_us,
        group,
        label,
        start_us=start_us,
        train_us=split.train,
        delay_us=split.delay,
        test_us=split.test,
    )
    _require_both_classes(label[train_rows], "train on", start_us, train_to_us)
    _require_both_classes(label[test_rows], "test on", test_from_us, test_to_us)
    between = np.flatnonzero((time_us >= train_to_us) & (time_us < test_from_us))

    def counted(name: str, from_us: int, to_us: int, rows: Any) -> Span:
        events = int(np.count_nonzero((time_us >= from_us) & (time_us < to_us)))
        return Span(name, from_us, to_us, events, len(rows), int(np.count_nonzero(label[rows] == 1)))

    splits = (
        counted("train", start_us, train_to_us, train_rows),
        counted("baseline", train_to_us, test_from_us, between if project.quality else between[:0]),
        counted("test", test_from_us, test_to_us, test_rows),
    )
    inputs = model_inputs(as_batch(table.select(project.model.inputs)), project.model.inputs)
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
        group=group[test_rows] if group is not None else None,
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
        baseline=_baseline(project, table.take(pa.array(between)), booster),
        metadata={
            "metrics": {"test": _plain(evaluation.as_dict()["overall"])},
            "slices": evaluation.as_dict()["slices"],
            **{f"{part.name}_from": to_iso(part.from_us) for part in splits},
            **{f"{part.name}_to": to_iso(part.to_us) for part in splits},
            **{f"{part.name}_rows": part.rows for part in splits},
            **{f"{part.name}_positives": part.positives for part in splits},
            "events": {name: count for name, count in result.outcomes.items() if not name.startswith(REASON)},
            "versions": library_versions(),
        },
    )
    return Trained(bundle, evaluation, result, splits, dead_letters)


class Registered(NamedTuple):
    """The version of a bundle, whether it is new, and the champion's version."""

    version: int
    is_new: bool
    champion: int | None


def register(trained: Trained, project: Project, tracking_uri: str, promote: bool) -> Registered:
    """Register a trained bundle; an equal one that is registered already keeps its version."""
    before = _versions(project.name, tracking_uri)
    version = registry.register(trained.bundle, project.name, tracking_uri, promote=promote)
    after = _versions(project.name, tracking_uri)
    champion = next((known.version for known in after if registry.CHAMPION in known.aliases), None)
    return Registered(version, version not in {known.version for known in before}, champion)


def _versions(name: str, tracking_uri: str) -> Sequence[registry.Version]:
    try:
        return registry.list_versions(name, tracking_uri)
    except registry.RegistryError:  # there is none yet; if it can't be used, registering says so
        return ()


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


def _plain(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if value is not None}
