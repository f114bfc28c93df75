"""Topics of Pulsar: whether one is there, making one by the admin interface, and a reader that looks on."""

from __future__ import annotations

import base64
import contextlib
import time
import urllib.parse
from collections.abc import Mapping
from typing import Any

import pulsar

from pipelines.brokers import BrokerError, Messages
from pipelines.brokers.pulsar_client import close, say

ADMIN_SECONDS = 30.0


def has_topic(client: pulsar.Client, topic: str) -> bool:
    """Whether there is a topic; BrokerError if Pulsar does not say."""
    try:
        client.create_reader(topic, pulsar.MessageId.latest, receiver_queue_size=1).close()
    except pulsar.TopicNotFound:
        return False
    except pulsar.PulsarException as error:
        raise BrokerError(f"Pulsar does not tell of the topic {topic}: {say(error)}") from None
    return True


def create_topic(settings: Mapping[str, str], topic: str) -> None:
    """Make a topic of one partition by the admin interface; one that is there stays; BrokerError if Pulsar refuses."""
    import httpx

    place = settings.get("webServiceUrl")
    if place is None:
        raise BrokerError(
            f"{topic} is made by Pulsar's admin interface: name its URL as webServiceUrl in the file that "
            "HEADRACE_PULSAR_CONFIG names"
        )
    how: dict[str, Any] = {"verify": settings.get("tlsTrustCertsFilePath", True), "headers": _headers(settings)}
    if "tlsCertificateFilePath" in settings:
        how["cert"] = (settings["tlsCertificateFilePath"], settings["tlsKeyFilePath"])
    path = f"/admin/v2/persistent/{urllib.parse.quote(topic)}/partitions"
    try:
        answer = httpx.put(place.rstrip("/") + path, json=1, timeout=ADMIN_SECONDS, **how)
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:  # its words may hold the URL's password
        raise BrokerError(f"Pulsar's admin interface does not answer: {type(error).__name__}") from None
    if answer.is_error and answer.status_code != httpx.codes.CONFLICT:  # which says that it is there
        raise BrokerError(f"Pulsar's topic {topic} can't be made: its admin interface answers {answer.status_code}")


def _headers(settings: Mapping[str, str]) -> dict[str, str]:
    plugin, told = settings.get("authPlugin", ""), settings.get("authParams", "")
    if plugin.endswith("AuthenticationToken"):
        if told.startswith("file:"):
            with open(told.removeprefix("file:").removeprefix("//")) as file:
                told = file.read().strip()
        return {"Authorization": f"Bearer {told.removeprefix('token:')}"}
    if plugin.endswith("AuthenticationBasic"):
        return {"Authorization": "Basic " + base64.b64encode(told.encode()).decode()}
    return {}


class PulsarTail:
    """Looks on at a topic, as a Subscription: what it reads stays everybody else's, and nothing is to acknowledge."""

    redelivery_seconds = 0.0

    def __init__(self, uri: str, client: pulsar.Client, topic: str, from_start: bool) -> None:
        self._uri, self._client = uri, client
        where = pulsar.MessageId.earliest if from_start else pulsar.MessageId.latest
        try:
            self._reader = client.create_reader(topic, where)
        except pulsar.PulsarException as error:
            close(client)
            raise BrokerError(f"{uri}: {say(error)}") from None

    def receive(self, max_messages: int, timeout_seconds: float) -> Messages | None:
        """See Subscription."""
        fetched: list[Any] = []
        deadline = time.monotonic() + timeout_seconds
        try:
            while len(fetched) < max_messages:
                left = 0 if fetched else max(int(1000 * (deadline - time.monotonic())), 1)
                fetched.append(self._reader.read_next(left))
        except pulsar.Timeout:
            pass
        except pulsar.PulsarException as error:
            raise BrokerError(f"{self._uri}: {say(error)}") from None
        if not fetched:
            return None
        ids = [str(each.message_id()) for each in fetched]
        published = [1000 * each.publish_timestamp() for each in fetched]
        parts = [max(each.message_id().partition(), 0) for each in fetched]
        return Messages([each.data() for each in fetched], ids, published, parts, None, None)

    def acknowledge(self, receipt: Any) -> None:
        """Does nothing."""

    def partitions(self) -> frozenset[int]:
        """None is its own."""
        return frozenset()

    def backlog(self) -> int | None:
        """Not known."""
        return None

    def close(self) -> None:
        """Disconnects."""
        with contextlib.suppress(pulsar.PulsarException):
            self._reader.close()
        close(self._client)
