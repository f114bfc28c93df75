"""Message brokers behind one small interface: what a stream is read from and written to.

`pubsub.py`, `kafka.py` and `pulsar.py` implement it. A `Broker` is configuration: it pickles, and connects
where it lands.
"""

from __future__ import annotations

import dataclasses
import os
import urllib.parse
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from models.errors import HeadraceError
from models.routes import is_topic

if TYPE_CHECKING:
    from pipelines.brokers.schema_registry import RegisteredSchema

KAFKA_CONFIG = "HEADRACE_KAFKA_CONFIG"  # names a properties file of librdkafka's settings, where no other is given
PULSAR_CONFIG = "HEADRACE_PULSAR_CONFIG"  # names a file like Pulsar's client.conf


class BrokerError(HeadraceError, RuntimeError):
    """A broker that refuses what is asked of it, such as an unknown subscription; waiting does not help."""


class BrokerOptionError(BrokerError, ValueError):
    """A URI, option or setting that can't be; nothing was asked of a broker."""


@dataclasses.dataclass(frozen=True)
class Messages:
    """What one call received, in the broker's order.

    `ids` are the broker's own and stay the same when a message is delivered again; `published_us` are
    microseconds since 1970 UTC; `partitions` number the parts that each have their own order (0 where there
    is one); `event_times` are of the event time attribute, where one is configured, else None. `schemas` are those
    that the broker keeps of the messages' values, where they are asked for; None for a message without one.
    `traceparents` are of the attribute, or header, of this name, where a broker is `traced`.
    """

    payloads: Sequence[bytes]
    ids: Sequence[str]
    published_us: Sequence[int]
    partitions: Sequence[int]
    event_times: Sequence[str | None] | None
    receipt: Any
    schemas: Sequence[RegisteredSchema | None] | None = None
    traceparents: Sequence[str | None] | None = None

    def __len__(self) -> int:
        return len(self.payloads)


class Subscription(Protocol):
    """An open connection that messages come from.

    Messages that were received and not acknowledged stay this connection's for as long as it is open: it
    extends their deadlines itself. It stops fetching when its bounds on unacknowledged messages or bytes
    are reached (backpressure). After a broken connection it connects again by itself. An outage is logged when it
    begins and when it is over.
    """

    @property
    def redelivery_seconds(self) -> float:
        """How long messages that a killed process had received may stay hidden from this one.

        Kafka's are not hidden: they come as soon as their partition is in `partitions`, which takes until the
        group has given the dead member up (its session.timeout.ms, 10 s if not set); meanwhile that may be empty.
        """

    def receive(self, max_messages: int, timeout_seconds: float) -> Messages | None:
        """Up to `max_messages`, as soon as there is one; None after the timeout."""

    def acknowledge(self, receipt: Any) -> None:
        """Say that messages are safe; may be called from any thread, in any order, and returns at once.

        A receipt of a connection, or of a time of ours with a partition, that is over does nothing.
        """

    def partitions(self) -> frozenset[int]:
        """The partitions that are this connection's now."""

    def backlog(self) -> int | None:
        """Messages that wait to be received, at the broker or here; None while that is not known. Cheap to ask often.

        Kafka tells the ends of its partitions, of a second ago. Pub/Sub tells nothing, but sends what it has: what
        is here is all as long as the bounds have room, and not known while they have none or it is disconnected.
        Pulsar tells only that nothing waits.
        """

    def close(self) -> None:
        """Give back what is not acknowledged, send what acknowledgements are under way, and disconnect."""


class Publisher(Protocol):
    """An open connection that messages go to."""

    def publish(
        self,
        payloads: Sequence[bytes],
        attributes: Sequence[dict[str, str]] | None = None,
        keys: Sequence[str | None] | None = None,
    ) -> None:
        """Publish, and return when all are safe at the broker; waits and tries again while it is down.

        Messages of one key, such as an entity, keep their order: on Kafka they go to one partition, as Java's
        clients choose it; on Pub/Sub they get an ordering key, if the topic's URI says `ordered=true`; on Pulsar they
        get their key.
        """

    def describe(self, fields: Mapping[str, str]) -> None:
        """Say what fields the messages have, JSON objects, before the first of them: Avro's type of each by its name.

        Where the topic's URI asks for it, that becomes the topic's schema; BrokerError if it is not compatible.
        """

    def close(self) -> None:
        """Disconnect."""


class Outbox(Protocol):
    """What a process publishes until it is committed, in one transaction with a mark of how far it has come."""

    @property
    def mark(self) -> str | None:
        """That of the last transaction that was committed in its name, by whichever process; None if none is known."""

    def commit(self, mark: str) -> bool:
        """Publish what waits, all of it or nothing, and return when that is committed; False if nothing waits."""

    def close(self) -> None:
        """Disconnect; of what waits for a commit nothing is there, of one under way all or nothing, with its mark."""


class Broker(Protocol):
    """A topic or subscription by its URI."""

    @property
    def uri(self) -> str:
        """What it was parsed from, without secrets."""

    @property
    def event_time_attribute(self) -> str | None:
        """The attribute, or header, of the messages that holds the event's time, if one is named."""

    @property
    def max_message_bytes(self) -> int:
        """No larger messages are published."""

    def subscribe(self, known: Collection[str] = ()) -> Subscription:
        """Connect for reading; BrokerError if there is no such subscription.

        `known` are ids of messages that a former process has kept: BrokerError if the broker's are not those any more.
        """

    def publisher(self) -> Publisher:
        """Connect for writing; BrokerError if there is no such topic."""

    def tail(self, from_start: bool = False) -> Subscription:
        """Look on at what comes to the topic from now on, or at all it has; nobody else misses any of it for that."""

    def exists(self) -> bool:
        """Whether the topic is there; BrokerError if the broker does not say."""

    def create(self) -> None:
        """Make the topic, if it is not there; BrokerError if the broker refuses."""


class Transactional(Protocol):
    """A broker that can publish by transactions."""

    def open_outbox(self, name: str) -> Outbox:
        """Connect, and end what a process before has left open in this name; BrokerError if the broker refuses."""


def is_broker(uri: str) -> bool:
    """Whether a URI names a broker's topic or subscription, and not files."""
    return is_topic(uri)


def open_broker(uri: str, *, kafka_config: str | os.PathLike[str] | None = None, **options: Any) -> Broker:
    """The broker that a URI names; BrokerOptionError if it does not name one, or an option can't be.

    `pubsub://PROJECT/NAME[?event_time=ATTRIBUTE][&ordered=true]`,
    `kafka://HOST:PORT[,HOST:PORT]/TOPIC[?group=GROUP][&event_time=HEADER][&on_lost=go_on][&tombstones=skip]`, or
    `pulsar[+ssl]://HOST:PORT[,HOST:PORT]/TENANT/NAMESPACE/TOPIC[?subscription=NAME][&type=failover|key_shared]
    [&event_time=PROPERTY][&schema=json]`. `kafka_config` is a properties file of librdkafka's settings, by default the
    one that the environment variable HEADRACE_KAFKA_CONFIG names; Pulsar's is named by HEADRACE_PULSAR_CONFIG. They are
    read wherever a connection is made, so that no secret in them travels. `options` are the broker's own fields.
    """
    if uri.startswith("pubsub://"):
        from pipelines.brokers.pubsub import PubsubBroker

        return PubsubBroker.parse(uri, **options)
    if uri.startswith(("pulsar://", "pulsar+ssl://")):
        from pipelines.brokers.pulsar import PulsarBroker

        return PulsarBroker.parse(uri, **{"config_file": os.environ.get(PULSAR_CONFIG) or None, **options})
    from pipelines.brokers.kafka import KafkaBroker

    config = os.fspath(kafka_config) if kafka_config is not None else os.environ.get(KAFKA_CONFIG)
    return KafkaBroker.parse(uri, **{"config_file": config or None, **options})


def split_query(uri: str, names: Collection[str]) -> tuple[str, dict[str, str]]:
    """A URI without its query, and that by name; BrokerOptionError unless each is of `names`, once, and not empty."""
    place, mark, query = uri.partition("?")
    pairs = urllib.parse.parse_qsl(query, keep_blank_values=True, strict_parsing=bool(mark), max_num_fields=10)
    found = dict(pairs)
    if (
        bool(mark) != bool(pairs)
        or len(found) < len(pairs)
        or not found.keys() <= set(names)
        or not all(found.values())
    ):
        raise BrokerOptionError(f"the query is not of {', '.join(names)}, once each and not empty")
    return place, found


def join_query(place: str, found: dict[str, str | None]) -> str:
    """The URI that `split_query` takes apart; what is None is left out."""
    query = urllib.parse.urlencode(
        {name: value for name, value in found.items() if value}, quote_via=urllib.parse.quote, safe=""
    )
    return f"{place}?{query}" if query else place
