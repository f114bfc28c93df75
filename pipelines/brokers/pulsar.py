"""Pulsar: a topic that a subscription reads, with messages acknowledged one by one as they are safe.

What is not acknowledged comes again after a crash or a broken connection, with the same id,
"ledger:entry:partition:index in its batch". Ledgers are numbered once in a cluster, so also a topic that is made again
has other ids. Values pass through as they are; see pipelines.sources.values.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import threading
import time
from collections.abc import Collection, Iterable
from typing import Any, Self

import pulsar

from pipelines.brokers import BrokerError, BrokerOptionError, Messages, join_query, split_query
from pipelines.brokers.pulsar_client import REFUSALS, Outage, close, connect, read_settings, say
from pipelines.brokers.pulsar_publisher import EVENT_TIMESTAMP, PulsarPublisher
from pipelines.brokers.pulsar_schemas import TopicSchemas
from pipelines.brokers.pulsar_topics import PulsarTail, create_topic, has_topic
from pipelines.brokers.schema_registry import RegisteredSchema

_URI = re.compile(r"(pulsar(?:\+ssl)?)://([^/?#]+)/([\w.-]+/[\w.-]+/[\w.:-]+)")
_SERVER = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}")
_KINDS = {"failover": pulsar.ConsumerType.Failover, "key_shared": pulsar.ConsumerType.KeyShared}
_QUEUE = 1000  # messages that are fetched ahead, of each partition; the client bounds no bytes
_MOST_QUEUED = 10_000  # of all partitions
_LOOK_SECONDS = 5.0  # how often it is asked, in an outage, whether the topic is still there
_SLICE_SECONDS = 0.2

Place = tuple[int, int, int, int]  # ledger, entry, partition, index in the batch


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
            consumer = client.subscribe(
                self.topic,
                self.subscription,
                _KINDS[self.kind],
                receiver_queue_size=_QUEUE,
                max_total_receiver_queue_size_across_partitions=_MOST_QUEUED,
                initial_position=getattr(pulsar.InitialPosition, self.start.title()),
                batch_index_ack_enabled=True,  # where the broker has that on; else a batch comes again as a whole
            )
        except pulsar.PulsarException as error:
            close(client)
            raise BrokerError(f"{self.uri}: {say(error)}") from None
        return PulsarSubscription(self, client, consumer, partitions)

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


class PulsarSubscription:
    """A reader of the subscription. One thread receives, any may acknowledge.

    After a broken connection the broker hands out again what was not acknowledged; of that, what is still held here is
    not received a second time, or its second receipt would acknowledge what is not safe yet.
    """

    redelivery_seconds = 3.0  # a failover subscription is given to another reader after a second

    def __init__(self, broker: PulsarBroker, client: pulsar.Client, consumer: pulsar.Consumer, partitions: int) -> None:
        self._broker, self._client, self._consumer = broker, client, consumer
        self._outage = Outage(broker.uri)
        self._schemas = TopicSchemas(broker.uri, client, broker.topic) if broker.schemas else None
        self._closing = threading.Event()
        self._refused: Exception | None = None
        self._idle = False  # the last time that was looked, nothing waited
        # `_changed` guards all from here to `_number`.
        self._changed = threading.Condition()
        self._partitions = frozenset(range(partitions))
        self._held: dict[Place, Any] = {}  # what acknowledges each message
        self._receipts: dict[int, tuple[list[Place], int]] = {}  # by number: messages, their bytes
        self._held_bytes, self._mean_bytes = 0, 1
        self._number, self._token = 0, os.urandom(16)  # of the last receipt; and of this connection's receipts
        self._watch = threading.Thread(target=self._look, name="pulsar-watch", daemon=True)
        self._watch.start()

    def receive(self, max_messages: int, timeout_seconds: float) -> Messages | None:
        """See Subscription; BrokerError also if the topic is deleted or forbidden meanwhile."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            wait = min(max(deadline - time.monotonic(), 0), _SLICE_SECONDS)
            with self._changed:
                room = min(self._changed.wait_for(self._room, wait), max_messages)
            if self._closing.is_set():
                raise BrokerError("closed")
            if self._refused is not None:
                raise BrokerError(f"{self._broker.uri}: {say(self._refused)}")
            received = self._hand_out(self._fetch(room, wait)) if room else None
            if received is not None or time.monotonic() >= deadline:
                return received

    def acknowledge(self, receipt: Any) -> None:
        """Let messages be acknowledged, within a tenth of a second; while the broker is down, once it is back."""
        token, number = receipt
        with self._changed:
            places, size = self._receipts.pop(number, ([], 0)) if token == self._token else ([], 0)
            self._held_bytes -= size
            ids = [self._held.pop(place) for place in places]
            self._changed.notify_all()
        with contextlib.suppress(pulsar.PulsarException):  # what is not acknowledged comes again
            for each in ids:
                self._consumer.acknowledge(each)

    def partitions(self) -> frozenset[int]:
        """All of the topic's: the client does not tell which of a failover subscription another reader has."""
        return self._partitions

    def backlog(self) -> int | None:
        """0 if nothing waits; else not known, as only the admin interface tells."""
        return 0 if self._idle and not self._outage.down else None

    def close(self) -> None:
        """Takes seconds at the most, also if the broker does not answer."""
        self._closing.set()
        with self._changed:
            self._token = b""
            self._changed.notify_all()
        close(self._client)
        self._watch.join(_SLICE_SECONDS)

    def _room(self) -> int:
        """How many messages may be taken, by the bounds and by what messages weighed of late."""
        room = self._broker.max_outstanding_messages - len(self._held)
        free = self._broker.max_outstanding_bytes - self._held_bytes
        return min(room, max(free // self._mean_bytes, 1)) if room > 0 and free > 0 else 0

    def _fetch(self, most: int, wait: float) -> list[Any]:
        """Up to so many messages, as soon as there is one, and no more bytes than there is room for."""
        fetched: list[Any] = []
        free = self._broker.max_outstanding_bytes - self._held_bytes
        try:
            while len(fetched) < most and free > 0:
                fetched.append(self._consumer.receive(0 if fetched else max(int(wait * 1000), 1)))
                free -= fetched[-1]._message.length()
            self._idle = False
        except pulsar.Timeout:
            self._idle = not fetched
        except pulsar.PulsarException as error:
            if self._closing.is_set():
                raise BrokerError("closed") from None
            raise BrokerError(f"{self._broker.uri}: {say(error)}") from None
        self._outage.tell(bool(fetched) or self._consumer.is_connected())
        return fetched

    def _hand_out(self, fetched: list[Any]) -> Messages | None:
        named = [(_place(each.message_id()), each) for each in fetched]
        with self._changed:
            new = {}  # as a message may come again within one call, too
            for place, each in named:
                if place not in self._held:
                    new[place] = each
                self._held[place] = each.message_id()
            if not new:
                return None
            payloads = [each.data() for each in new.values()]
            places = list(new)
            parts = [max(place[2], 0) for place in places]  # -1 where the topic is not in partitions
            if not self._partitions.issuperset(parts):  # some were added
                self._partitions = self._partitions.union(parts)
            size = sum(map(len, payloads))
            self._number += 1
            self._receipts[self._number] = places, size
            self._held_bytes += size
            self._mean_bytes = max(size // len(payloads), 1)
        ids = ["{}:{}:{}:{}".format(*place) for place in places]
        published = [1000 * each.publish_timestamp() for each in new.values()]
        schemas = None
        if self._schemas is not None:
            schemas = [self._schemas.version(each._message.int_schema_version()) for each in new.values()]
        times = self._times(new.values())
        return Messages(payloads, ids, published, parts, times, (self._token, self._number), schemas)

    def _times(self, messages: Iterable[Any]) -> list[str | None] | None:
        name = self._broker.event_time_attribute
        if name == EVENT_TIMESTAMP:
            return [str(when) if (when := each.event_timestamp()) else None for each in messages]
        return [each.properties().get(name) for each in messages] if name else None

    def _look(self) -> None:
        """In an outage, ask now and then whether the topic is still there: the client tries again for ever."""
        while not self._closing.wait(_LOOK_SECONDS):
            if self._outage.down:
                try:
                    self._client.get_topic_partitions(self._broker.topic)
                except REFUSALS as error:
                    self._refused = error
                except pulsar.PulsarException:  # still down, or closed
                    pass


def _place(name: Any) -> Place:
    return name.ledger_id(), name.entry_id(), name.partition(), name.batch_index()
