"""The decision report of a stream's rows is that of a run over files, byte for byte, where neither has times."""

import dataclasses
import html
import json
import random

import numpy as np
import pyarrow as pa
import pytest

from models.predictors.weighted import weighted_figures
from models.rollout.assign import parts_of
from models.rollout.holdout import SELECTED, WEIGHTED, weights_of
from models.rollout.rules import Decided
from models.rollout.tables import tables_of
from pipelines.graph import GraphConfig, build
from pipelines.jobs.rollout import decide, files_of_run
from pipelines.report import report
from pipelines.results import evaluate_scores, read_files, read_label_metrics
from pipelines.runners import make_pipeline
from pipelines.sinks.files import WriteFiles
from pipelines.sources.feeds import Topic, feeds_of
from pipelines.sources.files import ReadFiles
from pipelines.sources.listing import Files
from pipelines.sources.release_feed import WithReleases
from pipelines.sources.stream import ReadStream
from tests.kit.declared import declared
from tests.kit.given import Given
from tests.kit.releases import GivenBundles, given_log, make_log
from tests.kit.rollouts import (
    DAY,
    NEW,
    OLD,
    PROJECT,
    SCHEMA,
    SECOND,
    START,
    TEXT,
    canary_log,
    holdout,
    make_rows,
    shadow_log,
)
from tests.kit.support import tiny_scorer, write_rows
from transforms.score import Score

pytestmark = pytest.mark.slow

BUNDLES = GivenBundles({name: tiny_scorer(PROJECT.model.inputs, seed) for seed, name in enumerate((OLD, NEW))})
HOUR_US = 3600 * SECOND


def make_events(number=2000):
    rows = make_rows(number, seed=2)
    chosen = random.Random(2)
    return [
        {
            "id": n,
            "at": int(rows["at"][n]) // SECOND,
            "card": chosen.choice([None, *([int(rows["card"][n])] * 9)]),
            "shop": str(rows["shop"][n]),
            "amount": float(rows[OLD][n]) * 100,
            "fraud": int(rows["fraud"][n]),
        }
        for n in range(number)
    ]


def run(folder, source, followed):
    project = followed.project
    sink = WriteFiles(str(folder), project.event.id, project.event.time)
    pipeline = make_pipeline("DirectRunner", [])
    score = Score(project, None, "", bundles=followed.bundles)
    build(pipeline, GraphConfig(project, source, score, sink, 2, lateness_us=24 * HOUR_US))
    pipeline.run().wait_until_finish()
    return str(folder)


def over_files(folder, events, log, project=PROJECT):
    followed = given_log(project, log, BUNDLES)
    files = Files((write_rows(folder / "events.jsonl", events),))
    source = ReadFiles(feeds_of(project, {"events": files}), slice_us=6 * HOUR_US)
    return run(folder / "batch", WithReleases(source, tuple(followed.accept(log.records))), followed)


def over_messages(folder, events, log, project=PROJECT):
    followed = given_log(project, log, BUNDLES)
    chosen = random.Random(3)
    delayed = sorted([*events, *events[::40]], key=lambda event: (event["at"] + chosen.randrange(3600), event["id"]))
    topic = Topic(Given([json.dumps(event).encode() for event in delayed], 3))
    source = ReadStream(feeds_of(project, {"events": topic}), HOUR_US, 300_000, True, releases=followed)
    return run(folder / "stream", source, followed)


@pytest.mark.parametrize(
    "log", [shadow_log(holdout=holdout(1000)), canary_log(4000)], ids=["a shadow and a holdout", "a canary"]
)
def test_a_streams_report_is_that_of_files(tmp_path, log):
    events = make_events()
    found = [decide(PROJECT, log, *files_of_run(over(tmp_path, events, log))) for over in (over_files, over_messages)]
    batch, stream = (dataclasses.replace(each.comparison, latency_ms={}) for each in found)
    assert batch == stream
    assert batch.from_us >= START
    assert sum(batch.overall.events) > 1500
    assert (batch.held_out > 0) == (batch.way == "shadow")
    # Only a stream's rows have times by the clock, and those of shadows have none.
    assert [bool(each.comparison.latency_ms) for each in found] == [False, batch.way == "canary"]
    assert isinstance(found[1], Decided)
    assert ("Latency, from source to score" in [each.title for each in tables_of(found[1])]) == (batch.way == "canary")


def test_rows_weigh_by_the_holdout_of_their_release_and_so_do_label_metrics(tmp_path):
    """What blocks has no label, but for those held out; of records as in files as in messages, and by definition."""
    project = declared(
        TEXT.replace("RULES", "blocks: [block]").replace("at_least: 0.7", "at_least: 0.55")
        + "label_metrics: {window: 2d}\n",
        SCHEMA,
    )
    log = make_log(OLD, {"at": START + DAY, "holdout": holdout(2000)})
    events = make_events()
    runs = [over(tmp_path, events, log, project) for over in (over_files, over_messages)]
    rows, other = (pa.concat_tables(read_files(run, "scores")).sort_by("id") for run in runs)
    assert rows["weight"].equals(other["weight"])
    for row in rows.to_pylist():
        blocked = row["score"] >= np.float32(0.55)
        inside = row["card"] is not None and parts_of(pa.array([row["card"]]), "holdout")[0] < 2000
        late = row["release"] == 1
        assert row["weight"] == (None if not late else 1 if not blocked else 5 if inside else 0)
        assert row["decision"] == "holdout" if late and inside else row["decision"] != "holdout"
    assert {1.0, 5.0, 0.0, None} == set(rows["weight"].to_pylist())
    mine, theirs = (read_label_metrics(run) for run in runs)
    assert mine.equals(theirs)
    windows = [row for row in mine.to_pylist() if not row["slice"]]
    assert len(windows) == 3
    days = rows["at"].cast(pa.int64()).to_numpy() // (2 * DAY)
    for window, day in zip(windows, np.unique(days), strict=True):
        some = rows.filter(pa.array(days == day))
        weight = weights_of(some, project)
        wanted = weighted_figures(some["fraud"].to_numpy(), some["score"].to_numpy(), weight)
        assert {name: window[name] for name in wanted} == wanted
        assert window["weighted"] == (weight > 0).sum() < window["labelled"] == len(some)
        assert window["log_loss"] is None
    evaluation = evaluate_scores(runs[0], project)
    weight = weights_of(rows, project)
    wanted = weighted_figures(rows["fraud"].to_numpy(), rows["score"].to_numpy(), weight)
    assert evaluation.overall.figures() == wanted
    assert evaluation.overall.rows == (weight > 0).sum()
    assert set(evaluation.slices["shop"]) == {"a", "b", "c"}
    page = report(project, runs[0], tmp_path / "report.html").read_text()
    assert html.escape(WEIGHTED) in page
    assert html.escape(SELECTED) not in page
