"""Publishing to Pub/Sub.

Messages are written in Protocol Buffers' encoding by the row's payload and what rows have in common: a message's object
of Google's classes costs several times as much as all else that is done for a row.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from google.pubsub_v1 import types

from pipelines.brokers import BrokerError
from pipelines.brokers.pubsub_client import Client, is_transient, say

_PUBLISH_SECONDS = 60.0
_MESSAGES_PER_PUBLISH, _BYTES_PER_PUBLISH, _PUBLISHES_IN_FLIGHT = 1000, 9_000_000, 4
_EMPTY = {"empty": "true"}  # Pub/Sub refuses all of a request if one message has no data and no attributes

_PublishRequest = types.PublishRequest.pb()
_PubsubMessage = types.PubsubMessage.pb()
# The tags of `PublishRequest.messages` and `PubsubMessage.data`. Fields one after another are a message.
_MESSAGES_TAG, _DATA_TAG = b"\x12", b"\x0a"


class Encoded(NamedTuple):
    """A message as a request has it: what stands before its payload, that, and what stands behind it."""

    head: bytes
    payload: bytes
    rest: bytes


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
        by_key = encode_messages(
            payloads,
            [{}] * count if attributes is None else attributes,
            keys if self._ordered else [None] * len(keys),
        )
        for some in in_turns(by_key, self._name):
            self._publish(some)

    def _publish(self, some: list[bytes]) -> None:
        while failed := self._send("Publish", some, _PUBLISH_SECONDS):
            for _, error in failed:
                if not is_transient(error):
                    raise BrokerError(f"Pub/Sub refuses to publish to {self._name}: {say(error)}")
            if self._closing.wait(self._failed(failed[0][1])):
                raise BrokerError("closed")
            some = [request for request, _ in failed]
        self._worked()


def encode_messages(
    payloads: Sequence[bytes], attributes: Sequence[dict[str, str]], keys: Sequence[str | None]
) -> dict[str, list[Encoded]]:
    """Messages by their ordering key, "" for none; ValueError if there are not as many of each."""
    encoded: dict[tuple[int, str | None], bytes] = {}  # what is behind a payload; rows that say the same share a dict
    by_key: dict[str, list[Encoded]] = {}
    for payload, each, key in zip(payloads, attributes, keys, strict=True):
        said = each if each or payload else _EMPTY
        rest = encoded.get((id(said), key))
        if rest is None:
            rest = _PubsubMessage(attributes=said, ordering_key=key or "").SerializeToString()
            encoded[id(said), key] = rest
        by_key.setdefault(key or "", []).append(Encoded(_head(len(payload), len(rest)), payload, rest))
    return by_key


def in_turns(by_key: dict[str, list[Encoded]], topic: str) -> Iterator[list[bytes]]:
    """Requests that may be under way at once, and are to be done before the next: so the order of a key is kept."""
    unordered = requests_of(by_key.pop("", []), topic)
    ordered = itertools.zip_longest(*(requests_of(each, topic) for each in by_key.values()))
    for requests in (unordered, *(filter(None, turn) for turn in ordered)):
        while some := list(itertools.islice(requests, _PUBLISHES_IN_FLIGHT)):
            yield some


def requests_of(messages: Sequence[Encoded], topic: str) -> Iterator[bytes]:
    """Requests of messages in their order, within Pub/Sub's bounds."""
    parts, size = [to := _PublishRequest(topic=topic).SerializeToString()], 0
    for message in messages:
        more = sum(map(len, message))
        if size and (len(parts) > 3 * _MESSAGES_PER_PUBLISH or size + more > _BYTES_PER_PUBLISH):
            yield b"".join(parts)
            parts, size = [to], 0
        parts += message
        size += more
    if size:
        yield b"".join(parts)


@functools.lru_cache(maxsize=1 << 16)
def _head(payload_bytes: int, rest_bytes: int) -> bytes:
    """What stands before a payload: the tags and lengths of the message and of the payload in it."""
    data = _DATA_TAG + _varint(payload_bytes)
    return _MESSAGES_TAG + _varint(len(data) + payload_bytes + rest_bytes) + data


def _varint(number: int) -> bytes:
    """A number as seven bits a byte, the lowest first; the highest bit says that there is more."""
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])
