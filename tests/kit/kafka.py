"""Kafka for tests: the mock cluster that librdkafka brings along, whose storage is not real, and a real broker."""

import atexit
import contextlib
import ctypes
import functools
import itertools
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import confluent_kafka
import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from deploy.kafka import broker

QUICK = {
    "session.timeout.ms": 2000,
    "heartbeat.interval.ms": 100,
    "reconnect.backoff.ms": 50,
    "reconnect.backoff.max.ms": 200,
    "fetch.wait.max.ms": 100,
}


class Cluster:
    """A mock cluster of one broker, by librdkafka's C interface: Python's has no topics and no outages."""

    def __init__(self) -> None:
        beside = Path(confluent_kafka.__file__).parent.parent / "confluent_kafka.libs"
        found = sorted(beside.glob("librdkafka*.so*"))
        if not found:
            pytest.skip("needs the librdkafka that the Linux wheels of confluent-kafka bring along")
        self._c = ctypes.CDLL(str(found[0]))
        error = ctypes.create_string_buffer(512)
        config = self._pointer("rd_kafka_conf_new")
        self._c.rd_kafka_conf_set(ctypes.c_void_p(config), b"log_level", b"0", error, 512)
        self._client = self._pointer("rd_kafka_new", 0, ctypes.c_void_p(config), error, ctypes.c_size_t(512))
        assert self._client, error.value
        self._cluster = self._pointer("rd_kafka_mock_cluster_new", ctypes.c_void_p(self._client), 1)
        self._call("group_initial_rebalance_delay_ms", 10)
        self._c.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
        self.servers = self._call("cluster_bootstraps").decode()
        self._names = (f"topic-{number}" for number in itertools.count())
        self._producer = confluent_kafka.Producer({"bootstrap.servers": self.servers, "log_level": 0})

    def _pointer(self, name: str, *arguments: object) -> int:
        function = getattr(self._c, name)
        function.restype = ctypes.c_void_p
        return function(*arguments)

    def _call(self, name: str, *arguments: object):
        return getattr(self._c, f"rd_kafka_mock_{name}")(ctypes.c_void_p(self._cluster), *arguments)

    def topic(self, partitions: int = 1) -> str:
        name = next(self._names)
        assert self._call("topic_create", name.encode(), partitions, 1) == 0
        return name

    def publish(self, topic: str, payloads: list[bytes]) -> None:
        for payload in payloads:
            self._producer.produce(topic, payload)
        assert self._producer.flush(20) == 0

    def publish_to_each(self, topic: str, payload: bytes) -> None:
        for partition in range(4):
            self._producer.produce(topic, payload, partition=partition)
        assert self._producer.flush(20) == 0

    def delete(self, topic: str) -> None:
        assert self._call("topic_delete", topic.encode()) == 0

    @contextlib.contextmanager
    def down(self) -> Iterator[None]:
        assert self._call("broker_set_down", 1) == 0
        try:
            yield
        finally:
            assert self._call("broker_set_up", 1) == 0

    def close(self) -> None:
        self._call("cluster_destroy")
        self._c.rd_kafka_destroy(ctypes.c_void_p(self._client))


class RealKafka:
    """A real broker with the mock's interface; what is down was killed with SIGKILL."""

    def __init__(self, folder: Path, **how: object) -> None:
        self.broker = broker.start(folder, quick=True, **how)
        self.servers = self.broker.address
        self.admin = AdminClient({"bootstrap.servers": self.servers, "log_level": 0})
        self._producer = confluent_kafka.Producer({"bootstrap.servers": self.servers, "log_level": 0})
        self._names = (f"topic-{number}" for number in itertools.count())

    def topic(self, partitions: int = 1, name: str | None = None, config: Mapping[str, str] | None = None) -> str:
        made = NewTopic(name or next(self._names), partitions, 1, config=dict(config or {}))
        self.admin.create_topics([made])[made.topic].result(20)
        deadline = time.monotonic() + 20
        while not getattr(self.admin.list_topics(made.topic, 20).topics[made.topic], "partitions", None):
            assert time.monotonic() < deadline  # the broker knows of it a moment after the controller
            time.sleep(0.02)
        return made.topic

    def publish(self, topic: str, payloads: list[bytes | None], partition: int = -1) -> None:
        for payload in payloads:
            self._producer.produce(topic, payload, partition=partition)
        assert self._producer.flush(20) == 0

    def publish_to_each(self, topic: str, payload: bytes) -> None:
        for partition in range(4):
            self.publish(topic, [payload], partition)

    def delete(self, topic: str) -> None:
        self.admin.delete_topics([topic])[topic].result(20)

    @contextlib.contextmanager
    def down(self) -> Iterator[None]:
        self.broker.kill()
        try:
            yield
        finally:
            self.broker.launch()

    def close(self) -> None:
        self.broker.stop()


def require_kafka() -> None:
    """Skip a test where no real broker can be started."""
    if (why := broker.why_not()) is not None:
        pytest.skip(f"needs a real Kafka: {why}")


@functools.cache
def _shared() -> RealKafka:
    folder = Path(tempfile.mkdtemp(prefix="headrace-kafka-"))
    cluster = RealKafka(folder / "run")
    atexit.register(lambda: (cluster.close(), shutil.rmtree(folder, ignore_errors=True)))
    return cluster


def real_kafka() -> RealKafka:
    """The broker that all tests of this process share; skips where none can be started."""
    require_kafka()
    return _shared()
