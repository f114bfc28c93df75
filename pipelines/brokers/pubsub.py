"""Google Cloud Pub/Sub, or an emulator of it, by its gRPC API with raw protobuf classes, for their speed.

PUBSUB_EMULATOR_HOST is respected; without it the credentials are Google's default ones.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import queue
import re
import threading
import time
from collections.abc import Collection, Sequence
from typing import Any, Self

import grpc
from google.pubsub_v1 import types

from models.traces import TRACEPARENT
from pipelines.brokers import BrokerError, BrokerOptionError, Messages, join_query, split_query
from pipelines.brokers.pubsub_client import CALL_SECONDS, Client, Failures, is_transient, log, say
from pipelines.brokers.pubsub_publisher import PubsubPublisher
from pipelines.brokers.pubsub_topics import add_subscription, create_topic, delete_subscription, has_topic

_URI = re.compile(r"pubsub://([a-z][a-z0-9.:\-]*)/([A-Za-z][A-Za-z0-9\-._~+%]{2,254})")
_ACK_SECONDS = 0.05
_IDS_PER_REQUEST = 1000  # Google's ack ids have some 180 bytes, and a request of them at most 512 KiB
_GOODBYE_SECONDS = 1.0
_DRAIN_SECONDS = 5.0
_PING_SECONDS = 20.0  # Google ends a stream on which nothing was sent for 60 s
_STEADY_SECONDS = 10.0  # a stream that lived so long did work, even if nothing came
_FIRST_SECONDS = 1.0  # a stream on which nothing came for so long has nothing
_FULL = 0.9  # of a bound: the next message may be too large for what is left

_Subscription = types.Subscription.pb()
_StreamingPullRequest = types.StreamingPullRequest.pb()
_StreamingPullResponse = types.StreamingPullResponse.pb()


@dataclasses.dataclass(frozen=True)
class PubsubBroker:
    """A project's subscription (to read) or topic (to write).

    The two bounds are on messages that are held without being acknowledged; a single larger message comes alone.
    `Messages.event_times` are of `event_time_attribute`. Messages come again `ack_deadline_seconds` (10 to 600) after
    a process that held them died. With `ordered`, keys are published as ordering keys: a request has messages of one
    key only then, and those of a key go one after another, which is slow with many keys.
    """

    project: str
    name: str
    max_outstanding_messages: int = 100_000
    max_outstanding_bytes: int = 64 << 20
    event_time_attribute: str | None = None
    ack_deadline_seconds: int = 60
    ordered: bool = False
    traced: bool = False

    def __post_init__(self) -> None:
        if min(self.max_outstanding_messages, self.max_outstanding_bytes) < 1:
            raise BrokerOptionError("max_outstanding_messages and max_outstanding_bytes are at least 1")
        if not 10 <= self.ack_deadline_seconds <= 600:
            raise BrokerOptionError(f"ack_deadline_seconds is {self.ack_deadline_seconds}, it can be 10 to 600")

    @classmethod
    def parse(cls, uri: str, **options: Any) -> Self:
        """The broker that `uri` names; BrokerOptionError if it does not."""
        try:
            place, query = split_query(uri, ("event_time", "ordered"))
        except ValueError:
            place, query = "", {}
        match, ordered = _URI.fullmatch(place), query.get("ordered", "false")
        if match is None or ordered not in ("true", "false"):
            form = "pubsub://PROJECT/NAME?event_time=ATTRIBUTE&ordered=true"
            raise BrokerOptionError(f"{uri!r} is not {form} in Pub/Sub's characters")
        found = {"event_time_attribute": query.get("event_time"), "ordered": ordered == "true"}
        return cls(match[1], match[2], **{**found, **options})

    @property
    def uri(self) -> str:
        query = {"event_time": self.event_time_attribute, "ordered": "true" if self.ordered else None}
        return join_query(f"pubsub://{self.project}/{self.name}", query)

    @property
    def max_message_bytes(self) -> int:
        """Pub/Sub takes 10 MB, with attributes and envelope."""
        return 9_900_000

    def subscribe(self, known: Collection[str] = ()) -> PubsubSubscription:
        return PubsubSubscription(self)

    def tail(self, from_start: bool = False) -> PubsubSubscription:
        """See Broker; by a subscription of its own, which is deleted at the end and begins now."""
        if from_start:
            raise BrokerError(f"{self.uri}: Pub/Sub keeps nothing that a new subscription could read from the start")
        return _Tail(dataclasses.replace(self, name=add_subscription(self.project, self.name)))

    def exists(self) -> bool:
        """See Broker."""
        return has_topic(self.project, self.name)

    def create(self) -> None:
        """See Broker; who reads it needs a subscription, and gets what comes after that was made."""
        create_topic(self.project, self.name)

    def publisher(self) -> PubsubPublisher:
        return PubsubPublisher(f"projects/{self.project}/topics/{self.name}", self.ordered)


class PubsubSubscription(Client):
    """A StreamingPull, a thread that reads it, and one that sends acks and extends deadlines.

    A receipt is the ids of the messages: each is acknowledged by its newest ack id.
    """

    def __init__(self, broker: PubsubBroker) -> None:
        self._broker = broker
        name = f"projects/{broker.project}/subscriptions/{broker.name}"
        super().__init__("Subscriber", "subscription", name, warn_at=2)  # Google ends streams now and then
        self._first = _StreamingPullRequest(subscription=name, client_id=os.urandom(16).hex())
        self._first.stream_ack_deadline_seconds = broker.ack_deadline_seconds
        self._changed = threading.Condition()  # of the next five, which it guards
        self._waiting: list[Any] = []  # ReceivedMessages
        self._held: dict[str, tuple[str, int]] = {}  # newest ack id and bytes, by message id
        self._held_bytes = 0
        self._acks: list[str] = []
        self._refused = ""
        self._acks_due = threading.Event()
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()  # to the stream; None hangs up
        self._stream: Any = None
        self._complete_from: float | None = None  # when what is here is all that there is; None without a stream
        self._reader = threading.Thread(target=self._read, name="pubsub-reader", daemon=True)
        self._keeper = threading.Thread(target=self._keep, name="pubsub-keeper", daemon=True)
        self._reader.start()
        self._keeper.start()

    @property
    def redelivery_seconds(self) -> float:
        """The deadline, and the longest that the subscription's retry policy waits then, if it may be looked at."""
        retry = _Subscription.FromString(self._resource).retry_policy
        return float(self._broker.ack_deadline_seconds + retry.maximum_backoff.seconds)

    def receive(self, max_messages: int, timeout_seconds: float) -> Messages | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._refused or self._closing.is_set(), timeout_seconds)
            if self._closing.is_set() or (self._refused and not self._waiting):
                raise BrokerError(self._refused or "closed")
            messages = [each.message for each in self._waiting[:max_messages]]
            del self._waiting[:max_messages]
        if not messages:
            return None
        ids = [message.message_id for message in messages]
        stamps = [message.publish_time for message in messages]
        key = self._broker.event_time_attribute
        payloads = [message.data for message in messages]
        published_us = [stamp.seconds * 1_000_000 + stamp.nanos // 1000 for stamp in stamps]
        event_times = None if key is None else [message.attributes.get(key) for message in messages]
        traced = [message.attributes.get(TRACEPARENT) for message in messages] if self._broker.traced else None
        return Messages(payloads, ids, published_us, [0] * len(ids), event_times, ids, traceparents=traced)

    def acknowledge(self, receipt: Any) -> None:
        with self._changed:
            leases = [self._held.pop(each) for each in receipt if each in self._held]
            self._acks += [ack_id for ack_id, _ in leases]
            self._held_bytes -= sum(size for _, size in leases)
            if len(self._acks) >= _IDS_PER_REQUEST:
                self._acks_due.set()

    def partitions(self) -> frozenset[int]:
        return frozenset({0})

    def backlog(self) -> int | None:
        """What is here; None while there may be more: without a stream, or with too much that is not acknowledged."""
        with self._changed:
            messages, size = len(self._held) + len(self._acks), self._held_bytes
            more = max(messages / self._broker.max_outstanding_messages, size / self._broker.max_outstanding_bytes)
            complete = self._complete_from is not None and time.monotonic() >= self._complete_from
            return len(self._waiting) if complete and more < _FULL else None

    def close(self) -> None:
        """Takes seconds at the most, also if the broker does not answer."""
        with self._changed:
            if self._closing.is_set():
                return
            self._closing.set()
            self._changed.notify_all()
        self._requests.put(None)
        self._acks_due.set()
        # What is on its way is still read, to be given back: else it would wait for its deadline to pass.
        self._reader.join(_GOODBYE_SECONDS)
        if self._reader.is_alive() and self._stream is not None:
            self._stream.cancel()
        self._reader.join(_GOODBYE_SECONDS)
        self._keeper.join(_GOODBYE_SECONDS)
        failed = self._send_acks(_GOODBYE_SECONDS) + self._modify_deadlines(0, _GOODBYE_SECONDS)
        if failed:
            log.warning("%s: some messages come again only later: %s", self._name, say(failed[0][1]))
        self._held = {}
        super().close()

    def _read(self) -> None:
        codecs = _StreamingPullRequest.SerializeToString, _StreamingPullResponse.FromString
        pull = self._channel.stream_stream(f"{self._prefix}StreamingPull", *codecs)
        while (room := self._wait_for_room()) is not None:
            requests = self._requests = queue.SimpleQueue()
            self._first.max_outstanding_messages, self._first.max_outstanding_bytes = room
            requests.put(self._first)
            opened, failure = time.monotonic(), None
            self._complete_from = opened + _FIRST_SECONDS
            try:
                self._stream = pull(iter(requests.get, None), metadata=self._metadata)
                for response in self._stream:
                    self._take(response.received_messages)
            except grpc.RpcError as error:
                failure = error
            finally:
                self._complete_from = None
                requests.put(None)
            if failure is not None and not is_transient(failure):
                with self._changed:
                    self._refused = f"Pub/Sub refuses to read {self._name}: {say(failure)}"
                    self._changed.notify_all()
                return
            if time.monotonic() - opened > _STEADY_SECONDS:
                self._worked()
            if not self._closing.is_set():
                self._closing.wait(self._failed(failure))

    def _take(self, received: Sequence[Any]) -> None:
        self._worked()
        leases = {each.message.message_id: (each.ack_id, each.ByteSize()) for each in received}
        with self._changed:
            again = sum(self._held[each][1] for each in leases.keys() & self._held.keys())
            self._held_bytes += sum(size for _, size in leases.values()) - again
            self._held |= leases
            self._waiting += received
            self._complete_from = 0.0
            self._changed.notify_all()

    def _wait_for_room(self) -> tuple[int, int] | None:
        """The messages and bytes that a new stream may send, all its life: what is not held; None at the end.

        That should be most of the bounds, so it waits a little for acks, which count only when they were sent.
        """
        messages, size = self._broker.max_outstanding_messages, self._broker.max_outstanding_bytes
        end = time.monotonic() + _DRAIN_SECONDS
        while not self._closing.is_set():
            with self._changed:
                room = messages - len(self._held) - len(self._acks), size - self._held_bytes
            enough = not self._acks and min(room[0] / messages, room[1] / size) >= 0.9
            if enough or (min(room) > 0 and time.monotonic() > end):
                return room
            self._closing.wait(_ACK_SECONDS)
        return None

    def _keep(self) -> None:
        extend_every = min(_PING_SECONDS, self._broker.ack_deadline_seconds / 3)
        ack_at, extend_at = 0.0, time.monotonic() + extend_every
        while not self._closing.is_set():
            self._acks_due.wait(_ACK_SECONDS)
            self._acks_due.clear()
            now = time.monotonic()
            if self._acks and now >= ack_at:
                failed = self._send_acks(CALL_SECONDS)
                if error := next((error for _, error in failed if is_transient(error)), None):
                    self._failed(error)  # the reader may be waiting for room, and not notice
                elif not failed:
                    self._worked()
                ack_at = now + 1.0 if failed else now
            if now >= extend_at:
                self._requests.put(_StreamingPullRequest())
                failed = self._modify_deadlines(self._broker.ack_deadline_seconds, CALL_SECONDS)
                extend_at = now + (1.0 if failed else extend_every)

    def _send_acks(self, seconds: float) -> Failures:
        """Send what acks there are, and keep those that it makes sense to send again."""
        acks = list(self._acks)  # to which other threads only append
        failed = self._send_ids("Acknowledge", acks, seconds)
        again: list[str] = []
        for request, error in failed:
            if is_transient(error):
                again += request.ack_ids
            else:
                log.warning("%s: %d acks are refused: %s", self._name, len(request.ack_ids), say(error))
        with self._changed:
            self._acks[: len(acks)] = again
        return failed

    def _modify_deadlines(self, deadline_seconds: int, seconds: float) -> Failures:
        with self._changed:
            held = [ack_id for ack_id, _ in self._held.values()]
        return self._send_ids("ModifyAckDeadline", held, seconds, ack_deadline_seconds=deadline_seconds)

    def _send_ids(self, method: str, ack_ids: list[str], seconds: float, **fields: Any) -> Failures:
        request = functools.partial(getattr(types, f"{method}Request").pb(), subscription=self._name, **fields)
        starts = range(0, len(ack_ids), _IDS_PER_REQUEST)
        return self._send(method, [request(ack_ids=ack_ids[at : at + _IDS_PER_REQUEST]) for at in starts], seconds)


class _Tail(PubsubSubscription):
    """Reads a subscription that is there for this alone."""

    def close(self) -> None:
        super().close()
        delete_subscription(self._broker.project, self._broker.name)
