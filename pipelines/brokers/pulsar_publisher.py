"""Publishing to Pulsar: messages wait for a broker for as long as it takes."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import pulsar

from pipelines.brokers import BrokerError
from pipelines.brokers.pulsar_client import Outage, close, say
from pipelines.brokers.pulsar_schemas import JsonRows

EVENT_TIMESTAMP = "__event_time__"  # the attribute that stands for Pulsar's own event timestamp, as in Pulsar SQL
_SLICE_SECONDS = 0.2
PRODUCER: dict[str, Any] = {
    "send_timeout_millis": 0,  # none: wait for ever
    # There may be as many as the caller wants to publish at once; 0, which should mean no bound, hangs.
    "max_pending_messages": 2_000_000_000,
    "max_pending_messages_across_partitions": 2_000_000_000,
    "batching_enabled": True,
    "batching_max_publish_delay_ms": 5,
    # A batch goes to one reader of a key-shared subscription, so it holds one key.
    "batching_type": pulsar.BatchingType.KeyBased,
}


class PulsarPublisher:
    """A producer; a message whose answer got lost is there twice, unless the namespace deduplicates."""

    def __init__(self, uri: str, client: pulsar.Client, topic: str, schema_name: str | None = None) -> None:
        """With `schema_name`, what `describe` tells becomes the topic's schema."""
        self._uri, self._client, self._topic, self._schema_name = uri, client, topic, schema_name
        self._producer = self._produce()
        self._outage = Outage(uri)
        self._closed = threading.Event()

    def publish(
        self,
        payloads: Sequence[bytes],
        attributes: Sequence[dict[str, str]] | None = None,
        keys: Sequence[str | None] | None = None,
    ) -> None:
        """Publish, attributes as properties, and return when all are safe; tries until `close` is called meanwhile.

        An attribute `__event_time__`, milliseconds since 1970 UTC, becomes the message's event timestamp.
        """
        count = len(payloads)
        attributes = [{}] * count if attributes is None else attributes
        keys = [None] * count if keys is None else keys
        sent = _Sent(count)
        for payload, each, key in zip(payloads, attributes, keys, strict=True):
            when = int(each[EVENT_TIMESTAMP]) if EVENT_TIMESTAMP in each else None
            properties = {name: value for name, value in each.items() if name != EVENT_TIMESTAMP} if each else None
            try:
                self._producer.send_async(
                    payload, sent.add, properties, partition_key=key or None, event_timestamp=when
                )
            except pulsar.PulsarException as error:
                raise BrokerError(f"{self._uri}: {error}") from None
        while not sent.all.wait(_SLICE_SECONDS) and count:
            if self._closed.is_set():
                raise BrokerError("closed")
            self._outage.tell(self._producer.is_connected())
        if sent.failed:
            raise BrokerError(f"{self._uri}: Pulsar refuses to publish: {sent.failed[0].name}")
        if count:
            self._outage.tell(True)

    def describe(self, fields: Mapping[str, str]) -> None:
        """See Publisher."""
        if self._schema_name is not None:
            self._producer.close()
            self._producer = self._produce(schema=JsonRows(self._schema_name, fields))

    def _produce(self, **more: Any) -> pulsar.Producer:
        try:
            return self._client.create_producer(self._topic, **PRODUCER, **more)
        except pulsar.PulsarException as error:
            close(self._client)
            raise BrokerError(f"{self._uri}: {say(error)}") from None

    def close(self) -> None:
        """Disconnect."""
        self._closed.set()
        close(self._client)


class _Sent:
    """The answers to messages; they come one after another, by a thread of the client's."""

    def __init__(self, count: int) -> None:
        self.all = threading.Event()
        self.failed: list[Any] = []
        self._left = count

    def add(self, result: Any, _: Any) -> None:
        self._left -= 1
        if result != pulsar.Result.Ok:
            self.failed.append(result)
        if not self._left:
            self.all.set()
