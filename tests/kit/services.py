"""Message brokers that tests run over alike: each with places to read from and write to, and outages."""

import contextlib
import itertools
import os
import signal
import warnings

import pytest

from pipelines.brokers import open_broker
from tests.kit.kafka import QUICK, Cluster, real_kafka
from tests.kit.pulsar import needs_pulsar, new_topic

with warnings.catch_warnings():
    # Google's libraries announce at import when they will stop to support this Python.
    warnings.filterwarnings("ignore", "You are using a Python version", FutureWarning)
    from pipelines.pubsub_emulator import PubsubEmulator

_numbers = itertools.count()


class Pubsub:
    """The embedded Pub/Sub."""

    def __init__(self, request):
        self._server = PubsubEmulator()
        self._server.start()
        request.getfixturevalue("monkeypatch").setenv("PUBSUB_EMULATOR_HOST", self._server.address)

    def place(self, query=""):
        """A new topic: what to read from, and what to write to."""
        name = f"topic-{next(_numbers)}"
        self._server.create("demo", name, f"{name}-reader")
        return open_broker(f"pubsub://demo/{name}-reader?{query}".rstrip("?")), open_broker(
            f"pubsub://demo/{name}?ordered=true"
        )

    def nowhere(self):
        return open_broker("pubsub://demo/nowhere")

    @contextlib.contextmanager
    def down(self):
        self._server.stop()
        try:
            yield
        finally:
            self._server.start()

    def close(self):
        self._server.stop()


class Kafka:
    """librdkafka's mock of Kafka."""

    def __init__(self, _):
        self._cluster = Cluster()

    def place(self, query=""):
        """A new topic of two partitions: what to read from, and what to write to."""
        name = self._cluster.topic(2)
        uri = f"kafka://{self._cluster.servers}/{name}"
        read = "&".join(filter(None, ["group=readers", query]))
        return open_broker(f"{uri}?{read}", settings=QUICK), open_broker(uri, settings=QUICK)

    def nowhere(self):
        return open_broker(f"kafka://{self._cluster.servers}/nowhere?group=g", settings=QUICK)

    def down(self):
        return self._cluster.down()

    def close(self):
        self._cluster.close()


class RealKafka(Kafka):
    """A broker of Apache Kafka's, which outlives the test."""

    def __init__(self, request):
        self._cluster = real_kafka()

    def close(self):
        pass


class Pulsar:
    """A real Pulsar."""

    partitions = 2
    kind = "failover"

    def __init__(self, request):
        self._pulsar = request.getfixturevalue("pulsar")

    def place(self, query=""):
        """A new topic: what to read from, and what to write to."""
        uri = f"pulsar://{self._pulsar.service}/{new_topic(self._pulsar, self.partitions, 'readers')}"
        read = "&".join(filter(None, ["subscription=readers", f"type={self.kind}", query]))
        return open_broker(f"{uri}?{read}"), open_broker(uri)

    def nowhere(self):
        return open_broker(f"pulsar://{self._pulsar.service}/public/default/nowhere?subscription=s")

    @contextlib.contextmanager
    def down(self):
        self._pulsar.kill()
        try:
            yield
        finally:
            self._pulsar.launch()

    def close(self):
        """The broker goes on, for the next test."""


class PulsarKeyShared(Pulsar):
    """The same with a key-shared subscription of a topic that is not in partitions."""

    partitions = 0
    kind = "key_shared"

    @contextlib.contextmanager
    def down(self):
        """The broker hangs, and no connection breaks."""
        os.kill(self._pulsar.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._pulsar.pid, signal.SIGCONT)


SERVICES = [
    pytest.param(Pubsub, id="pubsub"),
    pytest.param(Kafka, id="kafka"),
    pytest.param(RealKafka, id="real-kafka"),
    pytest.param(Pulsar, id="pulsar", marks=needs_pulsar),
    pytest.param(PulsarKeyShared, id="pulsar-key-shared", marks=needs_pulsar),
]
