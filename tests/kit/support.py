"""What several tests share: the real data, small projects, a run of the graph, and a brute-force oracle."""

from __future__ import annotations

import dataclasses
import datetime
import fractions
import hashlib
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xgboost

from models.partitions import Span
from models.predictors.booster import Scorer
from models.project.declarations import Project
from models.project.project import load_project
from models.project.sections import RollingFeature
from models.quality.calibration import Calibration
from models.record import EVENTS, LABELS
from pipelines.brokers import Broker, Transactional
from pipelines.graph import GraphConfig, build
from pipelines.jobs.identity import identify
from pipelines.runners import DIRECT, make_pipeline
from pipelines.sinks.files import WriteFiles
from pipelines.sinks.store import WriteStore
from pipelines.sources.acknowledge import AfterJournal
from pipelines.sources.feeds import Topic, feeds_of
from pipelines.sources.files import ReadFiles
from pipelines.sources.listing import Files
from pipelines.sources.release_feed import WithReleases
from pipelines.sources.stream import ReadStream
from pipelines.sources.values import JsonValues, Values
from transforms.score import Score

ROOT = pathlib.Path(__file__).parents[2]
CARD_FRAUD = ROOT / "examples" / "card_fraud"
DATA = pathlib.Path(os.environ.get("HEADRACE_DATA", ROOT.parent / "shared" / "data")) / "card_transactions"

needs_data = pytest.mark.skipif(
    not (DATA / "transactions.parquet").exists(),
    reason=f"no card transactions of the handbook in {DATA}; set HEADRACE_DATA to the folder above it",
)


def card_fraud() -> Project:
    return load_project(CARD_FRAUD)


def tiny_scorer(names: Sequence[str], seed: int = 0, calibration: Calibration | None = None) -> Scorer:
    """A model of a few trees on random numbers."""
    random = np.random.default_rng(seed)
    features = random.normal(50, 30, (500, len(names))).astype(np.float32)
    label = (features[:, 0] + random.normal(0, 20, 500) > 60).astype(int)
    data = xgboost.DMatrix(features, label, feature_names=list(names))
    booster = xgboost.train({"objective": "binary:logistic", "max_depth": 3, "nthread": 1}, data, 5)
    model = bytes(booster.save_raw("ubj"))
    return Scorer(
        model,
        sha256=hashlib.sha256(model).hexdigest(),
        feature_names=names,
        golden_features=np.ascontiguousarray(features[:8]),
        golden_scores=xgboost.Booster(model_file=bytearray(model)).inplace_predict(features[:8]),
        calibration=calibration,
    )


def read_files(
    project: Project, patterns: Sequence[str], labels: Sequence[str] = (), format: str | None = None, **options: Any
) -> ReadFiles:
    """Events from files, and labels if there are."""
    sources = {EVENTS: Files(tuple(patterns), format), **({LABELS: Files(tuple(labels))} if labels else {})}
    return ReadFiles(feeds_of(project, sources), **options)


def read_stream(
    project: Project,
    broker: Broker,
    allowance_us: int,
    *,
    labels: Broker | None = None,
    values: Values | None = None,
    journal: str | None = None,
    horizon_us: int = 1 << 60,
    sink: Transactional | None = None,
    **options: Any,
) -> ReadStream:
    """Events from a broker, and labels if there are, with a journal if there is one."""
    sources = {EVENTS: Topic(broker, values or JsonValues()), **({LABELS: Topic(labels)} if labels else {})}
    if journal is not None:
        options["acknowledge"] = AfterJournal(journal, horizon_us, sink)
    return ReadStream(feeds_of(project, sources), allowance_us, **options)


@dataclasses.dataclass(frozen=True)
class Output:
    scores: pa.Table
    dead_letters: pa.Table
    outcomes: dict[str, int]
    digest: str

    @property
    def reasons(self) -> list[tuple[str, str]]:
        """(field, rule) of every dead letter's first reason, in the order of the file."""
        return [(r[0]["field"], r[0]["rule"]) for r in map(json.loads, self.dead_letters["reasons"].to_pylist())]


def run_graph(
    directory: pathlib.Path,
    sources: Sequence[str],
    project: Project | None = None,
    *,
    runner: str = DIRECT,
    beam_args: Sequence[str] = (),
    shards: int = 1,
    slice_us: int | None = None,
    score_from_us: int | None = None,
    reason_codes: int = 0,
    replace: bool = False,
    scorer: Scorer | None = None,
    routed: dict[str, tuple[str, ...]] | None = None,
    released: Any = None,
    labels: Sequence[str] = (),
    store: WriteStore | None = None,
) -> Output:
    """Run the whole graph over files and read what it wrote; with `released`, each event is of that log's releases."""
    project = project or card_fraud()
    source = read_files(project, sources, labels, **({} if slice_us is None else {"slice_us": slice_us}))
    facts = identify(project, source, {"score_from": score_from_us, "reason_codes": reason_codes})
    sink = WriteFiles(
        str(directory), project.event.id, project.event.time, facts=facts, replace=replace, routed=routed or {}
    )
    bundles = released.bundles if released else None
    config = GraphConfig(
        project,
        WithReleases(source, released.read().records) if released else source,
        Score(project, scorer or tiny_scorer(project.model.inputs), "bundle", reason_codes, bundles=bundles),
        sink,
        shards,
        Span(score_from_us),
        store=store,
    )
    pipeline = make_pipeline(runner, beam_args)
    build(pipeline, config)
    pipeline.run().wait_until_finish()
    return read_output(directory)


def read_output(directory: pathlib.Path) -> Output:
    said = json.loads((directory / "_SUCCESS.json").read_text())
    tables = {}
    for kind in ("scores", "dead_letters"):
        files = sorted((directory / kind).rglob("*.parquet"))
        tables[kind] = pa.concat_tables([pq.read_table(f, partitioning=None) for f in files]) if files else pa.table({})
    digest = hashlib.sha256("".join(f["name"] + f["sha256"] for f in said["files"]).encode()).hexdigest()
    return Output(tables["scores"], tables["dead_letters"], said["events"], digest)


def quality_lines(directory: pathlib.Path, kind: str) -> bytes:
    """The verdicts or statistics that a run left, in their windows' order."""
    return b"".join(path.read_bytes() for path in sorted((directory / "quality").rglob(f"{kind}.jsonl")))


def brute_force(
    features: Sequence[RollingFeature], rows: Sequence[dict[str, Any]], decimals: dict[str, int]
) -> list[list[float]]:
    """The features of each row, by definition: rows are {entity, time, id, field…: number or None}."""
    result = []
    for row in rows:
        values = []
        for f in features:
            inside = []
            for other in rows:
                if other["entity"] != row["entity"]:
                    continue
                age = row["time"] - other["time"]
                if f.delay_us:
                    seen = f.delay_us <= age < f.delay_us + f.window_us
                else:
                    before = (other["time"], other["id"]) < (row["time"], row["id"])
                    seen = (before or (other is row and f.include_current)) and age < f.window_us
                if seen:
                    inside.append(other)
            values.append(_aggregate(f, inside, decimals))
        result.append(values)
    return result


def _aggregate(f: RollingFeature, inside: list[dict[str, Any]], decimals: dict[str, int]) -> float:
    if f.aggregate == "count":
        return float(len(inside))
    known = [r[f.field] for r in inside if r[f.field] is not None]
    if f.aggregate in ("min", "max"):
        return float({"min": min, "max": max}[f.aggregate](known)) if known else f.empty
    unit = 10 ** decimals.get(str(f.field), 0)
    total = sum(fractions.Fraction(round(value * unit)) for value in known)
    count = len(inside) if f.aggregate == "rate" else len(known)
    if not count:
        return f.empty
    return float(int(total)) / float(unit * (1 if f.aggregate == "sum" else count))


def write_rows(path: pathlib.Path, rows: list[dict[str, Any]]) -> str:
    """Write rows as JSON lines, or as they are where one is bytes."""
    lines = [row if isinstance(row, bytes) else json.dumps(row, default=str).encode() for row in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return str(path)


def transaction(number: int, **changes: Any) -> dict[str, Any]:
    """A good card transaction; the times of successive numbers are an hour apart."""
    time = datetime.datetime(2018, 4, 1) + datetime.timedelta(hours=number)
    row = {
        "TRANSACTION_ID": number,
        "TX_DATETIME": str(time),
        "CUSTOMER_ID": number % 3,
        "TERMINAL_ID": number % 2,
        "TX_AMOUNT": 10.25 + number,
        "TX_FRAUD": int(number % 5 == 0),
    }
    return {**row, **changes}
