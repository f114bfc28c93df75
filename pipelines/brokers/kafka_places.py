"""Where reading a Kafka partition goes on, so that nothing is skipped or taken for something else without a word."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from confluent_kafka import Consumer, KafkaException, TopicPartition

from pipelines.brokers import BrokerError
from pipelines.brokers.kafka_client import log

if TYPE_CHECKING:
    from pipelines.brokers.kafka import KafkaBroker

_ID_CHARACTERS = 8  # of a topic's 22: 48 bits tell one from that of the same name before it
_CALL_SECONDS = 5.0


class Places:
    """What is known of where a group's partitions go on: its commits, what was read, and the ids that a journal has.

    `name` is how the ids of messages begin. BrokerError if the journal has messages of a topic of this name that
    was deleted since: offsets begin anew then, and what is lost can't be told.
    """

    def __init__(
        self, broker: KafkaBroker, consumer: Consumer, topic_id: str, known: Collection[str], commits: bool
    ) -> None:
        self._broker, self._consumer, self._commits = broker, consumer, commits
        short = topic_id[:_ID_CHARACTERS]
        self.name = f"{broker.topic}:{short}" if short else broker.topic
        self._next: dict[int, int] = {}  # by partition: the offset after the last one in the journal, or read before
        pattern = re.compile(rf"{re.escape(broker.topic)}(?::([A-Za-z0-9_-]+))?/([0-9]+)/([0-9]+)")
        others = set()
        for match in filter(None, map(pattern.fullmatch, known)):
            if match[1] and short and match[1] != short:
                others.add(match[1])
            else:
                self._next[int(match[2])] = max(int(match[3]) + 1, self._next.get(int(match[2]), 0))
        if others and not self._next:
            self._refuse(
                "the topic was made again since the journal was written, so what it held before may be lost",
                "give the stream another --journal, or go on with this one",
            )

    def leave(self, partition: int, position: int) -> None:
        """A partition is another member's for now, or that of nobody."""
        self._next[partition] = max(position, self._next.get(partition, -1))

    def put(self, partition: int, positions: Mapping[int, int]) -> None:
        """Let the consumer go on in a partition; `positions` are the next offsets of all that are assigned, or -1.

        BrokerError if messages are lost and `on_lost` is "stop"; KafkaException while the broker does not tell.
        """
        place = TopicPartition(self._broker.topic, partition)
        committed = self._consumer.committed([place], timeout=_CALL_SECONDS)[0].offset
        low, high = self._consumer.get_watermark_offsets(place, timeout=_CALL_SECONDS)
        there = positions[partition] if positions[partition] >= 0 else committed
        known = max(there, self._next.pop(partition, -1))
        start = low if self._broker.start == "earliest" else high
        if known > high:
            self._refuse(
                f"partition {partition} ends at offset {high}, and {known} is where reading goes on: the topic was "
                "made again, or its broker has lost messages",
                "give the stream another group and another --journal, or go on from the oldest message",
            )
            start = low
        elif 0 <= known < low:
            self._refuse(
                f"partition {partition}: {low - known} messages, offsets {known} to {low - 1}, are gone, as when their "
                "retention runs out before they are read",
                "read faster or keep them longer, or go on without them",
            )
            start = low
        elif there >= 0:
            start = there
        elif known >= 0 and not self._commits:
            start = known
        self._assign(place, start, positions)

    def _refuse(self, what: str, advice: str) -> None:
        uri = self._broker.uri
        if self._broker.on_lost == "stop":
            raise BrokerError(f"{uri}: {what}; {advice}: on_lost=go_on in the source's URI")
        log.warning("Kafka, %s: %s; going on", uri, what)

    def _assign(self, place: TopicPartition, offset: int, positions: Mapping[int, int]) -> None:
        """Begin anew at an offset; a partition that librdkafka has given up can't be sought in."""
        topic, partition = place.topic, place.partition
        try:
            self._consumer.incremental_unassign([place])
            self._consumer.incremental_assign([TopicPartition(topic, partition, offset)])
        except KafkaException as failure:
            if failure.args[0].name() != "_STATE":  # the group's protocol is one of whole assignments
                raise
            wanted = {number: at for number, at in positions.items() if at >= 0} | {partition: offset}
            places = [TopicPartition(topic, number, wanted.get(number, -1001)) for number in positions]
            self._consumer.assign(places)
