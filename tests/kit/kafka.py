"""The mock cluster that librdkafka brings along: its protocol is real, its storage is not."""

import contextlib
import ctypes
import itertools
from collections.abc import Iterator
from pathlib import Path

import confluent_kafka
import pytest

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
