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

from models.batches import as_batch
from models.codecs.times import micros_of
from models.faults import how_many
from models.predictors import learning, registry, training
from models.predictors.bundle import Bundle, library_versions
from models.predictors.evaluation import Evaluation
from models.predictors.leaks import Leak, find_leaks
from models.predictors.learning import Learned
from models.predictors.measures import Numbers, label_numbers
from models.predictors.training import DAY_US, TrainingError
from models.project.declarations import Project
from models.project.project import PROJECT_FILE
from models.quality.calibration import calibrate_scores, is_estimated
from models.quality.parts import make_baseline
from models.record import WEIGHT
from models.rollout.holdout import UNIT, weights_of
from models.score import columns_of_outputs, with_columns
from pipelines.config import RunSpec
from pipelines.graph import GraphConfig
from pipelines.jobs.files import describe, open_files
from pipelines.jobs.identity import identify
from pipelines.jobs.known_labels import with_labels
from pipelines.jobs.known_weights import with_weights
from pipelines.jobs.score import RunResult, in_any_order, run_graph
from pipelines.results import evaluate_columns, read_kind, read_success
from pipelines.sinks.files import WriteFiles
from pipelines.sinks.folder import Folder, staging_of
from pipelines.sinks.listed import DEAD_LETTERS, SCORES, Written
from pipelines.sinks.publish import publish
from pipelines.terminal import working
from transforms.examples import CollectExamples

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
REASON = "dead-lettered: "  # before step, field and rule, where they are counted
THREADS = 2  # of training, where none are told: as many everywhere, since a model's bits may depend on it
_MOST_REASONS = 3  # that an error names


@dataclasses.dataclass(frozen=True)
class Span:
    """One span of the training, [from, to) in microseconds: its events, those of them that were used, and positives."""

    name: str
    from_us: int
    to_us: int
    events: int
    rows: int
    positives: int | None  # of a binary target


@dataclasses.dataclass(frozen=True, eq=False)
class Test:
    """The events that a model is tested on, their labels [n] and days [n]."""

    rows: pa.RecordBatch
    label: Numbers
    days: Numbers

    def evaluate(self, outputs: Numbers, project: Project) -> Evaluation:
        """How good what a model says of them is."""
        return evaluate_columns(self.label, outputs, self.rows, self.days, project)


@dataclasses.dataclass(frozen=True)
class Trained:
    """A bundle with the figures of its test, and the time from which it may score without having seen it."""

    bundle: Bundle
    evaluation: Evaluation
    examples: RunResult
    splits: tuple[Span, ...]  # train, baseline, test
    test: Test
    dead_letters: str | None  # the folder that they are kept in, if there are any
    leaks: tuple[Leak, ...] = ()  # inputs that alone tell the label of the events to train on

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
    scores: str | None = None,
) -> Trained:
    """Train and evaluate on the spec's events, and of its span on what was known at its end.

    `scores` is the folder of a run whose score rows say how much an event counts, see models.rollout.holdout: one that
    was blocked and not held out is not learned from, one of which no row tells counts as one.

    The examples stay in the spec's sink, if it names one, where the output of another run is refused, or replaced with
    `replace`. With them stay the dead letters, which else go to the sink `dead_letters`, in place of those of the
    training before.
    """
    project = spec.project
    if project.label is None and project.target.kind != "anomaly":
        raise TrainingError(f"{project.name} declares no label: there is nothing to learn")
    table, result, kept = in_any_order(lambda sort: _collect(spec, dead_letters, sort))
    if scores is not None and project.rollout.blocks:
        table = with_weights(table, scores, project)
    with working("training"):
        return _fit(project, folder, table, result, kept, start, spec.threads or THREADS)


def _collect(spec: RunSpec, dead_letters: pathlib.Path | None, sort: bool) -> tuple[pa.Table, RunResult, str | None]:
    """The examples, and where the dead letters are, if there are any; see `open_files` for `sort`."""
    project, examples = spec.project, spec.sink
    source = open_files(spec, sort=sort)
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
        config = GraphConfig(project, source, CollectExamples(project), sink, spec.shard_count, spec.span)
        result = run_graph(config, spec.runner, spec.beam_args, "computing features")
        kept = f"{examples.rstrip('/')}/{DEAD_LETTERS}" if examples else _keep(scratch, dead_letters)
        kept = kept if result.outcomes.get("dead-lettered") or result.outcomes.get("duplicate") else None
        _check_dead_letters(project, result, kept)
        table = _ordered(_read_examples(directory, project), project)
        if spec.labels:
            table = with_labels(table, spec.labels, project, spec.span.stop_us)
        return table, result, kept


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
    entity = [project.entities[project.training.group]] if project.training.group else []
    label = [project.label.field] if project.label else []
    names = [project.event.id, project.event.time, *label, *entity]
    watched = project.watched_columns if project.quality else ()
    columns = dict.fromkeys([*names, *project.model.inputs, *project.training.slices, *watched])
    return read_kind(directory, SCORES, list(columns))


def _baseline(project: Project, examples: pa.Table, learned: Learned) -> bytes | None:
    """What windows of scores are compared with, of examples that the model has not seen; None without any."""
    if project.quality is None or not examples.num_rows:
        return None
    batch = as_batch(examples)
    said = columns_of_outputs(learned.predict(batch, project.model.inputs), project)
    return make_baseline([with_columns(batch, said)], project)


def _calibration(project: Project, examples: pa.RecordBatch, label: Numbers, learned: Learned) -> bytes | None:
    """What scores mean, of examples with a label that the model has not seen; None of too few."""
    if not is_estimated(project) or not examples.num_rows:
        return None
    calibration = calibrate_scores(label, learned.predict(examples, project.model.inputs), project)
    return calibration.to_json() if calibration else None


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
    split, binary = project.training, project.has_positives
    time_us = table.column(project.event.time).cast(pa.int64()).to_numpy()
    label, known = np.zeros(table.num_rows, np.int64), np.ones(table.num_rows, bool)
    if project.label:
        label, known = label_numbers(as_batch(table.select([project.label.field])).column(0), project)
    group = table.column(project.entities[split.group]).to_numpy() if split.group else None
    start_us = _start_us(start or split.start, time_us, split.train + split.delay + split.test)
    train_to_us, test_from_us = start_us + split.train, start_us + split.train + split.delay
    test_to_us = test_from_us + split.test
    train_rows, test_rows = training.split_by_time(
        time_us,
        group,
        label if binary else known.astype(np.int64) - 1,
        start_us=start_us,
        train_us=split.train,
        delay_us=split.delay,
        test_us=split.test,
    )
    weight = weights_of(table, project)
    if weight is not None:
        weight = np.where(as_batch(table.select([WEIGHT])).column(0).is_valid(), weight, UNIT)
        train_rows = train_rows[weight[train_rows] > 0]
    if project.target.kind == "anomaly":  # it learns from all events, whatever their label
        train_rows = np.flatnonzero((time_us >= start_us) & (time_us < train_to_us))
    else:
        _require_labels(label[train_rows], binary, "train on", start_us, train_to_us)
    _require_labels(label[test_rows], binary, "test on", test_from_us, test_to_us)
    between = np.flatnonzero((time_us >= train_to_us) & (time_us < test_from_us))
    between = between if project.quality or is_estimated(project) else between[:0]
    learnt = between[known[between]]  # what scores mean

    def counted(name: str, from_us: int, to_us: int, rows: Any) -> Span:
        events = int(np.count_nonzero((time_us >= from_us) & (time_us < to_us)))
        return Span(
            name, from_us, to_us, events, len(rows), int(np.count_nonzero(label[rows] == 1)) if binary else None
        )

    splits = (
        counted("train", start_us, train_to_us, train_rows),
        counted("baseline", train_to_us, test_from_us, between),
        counted("test", test_from_us, test_to_us, test_rows),
    )
    early = project.model.early_stopping
    held_back = time_us[train_rows] >= train_to_us - (early.on_last if early else 0)
    counts = None if weight is None else (weight / UNIT).astype(np.float32)
    rows = (train_rows[~held_back], train_rows[held_back])
    learned = learning.learn(table, time_us, label, *rows, project, threads, counts)
    days = (time_us[test_rows] - start_us) // DAY_US
    test = Test(as_batch(table.take(pa.array(test_rows))), label[test_rows], days)
    evaluation = test.evaluate(learned.predict(test.rows, project.model.inputs), project)
    bundle = Bundle(
        schema=project.contract.text,
        project=(folder / PROJECT_FILE).read_bytes(),
        feature_definitions=project.feature_definitions(),
        model=learned.model,
        feature_names=learned.feature_names,
        golden_features=learned.golden_features,
        golden_scores=learned.golden_scores,
        baseline=_baseline(project, table.take(pa.array(between)), learned),
        calibration=_calibration(project, as_batch(table.take(pa.array(learnt))), label[learnt], learned),
        encoders=learned.encoders.to_bytes() if learned.encoders.by_name else None,
        metadata={
            "metrics": {"test": _plain(evaluation.as_dict()["overall"])},
            "slices": evaluation.as_dict()["slices"],
            **(
                {}
                if project.target.kind == "binary"
                else {"target": {"kind": project.target.kind, "outputs": list(project.outputs)}}
            ),
            **({"trees": learned.booster.num_boosted_rounds()} if early else {}),
            **{f"{part.name}_from": to_iso(part.from_us) for part in splits},
            **{f"{part.name}_to": to_iso(part.to_us) for part in splits},
            **{f"{part.name}_rows": part.rows for part in splits},
            **{f"{part.name}_positives": part.positives for part in splits if binary},
            "events": {name: count for name, count in result.outcomes.items() if not name.startswith(REASON)},
            "versions": library_versions(),
        },
    )
    inputs = as_batch(table.select(project.model.inputs).take(pa.array(train_rows)))
    leaks = tuple(find_leaks(inputs, label[train_rows], project))
    return Trained(bundle, evaluation, result, splits, test, dead_letters, leaks)


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
    after_last_day = (int(time_us.max()) // DAY_US + 1) * DAY_US
    first_day = int(time_us.min()) // DAY_US * DAY_US
    if after_last_day - length_us < first_day:
        days = (after_last_day - first_day) // DAY_US
        raise TrainingError(
            f"the events span {days} days, the declared training needs {length_us // DAY_US}: "
            "give more events, or shorten training.train, .delay or .test"
        )
    return after_last_day - length_us


def _require_labels(label: np.ndarray[Any, Any], binary: bool, purpose: str, start_us: int, stop_us: int) -> None:
    positives, span = int(np.count_nonzero(label == 1)), f"from {to_iso(start_us)} to {to_iso(stop_us)}"
    if binary and positives in (0, len(label)):
        raise TrainingError(
            f"no events of both classes to {purpose}: {len(label)} labelled events, {positives} positive, {span}"
        )
    if not len(label):
        raise TrainingError(f"no labelled event to {purpose}, {span}")


def _plain(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if value is not None}
