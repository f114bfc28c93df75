"""Publishing to Pub/Sub."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from google.pubsub_v1 import types

from pipelines.brokers import BrokerError
from pipelines.brokers.pubsub_client import Client, is_transient, say

_PUBLISH_SECONDS = 60.0
_MESSAGES_PER_PUBLISH, _BYTES_PER_PUBLISH, _PUBLISHES_IN_FLIGHT = 1000, 9_000_000, 4
_EMPTY = {"empty": "true"}  # Pub/Sub refuses all of a request if one message has no data and no attributes

_PublishRequest = types.PublishRequest.pb()
_PubsubMessage = types.PubsubMessage.pb()


class PubsubPublisher(Client):
    """Publishes in requests of many messages; one whose answer got lost is published twice."""

    def __init__(self, name: str, ordered: bool) -> None:
        super().__init__("Publisher", "topic", name, warn_at=1)
        self._ordered = ordered

    def describe(self, fields: Mapping[str, str]) -> None:
        """Does nothing: rows have no schema there."""

    def publish(
        self,
        payloads: Sequence[bytes],
        attributes: Sequence[dict[str, str]] | None = None,
        keys: Sequence[str | None] | None = None,
    ) -> None:
        """Publish, and return when all are safe; tries for ever, until `close` is called meanwhile."""
        count = len(payloads)
        keys = [None] * count if keys is None else keys
        messages = [
            _PubsubMessage(data=payload, attributes=each if each or payload else _EMPTY, ordering_key=key or "")
            for payload, each, key in zip(
                payloads,
                [{}] * count if attributes is None else attributes,
                keys if self._ordered else [None] * len(keys),
                strict=True,
            )
        ]
        for some in _in_turns(messages, self._name):
            self._publish(some)

    def _publish(self, some: list[Any]) -> None:
        while failed := self._send("Publish", some, _PUBLISH_SECONDS):
            for _, error in failed:
                if not is_transient(error):
                    raise BrokerError(f"Pub/Sub refuses to publish to {self._name}: {say(error)}")
            if self._closing.wait(self._failed(failed[0][1])):
                raise BrokerError("closed")
            some = [request for request, _ in failed]
        self._worked()


def _in_turns(messages: Sequence[Any], topic: str) -> Iterator[list[Any]]:
    """Requests that may be under way at once, and are to be done before the next: so the order of a key is kept."""
    by_key: dict[str, list[Any]] = {}
    for message in messages:
        by_key.setdefault(message.ordering_key, []).append(message)
    unordered = _requests(by_key.pop("", []), topic)
    ordered = itertools.zip_longest(*(_requests(each, topic) for each in by_key.values()))
    for requests in (unordered, *(filter(None, turn) for turn in ordered)):
        while some := list(itertools.islice(requests, _PUBLISHES_IN_FLIGHT)):
            yield some


def _requests(messages: Sequence[Any], topic: str) -> Iterator[Any]:
    """Requests of messages in their order, within Pub/Sub's bounds."""
    request, size = _PublishRequest(topic=topic), 0
    for message in messages:
        more = message.ByteSize() + 8
        number = len(request.messages)
        if number == _MESSAGES_PER_PUBLISH or (number and size + more > _BYTES_PER_PUBLISH):
            yield request
            request, size = _PublishRequest(topic=topic), 0
        request.messages.append(message)
        size += more
    if request.messages:
        yield request
