"""Topics that a stream reads and writes, opened as its spec says, and when its messages are acknowledged."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import apache_beam as beam

from models.features.row import horizon_us
from models.project.sections import parse_duration
from models.record import EVENTS, LABELS
from pipelines.brokers import Broker, is_broker, open_broker
from pipelines.config import RunSpec
from pipelines.monitoring.traces import Traces
from pipelines.runners import Reading
from pipelines.sources import DAY_US
from pipelines.sources.feeds import ReadBeside, Topic, feeds_of
from pipelines.sources.files import ReadFiles, check_files
from pipelines.sources.listing import Files

if TYPE_CHECKING:  # streams import the brokers' clients, which files do without
    from pipelines.sinks.topics import PublishRows
    from pipelines.sources.acknowledge import Acknowledge
    from pipelines.sources.release_feed import Followed


def open_stream(spec: RunSpec, releases: Followed | None = None, traces: Traces | None = None) -> beam.PTransform:
    """The messages of a subscription, read as the engine needs it; tables of files are read beside it.

    With `releases`, that log is followed; with `traces`, what messages say of who sent them is heeded.
    """
    files = {name: Files(uris) for name, uris in spec.table_uris.items() if not any(map(is_broker, uris))}
    for each in files.values():
        check_files(each)
    stream = _open_feeds(spec, releases, traces, [name for name in spec.table_uris if name not in files])
    return ReadBeside(stream, ReadFiles(feeds_of(spec.project, files))) if files else stream


def _open_feeds(
    spec: RunSpec, releases: Followed | None, traces: Traces | None, tables: Sequence[str]
) -> beam.PTransform:
    from pipelines.sources.native_pubsub import ReadNativePubsub
    from pipelines.sources.release_reader import FollowReleases
    from pipelines.sources.stream import ReadStream
    from pipelines.sources.values import BrokerValues, Values, open_values

    project = spec.project
    history = Files(() if spec.history_state else spec.history)
    check_files(history)
    broker: Any = _broker(spec, spec.sources[0])
    if traces is not None:
        broker = dataclasses.replace(broker, traced=True)
    if spec.values == "pulsar":
        broker = dataclasses.replace(broker, schemas=True)
        values: Values = BrokerValues(broker.schema_versions, broker.uri)
    else:
        values = open_values(spec.values, getattr(broker, "topic", None))
    values.check(project.event_type.read)
    topics = {EVENTS: Topic(broker, values)}
    if spec.labels:
        topics[LABELS] = Topic(_broker(spec, spec.labels[0]))
    topics |= {name: Topic(_broker(spec, *spec.table_uris[name])) for name in tables}
    feeds = feeds_of(project, topics)
    if spec.profile.reading is Reading.NATIVE:
        native = ReadNativePubsub(feeds[0])
        return FollowReleases(native, releases) if releases else native
    window_us = project.quality.window if project.quality else None
    periods = tuple(dict.fromkeys(table.period for table in project.aggregates.values()))
    cut_us = math.gcd(window_us or DAY_US, DAY_US) if periods or project.label_metrics else window_us
    ends: dict[str, Any] = {"idle_us": parse_duration(spec.until_idle), "until_idle": True} if spec.until_idle else {}
    return ReadStream(
        feeds,
        parse_duration(spec.allowance),
        acknowledge=acknowledge(spec),
        history=feeds_of(project, {EVENTS: history}) if history.patterns else (),
        at_arrival=spec.at_arrival,
        cut_us=cut_us,
        held_us=project.quality.held_us if project.quality else None,
        periods=periods,
        releases=releases,
        traces=traces,
        **ends,
    )


def acknowledge(spec: RunSpec) -> Acknowledge:
    """When messages are acknowledged; where an engine has checkpoints, they take the place of a journal."""
    from pipelines.sources.acknowledge import NEVER_US, AfterBundle, AfterCheckpoint, AfterJournal

    if spec.profile.reading is Reading.CHECKPOINTED:
        return AfterCheckpoint()
    if spec.journal is None:
        return AfterBundle()
    forever = any(is_broker(uri) for uris in spec.table_uris.values() for uri in uris)  # as a table's row may be needed
    horizon = NEVER_US if forever else horizon_us(spec.project, parse_duration(spec.lateness))
    return AfterJournal(spec.journal, horizon, _sink_broker(spec, spec.sink) if spec.transactional else None)


def open_topics(spec: RunSpec, shadows: bool = False, traces: Traces | None = None) -> PublishRows:
    """The topics of a stream's sink; with `shadows`, that of the rows of shadows, too."""
    from pipelines.sinks.topics import PublishRows, routed_topics, sink_topics

    uris = sink_topics(spec.project, spec.sink, spec.dead_letters, shadows)
    topics = {kind: _sink_broker(spec, uri) for kind, uri in uris.items()}
    routed = {decision: _sink_broker(spec, uri) for decision, uri in routed_topics(spec.project, spec.sink).items()}
    key = next(iter(spec.project.entities.values()), None)
    fallback = routed.get(spec.project.fallback.action) if spec.project.fallback else None
    return PublishRows(
        **topics,
        key=key,
        project=spec.project.name,
        fallback=fallback,
        routed=routed,
        event_time=spec.project.event.time,
        traces=traces,
    )


def _broker(spec: RunSpec, uri: str) -> Broker:
    return open_broker(uri, kafka_config=spec.kafka_config)


def _sink_broker(spec: RunSpec, uri: str) -> Any:
    """A topic that is written to; with --transactional by this process's transactions, which the journal names."""
    options: dict[str, Any] = {"outbox": spec.journal} if spec.transactional else {}
    return open_broker(uri, kafka_config=spec.kafka_config, **options)
