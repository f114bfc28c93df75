"""`headrace run` over a broker, and `headrace publish`: the same graph, for as long as it is let run."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from models import progress
from models.features.row import horizon_us
from models.predictors.bundle import Bundle
from models.project.expressions import NOT_FINITE
from models.project.project import Project
from pipelines.brokers import Broker, BrokerError, open_broker
from pipelines.cli.display import working
from pipelines.config import DATAFLOW, DEFAULT_SHARDS, DIRECT, FLINK, GraphConfig, is_only_made, make_pipeline
from pipelines.graph import build
from pipelines.jobs.parity import event_times, read_payloads, read_texts
from pipelines.jobs.score import watch_scores
from pipelines.runners.inprocess.engine import LocalRunner
from pipelines.sinks.topics import PublishRows
from pipelines.sources.files import check_files
from pipelines.sources.flink_stream import ReadFlinkStream
from pipelines.sources.stream import ReadStream
from pipelines.sources.values import open_values
from transforms.score import Score

STATUS_SECONDS = 10
LATENESS_US = 86_400_000_000  # an event late by no more than this still finds all events of its windows
PUBLISH_TICK_SECONDS = 0.05

_LOG = logging.getLogger("headrace")


def score_stream(
    project: Project,
    bundle: Bundle,
    scorer: Any,
    source: str,
    sink: str,
    dead_letters: str,
    *,
    allowance_us: int,
    journal: str | None,
    history: Sequence[str] = (),
    at_arrival: bool = False,
    lateness_us: int = LATENESS_US,
    labels: str | None = None,
    values: str = "json",
    kafka_config: str | None = None,
    alert_sinks: Sequence[str] = (),
    runner: str = DIRECT,
    shards: int = DEFAULT_SHARDS,
    reason_codes: int = 0,
    beam_args: tuple[str, ...] = (),
) -> None:
    """Score the messages of a subscription until SIGINT or SIGTERM; then finish what is under way."""
    check_files(history)
    broker = open_broker(source, kafka_config=kafka_config)
    read_values = open_values(values, getattr(broker, "topic", None))
    read_values.check(project.contract)
    read = ReadFlinkStream if runner == FLINK else ReadStream
    reading: Any = read(
        broker,
        project,
        allowance_us,
        journal=journal,
        history=tuple(history),
        horizon_us=horizon_us(project, lateness_us),
        at_arrival=at_arrival,
        values=read_values,
        cut_us=project.quality.window if project.quality else None,
        labels=open_broker(labels, kafka_config=kafka_config) if labels else None,
    )
    if runner == DATAFLOW:
        reading = _native_source(broker, bool(journal or history or at_arrival or labels or values != "json"))
    held_back = project.quality is not None and project.quality.gate == "quarantine"
    config = GraphConfig(
        project,
        reading,
        Score(project, scorer, bundle.bundle_id, reason_codes, keep_marks=at_arrival),
        PublishRows(
            open_broker(sink, kafka_config=kafka_config),
            open_broker(dead_letters, kafka_config=kafka_config),
            next(iter(project.entities.values()), None),
            open_broker(f"{sink}-quality", kafka_config=kafka_config) if project.quality else None,
            open_broker(f"{sink}-quarantine", kafka_config=kafka_config) if held_back else None,
        ),
        shards,
        lateness_us=lateness_us,
        at_arrival=at_arrival,
        check_slices=runner != DATAFLOW,
        watch=watch_scores(project, bundle, project.quality.window if project.quality else 0, "fallback", shards),
        alert_sinks=tuple(alert_sinks),
    )
    pipeline = make_pipeline(runner, beam_args)
    build(pipeline, config)
    if runner == DATAFLOW and is_only_made(pipeline):
        from pipelines.runners.dataflow import make

        make(pipeline)
        return
    with working("scoring"), _status_lines(status), _stopped_by_signals(pipeline.runner):
        pipeline.run().wait_until_finish()


def _native_source(broker: Broker, asks_for_more: bool) -> Any:
    """Dataflow's own reader, which keeps what was read itself: there is no journal, nor history, nor a first score."""
    from pipelines.brokers.pubsub import PubsubBroker
    from pipelines.sources.native_pubsub import ReadNativePubsub

    if not isinstance(broker, PubsubBroker) or asks_for_more:
        raise BrokerError(
            "on Dataflow a stream comes from pubsub:// in JSON, "
            "without --journal, --history, --labels and --order arrival"
        )
    return ReadNativePubsub(broker)


@contextlib.contextmanager
def _stopped_by_signals(runner: Any) -> Iterator[None]:
    """Let SIGINT and SIGTERM stop the in-process engine, and a second one break off; others have their own ways."""
    if not isinstance(runner, LocalRunner):
        yield
        return

    def stop(number: int, frame: object) -> None:
        if runner.stopped:  # it was asked before, and waits for something, such as a broker that is down
            raise KeyboardInterrupt
        runner.stop()

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _status_lines(text: Callable[[], str]) -> Iterator[None]:
    """Log how far it has come, now and then and at the end."""
    over = threading.Event()
    started = time.monotonic()

    def say() -> None:
        _LOG.info("%.0f s: %s", time.monotonic() - started, text())

    def keep_saying() -> None:
        while not over.wait(STATUS_SECONDS):
            say()

    thread = threading.Thread(target=keep_saying, name="status", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        say()


def status() -> str:
    """One line on how a stream is doing: counts so far, what waits, and latencies since it was last asked."""
    done, gauges = progress.done(), progress.gauges()
    parts = [f"{done.get('read', 0):,} in", f"{done.get('written', 0):,} out", f"{done.get('dead-lettered', 0):,} dead"]
    parts += [
        f"{done[step]:,} {step}" for step in ("late", "corrected", "duplicate", "history", "missing") if step in done
    ]
    parts += [f"{int(gauges[name]):,} {name}" for name in ("waiting", "backlog") if name in gauges]
    parts += [f"{events:,} {step}" for step, events in sorted(done.items()) if " labelled " in step]
    parts += [f"{events:,} {name}" for name, events in sorted(done.items()) if name.startswith(NOT_FINITE)]
    if "watermark lag" in gauges:
        parts.append(f"watermark {gauges['watermark lag']:,.1f} s behind")
    if (latencies := progress.take_latencies()) is not None:
        parts.append(f"p50 {latencies[0]:,.0f} ms, p99 {latencies[1]:,.0f} ms from published to scored")
    return ", ".join(parts)


def publish(
    project: Project, uris: list[str], topic: str, speed_up: float | None, key: str | None, kafka_config: str | None
) -> int:
    """Publish the records of files as JSON in their order, `speed_up` times as fast as they happened.

    Messages with the same value of the field `key` stay in order, also on a topic of several partitions.
    """
    broker = open_broker(topic, kafka_config=kafka_config)
    publisher = broker.publisher()
    with working("reading"):
        payloads = read_payloads(uris)
        times = event_times(payloads, project)
    name = broker.event_time_attribute  # such as Dataflow's watermark follows
    started, first = time.monotonic(), int(times[0]) if len(times) else 0
    sent = 0

    def so_far() -> str:
        return f"{sent:,} of {len(payloads):,} events published"

    with working("publishing"), _status_lines(so_far):
        while sent < len(payloads):
            stop = min(sent + 1000, len(payloads))
            if speed_up is not None:
                reached = first + (time.monotonic() - started) * 1e6 * speed_up
                later = next((i for i in range(sent, stop) if times[i] > reached), stop)
                if later == sent:
                    time.sleep(PUBLISH_TICK_SECONDS)
                    continue
                stop = later
            stamps = [{name: str(t)} for t in (times[sent:stop] // 1000).tolist()] if name else None
            keys = read_texts(payloads[sent:stop], project, key) if key else None
            publisher.publish(payloads[sent:stop], stamps, keys)
            progress.advance("written", stop - sent)
            sent = stop
    publisher.close()
    return sent
