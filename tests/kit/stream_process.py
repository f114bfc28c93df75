"""A stream in a process of its own, which a test may kill; started from a process that has all imported already."""

import multiprocessing
import os
import signal

from models.features.row import horizon_us
from pipelines.brokers import open_broker
from pipelines.brokers.pubsub import PubsubSubscription
from pipelines.config import GraphConfig, make_pipeline
from pipelines.graph import build
from pipelines.sinks.topics import PublishRows
from tests.kit.support import card_fraud, read_stream, tiny_scorer
from transforms.score import Score

DAY = 86_400_000_000


def run(address, journal, allowance_us, hold_seconds, options):
    """Score p/events until SIGTERM."""
    os.environ["PUBSUB_EMULATOR_HOST"] = address
    PubsubSubscription.redelivery_seconds = hold_seconds
    project = card_fraud()
    source = read_stream(
        project,
        open_broker("pubsub://p/events"),
        allowance_us,
        journal=journal,
        horizon_us=horizon_us(project, DAY),
        **options,
    )
    arrival = source.at_arrival
    score = Score(project, tiny_scorer(project.model.inputs), "bundle", keep_marks=arrival)
    sink = PublishRows(open_broker("pubsub://p/scores"), open_broker("pubsub://p/dead"))
    pipeline = make_pipeline("DirectRunner", [])
    build(pipeline, GraphConfig(project, source, score, sink, lateness_us=DAY, at_arrival=arrival))
    signal.signal(signal.SIGTERM, lambda *_: pipeline.runner.stop())
    pipeline.run().wait_until_finish()


def context():
    """What starts such processes quickly."""
    started = multiprocessing.get_context("forkserver")
    started.set_forkserver_preload(["tests.kit.stream_process"])
    return started
