"""Google's gRPC API over the broker, whose lock each call holds while it reads or changes its state."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import grpc

from pipelines.pubsub_emulator import wire
from pipelines.pubsub_emulator.broker import Broker
from pipelines.pubsub_emulator.errors import EmulatorError, InvalidArgument, ResourceExhausted, Unavailable
from pipelines.pubsub_emulator.messages import Consumer, PbMessage
from pipelines.pubsub_emulator.streams import Stream
from pipelines.pubsub_emulator.subscription import MAX_MESSAGES_PER_RESPONSE

Method = Callable[[PbMessage], PbMessage]


class Service:
    """The handlers of google.pubsub.v1.Publisher and Subscriber.

    A stream, or a Pull that waits, keeps two threads or one; at most `max_waiting` of them may. A Pull that
    finds no message waits `pull_wait_seconds` for one.
    """

    def __init__(self, broker: Broker, *, max_waiting: int, pull_wait_seconds: float) -> None:
        self._broker = broker
        self._max_waiting = max_waiting
        self._pull_wait_seconds = pull_wait_seconds
        self._waiting = 0
        self._down = False

    def go_up(self) -> None:
        self._down = False

    def go_down(self) -> None:
        """End all streams and refuse all calls with UNAVAILABLE, which clients retry."""
        with self._broker.lock:
            self._down = True
            self._broker.wake_consumers()

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        broker, registry = self._broker, self._broker.registry
        publisher = {
            "CreateTopic": self._unary(registry.create_topic, wire.Topic),
            "DeleteTopic": self._unary(registry.delete_topic, wire.DeleteTopicRequest),
            "DetachSubscription": self._unary(registry.detach_subscription, wire.DetachSubscriptionRequest),
            "GetTopic": self._unary(registry.get_topic, wire.GetTopicRequest),
            "ListTopicSnapshots": self._unary(registry.list_topic_snapshots, wire.ListTopicSnapshotsRequest),
            "ListTopicSubscriptions": self._unary(
                registry.list_topic_subscriptions, wire.ListTopicSubscriptionsRequest
            ),
            "ListTopics": self._unary(registry.list_topics, wire.ListTopicsRequest),
            "Publish": self._unary(broker.publish, wire.PublishRequest),
            "UpdateTopic": self._unary(registry.update_topic, wire.UpdateTopicRequest),
        }
        subscriber = {
            "Acknowledge": self._unary(broker.acknowledge, wire.AcknowledgeRequest),
            "CreateSnapshot": self._unary(broker.create_snapshot, wire.CreateSnapshotRequest),
            "CreateSubscription": self._unary(broker.create_subscription, wire.Subscription),
            "DeleteSnapshot": self._unary(registry.delete_snapshot, wire.DeleteSnapshotRequest),
            "DeleteSubscription": self._unary(registry.delete_subscription, wire.DeleteSubscriptionRequest),
            "GetSnapshot": self._unary(registry.get_snapshot, wire.GetSnapshotRequest),
            "GetSubscription": self._unary(registry.get_subscription, wire.GetSubscriptionRequest),
            "ListSnapshots": self._unary(registry.list_snapshots, wire.ListSnapshotsRequest),
            "ListSubscriptions": self._unary(registry.list_subscriptions, wire.ListSubscriptionsRequest),
            "ModifyAckDeadline": self._unary(broker.modify_ack_deadline, wire.ModifyAckDeadlineRequest),
            "Pull": grpc.unary_unary_rpc_method_handler(
                self._pull, wire.PullRequest.FromString, wire.PullResponse.SerializeToString
            ),
            "Seek": self._unary(broker.seek, wire.SeekRequest),
            "StreamingPull": grpc.stream_stream_rpc_method_handler(
                self._streaming_pull,
                wire.StreamingPullRequest.FromString,
                wire.StreamingPullResponse.SerializeToString,
            ),
            "UpdateSubscription": self._unary(registry.update_subscription, wire.UpdateSubscriptionRequest),
        }
        return [
            grpc.method_handlers_generic_handler("google.pubsub.v1.Publisher", publisher),
            grpc.method_handlers_generic_handler("google.pubsub.v1.Subscriber", subscriber),
        ]

    def _unary(self, method: Method, request_class: Any) -> grpc.RpcMethodHandler:
        def call(request: PbMessage, context: grpc.ServicerContext) -> PbMessage:
            with _refusing(context), self._broker.lock:
                self._check_up()
                return method(request)

        return grpc.unary_unary_rpc_method_handler(call, request_class.FromString, _serialize)

    def _pull(self, request: PbMessage, context: grpc.ServicerContext) -> PbMessage:
        with _refusing(context):
            if request.max_messages <= 0:
                raise InvalidArgument(f"max_messages is positive; got {request.max_messages}.")
            broker = self._broker
            with broker.lock:
                self._check_up()
                subscription = broker.registry.attached(request.subscription)
                stream = Stream(broker, subscription, Consumer())
                if request.return_immediately or not self._may_wait():
                    received = stream.take(request.max_messages)
                else:
                    context.add_callback(stream.close)
                    self._waiting += 1
                    try:
                        received = stream.wait(request.max_messages, self._wait_seconds(context), self._check_up)
                    finally:
                        self._waiting -= 1
        response = wire.PullResponse()
        stream.write(received, response)
        return response

    def _streaming_pull(self, requests: Iterator[PbMessage], context: grpc.ServicerContext) -> Iterator[PbMessage]:
        with _refusing(context):
            first = next(requests, None)
            if first is None:
                return
            broker = self._broker
            with broker.lock:
                self._check_up()
                if not self._may_wait():
                    raise ResourceExhausted(f"The emulator has its most streams, {self._max_waiting}, open.")
                stream = Stream.open(broker, first)
                self._waiting += 1
            try:
                context.add_callback(stream.close)
                threading.Thread(target=stream.read, args=(requests,), name="pubsub-stream", daemon=True).start()
                yield from self._responses(stream)
            finally:
                with broker.lock:
                    self._waiting -= 1

    def _responses(self, stream: Stream) -> Iterator[PbMessage]:
        while True:
            with self._broker.lock:
                received = stream.wait(MAX_MESSAGES_PER_RESPONSE, None, self._check_up)
            if stream.closed:
                return
            response = wire.StreamingPullResponse()
            response.subscription_properties.message_ordering_enabled = stream.ordered
            stream.write(received, response)
            yield response

    def _may_wait(self) -> bool:
        return self._waiting < self._max_waiting

    def _wait_seconds(self, context: grpc.ServicerContext) -> float:
        # An empty answer, while there is time for it to reach the client, rather than DEADLINE_EXCEEDED.
        left = context.time_remaining()
        return self._pull_wait_seconds if left is None else min(self._pull_wait_seconds, max(0.0, 0.8 * left))

    def _check_up(self) -> None:
        if self._down:
            raise Unavailable("The broker is down.")


def _serialize(response: PbMessage) -> bytes:
    return bytes(response.SerializeToString())


@contextlib.contextmanager
def _refusing(context: grpc.ServicerContext) -> Iterator[None]:
    """Answer a refusal of the broker with its status."""
    try:
        yield
    except EmulatorError as error:
        _abort(context, error)


def _abort(context: grpc.ServicerContext, error: EmulatorError) -> NoReturn:
    context.abort(grpc.StatusCode[error.status], str(error))
    raise AssertionError("unreachable: abort raises")
