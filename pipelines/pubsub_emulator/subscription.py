"""One subscription: what is undelivered, who has leased what until when, what is kept for a Seek."""

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from threading import Condition
from typing import NamedTuple

from pipelines.pubsub_emulator.errors import InvalidArgument
from pipelines.pubsub_emulator.filters import parse_filter
from pipelines.pubsub_emulator.messages import Batch, Consumer, Delivery, Message, PbMessage
from pipelines.pubsub_emulator.queues import DeliveryQueue

MAX_MESSAGES_PER_RESPONSE = 1000
# A client that does not raise gRPC's default limit of 4 MB per message can read this.
MAX_RESPONSE_BYTES = 3_500_000
# Leases that end in the same tenth of a second end together.
_TICKS_PER_SECOND = 10


class Received(NamedTuple):
    """A leased message as it is sent: `attempt` is 0 on a subscription without a dead-letter policy."""

    ack_id: str
    body: bytes
    attempt: int


class Backlog(NamedTuple):
    """How much a subscription holds: messages not delivered, delivered but unacked, acked but retained."""

    undelivered: int
    outstanding: int
    retained: int
    bytes: int


class Subscription:
    """The state machine of one subscription; its caller holds the broker's lock.

    `settings` is its google.pubsub.v1.Subscription, complete with defaults. `ack_ids` is shared by all
    subscriptions, so that an ack id is never valid for two. `dead_letter` forwards a message that failed
    too often and says whether it could. `changed` is notified when a waiting consumer should look again.
    """

    def __init__(
        self,
        settings: PbMessage,
        *,
        ack_ids: Iterator[int],
        dead_letter: Callable[["Subscription", Delivery], bool],
        changed: Condition,
    ) -> None:
        self.settings = settings
        self.filter = parse_filter(settings.filter)
        self.changed = changed
        self.deleted = False
        self.bytes = 0
        self._ack_ids = ack_ids
        self._dead_letter = dead_letter
        self._unsettled = 0
        self._retained: deque[Message] = deque()
        self._leases: dict[str, Delivery] = {}
        self._reset([])

    def publish(self, messages: Iterable[Message]) -> None:
        """Take in messages that passed the filter."""
        for message in messages:
            self._queue.add(Delivery(message))
            self.bytes += message.cost
            self._unsettled += 1
        self.changed.notify_all()

    def take(self, consumer: Consumer, count: int, deadline_seconds: int, now: float) -> list[Received]:
        """Lease up to `count` messages to a consumer, as many as its flow control and one response allow."""
        self.expire(now)
        count = int(min(count, MAX_MESSAGES_PER_RESPONSE, consumer.max_messages - consumer.held_messages))
        room = consumer.max_bytes - consumer.held_bytes
        # A message larger than all the room there is must still be deliverable, once nothing else is held.
        first_room = room if consumer.held_messages else math.inf
        batch = Batch(count, min(room, MAX_RESPONSE_BYTES), first_room)
        self._queue.take(consumer, batch, now)
        if not batch.deliveries:
            return []
        counted = self.settings.HasField("dead_letter_policy")
        bucket = self._bucket(now + deadline_seconds)
        received = []
        for delivery in batch.deliveries:
            ack_id = str(next(self._ack_ids))
            delivery.ack_id, delivery.bucket, delivery.consumer = ack_id, bucket, consumer
            bucket.add(ack_id)
            self._leases[ack_id] = delivery
            body = delivery.message.body
            consumer.held_bytes += len(body)
            received.append(Received(ack_id, body, delivery.failures + 1 if counted else 0))
        consumer.held_messages += len(received)
        return received

    def acknowledge(self, ack_ids: Iterable[str]) -> None:
        """Settle leased messages; an ack whose lease has ended comes too late and is ignored."""
        retain = self.settings.retain_acked_messages
        for ack_id in ack_ids:
            delivery = self._end_lease(ack_id)
            if delivery is None:
                continue
            for settled in self._queue.settle(delivery):
                self._unsettled -= 1
                if retain:
                    self._retained.append(settled.message)
                else:
                    self.bytes -= settled.message.cost
        if self._queue.waiting:  # for a stream whose flow control was exhausted
            self.changed.notify_all()

    def modify_deadline(self, ack_ids: Sequence[str], seconds: int, now: float) -> None:
        """Have leases end `seconds` from now; at once, with redelivery, for 0."""
        if not 0 <= seconds <= 600:
            raise InvalidArgument(f"An ack deadline is modified to 0 to 600 seconds; got {seconds}.")
        if seconds == 0:
            for ack_id in ack_ids:
                delivery = self._end_lease(ack_id)
                if delivery is not None:
                    self._fail(delivery, now)
            self.changed.notify_all()
            return
        bucket = self._bucket(now + seconds)
        for ack_id in ack_ids:
            delivery = self._leases.get(ack_id)
            if delivery is None:
                _check_ack_id(ack_id)
                continue
            delivery.bucket.discard(ack_id)
            bucket.add(ack_id)
            delivery.bucket = bucket

    def expire(self, now: float) -> None:
        """End the leases whose deadline has passed and have their messages redelivered."""
        tick = math.floor(now * _TICKS_PER_SECOND)
        while self._ticks and self._ticks[0] <= tick:
            # In the order of delivery: of one key only the earliest failed, its followers are taken back.
            for ack_id in sorted(self._buckets.pop(heapq.heappop(self._ticks)), key=int):
                if ack_id in self._leases:
                    delivery = self._end_lease(ack_id)
                    assert delivery is not None
                    self._fail(delivery, now)
            self.changed.notify_all()

    def tick(self, now: float, wall_ns: int) -> None:
        """Let time have its effects: missed deadlines, ended backoffs, the end of retention."""
        self.expire(now)
        if self._queue.end_delays(now):
            self.changed.notify_all()
        retention_ns = self.settings.message_retention_duration.ToNanoseconds() if self._retained else 0
        while self._retained and self._retained[0].published_ns < wall_ns - retention_ns:
            self.bytes -= self._retained.popleft().cost

    def unacked(self) -> list[Message]:
        """The messages that a snapshot of it keeps, in the order of publishing."""
        leased = (delivery for delivery in self._leases.values() if delivery.lane is None)
        deliveries = itertools.chain(self._queue.unsettled(), leased)
        return sorted((delivery.message for delivery in deliveries), key=lambda message: message.number)

    def seek_time(self, time_ns: int) -> None:
        """Mark what was published before a time as acked, and all that is still known since as unacked."""
        known = sorted([*self.unacked(), *self._retained], key=lambda message: message.number)
        retain = self.settings.retain_acked_messages
        self._retained = deque(each for each in known if retain and each.published_ns < time_ns)
        self._reset([each for each in known if each.published_ns >= time_ns])

    def seek_messages(self, messages: list[Message]) -> None:
        """Mark exactly these messages as unacked."""
        unacked = {message.number for message in messages}
        known = [*self.unacked(), *self._retained] if self.settings.retain_acked_messages else []
        acked = (each for each in known if each.number not in unacked)
        self._retained = deque(sorted(acked, key=lambda message: message.number))
        self._reset(messages)

    def clear(self) -> None:
        """Drop everything."""
        self._retained.clear()
        self._reset([])

    def backlog(self) -> Backlog:
        undelivered = self._queue.waiting
        return Backlog(undelivered, self._unsettled - undelivered, len(self._retained), self.bytes)

    def _reset(self, messages: list[Message]) -> None:
        """Have these messages undelivered and no others; all leases end."""
        for delivery in self._leases.values():
            _let_go(delivery)
        self._leases.clear()
        self._buckets: dict[int, set[str]] = {}
        self._ticks: list[int] = []
        self._queue = DeliveryQueue(self.settings.enable_message_ordering)
        self._unsettled = 0
        self.bytes = sum(message.cost for message in self._retained)
        self.publish(messages)

    def _bucket(self, deadline: float) -> set[str]:
        """The ack ids of the leases that end together at (or a tenth of a second after) a time."""
        tick = math.ceil(deadline * _TICKS_PER_SECOND)
        bucket = self._buckets.get(tick)
        if bucket is None:
            bucket = self._buckets[tick] = set()
            heapq.heappush(self._ticks, tick)
        return bucket

    def _end_lease(self, ack_id: str) -> Delivery | None:
        delivery = self._leases.pop(ack_id, None)
        if delivery is None:
            _check_ack_id(ack_id)
            return None
        delivery.bucket.discard(ack_id)
        _let_go(delivery)
        return delivery

    def _fail(self, delivery: Delivery, now: float) -> None:
        delivery.failures += 1
        policy = self.settings.dead_letter_policy
        exhausted = policy.max_delivery_attempts and delivery.failures >= policy.max_delivery_attempts
        drop = bool(exhausted) and self._dead_letter(self, delivery)
        for follower in self._queue.fail(delivery, until=self._retry_at(delivery, now), drop=drop):
            if self._leases.get(follower.ack_id) is follower:
                self._end_lease(follower.ack_id)
        if drop:
            self._unsettled -= 1
            self.bytes -= delivery.message.cost

    def _retry_at(self, delivery: Delivery, now: float) -> float | None:
        if not self.settings.HasField("retry_policy"):
            return None
        policy = self.settings.retry_policy
        least = policy.minimum_backoff.ToTimedelta().total_seconds()
        most = policy.maximum_backoff.ToTimedelta().total_seconds()
        return now + float(min(most, least * 2 ** min(delivery.failures - 1, 16)))


def _let_go(delivery: Delivery) -> None:
    consumer = delivery.consumer
    if consumer is not None:
        consumer.held_messages -= 1
        consumer.held_bytes -= len(delivery.message.body)
        delivery.consumer = None


def _check_ack_id(ack_id: str) -> None:
    if not ack_id.isdecimal():
        raise InvalidArgument(f"{ack_id!r} is not an ack id of this broker.")
