"""Labels are counted by the release and bundle that made the score, the same over files and in a stream."""

import dataclasses
import json
import random
from collections import Counter

import pytest

from models.metrics import FEEDBACK, LABELLED, by_label
from models.record import EVENTS, LABELS
from pipelines.graph import GraphConfig, build
from pipelines.runners import make_pipeline
from pipelines.sinks.files import WriteFiles
from pipelines.sources.release_feed import WithReleases
from tests.kit.declared import declared
from tests.kit.given import Given
from tests.kit.releases import GivenBundles, canary, given_log, make_log
from tests.kit.support import read_files, read_output, read_stream, tiny_scorer, write_rows
from transforms.metrics import read
from transforms.score import Score

pytestmark = pytest.mark.slow

SCHEMA = """
feature { name: "id" type: INT presence { min_fraction: 1.0 } }
feature { name: "at" type: INT presence { min_fraction: 1.0 } time_domain { integer_format: UNIX_SECONDS } }
feature { name: "card" type: INT presence { min_fraction: 1.0 } }
feature { name: "amount" type: FLOAT presence { min_fraction: 1.0 } }
feature { name: "fraud" type: INT int_domain { min: 0 max: 1 } }
"""
CLOCK = """
breaker:
  clock:
    latency: {within: 1s, target: 0.9}
"""
BY_LABELS = "    labels: [{decision: block, label: '1', target: 0.5, minimum: 50}]\n"
TEXT = f"""
name: shops
schema: schema.pbtxt
event: {{id: id, time: at, deduplicate_within: 1h}}
entities: {{card: card}}
label: {{field: fraud, delay: 1d, events: {{time: seen}}}}
features: {{row: {{large: amount > 50}}}}
model: {{inputs: [amount]}}
decisions:
  - {{action: block, at_least: 0.5}}
  - {{action: approve, at_least: 0.0}}
{CLOCK}{BY_LABELS}"""
PROJECT, WITHOUT = declared(TEXT, SCHEMA), declared(TEXT.replace(BY_LABELS, ""), SCHEMA)
MEASURED = declared(TEXT + "label_metrics: {window: 1d}\n", SCHEMA)
START, HOUR, SECOND = 1_543_622_400, 3600, 1_000_000
BUNDLES = GivenBundles({name: tiny_scorer(["amount"], seed) for seed, name in enumerate(("old", "new", "shadow"))})
LOG = make_log(
    "old",
    {"at": (START + 10 * HOUR) * SECOND, "challenger": "new", "canary": canary("card", 3000), "shadows": ("shadow",)},
    {"at": (START + 20 * HOUR) * SECOND, "champion": "new", "challenger": None, "canary": None},
    {"at": (START + 30 * HOUR) * SECOND, "thresholds": {"block": 0.4}},
    clock="wall",
)


def make(seed=0):
    """Events of 40 hours, and labels of nine of ten that come up to three days later."""
    chosen = random.Random(seed)
    times = [START + chosen.randrange(40 * HOUR) for _ in range(800)]
    events = [
        {"id": n, "at": at, "card": chosen.randrange(60), "amount": round(chosen.uniform(0, 100), 2)}
        for n, at in enumerate(times)
    ]
    labels = [
        {"id": n, "fraud": chosen.randrange(2), "seen": at + chosen.randrange(72 * HOUR)}
        for n, at in enumerate(times)
        if chosen.random() < 0.9
    ]
    chosen.shuffle(events)
    chosen.shuffle(labels)
    return events, labels


def run(project, folder, source, released=True):
    """Score rows, and the metrics."""
    score = Score(project, BUNDLES("old"), "old")
    if released:
        score = Score(project, None, "", bundles=BUNDLES)
    sink = WriteFiles(str(folder / "out"), project.event.id, project.event.time)
    pipeline = make_pipeline("DirectRunner", [])
    build(pipeline, GraphConfig(project, source, score, sink, 2, lateness_us=HOUR * SECOND))
    result = pipeline.run()
    result.wait_until_finish()
    return read_output(folder / "out").scores.to_pylist(), read(result.metrics())


def over_files(project, folder, events, labels, released=True):
    folder.mkdir()
    paths = [write_rows(folder / f"{n}.jsonl", events[n::3]) for n in range(3)]
    source = read_files(project, paths, [write_rows(folder / "labels.jsonl", labels)], slice_us=24 * HOUR * SECOND)
    if released:
        source = WithReleases(source, tuple(given_log(project, LOG, BUNDLES).accept(LOG.records)))
    return run(project, folder, source, released)


def streamed(project, folder, events, labels):
    folder.mkdir()
    texts, told = ([json.dumps(row).encode() for row in rows] for rows in (events, labels))
    source = read_stream(
        project, Given(texts, 1), 41 * HOUR * SECOND, labels=Given(told, 2), idle_us=300_000, until_idle=True
    )
    source = dataclasses.replace(source, releases=given_log(project, LOG, BUNDLES))
    assert [feed.name for feed in source.feeds] == [EVENTS, LABELS]
    return run(project, folder, source)


def told(found):
    return {labels: number for (name, labels), number in found.items() if name == LABELLED.name}


def test_labels_are_counted_by_who_made_the_score(tmp_path):
    events, labels = make()
    rows, found = over_files(PROJECT, tmp_path / "files", events, labels)
    label = {row["id"]: row["fraud"] for row in labels}
    expected = Counter(
        (
            ("release", str(row["release"])),
            ("bundle", row["bundle_id"]),
            ("decision", row["decision"]),
            ("label", str(v)),
        )
        for row in rows
        if (v := label.get(row["id"])) is not None
    )
    assert told(found) == expected
    assert {(told["release"], told["bundle"]) for told in map(dict, expected)} == {
        ("0", "old"), ("1", "old"), ("1", "new"), ("2", "new"), ("3", "new")
    }  # fmt: skip
    assert told(streamed(PROJECT, tmp_path / "stream", events, labels)[1]) == expected
    assert told(over_files(MEASURED, tmp_path / "measured", events, labels)[1]) == expected


def test_without_a_log_no_release_made_them(tmp_path):
    events, labels = make()
    found = told(over_files(PROJECT, tmp_path / "files", events, labels, released=False)[1])
    assert sum(found.values()) == len(labels)
    assert {(dict(each)["release"], dict(each)["bundle"]) for each in found} == {("none", "old")}


def test_where_labels_do_not_trip_nothing_is_counted_so(tmp_path):
    events, labels = make()
    with_labels = over_files(PROJECT, tmp_path / "with", events, labels)
    without = over_files(WITHOUT, tmp_path / "without", events, labels)
    assert not told(without[1])
    assert by_label(without[1], FEEDBACK) == by_label(with_labels[1], FEEDBACK)
    assert sum(by_label(without[1], FEEDBACK).values()) == len(labels)
