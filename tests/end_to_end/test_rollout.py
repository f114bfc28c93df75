"""The decision report of a stream's rows is that of a run over files, byte for byte, where neither has times."""

import dataclasses
import json
import random

import pytest

from models.rollout.rules import Decided
from models.rollout.tables import tables_of
from pipelines.graph import GraphConfig, build
from pipelines.jobs.rollout import decide, files_of_run
from pipelines.runners import make_pipeline
from pipelines.sinks.files import WriteFiles
from pipelines.sources.feeds import Topic, feeds_of
from pipelines.sources.files import ReadFiles
from pipelines.sources.listing import Files
from pipelines.sources.release_feed import WithReleases
from pipelines.sources.stream import ReadStream
from tests.kit.given import Given
from tests.kit.releases import GivenBundles, given_log
from tests.kit.rollouts import NEW, OLD, PROJECT, SECOND, START, canary_log, holdout, make_rows, shadow_log
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
    sink = WriteFiles(str(folder), PROJECT.event.id, PROJECT.event.time)
    pipeline = make_pipeline("DirectRunner", [])
    score = Score(PROJECT, None, "", bundles=followed.bundles)
    build(pipeline, GraphConfig(PROJECT, source, score, sink, 2, lateness_us=24 * HOUR_US))
    pipeline.run().wait_until_finish()
    return str(folder)


def over_files(folder, events, log):
    followed = given_log(PROJECT, log, BUNDLES)
    files = Files((write_rows(folder / "events.jsonl", events),))
    source = ReadFiles(feeds_of(PROJECT, {"events": files}), slice_us=6 * HOUR_US)
    return run(folder / "batch", WithReleases(source, tuple(followed.accept(log.records))), followed)


def over_messages(folder, events, log):
    followed = given_log(PROJECT, log, BUNDLES)
    chosen = random.Random(3)
    delayed = sorted([*events, *events[::40]], key=lambda event: (event["at"] + chosen.randrange(3600), event["id"]))
    topic = Topic(Given([json.dumps(event).encode() for event in delayed], 3))
    source = ReadStream(feeds_of(PROJECT, {"events": topic}), HOUR_US, 300_000, True, releases=followed)
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
