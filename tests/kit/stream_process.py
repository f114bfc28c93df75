"""A stream in a process of its own, which a test may kill; started from a process that has all imported already."""

import functools
import multiprocessing
import os
import random
import signal
import time

from models.features.row import horizon_us
from pipelines.brokers import open_broker
from pipelines.brokers.pubsub import PubsubSubscription
from pipelines.graph import GraphConfig, build
from pipelines.runners import make_pipeline
from pipelines.sinks.store import WriteStore
from pipelines.sinks.topics import PublishRows
from tests.kit.support import card_fraud, read_stream, tiny_scorer
from transforms.score import Score

DAY = 86_400_000_000


def run(address, journal, allowance_us, hold_seconds, options):
    """Score p/events of an embedded Pub/Sub until SIGTERM."""
    os.environ["PUBSUB_EMULATOR_HOST"] = address
    PubsubSubscription.redelivery_seconds = hold_seconds
    uris = [f"pubsub://p/{name}" for name in ("events", "scores", "dead")]
    run_between([open_broker(uri) for uri in uris], journal, allowance_us, options)


def run_command(address, hold_seconds, args):
    """The command `headrace` with these arguments, over an embedded Pub/Sub."""
    from pipelines.cli.main import app

    os.environ["PUBSUB_EMULATOR_HOST"] = address
    PubsubSubscription.redelivery_seconds = hold_seconds
    app(args, standalone_mode=False)


def run_between(brokers, journal, allowance_us, options):
    """Score from a broker to those of scores and dead letters until SIGTERM.

    Of the options, `routed` are brokers of decisions that go elsewhere than the scores, `store` is an online store that
    is written, `releases` is the log that is followed, and `stretch_seconds` is how long the moments before a transaction is committed and before a mark is
    written take at the most, so that kills hit them.
    """
    events, scores, dead = brokers
    project, routed, released = card_fraud(), options.pop("routed", {}), options.get("releases")
    uri = options.pop("store", None)
    if stretch_seconds := options.pop("stretch_seconds", 0.0):
        _stretch(stretch_seconds)
    given = {"journal": journal, "horizon_us": horizon_us(project, DAY), **options}
    source = read_stream(project, events, allowance_us, **given)
    arrival = source.at_arrival
    bundles = released.bundles if released else None
    score = Score(project, tiny_scorer(project.model.inputs), "bundle", keep_marks=arrival, bundles=bundles)
    pipeline = make_pipeline("DirectRunner", [])
    sink = PublishRows(scores, dead, routed=routed)
    store = WriteStore(uri, project, DAY) if uri else None
    build(pipeline, GraphConfig(project, source, score, sink, lateness_us=DAY, at_arrival=arrival, store=store))
    signal.signal(signal.SIGTERM, lambda *_: pipeline.runner.stop())
    pipeline.run().wait_until_finish()


def _stretch(seconds):
    from pipelines.brokers.kafka_outbox import KafkaOutbox
    from pipelines.sources.journal_writer import JournalWriter

    def slowed(function):
        @functools.wraps(function)
        def wait_first(*arguments, **named):
            time.sleep(random.uniform(0, seconds))
            return function(*arguments, **named)

        return wait_first

    class Slow:
        def __init__(self, producer):
            self._producer = producer
            self.commit_transaction = slowed(producer.commit_transaction)

        def __getattr__(self, name):
            return getattr(self._producer, name)

    connect = KafkaOutbox._connect
    KafkaOutbox._connect = lambda outbox: Slow(connect(outbox))
    JournalWriter.mark = slowed(JournalWriter.mark)


def context():
    """What starts such processes quickly."""
    started = multiprocessing.get_context("forkserver")
    started.set_forkserver_preload(["tests.kit.stream_process", "tests.kit.releases"])
    return started
