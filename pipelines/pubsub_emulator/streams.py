"""One reader of a subscription, a StreamingPull or a Pull, as a thread waits for messages on its behalf."""

import time
from collections.abc import Callable, Iterable

import grpc

from pipelines.pubsub_emulator.broker import Broker
from pipelines.pubsub_emulator.errors import EmulatorError, InvalidArgument, NotFound
from pipelines.pubsub_emulator.messages import Consumer, PbMessage
from pipelines.pubsub_emulator.subscription import Received, Subscription


class Stream:
    """Takes messages for one consumer; `closed` once its client is gone or has hung up."""

    def __init__(self, broker: Broker, subscription: Subscription, consumer: Consumer) -> None:
        self.closed = False
        self.ordered = bool(subscription.settings.enable_message_ordering)
        self._broker = broker
        self._subscription = subscription
        self._consumer = consumer
        self._deadline_seconds = 0  # 0: the subscription's
        self._answers_pings = False
        self._pinged = False
        self._error: EmulatorError | None = None

    @classmethod
    def open(cls, broker: Broker, first: PbMessage) -> "Stream":
        """A stream as its first request describes it; the broker's lock is held."""
        subscription = broker.registry.attached(first.subscription)
        consumer = Consumer(first.max_outstanding_messages, first.max_outstanding_bytes)
        stream = cls(broker, subscription, consumer)
        if not first.stream_ack_deadline_seconds:
            raise InvalidArgument("The first request of a stream has its stream_ack_deadline_seconds.")
        stream._answers_pings = first.protocol_version >= 1
        stream._apply(first)
        return stream

    def take(self, count: int) -> list[Received]:
        """What it may have now; the broker's lock is held."""
        deadline = self._deadline_seconds or self._subscription.settings.ack_deadline_seconds
        return self._broker.take(self._subscription, self._consumer, count, deadline)

    def wait(self, count: int, seconds: float | None, check: Callable[[], None]) -> list[Received]:
        """Wait, at most `seconds`, for a message, an error, a ping or the end; the broker's lock is held.

        `check` raises where waiting has no sense any more; it is asked whenever the wait is interrupted.
        """
        end = None if seconds is None else time.monotonic() + seconds
        while True:
            check()
            if self._error is not None:
                raise self._error
            if self.closed:
                return []
            name = self._subscription.settings.name
            if self._subscription.deleted:
                raise NotFound(f"The subscription {name} was deleted.")
            self._broker.registry.attached(name)
            received = self.take(count)
            left = None if end is None else end - time.monotonic()
            if received or self._pinged or (left is not None and left <= 0):
                self._pinged = False
                return received
            self._subscription.changed.wait(left)

    def read(self, requests: Iterable[PbMessage]) -> None:
        """Carry out what the client sends until it hangs up; runs in a thread of its own."""
        try:
            for request in requests:
                with self._broker.lock:
                    self._apply(request)
        except EmulatorError as error:
            self._error = error
        except grpc.RpcError:
            pass  # the call ended; its handler knows
        finally:
            self.close()

    def close(self) -> None:
        with self._broker.lock:
            self.closed = self._error is None
            self._subscription.changed.notify_all()

    def write(self, received: Iterable[Received], response: PbMessage) -> None:
        """Add messages to a response, outside the lock."""
        add = response.received_messages.add
        for ack_id, body, attempt in received:
            add(ack_id=ack_id, delivery_attempt=attempt).message.MergeFromString(body)

    def _apply(self, request: PbMessage) -> None:
        if request.ack_ids:
            self._subscription.acknowledge(request.ack_ids)
        if len(request.modify_deadline_ack_ids) != len(request.modify_deadline_seconds):
            raise InvalidArgument("modify_deadline_ack_ids and modify_deadline_seconds differ in length.")
        by_seconds: dict[int, list[str]] = {}
        for ack_id, seconds in zip(request.modify_deadline_ack_ids, request.modify_deadline_seconds, strict=True):
            by_seconds.setdefault(seconds, []).append(ack_id)
        for seconds, ack_ids in by_seconds.items():
            self._subscription.modify_deadline(ack_ids, seconds, self._broker.clock.monotonic())
        if request.stream_ack_deadline_seconds:
            if not 10 <= request.stream_ack_deadline_seconds <= 600:
                raise InvalidArgument(
                    f"stream_ack_deadline_seconds is 10 to 600; got {request.stream_ack_deadline_seconds}."
                )
            self._deadline_seconds = request.stream_ack_deadline_seconds
        elif not (request.ack_ids or request.modify_deadline_ack_ids):
            self._pinged = self._answers_pings
            self._subscription.changed.notify_all()
