"""A gRPC channel to Pub/Sub or an emulator of it: calls, and what is logged of those that fail."""

from __future__ import annotations

import functools
import logging
import os
import random
import re
import threading
import urllib.parse
from collections.abc import Sequence
from typing import Any

import grpc
from google.auth.exceptions import GoogleAuthError
from google.pubsub_v1 import SubscriberClient, types
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

from pipelines.brokers import BrokerError

log = logging.getLogger("pipelines.brokers.pubsub")
# CANCELLED by a server that goes away; who cancels here does not try again.
_TRANSIENT = re.compile("ABORTED|CANCELLED|DEADLINE_EXCEEDED|INTERNAL|RESOURCE_EXHAUSTED|UNAVAILABLE|UNKNOWN")
CALL_SECONDS = 10.0
_LEAST_BACKOFF_SECONDS, _MOST_BACKOFF_SECONDS = 0.05, 2.0
# gRPC's own backoff would leave a connection alone for up to two minutes after the broker is back.
_CHANNEL_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_reconnect_backoff_ms", 1000)]

Failures = list[tuple[Any, grpc.RpcError]]  # requests with what became of them


class Client:
    """A channel for calls about one resource; BrokerError if there is no such resource."""

    def __init__(self, service: str, kind: str, name: str, *, warn_at: int) -> None:
        self._name = name
        self._prefix = f"/google.pubsub.v1.{service}/"
        self._metadata = (("x-goog-request-params", f"{kind}={urllib.parse.quote(name)}"),)
        self._warn_at, self._failures, self._warned = warn_at, 0, False
        self._counting = threading.Lock()  # of the failures
        self._closing = threading.Event()
        self._channel = connect()
        # Who may read or publish need not have the permission to look, so not every answer is one.
        look = getattr(types, f"Get{kind.title()}Request").pb()(**{kind: name})
        call = self._channel.unary_unary(f"{self._prefix}Get{kind.title()}", type(look).SerializeToString)
        try:
            self._resource = call(look, CALL_SECONDS, self._metadata)
        except grpc.RpcError as error:
            self._resource = b""
            if error.code().name in ("NOT_FOUND", "INVALID_ARGUMENT"):
                self._channel.close()
                raise BrokerError(f"Pub/Sub has no {kind} {name}: {say(error)}") from None

    def close(self) -> None:
        self._closing.set()
        self._channel.close()

    def _send(self, method: str, requests: Sequence[Any], seconds: float) -> Failures:
        """Make calls, all at once, of requests or their bytes; returns those that failed."""
        call = self._channel.unary_unary(self._prefix + method, _to_bytes)
        try:
            calls = [(each, call.future(each, seconds, self._metadata)) for each in requests]
        except ValueError as error:  # gRPC's answer where the channel is closed
            raise BrokerError("closed") from error
        answers = [(request, answer.exception()) for request, answer in calls]
        return [(request, error) for request, error in answers if error is not None]

    def _failed(self, error: grpc.RpcError | None) -> float:
        """The seconds to wait before it is tried again; warns once of a row of failures, at number `warn_at`."""
        with self._counting:
            self._failures += 1
            if self._failures >= self._warn_at and not self._warned:
                self._warned = True
                log.warning("Pub/Sub, %s: %s; trying again until it works", self._name, say(error))
            seconds = min(_LEAST_BACKOFF_SECONDS * 2.0 ** min(self._failures, 16), _MOST_BACKOFF_SECONDS)
        return seconds * random.uniform(0.5, 1.0)

    def _worked(self) -> None:
        with self._counting:
            if self._warned:
                log.warning("Pub/Sub, %s: works again", self._name)
            self._failures, self._warned = 0, False


def _to_bytes(request: Any) -> bytes:
    return request if isinstance(request, bytes) else request.SerializeToString()


def connect() -> Any:
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
        raise BrokerError(
            f"Pub/Sub needs Google's default credentials: {' '.join(str(error).split())}. For the embedded one of "
            "`headrace pubsub`, say in this terminal, too: export PUBSUB_EMULATOR_HOST=127.0.0.1:8085"
        ) from error
    return client.transport.grpc_channel


def is_transient(error: grpc.RpcError) -> bool:
    """Whether trying again may help."""
    return _TRANSIENT.fullmatch(error.code().name) is not None


def say(error: grpc.RpcError | None) -> str:
    """An error in words."""
    return "the stream ended" if error is None else f"{error.code().name}: {error.details()}"
