"""Google Cloud Pub/Sub, or an emulator of it, by its gRPC API with raw protobuf classes, for their speed.

PUBSUB_EMULATOR_HOST is respected; without it the credentials are Google's default ones.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import os
import queue
import random
import re
import threading
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from typing import Any, Self

import grpc
from google.auth.exceptions import GoogleAuthError
from google.pubsub_v1 import SubscriberClient, types
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

from pipelines.brokers import BrokerError, Messages

_log = logging.getLogger(__name__)
_URI = re.compile(r"pubsub://([a-z][a-z0-9.:\-]*)/([A-Za-z][A-Za-z0-9\-._~+%]{2,254})")
# CANCELLED by a server that goes away; who cancels here does not try again.
_TRANSIENT = re.compile("ABORTED|CANCELLED|DEADLINE_EXCEEDED|INTERNAL|RESOURCE_EXHAUSTED|UNAVAILABLE|UNKNOWN")
_ACK_SECONDS = 0.05
_IDS_PER_REQUEST = 1000  # Google's ack ids have some 180 bytes, and a request of them at most 512 KiB
_CALL_SECONDS, _PUBLISH_SECONDS, _GOODBYE_SECONDS = 10.0, 60.0, 1.0
_DRAIN_SECONDS = 5.0
_PING_SECONDS = 20.0  # Google ends a stream on which nothing was sent for 60 s
_STEADY_SECONDS = 10.0  # a stream that lived so long did work, even if nothing came
_LEAST_BACKOFF_SECONDS, _MOST_BACKOFF_SECONDS = 0.05, 2.0
_MESSAGES_PER_PUBLISH, _BYTES_PER_PUBLISH, _PUBLISHES_IN_FLIGHT = 1000, 9_000_000, 4
_EMPTY = {"empty": "true"}  # Pub/Sub refuses all of a request if one message has no data and no attributes
# gRPC's own backoff would leave a connection alone for up to two minutes after the broker is back.
_CHANNEL_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_reconnect_backoff_ms", 1000)]

_PublishRequest = types.PublishRequest.pb()
_PubsubMessage = types.PubsubMessage.pb()
_StreamingPullRequest = types.StreamingPullRequest.pb()
_StreamingPullResponse = types.StreamingPullResponse.pb()
_Failures = list[tuple[Any, grpc.RpcError]]  # requests with what became of them


@dataclasses.dataclass(frozen=True)
class PubsubBroker:
    """A project's subscription (to read) or topic (to write).

    The two bounds are on messages that are held without being acknowledged; a single larger message comes alone.
    `Messages.event_times` are of `event_time_attribute`. Messages come again `ack_deadline_seconds` (10 to 600) after
    a process that held them died.
    """

    project: str
    name: str
    max_outstanding_messages: int = 20_000
    max_outstanding_bytes: int = 64 << 20
    event_time_attribute: str | None = None
    ack_deadline_seconds: int = 60

    def __post_init__(self) -> None:
        if min(self.max_outstanding_messages, self.max_outstanding_bytes) < 1:
            raise ValueError("max_outstanding_messages and max_outstanding_bytes are at least 1")
        if not 10 <= self.ack_deadline_seconds <= 600:
            raise ValueError(f"ack_deadline_seconds is {self.ack_deadline_seconds}, it can be 10 to 600")

    @classmethod
    def parse(cls, uri: str, **options: Any) -> Self:
        """The broker that `uri` names; ValueError if it does not."""
        if not (match := _URI.fullmatch(uri)):
            raise ValueError(f"{uri!r} is not pubsub://PROJECT/NAME in Pub/Sub's characters")
        return cls(match[1], match[2], **options)

    @property
    def uri(self) -> str:
        return f"pubsub://{self.project}/{self.name}"

    def subscribe(self) -> PubsubSubscription:
        return PubsubSubscription(self)

    def publisher(self) -> PubsubPublisher:
        return PubsubPublisher("Publisher", "topic", f"projects/{self.project}/topics/{self.name}", warn_at=1)


class _Client:
    """A channel for calls about one resource; BrokerError if there is no such resource."""

    def __init__(self, service: str, kind: str, name: str, *, warn_at: int) -> None:
        self._name = name
        self._prefix = f"/google.pubsub.v1.{service}/"
        self._metadata = (("x-goog-request-params", f"{kind}={urllib.parse.quote(name)}"),)
        self._warn_at, self._failures = warn_at, 0
        self._closing = threading.Event()
        self._channel = _connect()
        # Who may read or publish need not have the permission to look, so not every answer is one.
        look = getattr(types, f"Get{kind.title()}Request").pb()(**{kind: name})
        for _, error in self._send(f"Get{kind.title()}", [look], _CALL_SECONDS):
            if error.code().name in ("NOT_FOUND", "INVALID_ARGUMENT"):
                self._channel.close()
                raise BrokerError(f"Pub/Sub has no {kind} {name}: {_say(error)}")

    def close(self) -> None:
        self._closing.set()
        self._channel.close()

    def _send(self, method: str, requests: Sequence[Any], seconds: float) -> _Failures:
        """Make calls, all at once; returns those that failed."""
        call = self._channel.unary_unary(self._prefix + method, lambda each: each.SerializeToString())
        try:
            calls = [(each, call.future(each, seconds, self._metadata)) for each in requests]
        except ValueError as error:  # gRPC's answer where the channel is closed
            raise BrokerError("closed") from error
        answers = [(request, answer.exception()) for request, answer in calls]
        return [(request, error) for request, error in answers if error is not None]

    def _failed(self, error: grpc.RpcError | None) -> float:
        """The seconds to wait before it is tried again; warns at the failure `warn_at` of a row."""
        self._failures += 1
        if self._failures == self._warn_at:
            _log.warning("Pub/Sub, %s: %s; trying again until it works", self._name, _say(error))
        seconds = min(_LEAST_BACKOFF_SECONDS * 2.0 ** min(self._failures, 16), _MOST_BACKOFF_SECONDS)
        return seconds * random.uniform(0.5, 1.0)

    def _worked(self) -> None:
        if self._failures >= self._warn_at:
            _log.warning("Pub/Sub, %s: works again", self._name)
        self._failures = 0


class PubsubSubscription(_Client):
    """A StreamingPull, a thread that reads it, and one that sends acks and extends deadlines.

    A receipt is the ids of the messages: each is acknowledged by its newest ack id.
    """

    def __init__(self, broker: PubsubBroker) -> None:
        self._broker = broker
        name = f"projects/{broker.project}/subscriptions/{broker.name}"
        super().__init__("Subscriber", "subscription", name, warn_at=2)  # Google ends streams now and then
        self._first = _StreamingPullRequest(subscription=name, client_id=os.urandom(16).hex())
        self._first.stream_ack_deadline_seconds = broker.ack_deadline_seconds
        self._changed = threading.Condition()  # of the next four, which it guards
        self._waiting: list[Any] = []  # ReceivedMessages
        self._held: dict[str, tuple[str, int]] = {}  # newest ack id and bytes, by message id
        self._acks: list[str] = []
        self._refused = ""
        self._acks_due = threading.Event()
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()  # to the stream; None hangs up
        self._stream: Any = None
        self._reader = threading.Thread(target=self._read, name="pubsub-reader", daemon=True)
        self._keeper = threading.Thread(target=self._keep, name="pubsub-keeper", daemon=True)
        self._reader.start()
        self._keeper.start()

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
        return Messages(payloads, ids, published_us, [0] * len(ids), event_times, ids)

    def acknowledge(self, receipt: Any) -> None:
        with self._changed:
            self._acks += [self._held.pop(each)[0] for each in receipt if each in self._held]
            if len(self._acks) >= _IDS_PER_REQUEST:
                self._acks_due.set()

    def partitions(self) -> frozenset[int]:
        return frozenset({0})

    def backlog(self) -> int | None:
        return len(self._waiting)

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
            _log.warning("%s: some messages come again only later: %s", self._name, _say(failed[0][1]))
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
            try:
                self._stream = pull(iter(requests.get, None), metadata=self._metadata)
                for response in self._stream:
                    self._take(response.received_messages)
            except grpc.RpcError as error:
                failure = error
            finally:
                requests.put(None)
            if failure is not None and not _TRANSIENT.fullmatch(failure.code().name):
                with self._changed:
                    self._refused = f"Pub/Sub refuses to read {self._name}: {_say(failure)}"
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
            self._held |= leases
            self._waiting += received
            self._changed.notify_all()

    def _wait_for_room(self) -> tuple[int, int] | None:
        """The messages and bytes that a new stream may send, all its life: what is not held; None at the end.

        That should be most of the bounds, so it waits a little for acks, which count only when they were sent.
        """
        messages, size = self._broker.max_outstanding_messages, self._broker.max_outstanding_bytes
        end = time.monotonic() + _DRAIN_SECONDS
        while not self._closing.is_set():
            with self._changed:
                room = messages - len(self._held) - len(self._acks), size - sum(each for _, each in self._held.values())
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
                ack_at = now + 1.0 if self._send_acks(_CALL_SECONDS) else now
            if now >= extend_at:
                self._requests.put(_StreamingPullRequest())
                failed = self._modify_deadlines(self._broker.ack_deadline_seconds, _CALL_SECONDS)
                extend_at = now + (1.0 if failed else extend_every)

    def _send_acks(self, seconds: float) -> _Failures:
        """Send what acks there are, and keep those that it makes sense to send again."""
        acks = list(self._acks)  # to which other threads only append
        failed = self._send_ids("Acknowledge", acks, seconds)
        again: list[str] = []
        for request, error in failed:
            if _TRANSIENT.fullmatch(error.code().name):
                again += request.ack_ids
            else:
                _log.warning("%s: %d acks are refused: %s", self._name, len(request.ack_ids), _say(error))
        with self._changed:
            self._acks[: len(acks)] = again
        return failed

    def _modify_deadlines(self, deadline_seconds: int, seconds: float) -> _Failures:
        with self._changed:
            held = [ack_id for ack_id, _ in self._held.values()]
        return self._send_ids("ModifyAckDeadline", held, seconds, ack_deadline_seconds=deadline_seconds)

    def _send_ids(self, method: str, ack_ids: list[str], seconds: float, **fields: Any) -> _Failures:
        request = functools.partial(getattr(types, f"{method}Request").pb(), subscription=self._name, **fields)
        starts = range(0, len(ack_ids), _IDS_PER_REQUEST)
        return self._send(method, [request(ack_ids=ack_ids[at : at + _IDS_PER_REQUEST]) for at in starts], seconds)


class PubsubPublisher(_Client):
    """Publishes in requests of many messages; one whose answer got lost is published twice."""

    def publish(self, payloads: Sequence[bytes], attributes: Sequence[dict[str, str]] | None = None) -> None:
        """Publish, and return when all are safe; tries for ever, until `close` is called meanwhile."""
        requests = self._requests(payloads, [{}] * len(payloads) if attributes is None else attributes)
        while some := list(itertools.islice(requests, _PUBLISHES_IN_FLIGHT)):
            while failed := self._send("Publish", some, _PUBLISH_SECONDS):
                for _, error in failed:
                    if not _TRANSIENT.fullmatch(error.code().name):
                        raise BrokerError(f"Pub/Sub refuses to publish to {self._name}: {_say(error)}")
                if self._closing.wait(self._failed(failed[0][1])):
                    raise BrokerError("closed")
                some = [request for request, _ in failed]
            self._worked()

    def _requests(self, payloads: Sequence[bytes], attributes: Sequence[dict[str, str]]) -> Iterator[Any]:
        request, size = _PublishRequest(topic=self._name), 0
        for payload, each in zip(payloads, attributes, strict=True):
            message = _PubsubMessage(data=payload, attributes=each if each or payload else _EMPTY)
            more = message.ByteSize() + 8
            number = len(request.messages)
            if number == _MESSAGES_PER_PUBLISH or (number and size + more > _BYTES_PER_PUBLISH):
                yield request
                request, size = _PublishRequest(topic=self._name), 0
            request.messages.append(message)
            size += more
        if request.messages:
            yield request


def _connect() -> Any:
    if emulator := os.environ.get("PUBSUB_EMULATOR_HOST"):
        return grpc.insecure_channel(emulator, options=_CHANNEL_OPTIONS)

    create = SubscriberGrpcTransport.create_channel
    transport = functools.partial(
        SubscriberGrpcTransport,
        channel=lambda host, options, **rest: create(host, options=[*options, *_CHANNEL_OPTIONS], **rest),
    )
    try:
        client = SubscriberClient(transport=transport)
    except GoogleAuthError as error:
        raise BrokerError(f"Pub/Sub needs Google's default credentials: {error}") from error
    return client.transport.grpc_channel


def _say(error: grpc.RpcError | None) -> str:
    return "the stream ended" if error is None else f"{error.code().name}: {error.details()}"
