"""Pulsar: a topic that a subscription reads, with messages acknowledged one by one as they are safe.

What is not acknowledged comes again after a crash or a broken connection, with the same id,
"ledger:entry:partition:index in its batch". Ledgers are numbered once in a cluster, so also a topic that is made again
has other ids. Values pass through as they are; see pipelines.sources.values.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection
from typing import Any, Self

import pulsar

from pipelines.brokers import BrokerError, BrokerOptionError, join_query, split_query
from pipelines.brokers.pulsar_client import close, connect, read_settings, say
from pipelines.brokers.pulsar_publisher import PulsarPublisher
from pipelines.brokers.pulsar_schemas import TopicSchemas
from pipelines.brokers.pulsar_subscription import PulsarSubscription
from pipelines.brokers.pulsar_topics import PulsarTail, create_topic, has_topic
from pipelines.brokers.schema_registry import RegisteredSchema

_URI = re.compile(r"(pulsar(?:\+ssl)?)://([^/?#]+)/([\w.-]+/[\w.-]+/[\w.:-]+)")
_SERVER = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}")
_KINDS = {"failover": pulsar.ConsumerType.Failover, "key_shared": pulsar.ConsumerType.KeyShared}
_QUEUE = 1000  # messages that are fetched ahead, of each partition; the client bounds no bytes
_MOST_QUEUED = 10_000  # of all partitions


@dataclasses.dataclass(frozen=True)
class PulsarBroker:
    """A topic "tenant/namespace/name", and the subscription that reads it.

    Of a `failover` subscription one reader at a time has a partition, with all of its order; of a `key_shared` one all
    readers have parts of it, by keys. The two bounds are on messages that are held without being acknowledged; the
    client fetches up to 1,000 messages a partition ahead. `Messages.event_times` are of the property
    `event_time_attribute`, or of Pulsar's own event timestamp if that is `__event_time__`. `start`, "earliest" or
    "latest", is where a subscription begins that is not there yet. A broker that does not answer for
    `connect_seconds` is a BrokerError; later it is waited for. With `schema` "json" a publisher registers the schema of
    its rows; with `schemas`, a subscription's messages come with theirs.

    `config_file` is like Pulsar's client.conf and is read on connecting, so no secret travels. A value `$NAME` in it is
    read from the environment; `$$` is a dollar sign.
    """

    service: str  # pulsar://HOST:PORT, or pulsar+ssl://
    topic: str
    subscription: str | None = None
    kind: str = "failover"
    max_outstanding_messages: int = 20_000
    max_outstanding_bytes: int = 64 << 20
    event_time_attribute: str | None = None
    start: str = "earliest"
    connect_seconds: float = 30.0
    schema: str | None = None
    schemas: bool = False
    traced: bool = False
    config_file: str | None = None

    def __post_init__(self) -> None:
        if min(self.max_outstanding_messages, self.max_outstanding_bytes) < 1:
            raise BrokerOptionError("max_outstanding_messages and max_outstanding_bytes are at least 1")
        if self.kind not in _KINDS:
            raise BrokerOptionError(f"type is {' or '.join(_KINDS)}, not {self.kind!r}")
        if self.schema not in (None, "json"):
            raise BrokerOptionError(f"schema is json, not {self.schema!r}")
        read_settings(self.config_file)

    @classmethod
    def parse(cls, uri: str, **options: Any) -> Self:
        """The broker that `uri` names; BrokerOptionError if it does not."""
        try:
            place, query = split_query(uri, ("subscription", "type", "event_time", "schema"))
        except ValueError:
            place, query = "", {}
        match = _URI.fullmatch(place)
        if match is None or not all(map(_SERVER.fullmatch, match[2].split(","))):
            shown = re.sub(r"//.*@|=[^&]*", lambda found: found[0][:1] + "...", uri)  # there may be a password
            raise BrokerOptionError(
                f"{shown!r} is not pulsar[+ssl]://HOST:PORT[,HOST:PORT]/TENANT/NAMESPACE/TOPIC"
                "?subscription=NAME&type=failover|key_shared&event_time=PROPERTY&schema=json"
            )
        found: dict[str, Any] = {"subscription": query.get("subscription"), "kind": query.get("type", "failover")}
        found |= {"event_time_attribute": query.get("event_time"), "schema": query.get("schema")}
        return cls(f"{match[1]}://{match[2]}", match[3], **{**found, **options})

    @property
    def uri(self) -> str:
        kind = self.kind if self.kind != "failover" else None
        query = {"subscription": self.subscription, "type": kind, "event_time": self.event_time_attribute}
        return join_query(f"{self.service}/{self.topic}", {**query, "schema": self.schema})

    @property
    def max_message_bytes(self) -> int:
        """Pulsar's brokers take 5 MiB with what is around it, if not told otherwise."""
        return 5_000_000

    def subscribe(self, known: Collection[str] = ()) -> PulsarSubscription:
        """See Broker; a topic that was made again has other ledgers, so that none of its ids are `known` ones."""
        if not self.subscription:
            raise BrokerError(f"{self.uri}: reading needs a subscription: add ?subscription=NAME")
        client = self.connect()
        try:
            partitions = len(client.get_topic_partitions(self.topic))
            consumer = self.consume(client)
        except pulsar.PulsarException as error:
            close(client)
            raise BrokerError(f"{self.uri}: {say(error)}") from None
        return PulsarSubscription(self, client, consumer, partitions)

    def consume(self, client: pulsar.Client) -> pulsar.Consumer:
        """A consumer of the subscription; PulsarException if it can't be."""
        return client.subscribe(
            self.topic,
            self.subscription,
            _KINDS[self.kind],
            receiver_queue_size=_QUEUE,
            max_total_receiver_queue_size_across_partitions=_MOST_QUEUED,
            initial_position=getattr(pulsar.InitialPosition, self.start.title()),
            batch_index_ack_enabled=True,  # where the broker has that on; else a batch comes again as a whole
        )

    def tail(self, from_start: bool = False) -> PulsarTail:
        """See Broker; by a reader, which leaves nothing behind."""
        return PulsarTail(self.uri, self.connect(), self.topic, from_start)

    def exists(self) -> bool:
        """See Broker."""
        client = self.connect()
        try:
            return has_topic(client, self.topic)
        finally:
            close(client)

    def create(self) -> None:
        """See Broker; of one partition, with the namespace's own retention."""
        create_topic(read_settings(self.config_file), self.topic)

    def publisher(self) -> PulsarPublisher:
        name = re.sub(r"\W", "_", self.topic.rpartition("/")[2]) if self.schema else None
        return PulsarPublisher(self.uri, self.connect(), self.topic, name)

    def schema_versions(self) -> list[RegisteredSchema]:
        """All schemas that Pulsar keeps with the topic; BrokerError if there is none."""
        client = self.connect()
        try:
            return TopicSchemas(self.uri, client, self.topic).versions()
        finally:
            close(client)

    def connect(self) -> pulsar.Client:
        """A client of the service, which whoever asks for it closes; BrokerError if its settings can't be."""
        try:
            return connect(self.service, read_settings(self.config_file), self.connect_seconds)
        except (BrokerError, OSError) as failure:
            raise BrokerError(f"{self.uri}: {failure}") from None
