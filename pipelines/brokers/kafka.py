"""Kafka, by librdkafka: a topic that a consumer group reads, with offsets committed as messages are safe.

An offset is committed when all of its partition before it is acknowledged: what is not comes again after a
crash or a rebalance, with the same id, "topic:ID/partition/offset" with the first characters of the topic's own id,
which is another one if it is made again. Values pass through as they are; see pipelines.sources.values.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Collection
from typing import Any, Self

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer

from pipelines.brokers import BrokerError, BrokerOptionError, Publisher, join_query, split_query
from pipelines.brokers.kafka_client import Outage, check_no_secrets, check_settings, connect
from pipelines.brokers.kafka_outbox import KafkaOutbox, OutboxPublisher
from pipelines.brokers.kafka_publisher import PRODUCER, KafkaPublisher
from pipelines.brokers.kafka_subscription import CONSUMER, KafkaSubscription
from pipelines.brokers.kafka_topics import TopicWatch, connect_admin, create_topic, has_topic, topic_id
from pipelines.brokers.properties import Settings, read_properties, resolve

_URI = re.compile(r"kafka://([^/?#]+)/([A-Za-z0-9._-]{1,249})")
_SERVER = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}")
_OURS = {"bootstrap.servers", "group.id", "transactional.id", *CONSUMER, *PRODUCER}
_CHOICES = {"start": ("earliest", "latest"), "on_lost": ("stop", "go_on"), "tombstones": ("dead_letter", "skip")}
_OF_URI = {"group": "group", "event_time": "event_time_attribute", "on_lost": "on_lost", "tombstones": "tombstones"}


@dataclasses.dataclass(frozen=True)
class KafkaBroker:
    """A topic, and the consumer group that reads it.

    The two bounds are on messages that are held without being acknowledged; librdkafka fetches as much again
    ahead. `Messages.event_times` are of the header `event_time_attribute`. `start`, "earliest" or "latest", is
    where a group begins that has committed nothing. Where messages that it has not read are gone, or the topic was
    made again, reading is a BrokerError, and with `on_lost` "go_on" a warning. Messages without a value come as empty
    ones, which are dead letters, or with `tombstones` "skip" not at all. A broker that does not answer for
    `connect_seconds` is a BrokerError; later it is waited for. Where an `outbox` is named, what is published goes with
    the next transaction of this process's outbox of that name.

    `settings` are librdkafka's own, and go before those of the properties file `config_file`, which is read on
    connecting. A value `$NAME` is read from the environment then, too; `$$` is a dollar sign. Secrets come from the
    file or the environment only.
    """

    servers: tuple[str, ...]
    topic: str
    group: str | None = None
    max_outstanding_messages: int = 20_000
    max_outstanding_bytes: int = 64 << 20
    event_time_attribute: str | None = None
    start: str = "earliest"
    on_lost: str = "stop"
    tombstones: str = "dead_letter"
    connect_seconds: float = 30.0
    outbox: str | None = None
    traced: bool = False
    settings: Settings = dataclasses.field(default_factory=dict, hash=False)
    config_file: str | None = None

    def __post_init__(self) -> None:
        if min(self.max_outstanding_messages, self.max_outstanding_bytes) < 1:
            raise BrokerOptionError("max_outstanding_messages and max_outstanding_bytes are at least 1")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise BrokerOptionError(f"{name} is {' or '.join(choices)}, not {getattr(self, name)}")
        check_settings(self.settings, _OURS)
        check_no_secrets(self.settings)
        self._file_settings()

    @classmethod
    def parse(cls, uri: str, **options: Any) -> Self:
        """The broker that `uri` names; BrokerOptionError if it does not."""
        try:
            place, query = split_query(uri, _OF_URI)
        except ValueError:
            place, query = "", {}
        match = _URI.fullmatch(place)
        if match is None or not all(map(_SERVER.fullmatch, match[1].split(","))):
            shown = re.sub(r"//.*@|=[^&]*", lambda found: found[0][:1] + "...", uri)  # there may be a password
            raise BrokerOptionError(
                f"{shown!r} is not kafka://HOST:PORT[,HOST:PORT]/TOPIC?group=GROUP&event_time=HEADER&on_lost=go_on"
                "&tombstones=skip"
            )
        found = {_OF_URI[name]: value for name, value in query.items()}
        return cls(tuple(match[1].split(",")), match[2], **{**found, **options})

    @property
    def uri(self) -> str:
        place = f"kafka://{','.join(self.servers)}/{self.topic}"
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        told = {
            name: getattr(self, field) for name, field in _OF_URI.items() if getattr(self, field) != defaults[field]
        }
        return join_query(place, told)

    @property
    def max_message_bytes(self) -> int:
        """Kafka's brokers and librdkafka take 1 MB with what is around it, if not told otherwise."""
        return 990_000

    def subscribe(self, known: Collection[str] = ()) -> KafkaSubscription:
        if not self.group:
            raise BrokerError(f"{self.uri}: reading needs a group: add ?group=GROUP")
        return self._read(self.group, known)

    def tail(self, from_start: bool = False) -> KafkaSubscription:
        """See Broker; as a group of its own, that commits nothing."""
        broker = dataclasses.replace(self, start="earliest" if from_start else "latest", on_lost="go_on")
        return broker._read(f"headrace-tail-{os.urandom(8).hex()}", commits=False)

    def _read(self, group: str, known: Collection[str] = (), commits: bool = True) -> KafkaSubscription:
        consumer, outage = self.connect_consumer(group, commits)
        try:
            admin = self._admin()
            watch = TopicWatch(admin, self.topic, topic_id(admin, self.topic, self.connect_seconds))
            return KafkaSubscription(self, consumer, outage, watch, known, commits)
        except BrokerError:
            consumer.close()
            raise

    def exists(self) -> bool:
        """See Broker."""
        return has_topic(self._admin(), self.topic, self.connect_seconds)

    def create(self) -> None:
        """See Broker; with the broker's own defaults for partitions, copies and retention."""
        create_topic(self._admin(), self.topic, self.connect_seconds)

    def publisher(self) -> Publisher:
        self.connect_consumer("headrace")[0].close()  # to see the topic: a producer that asks for one creates it
        if self.outbox is not None:
            return OutboxPublisher(self.outbox, self.topic)
        producer, outage = self.connect_producer({}, PRODUCER)
        outage.connected = True
        return KafkaPublisher(self.uri, self.topic, producer, outage)

    def open_outbox(self, name: str) -> KafkaOutbox:
        """See Transactional."""
        return KafkaOutbox(self, f"{name}-{self.topic}")

    def connect_producer(self, defaults: dict[str, Any], ours: dict[str, Any]) -> tuple[Producer, Outage]:
        """A producer of settings that may be changed, and of `ours`; BrokerError if it can't be."""
        return self._connect(Producer, {"partitioner": "murmur2_random", **defaults}, ours)  # as Java's clients choose

    def connect_consumer(self, group: str, commits: bool = False) -> tuple[Consumer, Outage]:
        """A consumer that has seen the topic; BrokerError if there is none."""
        defaults = {
            "partition.assignment.strategy": "cooperative-sticky",  # a member keeps what it can in a rebalance
            "session.timeout.ms": 10_000,  # after which a dead member's partitions are another's; not 45 s
            "fetch.queue.backoff.ms": 20,  # it would wait a second, whenever it had fetched as far ahead as this
            "queued.min.messages": min(self.max_outstanding_messages, 100_000),
            "queued.max.messages.kbytes": max(self.max_outstanding_bytes >> 10, 1),
        }
        consumer, outage = self._connect(
            Consumer, defaults, {**CONSUMER, "group.id": group, "enable.auto.commit": commits}
        )
        try:
            topic = consumer.list_topics(self.topic, timeout=self.connect_seconds).topics[self.topic]
            why = None if topic.partitions else topic.error or KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART)
        except KafkaException as failure:
            consumer.poll(0)  # calls error_cb, which knows more
            why = outage.error or failure.args[0]
        if why is not None:
            consumer.close()
            raise BrokerError(f"{self.uri}: {why.str()}")
        outage.connected = True
        return consumer, outage

    def _admin(self) -> Any:
        try:
            settings = resolve({**self._file_settings(), **self.settings})
            return connect_admin(",".join(self.servers), settings)
        except (BrokerError, OSError) as failure:
            raise BrokerError(f"{self.uri}: {failure}") from None

    def _connect(
        self, client: Callable[..., Any], defaults: dict[str, Any], ours: dict[str, Any]
    ) -> tuple[Any, Outage]:
        outage = Outage(self.uri)
        first = {"bootstrap.servers": ",".join(self.servers), "reconnect.backoff.ms": 500}
        try:
            chosen = resolve({**self._file_settings(), **self.settings})
            return connect(client, {**first, **defaults, **chosen, **ours}, outage), outage
        except (BrokerError, OSError) as failure:
            raise BrokerError(f"{self.uri}: {failure}") from None

    def _file_settings(self) -> dict[str, str]:
        settings = read_properties(self.config_file) if self.config_file else {}
        check_settings(settings, _OURS, self.config_file or "")
        return settings
