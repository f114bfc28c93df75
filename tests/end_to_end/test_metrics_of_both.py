"""Metrics of event time are the same over files and in a stream, whatever the order, and in whatever parts."""

import dataclasses
import json

import numpy as np
import pytest

from models import metrics
from models.quality.window_statistics import WindowJudge
from models.record import Outcome
from pipelines.graph import GraphConfig, build
from pipelines.runners import make_pipeline
from pipelines.sinks.files import WriteFiles
from pipelines.sources.files import SLICE_US
from tests.kit.given import Given
from tests.kit.support import read_files, read_stream, tiny_scorer, transaction, write_rows
from tests.kit.watched import project_with
from tests.kit.watched import rows as ten_days
from transforms.gate import WatchScores
from transforms.metrics import read
from transforms.score import Score

pytestmark = pytest.mark.slow

DAY_US = 86_400_000_000
PROJECT = project_with("warn")
BAD = [transaction(5, TRANSACTION_ID=900, TX_AMOUNT=-5), transaction(6, TRANSACTION_ID=901, CUSTOMER_ID=None), b"{oops"]
EVENTS = [*ten_days({7}), *ten_days()[:9], *BAD]  # a bad day, and duplicates
SAME = {metric.name for metric in metrics.METRICS if metric.event_time}


def counted(config, boundary_us):
    """The metrics of event time of a run."""
    watch = WatchScores(WindowJudge(PROJECT, None), boundary_us, "fallback")
    pipeline = make_pipeline("DirectRunner", [])
    build(pipeline, dataclasses.replace(config, watch=watch))
    result = pipeline.run()
    result.wait_until_finish()
    return {series: number for series, number in read(result.metrics()).items() if series[0] in SAME}


def over_files(folder, order, parts):
    rows = [EVENTS[n] for n in order]
    sources = [write_rows(folder / f"{part}.jsonl", rows[part::parts]) for part in range(parts)]
    sink = WriteFiles(str(folder / "out"), PROJECT.event.id, PROJECT.event.time)
    score = Score(PROJECT, tiny_scorer(PROJECT.model.inputs), "bundle")
    return counted(GraphConfig(PROJECT, read_files(PROJECT, sources), score, sink, shards=parts), SLICE_US)


def streamed(folder, order, seed):
    payloads = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in (EVENTS[n] for n in order)]
    source = read_stream(
        PROJECT, Given(payloads, seed), 30 * DAY_US, idle_us=300_000, until_idle=True, horizon_us=40 * DAY_US,
        cut_us=PROJECT.quality.window,
    )  # fmt: skip
    sink = WriteFiles(str(folder / "out"), PROJECT.event.id, PROJECT.event.time)
    score = Score(PROJECT, tiny_scorer(PROJECT.model.inputs), "bundle")
    config = GraphConfig(PROJECT, source, score, sink, lateness_us=DAY_US)
    return counted(config, PROJECT.quality.window)


def test_batch_and_stream_count_the_same(tmp_path):
    random = np.random.default_rng(0)
    found = []
    for number in range(3):
        order = random.permutation(len(EVENTS)).tolist()
        for mode, run in (("files", over_files), ("stream", streamed)):
            folder = tmp_path / f"{mode}{number}"
            folder.mkdir()
            found.append(run(folder, order, number + 1))
    for each in found:
        assert each == found[0]
    scores = metrics.by_label(found[0], metrics.SCORES)
    assert sum(scores.values()) == metrics.by_label(found[0], metrics.EVENTS)[Outcome.SCORED] == 240
    assert {name.split(" ")[1] for name in scores} == {"bundle"}
    assert metrics.by_label(found[0], metrics.DEAD_LETTERS) == {"Decode": 1, "Validate": 2, "Deduplicate": 9}
    assert metrics.by_label(found[0], metrics.REASONS) == {
        "Decode (record) not JSON": 1,
        "Deduplicate TRANSACTION_ID duplicate event id": 9,
        "Validate CUSTOMER_ID missing": 1,
        "Validate TX_AMOUNT below 0": 1,
    }
    assert sum(metrics.by_label(found[0], metrics.VERDICTS).values()) == 5
    assert metrics.by_label(found[0], metrics.VERDICTS)["alarm"] >= 1
    assert metrics.by_label(found[0], metrics.ALERTS)["open"] >= 1
