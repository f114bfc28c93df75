"""Topics of Pub/Sub, and subscriptions to look on by."""

from __future__ import annotations

import contextlib
import os
import urllib.parse
from typing import Any

import grpc
from google.pubsub_v1 import types

from pipelines.brokers import BrokerError
from pipelines.brokers.pubsub_client import CALL_SECONDS, connect, say

_UNUSED_SECONDS = 86_400  # after which Pub/Sub deletes a subscription that nobody reads; no less is allowed


def has_topic(project: str, topic: str) -> bool:
    """Whether there is a topic; BrokerError if Pub/Sub does not say."""
    try:
        _call("Publisher", "GetTopic", "topic", types.GetTopicRequest.pb()(topic=_topic(project, topic)))
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return False
        raise BrokerError(f"Pub/Sub does not tell of the topic {topic}: {say(error)}") from None
    return True


def create_topic(project: str, topic: str) -> None:
    """Make a topic; one that is there stays; BrokerError if Pub/Sub refuses."""
    try:
        _call("Publisher", "CreateTopic", "name", types.Topic.pb()(name=_topic(project, topic)))
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.ALREADY_EXISTS:
            raise BrokerError(f"Pub/Sub's topic {topic} can't be made: {say(error)}") from None


def add_subscription(project: str, topic: str) -> str:
    """Make a subscription with a name of its own to a topic, and return that; BrokerError if Pub/Sub refuses."""
    name = f"headrace-tail-{os.urandom(8).hex()}"
    made = types.Subscription.pb()(name=_subscription(project, name), topic=_topic(project, topic))
    made.expiration_policy.ttl.seconds = made.message_retention_duration.seconds = _UNUSED_SECONDS
    try:
        _call("Subscriber", "CreateSubscription", "name", made)
    except grpc.RpcError as error:
        raise BrokerError(f"Pub/Sub, {topic}: no subscription can be made to look on: {say(error)}") from None
    return name


def delete_subscription(project: str, name: str) -> None:
    """Delete a subscription; where that fails, Pub/Sub does after a day."""
    request = types.DeleteSubscriptionRequest.pb()(subscription=_subscription(project, name))
    with contextlib.suppress(grpc.RpcError):
        _call("Subscriber", "DeleteSubscription", "subscription", request)


def _topic(project: str, topic: str) -> str:
    return f"projects/{project}/topics/{topic}"


def _subscription(project: str, name: str) -> str:
    return f"projects/{project}/subscriptions/{name}"


def _call(service: str, method: str, kind: str, request: Any) -> None:
    routed = (("x-goog-request-params", f"{kind}={urllib.parse.quote(getattr(request, kind))}"),)
    channel = connect()
    try:
        call = channel.unary_unary(f"/google.pubsub.v1.{service}/{method}", lambda each: each.SerializeToString())
        call(request, CALL_SECONDS, routed)
    finally:
        channel.close()
