"""Reading a Pulsar topic by a subscription."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pulsar

from models.traces import TRACEPARENT
from pipelines.brokers import BrokerError, Messages
from pipelines.brokers.pulsar_client import REFUSALS, Outage, close, log, say
from pipelines.brokers.pulsar_publisher import EVENT_TIMESTAMP
from pipelines.brokers.pulsar_schemas import TopicSchemas

if TYPE_CHECKING:
    from pipelines.brokers.pulsar import PulsarBroker

_LOOK_SECONDS = 5.0  # how often it is asked, in an outage, whether the topic is still there
_STALL_SECONDS = 15.0  # after an outage, until what is held has come again
_MOST_STALL_SECONDS = 600.0
_SLICE_SECONDS = 0.2

Place = tuple[int, int, int, int]  # ledger, entry, partition, index in the batch


class PulsarSubscription:
    """A reader of the subscription. One thread receives, any may acknowledge.

    After a broken connection the broker hands out again what was not acknowledged; of that, what is still held here is
    not received a second time, or its second receipt would acknowledge what is not safe yet. If of a partition nothing
    comes again, the broker has lost track of it (docs/streams.md#pulsar), and the subscription is joined anew.
    """

    redelivery_seconds = 3.0  # a failover subscription is given to another reader after a second

    def __init__(self, broker: PulsarBroker, client: pulsar.Client, consumer: pulsar.Consumer, partitions: int) -> None:
        self._broker, self._client = broker, client
        self._outage = Outage(broker.uri)
        self._schemas = TopicSchemas(broker.uri, client, broker.topic) if broker.schemas else None
        self._closing = threading.Event()
        self._refused: Exception | None = None
        self._idle = False  # the last time that was looked, nothing waited
        # `_changed` guards all from here to `_number`.
        self._changed = threading.Condition()
        self._consumer: pulsar.Consumer | None = consumer  # None while the subscription is joined anew
        self._unsent: list[Any] = []  # what was acknowledged meanwhile
        self._owed: set[int] = set()  # partitions of which nothing has come since an outage, though some are held
        self._patience, self._due = _STALL_SECONDS, 0.0
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
            received = self._hand_out(self._fetch(room, wait))
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
            consumer = self._consumer
            if consumer is None:
                self._unsent += ids
                return
        with contextlib.suppress(pulsar.PulsarException):  # what is not acknowledged comes again
            for each in ids:
                consumer.acknowledge(each)

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
        consumer = self._consumer
        if consumer is None:
            self._closing.wait(wait)
            return fetched
        free = self._broker.max_outstanding_bytes - self._held_bytes
        try:
            while len(fetched) < most and free > 0:
                fetched.append(consumer.receive(0 if fetched else max(int(wait * 1000), 1)))
                free -= fetched[-1]._message.length()
            self._idle = False
        except pulsar.Timeout:
            self._idle = not fetched
        except pulsar.PulsarException as error:
            if self._closing.is_set():
                raise BrokerError("closed") from None
            if consumer is self._consumer:
                raise BrokerError(f"{self._broker.uri}: {say(error)}") from None
            return fetched
        was_down, connected = self._outage.down, bool(fetched) or consumer.is_connected()
        self._outage.tell(connected)
        if was_down and connected:
            self._expect()
        return fetched

    def _hand_out(self, fetched: list[Any]) -> Messages | None:
        names = [each.message_id() for each in fetched]
        places = [_place(name) for name in names]
        with self._changed:
            new = {}  # as a message may come again within one call, too
            self._owed.difference_update(place[2] for place in places)
            for place, name, each in zip(places, names, fetched, strict=True):
                if place not in self._held:
                    new[place] = each
                self._held[place] = name
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
        traced = [each.properties().get(TRACEPARENT) for each in new.values()] if self._broker.traced else None
        return Messages(payloads, ids, published, parts, times, (self._token, self._number), schemas, traced)

    def _times(self, messages: Iterable[Any]) -> list[str | None] | None:
        name = self._broker.event_time_attribute
        if name == EVENT_TIMESTAMP:
            return [str(when) if (when := each.event_timestamp()) else None for each in messages]
        return [each.properties().get(name) for each in messages] if name else None

    def _look(self) -> None:
        """Now and then see whether the topic is still there, as the client tries for ever, and whether it is read."""
        while not self._closing.wait(_LOOK_SECONDS):
            try:
                if self._outage.down:
                    self._client.get_topic_partitions(self._broker.topic)
                elif self._is_stalled():
                    self._join_anew()
            except REFUSALS as error:
                self._refused = error
            except pulsar.PulsarException:  # still down, or closed
                pass

    def _expect(self) -> None:
        """Take note that there is a connection again: what is held comes once more."""
        with self._changed:
            self._owed = {place[2] for place in self._held}
            self._patience = _STALL_SECONDS
            self._due = time.monotonic() + self._patience

    def _is_stalled(self) -> bool:
        """Whether something is owed for too long; where another reader has it, that is asked less and less often."""
        with self._changed:
            self._owed.intersection_update({place[2] for place in self._held})
            if self._consumer is None:
                return True
            if not self._owed or time.monotonic() < self._due:
                return False
            self._patience = min(2 * self._patience, _MOST_STALL_SECONDS)
            self._due = time.monotonic() + self._patience
        return True

    def _join_anew(self) -> None:
        """Leave the subscription and join it again, on which the broker begins with what is not acknowledged."""
        with self._changed:
            former, self._consumer = self._consumer, None
        if former is not None:
            log.warning("Pulsar, %s: what is held does not come again; joining the subscription anew", self._broker.uri)
            with contextlib.suppress(pulsar.PulsarException):
                former.close()
        consumer = self._broker.consume(self._client)
        with self._changed:
            self._consumer, unsent, self._unsent = consumer, self._unsent, []
        with contextlib.suppress(pulsar.PulsarException):
            for each in unsent:
                consumer.acknowledge(each)


def _place(name: Any) -> Place:
    return name.ledger_id(), name.entry_id(), name.partition(), name.batch_index()
