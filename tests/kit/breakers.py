"""A shop whose releases fall back by a circuit breaker, and models that are bad in each of some ways."""

import dataclasses
import functools
import json
import pathlib
import random
import tempfile

import numpy as np

from models.quality.parts import make_baseline
from pipelines.graph import GraphConfig, build
from pipelines.jobs.score import watch_scores
from pipelines.runners import make_pipeline
from pipelines.sinks.files import WriteFiles
from pipelines.sources.feeds import Topic, feeds_of
from pipelines.sources.files import ReadFiles
from pipelines.sources.listing import Files
from pipelines.sources.release_feed import WithReleases
from pipelines.sources.stream import ReadStream
from tests.kit.bundles import AnyBundle
from tests.kit.declared import declared
from tests.kit.given import Given
from tests.kit.releases import GivenBundles, given_log, make_log
from tests.kit.support import read_output, tiny_scorer, write_rows
from transforms.metrics import read
from transforms.score import Score

SCHEMA = """
feature { name: "id" type: INT presence { min_fraction: 1.0 } }
feature { name: "at" type: INT presence { min_fraction: 1.0 } time_domain { integer_format: UNIX_SECONDS } }
feature { name: "card" type: INT presence { min_fraction: 1.0 } }
feature { name: "amount" type: FLOAT presence { min_fraction: 1.0 } }
"""
TEXT = """
name: shops
schema: schema.pbtxt
event: {id: id, time: at, deduplicate_within: 1h}
entities: {card: card}
fixed_point: {amount: 2}
features:
  rolling:
    - {entity: card, windows: {D: 1d}, features: {n: count}}
model: {inputs: [amount]}
decisions:
  - {action: block, at_least: 0.6}
  - {action: review, at_least: 0.3}
  - {action: approve, at_least: 0.0}
quality: {window: 1h, min_rows: 30, psi: 0.3, decision_share: 0.2}
"""
BREAKER = "breaker: {kinds: [score_range, psi, decision_share], wait: 2, probe: 0.3, good: 2}\n"
START = 1_543_622_400  # 1 December 2018
HOUR = 3600
SECOND = 1_000_000
PER_HOUR = 80


def shop(breaker=BREAKER):
    """The project with a breaker, or without."""
    return declared(TEXT + breaker, SCHEMA)


def at(hours):
    """An event time in microseconds."""
    return round((START + hours * HOUR) * SECOND)


def make(hours=16, seed=0):
    """Events, so many an hour, in the order of their times."""
    chosen = random.Random(seed)
    times = sorted(START + hour * HOUR + chosen.randrange(HOUR) for hour in range(hours) for _ in range(PER_HOUR))
    return [
        {"id": n, "at": time, "card": chosen.randrange(60), "amount": round(chosen.uniform(0, 100), 2)}
        for n, time in enumerate(times)
    ]


def hour_of(event):
    """Hours since the first event may be."""
    return (event["at"] - START) / HOUR


def log_with(bad, **more):
    """A log by which another model is champion from hour 4.5 on."""
    return make_log("old", {"at": at(4.5), "champion": bad, **more})


def flaky(hours=20):
    """Events of which some are huge, in hours 8 and 13, and a log by which a model that fails at those is champion."""
    events = make(hours)
    for event in events:
        if int(hour_of(event)) in (8, 13) and event["id"] % 3 == 0:
            event["amount"] = 5000.0
    return events, log_with("flaky")


@dataclasses.dataclass(frozen=True)
class BadScorer:
    """What a model says, changed."""

    scorer: object
    change: object

    def __getattr__(self, name):
        return getattr(object.__getattribute__(self, "scorer"), name)

    def __reduce__(self):
        return BadScorer, (self.scorer, self.change)

    def score(self, rows):
        return self.change(np.asarray(rows), self.scorer.score(rows)).astype(np.float32)


def nan(rows, scores):
    return np.full_like(scores, np.nan)


def constant(rows, scores):
    return np.full_like(scores, 0.75)


def shifted(rows, scores):
    return np.clip(scores + 0.4, 0, 1)


def nan_of_huge(rows, scores):
    """Bad of some events alone."""
    return np.where(rows[:, 0] > 1000, np.nan, scores)


CHANGES = {"nan": nan, "constant": constant, "shifted": shifted, "flaky": nan_of_huge}
_GOOD = {name: tiny_scorer(["amount"], seed) for seed, name in enumerate(("old", "new"))}
BUNDLES = GivenBundles({**_GOOD, **{name: BadScorer(_GOOD["old"], change) for name, change in CHANGES.items()}})


@functools.cache
def baseline():
    """What the old model says of other events."""
    project, events = shop(""), make(hours=40, seed=99)
    with tempfile.TemporaryDirectory() as folder:
        output, _ = batch(project, pathlib.Path(folder), events, make_log("old"), bundle=None)
    return AnyBundle("old", make_baseline(output.scores.to_batches(), project))


def run(project, folder, source, followed, streams, shards=2, runner="DirectRunner", beam_args=(), **options):
    """What a run wrote, and its metrics."""
    score = Score(project, None, "", bundles=followed.bundles)
    sink = WriteFiles(str(folder), project.event.id, project.event.time)
    bundle = options["bundle"] if "bundle" in options else baseline()
    boundary_us = HOUR * SECOND if streams else source.source.slice_us
    watch = watch_scores(project, bundle, boundary_us, "fallback", shards, noted=options.get("noted", ()))
    config = GraphConfig(project, source, score, sink, shards, lateness_us=HOUR * SECOND, watch=watch)
    pipeline = make_pipeline(runner, beam_args)
    build(pipeline, config)
    result = pipeline.run()
    result.wait_until_finish()
    return read_output(folder), read(result.metrics())


def batch(project, folder, events, log, runner="DirectRunner", slice_us=None, **options):
    """Over files."""
    folder.mkdir(exist_ok=True, parents=True)
    paths = [write_rows(folder / f"{n}.jsonl", part) for n, part in enumerate((events[::2], events[1::2]))]
    feeds = feeds_of(project, {"events": Files(tuple(paths))})
    source = ReadFiles(feeds, **({"slice_us": slice_us} if slice_us else {}))
    followed = given_log(project, log, BUNDLES)
    with_releases = WithReleases(source, tuple(followed.accept(log.records)))
    return run(project, folder / "out", with_releases, followed, False, runner=runner, **options)


def stream(project, folder, events, log, seed=0, grows=False, **options):
    """As messages, in the order given."""
    followed = given_log(project, log, BUNDLES, grows=grows)
    topics = {"events": Topic(Given([json.dumps(row).encode() for row in events], seed))}
    source = ReadStream(
        feeds_of(project, topics), HOUR * SECOND // 4, 300_000, True, releases=followed, cut_us=HOUR * SECOND
    )
    return run(project, folder, source, followed, True, **options)


def shuffled(events, seed):
    """Events up to ten minutes out of order, some twice."""
    chosen = random.Random(seed)
    delayed = [(event["at"] + chosen.randrange(600), chosen.random(), event) for event in [*events, *events[::50]]]
    return [event for *_, event in sorted(delayed, key=lambda each: each[:2])]
