"""Publishing to Kafka: an idempotent producer, whose messages wait for a broker for as long as it takes."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer

from pipelines.brokers import BrokerError
from pipelines.brokers.kafka_client import Outage

# Messages wait for ever, and there may be as many as the caller wants to publish at once.
PRODUCER = {"enable.idempotence": True, "message.timeout.ms": 0}
PRODUCER |= {"queue.buffering.max.messages": 0, "queue.buffering.max.kbytes": 2_147_483_647}
PRODUCER |= {"delivery.report.only.error": True}  # a call of Python's a message costs more than to send it
_SLICE_SECONDS, _CLOSE_SECONDS = 0.2, 10.0


class KafkaPublisher:
    """An idempotent producer: what it sends again is not there twice."""

    def __init__(self, uri: str, topic: str, producer: Producer, outage: Outage) -> None:
        self._uri, self._topic, self._producer, self._outage = uri, topic, producer, outage
        self._closed = threading.Event()

    def publish(
        self,
        payloads: Sequence[bytes],
        attributes: Sequence[dict[str, str]] | None = None,
        keys: Sequence[str | None] | None = None,
    ) -> None:
        """Publish, attributes as headers, and return when all are safe; tries until `close` is called meanwhile."""
        count = len(payloads)
        attributes = [{}] * count if attributes is None else attributes
        keys = [None] * count if keys is None else keys
        refused: list[KafkaError] = []

        def refuse(error: KafkaError | None, _: Any) -> None:
            if error is not None:
                refused.append(error)

        for payload, headers, key in list(zip(payloads, headers_of(attributes), keys, strict=True)):  # all, or none
            try:
                self._producer.produce(self._topic, payload, key, headers=headers, on_delivery=refuse)
            except KafkaException as failure:
                refused.append(failure.args[0])
        while self._producer.flush(_SLICE_SECONDS):  # which does not wait for more to send, as `poll` does
            if self._closed.is_set():
                raise BrokerError("closed")
        if refused:
            raise BrokerError(f"{self._uri}: {refused[0].str()}")
        if count:
            self._outage.worked()

    def describe(self, fields: Mapping[str, str]) -> None:
        """Does nothing: a registry is another server."""

    def close(self) -> None:
        self._closed.set()
        self._producer.flush(_CLOSE_SECONDS)


def headers_of(attributes: Sequence[dict[str, str]]) -> list[Any]:
    """The headers of each message; messages that have one dict together are encoded once."""
    distinct = {id(each): each for each in attributes}
    encoded = {place: [(name, value.encode()) for name, value in each.items()] for place, each in distinct.items()}
    return [encoded[id(each)] for each in attributes]
