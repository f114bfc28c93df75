"""A Kafka mock cluster in a process of its own: `python kafka_mock.py TOPIC:PARTITIONS…` prints its address.

It is the mock that librdkafka brings along. It keeps 5 MB of each partition and then drops the oldest messages.
It ends with its standard input.
"""

from __future__ import annotations

import ctypes
import pathlib
import sys

import confluent_kafka


def main() -> None:
    beside = pathlib.Path(confluent_kafka.__file__).parent.parent / "confluent_kafka.libs"
    library = ctypes.CDLL(str(next(iter(sorted(beside.glob("librdkafka*.so*"))))))
    for name in ("rd_kafka_conf_new", "rd_kafka_new", "rd_kafka_mock_cluster_new"):
        getattr(library, name).restype = ctypes.c_void_p
    error = ctypes.create_string_buffer(512)
    config = ctypes.c_void_p(library.rd_kafka_conf_new())
    library.rd_kafka_conf_set(config, b"log_level", b"0", error, 512)
    client = ctypes.c_void_p(library.rd_kafka_new(0, config, error, ctypes.c_size_t(512)))
    if not client.value:
        raise SystemExit(error.value.decode())
    cluster = ctypes.c_void_p(library.rd_kafka_mock_cluster_new(client, 1))
    library.rd_kafka_mock_group_initial_rebalance_delay_ms(cluster, 10)
    for each in sys.argv[1:]:
        topic, _, partitions = each.partition(":")
        if library.rd_kafka_mock_topic_create(cluster, topic.encode(), int(partitions), 1):
            raise SystemExit(f"no topic {topic}")
    library.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
    print(library.rd_kafka_mock_cluster_bootstraps(cluster).decode(), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
