"""Message brokers behind one small interface: what a stream is read from and written to.

`pubsub.py` and `kafka.py` implement it. A `Broker` is configuration: it pickles, and connects where it lands.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol


class BrokerError(RuntimeError):
    """A broker that refuses what is asked of it, such as an unknown subscription; waiting does not help."""


@dataclasses.dataclass(frozen=True)
class Messages:
    """What one call received, in the broker's order.

    `ids` are the broker's own and stay the same when a message is delivered again; `published_us` are
    microseconds since 1970 UTC; `partitions` number the parts that each have their own order (0 where there
    is one); `event_times` are of the event time attribute, where one is configured, else None.
    """

    payloads: Sequence[bytes]
    ids: Sequence[str]
    published_us: Sequence[int]
    partitions: Sequence[int]
    event_times: Sequence[str | None] | None
    receipt: Any

    def __len__(self) -> int:
        return len(self.payloads)


class Subscription(Protocol):
    """An open connection that messages come from.

    Messages that were received and not acknowledged stay this connection's for as long as it is open: it
    extends their deadlines itself. It stops fetching when its bounds on unacknowledged messages or bytes
    are reached (backpressure). After a broken connection it connects again by itself.
    """

    def receive(self, max_messages: int, timeout_seconds: float) -> Messages | None:
        """Up to `max_messages`, as soon as there is one; None after the timeout."""

    def acknowledge(self, receipt: Any) -> None:
        """Say that messages are safe; may be called from the thread that receives, and returns at once."""

    def partitions(self) -> frozenset[int]:
        """The partitions that are this connection's now."""

    def backlog(self) -> int | None:
        """Messages that wait at the broker or here, if that is known; cheap to ask often."""

    def close(self) -> None:
        """Give back what is not acknowledged, send what acknowledgements are under way, and disconnect."""


class Publisher(Protocol):
    """An open connection that messages go to."""

    def publish(self, payloads: Sequence[bytes], attributes: Sequence[dict[str, str]] | None = None) -> None:
        """Publish, and return when all are safe at the broker; waits and tries again while it is down."""

    def close(self) -> None:
        """Disconnect."""


class Broker(Protocol):
    """A topic or subscription by its URI."""

    @property
    def uri(self) -> str:
        """What it was parsed from, without secrets."""

    def subscribe(self) -> Subscription:
        """Connect for reading; BrokerError if there is no such subscription."""

    def publisher(self) -> Publisher:
        """Connect for writing; BrokerError if there is no such topic."""


def is_broker(uri: str) -> bool:
    """Whether a URI names a broker's topic or subscription, and not files."""
    return uri.startswith(("pubsub://", "kafka://"))


def open_broker(uri: str) -> Broker:
    """The broker that a URI names; ValueError if it does not name one."""
    if uri.startswith("pubsub://"):
        from pipelines.brokers.pubsub import PubsubBroker

        return PubsubBroker.parse(uri)
    from pipelines.brokers.kafka import KafkaBroker

    return KafkaBroker.parse(uri)
