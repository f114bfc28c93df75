"""Reading a Kafka topic as a member of a consumer group."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import threading
import time
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from models.traces import TRACEPARENT
from pipelines.brokers import BrokerError, Messages
from pipelines.brokers.kafka_client import Outage
from pipelines.brokers.kafka_places import Places
from pipelines.brokers.kafka_topics import TopicWatch

if TYPE_CHECKING:
    from pipelines.brokers.kafka import KafkaBroker

# Errors after which waiting does not help.
_REFUSALS = {"UNKNOWN_TOPIC_OR_PART", "_UNKNOWN_TOPIC", "TOPIC_EXCEPTION", "TOPIC_AUTHORIZATION_FAILED"}
_REFUSALS |= {"GROUP_AUTHORIZATION_FAILED", "SASL_AUTHENTICATION_FAILED", "_AUTHENTICATION"}
_REFUSALS |= {"INVALID_SESSION_TIMEOUT", "INCONSISTENT_GROUP_PROTOCOL", "GROUP_MAX_SIZE_REACHED", "INVALID_GROUP_ID"}
# librdkafka commits what acknowledge() stores, at this interval and before partitions are revoked.
CONSUMER: dict[str, Any] = {
    "enable.auto.offset.store": False,
    "enable.auto.commit": True,
    "auto.commit.interval.ms": 500,
}
CONSUMER |= {"enable.partition.eof": True}  # tells where a partition ends, past what is not for readers
CONSUMER |= {"auto.offset.reset": "error"}  # nothing is skipped silently: see Places
_TICK_SECONDS = 1.0  # how often the backlog is measured, and the group answered while nobody receives
_SLICE_SECONDS, _CALL_SECONDS, _PROBE_SECONDS, _CLOSE_SECONDS = 0.2, 1.0, 0.1, 10.0


@dataclasses.dataclass(slots=True)
class _Part:
    """A partition that is ours, with the receipts that have messages of it, in order: number, offset after them."""

    receipts: collections.deque[tuple[int, int]] = dataclasses.field(default_factory=collections.deque)
    position: int = -1  # offset to receive next, once known
    high: int = -1  # offset after the last at the broker, once known


class KafkaSubscription:
    """A member of the group. One thread receives, any may acknowledge.

    A thread of its own keeps the membership while nobody receives. confluent-kafka lets only one thread at a time
    into a consumer, callbacks included: who calls it holds `_polling`, and never `_changed`.
    """

    redelivery_seconds = 0.0

    def __init__(
        self,
        broker: KafkaBroker,
        consumer: Consumer,
        outage: Outage,
        watch: TopicWatch,
        known: Collection[str],
        commits: bool,
    ) -> None:
        self._watch, self._places = watch, Places(broker, consumer, watch.id, known, commits)
        self._unplaced: set[int] = set()  # partitions of which it is not known where to go on
        self._broker, self._topic, self._consumer, self._outage = broker, broker.topic, consumer, outage
        self._closing, self._polling = threading.Event(), threading.Lock()
        self._polled, self._paused, self._measured = time.monotonic(), False, 0.0
        self._kept: list[Message] = []  # what came while nobody received
        # `_changed` guards all from here to `_held_bytes`.
        self._changed = threading.Condition()
        self._acknowledged: dict[int, int] = {}  # by partition: offset to be committed
        self._parts: dict[int, _Part] = {}
        self._receipts: dict[int, dict[int, tuple[int, int]]] = {}  # by number, partition: messages, bytes
        self._held, self._held_bytes, self._mean_bytes = 0, 0, 1
        self._number, self._token = 0, os.urandom(16)  # of the last receipt; and of this connection's receipts
        consumer.subscribe([broker.topic], self._on_assign, self._on_revoke, self._on_revoke)
        self._keeper = threading.Thread(target=self._keep, name="kafka-keeper", daemon=True)
        self._keeper.start()

    def receive(self, max_messages: int, timeout_seconds: float) -> Messages | None:
        """See Subscription; BrokerError also if the topic is deleted or forbidden meanwhile."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            wait = min(max(deadline - time.monotonic(), 0), _SLICE_SECONDS)
            with self._changed:
                room = min(self._changed.wait_for(self._room, wait), max_messages)
            with self._polling:
                if self._closing.is_set():
                    raise BrokerError("closed")
                received = self._hand_out(self._fetch(room, wait)) if room else None
            if received is not None or time.monotonic() >= deadline:
                return received

    def acknowledge(self, receipt: Any) -> None:
        """Let offsets be committed; of partitions that were revoked since, nothing."""
        token, number = receipt
        with self._changed:
            for partition, (messages, size) in self._receipts.pop(number, {}).items() if token == self._token else ():
                self._held -= messages
                self._held_bytes -= size
                receipts = self._parts[partition].receipts
                while receipts and receipts[0][0] not in self._receipts:
                    _, self._acknowledged[partition] = receipts.popleft()
            self._changed.notify_all()

    def partitions(self) -> frozenset[int]:
        return frozenset(self._parts)

    def backlog(self) -> int | None:
        """By the offsets, with ends of a second ago; None until all are known, and in an outage."""
        ends = [(part.position, part.high) for part in list(self._parts.values())]
        known = ends and min(map(min, ends)) >= 0 and not self._outage.down
        return sum(max(high - position, 0) for position, high in ends) if known else None

    def close(self) -> None:
        """Takes seconds at the most, also if the broker does not answer."""
        self._closing.set()
        with self._polling:
            self._keeper.join()
            self._store()
            leaving = threading.Thread(target=self._consumer.close, name="kafka-close", daemon=True)
            leaving.start()
            leaving.join(_CLOSE_SECONDS)

    def _room(self) -> int:
        """How many messages may be taken, by the bounds and by what messages weighed of late."""
        room = self._broker.max_outstanding_messages - self._held
        free = self._broker.max_outstanding_bytes - self._held_bytes
        return min(room, max(free // self._mean_bytes, 1)) if room > 0 and free > 0 else 0

    def _fetch(self, most: int, wait: float) -> list[Message]:
        self._polled = time.monotonic()
        if self._paused:
            self._consumer.resume(self._consumer.assignment())
            self._paused = False
        self._tend()
        fetched, self._kept = self._kept[:most], self._kept[most:]
        fetched = fetched or self._consumer.consume(most, 0)  # given time, it would wait for all
        if not fetched and (first := self._consumer.poll(wait)) is not None:  # one without a value is false
            fetched = [first, *(self._consumer.consume(most - 1, 0) if most > 1 else ())]
        return fetched

    def _hand_out(self, fetched: list[Message]) -> Messages | None:
        ends: dict[int, int] = {}
        for each in fetched:
            if (error := each.error()) is None:
                continue
            if error.name() == "_PARTITION_EOF":
                ends[each.partition() or 0] = each.offset() or 0
            elif error.name() == "_AUTO_OFFSET_RESET":
                self._unplaced.add(each.partition() or 0)
            elif error.fatal() or error.name() in _REFUSALS:  # after others librdkafka tries again
                raise BrokerError(f"{self._broker.uri}: {error.str()}")
        header = self._broker.event_time_attribute
        with self._changed:
            fetched = [each for each in fetched if not each.error() and each.partition() in self._parts]
            if not fetched:
                self._reach(ends)
                return None
            sizes = [len(each.value() or b"") for each in fetched]
            places = [(each.partition() or 0, each.offset() or 0) for each in fetched]
            self._number += 1
            receipt = self._receipts[self._number] = dict.fromkeys([partition for partition, _ in places], (0, 0))
            for (partition, offset), length in zip(places, sizes, strict=True):
                messages, size = receipt[partition]
                receipt[partition] = messages + 1, size + length
                self._parts[partition].position = offset + 1
            self._reach(ends)
            for part in map(self._parts.__getitem__, receipt):
                part.receipts.append((self._number, part.position))
            self._held += len(sizes)
            self._held_bytes += sum(sizes)
            self._mean_bytes = max(sum(sizes) // len(sizes), 1)
        self._outage.worked()
        number = self._number
        if self._broker.tombstones == "skip":
            fetched = [each for each in fetched if each.value() is not None]
            if not fetched:
                self.acknowledge((self._token, number))
                return None
            places = [(each.partition() or 0, each.offset() or 0) for each in fetched]
        payloads = [each.value() or b"" for each in fetched]
        ids = [f"{self._places.name}/{partition}/{offset}" for partition, offset in places]
        published = [1000 * each.timestamp()[1] for each in fetched]
        times = _headers(fetched, header) if header else None
        traced = _headers(fetched, TRACEPARENT) if self._broker.traced else None
        parts = [each[0] for each in places]
        return Messages(payloads, ids, published, parts, times, (self._token, number), traceparents=traced)

    def _reach(self, ends: Mapping[int, int]) -> None:
        """Go past what is not for readers at the ends of partitions, once all messages before are there."""
        for partition in ends.keys() & self._parts.keys():
            self._parts[partition].position = max(self._parts[partition].position, ends[partition])

    def _on_assign(self, _: Consumer, assigned: list[TopicPartition]) -> None:
        self._parts.update({each.partition: _Part() for each in assigned})

    def _on_revoke(self, consumer: Consumer, revoked: list[TopicPartition]) -> None:
        with contextlib.suppress(KafkaException):
            consumer.resume(revoked)  # librdkafka would remember that they are paused, should they come again
        with self._changed:
            for each in revoked:
                if (part := self._parts.pop(each.partition, None)) is not None:
                    self._places.leave(each.partition, part.position)
                for receipt in self._receipts.values():
                    messages, size = receipt.pop(each.partition, (0, 0))
                    self._held -= messages
                    self._held_bytes -= size
            self._kept = [kept for kept in self._kept if kept.error() or kept.partition() in self._parts]
            self._changed.notify_all()
        self._store()

    def _keep(self) -> None:
        while not self._closing.wait(_TICK_SECONDS):
            if self._polling.acquire(blocking=False):
                with contextlib.suppress(KafkaException):
                    if time.monotonic() - self._polled > _TICK_SECONDS:
                        self._paused = True  # each time, for the partitions that came meanwhile
                        self._consumer.pause(self._consumer.assignment())
                        if (message := self._consumer.poll(0)) is not None:  # of a partition assigned just now
                            self._kept.append(message)
                with contextlib.suppress(BrokerError):  # it is for who receives to hear it
                    self._tend()
                self._polling.release()

    def _tend(self) -> None:
        self._store()
        if self._unplaced:
            self._place()
        if time.monotonic() - self._measured > _TICK_SECONDS:
            with contextlib.suppress(KafkaException):  # the broker is down
                self._measure()
            self._measured = time.monotonic()
        if self._watch.is_another():
            raise BrokerError(f"{self._broker.uri}: the topic was made again while it was read; start the stream again")

    def _store(self) -> None:
        with self._changed:
            acknowledged, self._acknowledged = self._acknowledged, {}
        with contextlib.suppress(KafkaException, RuntimeError):  # of none, of partitions that are gone, or closed
            self._consumer.store_offsets(offsets=[TopicPartition(self._topic, *each) for each in acknowledged.items()])

    def _place(self) -> None:
        """Go on in partitions of which librdkafka does not know where; those of which the broker tells nothing wait."""
        for partition in sorted(self._unplaced & self._parts.keys()):
            with contextlib.suppress(KafkaException):
                self._places.put(partition, {number: part.position for number, part in self._parts.items()})
                self._unplaced.discard(partition)
        self._unplaced &= self._parts.keys()

    def _measure(self) -> None:
        asked = self._paused or self._outage.down  # a fetch tells the ends, but nothing is fetched then
        seconds = _PROBE_SECONDS if self._outage.down else _CALL_SECONDS
        new = [TopicPartition(self._topic, each) for each, part in self._parts.items() if part.position < 0]
        found = self._consumer.committed(new, timeout=seconds) if new else []
        starts = {each.partition: each.offset for each in found}
        for partition, part in self._parts.items():
            known: dict[str, Any] = {"timeout": seconds} if asked else {"cached": True}
            low, high = self._consumer.get_watermark_offsets(TopicPartition(self._topic, partition), **known)
            if part.position < 0 <= high:
                part.position = max(starts[partition], low if self._broker.start == "earliest" else high)
            part.high = high
        if asked and self._parts:
            self._outage.worked()


def _headers(messages: Iterable[Message], name: str) -> list[str | None]:
    """What the header of a name says of each message; None where there is none."""
    found: list[Any] = [dict(each.headers() or ()).get(name) for each in messages]
    return [value if value is None else value.decode(errors="replace") for value in found]
