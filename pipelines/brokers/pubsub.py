"""Google Cloud Pub/Sub, or an emulator of it, over its gRPC API.

Google's own high-level client costs tens of microseconds a message; this calls the same API with the raw
protobuf classes, a list comprehension per response and field. PUBSUB_EMULATOR_HOST is respected; without it
the credentials are Google's default ones.
"""

from __future__ import annotations

import bisect
import collections
import dataclasses
import functools
import itertools
import logging
import os
import random
import re
import threading
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import grpc
from google.auth.exceptions import GoogleAuthError
from google.protobuf import empty_pb2
from google.pubsub_v1 import SubscriberClient, types
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

from pipelines.brokers import BrokerError, Messages

_log = logging.getLogger(__name__)

_URI = re.compile(r"pubsub://([a-z][a-z0-9.:\-]*)/([A-Za-z][A-Za-z0-9\-._~+%]{2,254})")
_TRANSIENT = frozenset(
    {
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.CANCELLED,  # by a server that goes away; our own cancelling is asked for before
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.UNKNOWN,
    }
)
_ACK_SECONDS = 0.05
_IDS_PER_REQUEST = 1000  # Google's ack ids have some 180 bytes, and a request of them at most 512 KiB
_PING_SECONDS = 20.0  # Google ends a stream on which nothing was sent for 60 s
_CALL_SECONDS = 10.0
_PUBLISH_SECONDS = 60.0
_GOODBYE_SECONDS = 1.0
_DRAIN_SECONDS = 5.0
_STEADY_SECONDS = 10.0  # a stream that lived so long did work, even if nothing came
_BACKOFF_SECONDS = (0.1, 5.0)
_MESSAGES_PER_PUBLISH = 1000
_BYTES_PER_PUBLISH = 9_000_000
_BYTES_PER_MESSAGE = 16  # what the encoding adds to a payload, at most
_PUBLISHES_IN_FLIGHT = 4
# A message with neither data nor attributes is refused by Pub/Sub, and all of its request with it.
_EMPTY = {"empty": "true"}
_CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # gRPC's own would leave a connection alone for up to two minutes after the broker is back.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 5000),
]

_AcknowledgeRequest = types.AcknowledgeRequest.pb()
_GetSubscriptionRequest = types.GetSubscriptionRequest.pb()
_GetTopicRequest = types.GetTopicRequest.pb()
_ModifyAckDeadlineRequest = types.ModifyAckDeadlineRequest.pb()
_PublishRequest = types.PublishRequest.pb()
_PublishResponse = types.PublishResponse.pb()
_StreamingPullRequest = types.StreamingPullRequest.pb()
_StreamingPullResponse = types.StreamingPullResponse.pb()


@dataclasses.dataclass(frozen=True)
class PubsubBroker:
    """A subscription (to read) or a topic (to write) of a project.

    Args:
        project: The project's id.
        name: The subscription's id for `subscribe`, the topic's for `publisher`.
        max_outstanding_messages: How many messages may be held without being acknowledged.
        max_outstanding_bytes: The same in bytes; a single larger message comes alone.
        event_time_attribute: The attribute that `Messages.event_times` are of.
        ack_deadline_seconds: How soon messages come again after this process died, 10 to 600.
    """

    project: str
    name: str
    max_outstanding_messages: int = 20_000
    max_outstanding_bytes: int = 64 << 20
    event_time_attribute: str | None = None
    ack_deadline_seconds: int = 60

    def __post_init__(self) -> None:
        if not _URI.fullmatch(self.uri):
            raise ValueError(f"{self.uri!r} is not pubsub://PROJECT/NAME with Pub/Sub's characters")
        if min(self.max_outstanding_messages, self.max_outstanding_bytes) < 1:
            raise ValueError("max_outstanding_messages and max_outstanding_bytes are at least 1")
        if not 10 <= self.ack_deadline_seconds <= 600:
            raise ValueError(f"ack_deadline_seconds is {self.ack_deadline_seconds}, it can be 10 to 600")

    @classmethod
    def parse(cls, uri: str, **options: Any) -> Self:
        """The broker that `uri` names; ValueError if it does not."""
        match = _URI.fullmatch(uri)
        if match is None:
            raise ValueError(f"{uri!r} is not pubsub://PROJECT/NAME with Pub/Sub's characters")
        return cls(match[1], match[2], **options)

    @property
    def uri(self) -> str:
        return f"pubsub://{self.project}/{self.name}"

    def subscribe(self) -> PubsubSubscription:
        """Connect for reading; BrokerError if there is no such subscription."""
        return PubsubSubscription(self)

    def publisher(self) -> PubsubPublisher:
        """Connect for writing; BrokerError if there is no such topic."""
        return PubsubPublisher(f"projects/{self.project}/topics/{self.name}")


class PubsubSubscription:
    """A StreamingPull, and threads that read it, acknowledge in batches and extend deadlines.

    A receipt is the ids of the messages: each is acknowledged by its newest ack id.
    """

    def __init__(self, broker: PubsubBroker) -> None:
        self._broker = broker
        self._name = f"projects/{broker.project}/subscriptions/{broker.name}"
        self._service = _Service("Subscriber", "subscription", self._name)
        self._service.check_exists("GetSubscription", _GetSubscriptionRequest)
        self._acknowledge = self._service.unary("Acknowledge", _AcknowledgeRequest, empty_pb2.Empty)
        self._modify = self._service.unary("ModifyAckDeadline", _ModifyAckDeadlineRequest, empty_pb2.Empty)
        self._client_id = str(uuid.uuid4())
        # `_changed` guards all from here to `_refused`.
        self._changed = threading.Condition()
        # Columns of what waits to be received: payloads, ids, publish times and, if wanted, event times.
        self._waiting: list[list[Any]] = [[] for _ in range(3 + (broker.event_time_attribute is not None))]
        self._held: dict[str, tuple[str, int]] = {}  # by message id: newest ack id, bytes
        self._acks: list[str] = []
        self._refused = ""
        self._closing = threading.Event()
        self._hang_up = threading.Event()
        self._due = threading.Event()
        self._stream: Any = None
        self._reader = threading.Thread(target=self._read, name="pubsub-reader", daemon=True)
        self._keeper = threading.Thread(target=self._keep, name="pubsub-keeper", daemon=True)
        self._reader.start()
        self._keeper.start()

    def receive(self, max_messages: int, timeout_seconds: float) -> Messages | None:
        with self._changed:
            self._changed.wait_for(
                lambda: self._waiting[0] or self._refused or self._closing.is_set(), timeout_seconds
            )
            if self._closing.is_set():
                raise BrokerError("closed")
            if not self._waiting[0]:
                if self._refused:
                    raise BrokerError(self._refused)
                return None
            taken = [column[:max_messages] for column in self._waiting]
            for column in self._waiting:
                del column[:max_messages]
        payloads, ids, published, *event_times = taken
        partitions = [0] * len(ids)
        return Messages(payloads, ids, published, partitions, event_times[0] if event_times else None, ids)

    def acknowledge(self, receipt: Any) -> None:
        with self._changed:
            held = self._held
            self._acks += [held.pop(each)[0] for each in receipt if each in held]
            if len(self._acks) >= _IDS_PER_REQUEST:
                self._due.set()

    def partitions(self) -> frozenset[int]:
        return frozenset({0})

    def backlog(self) -> int | None:
        return len(self._waiting[0])

    def close(self) -> None:
        """Takes seconds at the most, also if the broker does not answer."""
        with self._changed:
            if self._closing.is_set():
                return
            self._closing.set()
            self._hang_up.set()
            self._changed.notify_all()
        self._due.set()
        # What is on its way is still read, to be given back: else it would wait for its deadline to pass.
        self._reader.join(_GOODBYE_SECONDS)
        if self._reader.is_alive() and self._stream is not None:
            self._stream.cancel()
        self._reader.join(_GOODBYE_SECONDS)
        self._keeper.join(_GOODBYE_SECONDS)
        with self._changed:
            acks = self._acks
            nacks = [ack_id for ack_id, _ in self._held.values()]
            self._acks, self._held = [], {}
        failed = self._service.send(self._acknowledge, self._ack_requests(acks), _GOODBYE_SECONDS)
        failed += self._service.send(self._modify, self._deadline_requests(nacks, 0), _GOODBYE_SECONDS)
        if failed:
            number = sum(len(request.ack_ids) for request, _ in failed)
            _log.warning("%s: at closing %d acks were not sent (%s)", self._name, number, _say(failed[0][1]))
        self._service.close()

    def _read(self) -> None:
        pull = self._service.stream("StreamingPull", _StreamingPullRequest, _StreamingPullResponse)
        # Google ends streams now and then; a warning is due if the next one fails too.
        retries = _Retries(self._name, after=2)
        while (room := self._wait_for_room()) is not None:
            hang_up = threading.Event()
            with self._changed:
                if self._closing.is_set():
                    return
                self._hang_up = hang_up
            opened = time.monotonic()
            error: grpc.RpcError | None = None
            try:
                self._stream = pull(self._requests(room, hang_up), metadata=self._service.metadata)
                for response in self._stream:
                    if response.received_messages:
                        retries.worked()
                        self._take(response.received_messages)
            except grpc.RpcError as ended:
                error = ended
            finally:
                hang_up.set()
            if error is not None and error.code() not in _TRANSIENT and not self._closing.is_set():
                with self._changed:
                    self._refused = f"Pub/Sub refuses to read {self._name}: {_say(error)}"
                    self._changed.notify_all()
                return
            if time.monotonic() - opened > _STEADY_SECONDS:
                retries.worked()
            self._closing.wait(retries.failed(error))

    def _wait_for_room(self) -> tuple[int, int] | None:
        """The messages and bytes a new stream may send; None at the end.

        Pub/Sub counts by stream: what is held from the one before must be subtracted, for the new one's
        whole life. So wait a little for most of it to be acknowledged.
        """
        most = self._broker.max_outstanding_messages, self._broker.max_outstanding_bytes
        end = time.monotonic() + _DRAIN_SECONDS
        while not self._closing.is_set():
            with self._changed:
                held = len(self._held), sum(size for _, size in self._held.values())
            room = most[0] - held[0], most[1] - held[1]
            if min(room) > 0 and (time.monotonic() > end or all(h <= m / 10 for h, m in zip(held, most, strict=True))):
                return room
            self._closing.wait(_ACK_SECONDS)
        return None

    def _requests(self, room: tuple[int, int], hang_up: threading.Event) -> Iterator[Any]:
        yield _StreamingPullRequest(
            subscription=self._name,
            stream_ack_deadline_seconds=self._broker.ack_deadline_seconds,
            client_id=self._client_id,
            max_outstanding_messages=room[0],
            max_outstanding_bytes=room[1],
        )
        while not hang_up.wait(_PING_SECONDS):
            yield _StreamingPullRequest()

    def _take(self, received: Sequence[Any]) -> None:
        messages = [each.message for each in received]
        payloads = [message.data for message in messages]
        ids = [message.message_id for message in messages]
        stamps = [message.publish_time for message in messages]
        columns = [payloads, ids, [stamp.seconds * 1_000_000 + stamp.nanos // 1000 for stamp in stamps]]
        if self._broker.event_time_attribute is not None:
            columns.append([message.attributes.get(self._broker.event_time_attribute) for message in messages])
        held = zip(ids, zip([each.ack_id for each in received], map(len, payloads), strict=True), strict=True)
        with self._changed:
            self._held.update(held)
            for waiting, column in zip(self._waiting, columns, strict=True):
                waiting += column
            self._changed.notify_all()

    def _keep(self) -> None:
        """Send acks and extend deadlines until the subscription is closed."""
        retries = _Retries(f"acks of {self._name}", after=5)
        retry_at = 0.0
        extend_every = self._broker.ack_deadline_seconds / 3
        extend_at = time.monotonic() + extend_every
        while not self._closing.is_set():
            self._due.wait(_ACK_SECONDS)
            self._due.clear()
            now = time.monotonic()
            if self._acks and now >= retry_at:
                retry_at = now + self._send_acks(retries)
            if now >= extend_at:
                with self._changed:
                    ack_ids = [ack_id for ack_id, _ in self._held.values()]
                requests = self._deadline_requests(ack_ids, self._broker.ack_deadline_seconds)
                failed = self._service.send(self._modify, requests, _CALL_SECONDS)
                extend_at = now + (1.0 if failed else extend_every)

    def _send_acks(self, retries: _Retries) -> float:
        """Send what acks there are; returns the seconds to wait before more are sent."""
        with self._changed:
            acks, self._acks = self._acks, []
        failed = self._service.send(self._acknowledge, self._ack_requests(acks), _CALL_SECONDS)
        again = [request for request, error in failed if error.code() in _TRANSIENT]
        for request, error in failed:
            if error.code() not in _TRANSIENT:
                _log.warning("%s: %d acks are refused: %s", self._name, len(request.ack_ids), _say(error))
        if not again:
            retries.worked()
            return 0.0
        with self._changed:
            self._acks += itertools.chain.from_iterable(request.ack_ids for request in again)
        return retries.failed(failed[-1][1])

    def _ack_requests(self, ack_ids: list[str]) -> list[Any]:
        return [_AcknowledgeRequest(subscription=self._name, ack_ids=part) for part in _parts(ack_ids)]

    def _deadline_requests(self, ack_ids: list[str], seconds: int) -> list[Any]:
        return [
            _ModifyAckDeadlineRequest(subscription=self._name, ack_ids=part, ack_deadline_seconds=seconds)
            for part in _parts(ack_ids)
        ]
