"""The broker's state and what calls do to it, without threads or gRPC: every caller holds `lock`."""

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from pipelines.pubsub_emulator import settings, wire
from pipelines.pubsub_emulator.errors import (
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)
from pipelines.pubsub_emulator.messages import Consumer, Delivery, Message, PbMessage
from pipelines.pubsub_emulator.registry import DELETED_TOPIC, Registry, Snapshot, Topic
from pipelines.pubsub_emulator.subscription import Received, Subscription

_SNAPSHOT_DAYS = 7
_DEAD_LETTER_ATTRIBUTE = "CloudPubSubDeadLetterSource"


class Clock(NamedTuple):
    """Where the broker reads the time: deadlines follow `monotonic` (s), publish times `wall_ns`."""

    monotonic: Callable[[], float] = time.monotonic
    wall_ns: Callable[[], int] = time.time_ns


class Broker:
    """Publish, pull, ack, seek; the rest is in its registry.

    The memory is bounded: what would have all subscriptions and snapshots together hold more than
    `max_backlog_bytes` (a publish, a snapshot, a seek to one) is refused as a whole, with RESOURCE_EXHAUSTED.
    """

    def __init__(self, max_backlog_bytes: int, clock: Clock) -> None:
        self.lock = threading.Lock()
        self.clock = clock
        self.registry = Registry()
        # Faults, for tests:
        self.paused = False
        self.publish_fails_until = 0.0
        self._max_backlog_bytes = max_backlog_bytes
        # Higher than those of a server before this one: a stream knows messages by their ids.
        self._numbers = itertools.count(clock.wall_ns() // 1000)
        self._ack_ids = itertools.count(1)
        self._published_ns = 0

    def publish(self, request: PbMessage) -> PbMessage:
        settings.check_messages(request.messages, request.ByteSize())
        if self.clock.monotonic() < self.publish_fails_until:
            raise Unavailable("Publishing fails, as a test asked.")
        topic = self.registry.topic(request.topic)
        return wire.PublishResponse(message_ids=self._publish(topic, request.messages))

    def create_subscription(self, request: PbMessage) -> PbMessage:
        settings.complete_subscription(request)
        self.registry.add_subscription(
            Subscription(
                request,
                ack_ids=self._ack_ids,
                dead_letter=self._dead_letter,
                changed=threading.Condition(self.lock),
            )
        )
        return request

    def take(self, subscription: Subscription, consumer: Consumer, count: int, deadline: int) -> list[Received]:
        """Lease messages for `deadline` seconds to a consumer."""
        if self.paused:
            return []
        return subscription.take(consumer, count, deadline, self.clock.monotonic())

    def acknowledge(self, request: PbMessage) -> PbMessage:
        self.registry.attached(request.subscription).acknowledge(request.ack_ids)
        return wire.Empty()

    def modify_ack_deadline(self, request: PbMessage) -> PbMessage:
        subscription = self.registry.attached(request.subscription)
        subscription.modify_deadline(request.ack_ids, request.ack_deadline_seconds, self.clock.monotonic())
        return wire.Empty()

    def create_snapshot(self, request: PbMessage) -> PbMessage:
        subscription = self.registry.attached(request.subscription)
        if subscription.settings.topic == DELETED_TOPIC:
            raise FailedPrecondition(f"The topic of {request.subscription} is deleted.")
        made = wire.Snapshot(name=request.name, topic=subscription.settings.topic, labels=request.labels)
        made.expire_time.FromNanoseconds(self.clock.wall_ns() + _SNAPSHOT_DAYS * 86400 * 10**9)
        messages = subscription.unacked()
        size = sum(message.cost for message in messages)
        self._check_room(size)
        self.registry.add_snapshot(Snapshot(made, messages, size))
        return made

    def seek(self, request: PbMessage) -> PbMessage:
        subscription = self.registry.attached(request.subscription)
        target = request.WhichOneof("target")
        if target == "time":
            subscription.seek_time(request.time.ToNanoseconds())
        elif target == "snapshot":
            snapshot = self.registry.snapshot(request.snapshot)
            if snapshot.settings.topic != subscription.settings.topic:
                raise InvalidArgument(f"{request.snapshot} is of another topic than {request.subscription}.")
            messages = [message for message in snapshot.messages if _passes(subscription, message)]
            self._check_room(sum(message.cost for message in messages) - subscription.bytes)
            subscription.seek_messages(messages)
        else:
            raise InvalidArgument("A seek needs a time or a snapshot.")
        return wire.SeekResponse()

    def tick(self) -> None:
        """Let time have its effects; to be called several times a second."""
        now, wall_ns = self.clock.monotonic(), self.clock.wall_ns()
        for subscription in self.registry.subscriptions.values():
            subscription.tick(now, wall_ns)

    def wake_consumers(self) -> None:
        for subscription in self.registry.subscriptions.values():
            subscription.changed.notify_all()

    def _publish(self, topic: Topic, contents: Sequence[PbMessage], freed: int = 0) -> list[str]:
        """Publish, and return the ids; `freed` bytes are given up elsewhere if that works."""
        # Never back in time, so that the order of message ids is that of publish times.
        self._published_ns = max(self._published_ns, self.clock.wall_ns())
        stamp = wire.Timestamp()
        stamp.FromNanoseconds(self._published_ns)
        messages = []
        for content in contents:
            number = next(self._numbers)
            content.message_id = str(number)
            content.publish_time.CopyFrom(stamp)
            messages.append(Message(number, self._published_ns, content.ordering_key, content.SerializeToString()))
        takers = [(taker, _passing(taker, contents, messages)) for taker in topic.subscriptions.values()]
        size = sum(message.cost for message in messages)
        taken = sum(message.cost for _, passing in takers for message in passing)
        self._check_room(taken + size * len(topic.snapshots) - freed)
        for taker, passing in takers:
            taker.publish(passing)
        for snapshot in topic.snapshots.values():
            snapshot.messages.extend(messages)
            snapshot.bytes += size
        return [content.message_id for content in contents]

    def _check_room(self, size: int) -> None:
        """Refuse what would have subscriptions and snapshots hold `size` bytes more, if that is too much in all."""
        held = self.registry.held_bytes
        if size > 0 and held + size > self._max_backlog_bytes:
            raise ResourceExhausted(
                f"The subscriptions and snapshots hold {held} bytes; with this request it would be more than the "
                f"emulator's bound of {self._max_backlog_bytes} (each counts its messages, retained acked ones too)."
            )

    def _dead_letter(self, subscription: Subscription, delivery: Delivery) -> bool:
        """Forward a message that failed too often; if it cannot be, it stays and is redelivered."""
        topic = self.registry.topics.get(subscription.settings.dead_letter_policy.dead_letter_topic)
        if topic is None:
            return False
        content = wire.PubsubMessage.FromString(delivery.message.body)
        _, project, _, name = subscription.settings.name.split("/")
        published = datetime.fromtimestamp(delivery.message.published_ns // 10**6 / 1000, UTC)
        for key, value in (
            ("DeliveryCount", str(delivery.failures)),
            ("Subscription", name),
            ("SubscriptionProject", project),
            ("TopicPublishTime", published.isoformat(timespec="milliseconds")),
        ):
            content.attributes[_DEAD_LETTER_ATTRIBUTE + key] = value
        try:
            self._publish(topic, [content], freed=delivery.message.cost)
        except ResourceExhausted:
            return False
        return True


def _passing(subscription: Subscription, contents: Sequence[PbMessage], messages: list[Message]) -> list[Message]:
    """Those of the messages, whose contents stand beside them, that pass the subscription's filter."""
    passes = subscription.filter
    if passes is None:
        return messages
    return [message for content, message in zip(contents, messages, strict=True) if passes(content.attributes)]


def _passes(subscription: Subscription, message: Message) -> bool:
    if subscription.filter is None:
        return True
    return subscription.filter(wire.PubsubMessage.FromString(message.body).attributes)
