"""Topics of a Kafka cluster, by its admin client."""

from __future__ import annotations

import contextlib
import time
from concurrent.futures import CancelledError, Future
from typing import Any

from confluent_kafka import KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from pipelines.brokers import BrokerError
from pipelines.brokers.kafka_client import Outage, connect

_WATCH_SECONDS, _LOOK_SECONDS = 5.0, 0.05
_CONNECTION = ("security.", "sasl.", "ssl.", "socket.", "broker.", "client.", "reconnect.", "enable.ssl")


def connect_admin(servers: str, settings: dict[str, Any]) -> AdminClient:
    """An admin client with those of a consumer's or producer's settings that are of connections."""
    chosen = {name: value for name, value in settings.items() if name.startswith(_CONNECTION)}
    admin: AdminClient = connect(AdminClient, {"bootstrap.servers": servers, **chosen}, Outage(servers))
    return admin


def has_topic(admin: AdminClient, topic: str, seconds: float) -> bool:
    """Whether there is a topic; BrokerError if the cluster does not say."""
    found = _metadata(admin, seconds).topics.get(topic)
    return found is not None and bool(found.partitions)


def create_topic(admin: AdminClient, topic: str, seconds: float) -> None:
    """Make a topic with the cluster's defaults, and wait until brokers know it; BrokerError if the cluster refuses.

    One that is there stays.
    """
    deadline = time.monotonic() + seconds
    try:
        admin.create_topics([NewTopic(topic)], operation_timeout=seconds)[topic].result(seconds)
    except (KafkaException, TimeoutError) as failure:
        if _name(failure) != "TOPIC_ALREADY_EXISTS":
            raise BrokerError(f"Kafka's topic {topic} can't be made: {_say(failure)}") from None
    while not has_topic(admin, topic, seconds):
        if time.monotonic() > deadline:
            raise BrokerError(f"Kafka's topic {topic} was made, and is not there after {seconds:g} s")
        time.sleep(_LOOK_SECONDS)


def topic_id(admin: AdminClient, topic: str, seconds: float) -> str:
    """The id of a topic; empty where the cluster knows none, as those before Kafka 2.8; BrokerError if it says nothing.

    It is the controller that is asked: a cluster without one, as librdkafka's mock, tells none.
    """
    cluster = _metadata(admin, seconds)
    if cluster.controller_id not in cluster.brokers:
        return ""
    try:
        found = admin.describe_topics(TopicCollection([topic]), request_timeout=seconds)[topic].result(seconds)
    except (KafkaException, TimeoutError) as failure:
        raise BrokerError(f"Kafka does not tell the id of the topic {topic}: {_say(failure)}") from None
    return _readable_id(found)


class TopicWatch:
    """Looks now and then, without waiting for an answer, whether a topic is still the one that was made with an id."""

    def __init__(self, admin: AdminClient, topic: str, id_: str) -> None:
        self._admin, self._topic, self.id = admin, topic, id_
        self._asked = time.monotonic()
        self._answer: Future[Any] | None = None
        self._is_another = False

    def is_another(self) -> bool:
        """Whether the topic was made again, as far as it is known."""
        if self._answer is not None and self._answer.done():
            with contextlib.suppress(KafkaException, CancelledError):  # the broker is down
                self._is_another |= _readable_id(self._answer.result()) != self.id
            self._answer = None
        if self.id and self._answer is None and time.monotonic() > self._asked + _WATCH_SECONDS:
            self._asked = time.monotonic()
            asked = TopicCollection([self._topic])
            self._answer = self._admin.describe_topics(asked, request_timeout=_WATCH_SECONDS)[self._topic]
        return self._is_another


def _readable_id(found: Any) -> str:
    """A topic's id as Kafka's own tools write it, without a slash; librdkafka's has one. Empty where there is none."""
    number = str(found.topic_id).translate(str.maketrans("+/", "-_"))
    return "" if set(number) == {"A"} else number


def _metadata(admin: AdminClient, seconds: float) -> Any:
    try:
        return admin.list_topics(timeout=seconds)
    except KafkaException as failure:
        raise BrokerError(f"Kafka does not list its topics: {_say(failure)}") from None


def _name(failure: Exception) -> str:
    return failure.args[0].name() if isinstance(failure, KafkaException) else "timed out"


def _say(failure: Exception) -> str:
    return failure.args[0].str() if isinstance(failure, KafkaException) else "no answer"
