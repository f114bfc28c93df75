"""Kafka: librdkafka's mock cluster, whose protocol is real and whose storage is not, and a real broker."""

import contextlib
import logging
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator

import pytest

confluent_kafka = pytest.importorskip("confluent_kafka", reason="needs confluent-kafka, which is not installed")

from pipelines.brokers import KAFKA_CONFIG, BrokerError, Messages, kafka, open_broker  # noqa: E402
from pipelines.brokers.kafka import KafkaBroker, KafkaSubscription  # noqa: E402
from pipelines.brokers.kafka_publisher import KafkaPublisher  # noqa: E402
from pipelines.brokers.schema_registry import RegisteredSchema, SchemaRegistry  # noqa: E402
from pipelines.sources.values import RegistryValues, attribute_times_us  # noqa: E402
from tests.kit.kafka import QUICK, Cluster  # noqa: E402

pytestmark = [pytest.mark.serial, pytest.mark.usefixtures("haste")]

NOTHING = Messages([], [], [], [], None, None)
CLOSED_PORT = "127.0.0.1:1"


@pytest.fixture
def connect(cluster: Cluster):
    """Opens subscriptions that are closed at the end."""
    with contextlib.ExitStack() as stack:

        def subscribe(topic: str, group: str = "readers", **options) -> KafkaSubscription:
            options.setdefault("settings", QUICK)
            broker = KafkaBroker.parse(f"kafka://{cluster.servers}/{topic}?group={group}-{topic}", **options)
            subscription = broker.subscribe()
            stack.callback(subscription.close)
            return subscription

        yield subscribe


@contextlib.contextmanager
def publisher_of(cluster: Cluster, topic: str) -> Iterator[KafkaPublisher]:
    publisher = KafkaBroker.parse(f"kafka://{cluster.servers}/{topic}").publisher()
    yield publisher
    publisher.close()


def numbers(start: int, stop: int) -> list[bytes]:
    return [b"%d" % number for number in range(start, stop)]


def drain(subscription: KafkaSubscription, count: int, most: int = 1000, seconds: float = 60.0) -> list[Messages]:
    """What comes until there are `count` messages."""
    received: list[Messages] = []
    deadline = time.monotonic() + seconds
    while count > sum(map(len, received)):
        assert time.monotonic() < deadline, f"{sum(map(len, received))} of {count} messages"
        messages = subscription.receive(min(most, count - sum(map(len, received))), 0.5)
        received += [messages] if messages else []
    return received


def texts(received: list[Messages]) -> list[bytes]:
    return [payload for messages in received for payload in messages.payloads]


def ids(received: list[Messages]) -> list[str]:
    return [each for messages in received for each in messages.ids]


def acknowledge(subscription: KafkaSubscription, received: list[Messages]) -> None:
    for messages in received:
        subscription.acknowledge(messages.receipt)


def until(condition, seconds: float = 40.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.05)


def committed(subscription: KafkaSubscription) -> int:
    """The group's offset in partition 0, by the connection that knows already where to ask."""
    topic = subscription._broker.topic
    return subscription._consumer.committed([confluent_kafka.TopicPartition(topic, 0)], timeout=10)[0].offset


# Configuration ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "uri",
    [
        "kafka://a:9092/orders?group=g",
        "kafka://a:9092,b.c-d:1/orders",
        "kafka://[::1]:9092/o.r-d_ers?group=a%2Fb",
        "kafka://a:9092/orders?group=g&event_time=happened%20at",
        "kafka://a:9092/orders?group=g&on_lost=go_on&tombstones=skip",
    ],
)
def test_uri(uri):
    broker = KafkaBroker.parse(uri, max_outstanding_messages=5)
    assert broker.uri == uri
    assert pickle.loads(pickle.dumps(broker)) == broker == KafkaBroker.parse(broker.uri, max_outstanding_messages=5)
    assert hash(broker) == hash(KafkaBroker.parse(uri, max_outstanding_messages=5))


@pytest.mark.parametrize(
    "uri",
    [
        "kafka://orders",
        "kafka://a/orders",
        "kafka://a:9092",
        "kafka://a:9092/",
        "kafka://a:9092,/orders",
        "kafka://a:9092/or/ders",
        "kafka://a:9092/orders?group=",
        "kafka://a:9092/orders?groop=g",
        "kafka://a:9092/orders?group=g&group=h",
        "kafka://a:9092/orders?",
        "kafka://a:9092/orders?group=g&event_time=",
        "kafka://a:9092/orders?group=g&sasl.password=hunter2",
        "pubsub://a:9092/orders",
        "kafka://user:hunter2@a:9092/orders",
    ],
)
def test_what_is_not_a_uri(uri):
    with pytest.raises(ValueError, match="is not kafka://") as raised:
        KafkaBroker.parse(uri)
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_outstanding_messages": 0}, "at least 1"),
        ({"start": "middle"}, "start is earliest or latest, not middle"),
        ({"on_lost": "hope"}, "on_lost is stop or go_on, not hope"),
        ({"settings": {"enable.auto.commit": False}}, "not a setting to change"),
        ({"settings": {"group.id": "g"}}, "not a setting to change"),
        ({"settings": {"sasl.password": "hunter2"}}, "secret"),
        ({"settings": {"ssl.key.password": "$$hunter2"}}, "secret"),
    ],
)
def test_options_that_are_refused(options, message):
    with pytest.raises(ValueError, match=message) as raised:
        KafkaBroker.parse("kafka://a:9092/orders", **options)
    assert "hunter2" not in str(raised.value)


def test_secrets_are_read_where_the_connection_is_made(monkeypatch):
    settings = {"sasl.password": "$KAFKA_PASSWORD", "sasl.mechanism": "PLAIN", "security.protocol": "SASL_PLAINTEXT"}
    broker = KafkaBroker.parse(f"kafka://{CLOSED_PORT}/orders?group=g", settings=settings, connect_seconds=0.5)
    with pytest.raises(BrokerError, match=r"sasl\.password needs the environment variable after its \$"):
        broker.subscribe()
    monkeypatch.setenv("KAFKA_PASSWORD", "hunter2")
    assert "hunter2" not in repr(broker) + repr(pickle.dumps(broker))
    with pytest.raises(BrokerError) as raised:
        broker.publisher()
    assert "hunter2" not in str(raised.value)


def test_a_file_of_settings(cluster, tmp_path, monkeypatch):
    file = tmp_path / "kafka.properties"
    file.write_text("# of the site\n\n client.id = name=$1 \n! more\nfetch.wait.max.ms=50\nsasl.password=hunter2\n")
    topic = cluster.topic()
    uri = f"kafka://{cluster.servers}/{topic}?group=g-{topic}"
    broker = open_broker(uri, kafka_config=file)
    assert "hunter2" not in repr(broker) + repr(pickle.dumps(broker))
    monkeypatch.setenv(KAFKA_CONFIG, str(file))
    assert open_broker(uri) == broker == pickle.loads(pickle.dumps(broker))
    assert open_broker(uri, kafka_config="") == KafkaBroker.parse(uri)
    used: list[dict] = []
    monkeypatch.setattr(
        kafka, "Consumer", lambda config, **more: used.append(config) or confluent_kafka.Consumer(config)
    )
    open_broker(uri, settings={"fetch.wait.max.ms": 60, "client.id": "$$x"}).subscribe().close()
    assert used[0]["client.id"] == "$x"
    assert used[0]["fetch.wait.max.ms"] == 60
    assert used[0]["sasl.password"] == "hunter2"
    assert used[0]["session.timeout.ms"] == 10_000
    file.write_text("session.timeout.ms=7000\nclient.id=$NO_SUCH_NAME\n")  # read anew where a connection is made
    with pytest.raises(BrokerError, match="client.id needs the environment variable") as raised:
        broker.subscribe()
    assert "NO_SUCH_NAME" not in str(raised.value)
    monkeypatch.setenv("NO_SUCH_NAME", "x")
    broker.subscribe().close()
    assert used[-1]["session.timeout.ms"] == "7000"
    file.unlink()
    with pytest.raises(BrokerError, match=r"No such file.*kafka\.properties"):
        broker.subscribe()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a=b\nhunter2", "line 2: not NAME=VALUE"),
        ("=hunter2", "line 1: not NAME=VALUE"),
        ("sasl.password=x\nsasl.password=hunter2", "line 2"),
        ("group.id=g", "group.id is not a setting to change"),
        ("bootstrap.servers=a:1", "bootstrap.servers is not a setting to change"),
    ],
)
def test_files_of_settings_that_are_refused(tmp_path, content, message):
    file = tmp_path / "kafka.properties"
    file.write_text(content)
    with pytest.raises(ValueError, match=f"kafka.properties.*{message}") as raised:
        open_broker("kafka://a:9092/orders", kafka_config=file)
    assert "hunter2" not in str(raised.value)


def test_no_secret_is_in_what_librdkafka_refuses(tmp_path):
    file = tmp_path / "kafka.properties"
    file.write_text("security.protocol=SSL\nssl.key.pem=hunter2\nsasl.mechanism=hunter2\nsasl.password=hunter2\n")
    with pytest.raises(BrokerError, match="refuses the settings") as raised:
        open_broker(f"kafka://{CLOSED_PORT}/orders?group=g", kafka_config=file).subscribe()
    assert "hunter2" not in str(raised.value)


def test_a_value_that_starts_with_a_dollar(cluster):
    settings = {"client.id": "$$ConnectionString"}
    broker = KafkaBroker.parse(f"kafka://{cluster.servers}/{cluster.topic()}?group=g", settings=settings)
    broker.subscribe().close()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"settings": {"no.such.setting": "1"}}, r"no\.such\.setting")],
)
def test_settings_that_librdkafka_refuses(options, message):
    broker = KafkaBroker.parse(f"kafka://{CLOSED_PORT}/orders?group=g", **options)
    with pytest.raises(BrokerError, match=f"refuses the settings.*{message}"):
        broker.subscribe()


def test_no_such_topic(cluster):
    broker = KafkaBroker.parse(f"kafka://{cluster.servers}/no-such-topic?group=g")
    for connect in (broker.subscribe, broker.publisher, broker.subscribe):  # looking does not create it
        with pytest.raises(BrokerError, match=r"no-such-topic.*Unknown topic"):
            connect()


def test_no_broker():
    broker = KafkaBroker.parse(f"kafka://{CLOSED_PORT}/orders?group=g", connect_seconds=1)
    with pytest.raises(BrokerError, match=r"127\.0\.0\.1:1/orders.*(refused|down|transport)"):
        broker.subscribe()


def test_reading_needs_a_group():
    with pytest.raises(BrokerError, match="group"):
        KafkaBroker.parse(f"kafka://{CLOSED_PORT}/orders").subscribe()


# Reading ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("partitions", [1, 4])
def test_all_comes_once_and_in_order(cluster, connect, partitions):
    topic = cluster.topic(partitions)
    before = time.time_ns() // 1000
    payloads = numbers(0, 5000)
    attributes = [{"at": f"time {number}", "other": "x"} if number % 2 else {} for number in range(5000)]
    with publisher_of(cluster, topic) as publisher:
        publisher.publish(payloads, attributes)

    subscription = connect(topic, event_time_attribute="at")
    assert subscription.receive(10, 0) is None
    received = drain(subscription, 5000)
    assert sorted(texts(received), key=int) == payloads
    assert subscription.partitions() == frozenset(range(partitions))
    orders = defaultdict(list)
    for messages in received:
        assert len(messages) <= 1000
        for index in range(len(messages)):
            name, partition, offset = messages.ids[index].split("/")
            number = int(messages.payloads[index])
            assert (name.partition(":")[0], int(partition)) == (topic, messages.partitions[index])
            orders[partition].append((int(offset), number))
            assert messages.event_times[index] == (f"time {number}" if number % 2 else None)
            assert before - 1000 <= messages.published_us[index] <= time.time_ns() // 1000
    for order in orders.values():
        assert [offset for offset, _ in order] == list(range(len(order)))


def test_the_event_time_header_by_uri(cluster):
    topic = cluster.topic()
    with publisher_of(cluster, topic) as publisher:
        headers = [{"happened at": "2018-05-21T16:00:00Z"}, {}, {"happened at": "1526918400123"}]
        publisher.publish([b"a", b"b", b"c"], headers)
    subscription = open_broker(
        f"kafka://{cluster.servers}/{topic}?group=g-{topic}&event_time=happened%20at"
    ).subscribe()
    with contextlib.closing(subscription):
        [messages] = drain(subscription, 3)
    times = attribute_times_us(messages.event_times)
    assert times.to_pylist() == [1526918400000000, None, 1526918400123000]


def test_messages_of_a_key_keep_their_order(cluster, connect):
    topic = cluster.topic(4)
    # What Java's clients make of these keys, by the tests of Kafka's own murmur2.
    hashes = {"21": -973932308, "foobar": -790332482, "a-little-bit-long-string": -985981536}
    keys = [[*hashes, None][number % 4] for number in range(2000)]
    with publisher_of(cluster, topic) as publisher:
        for start in range(0, 2000, 500):
            publisher.publish(numbers(start, start + 500), keys=keys[start : start + 500])
        with pytest.raises(ValueError, match="zip"):
            publisher.publish([b"a", b"b"], keys=["x"])
    places = defaultdict(list)
    for messages in drain(connect(topic), 2000):
        for payload, partition in zip(messages.payloads, messages.partitions, strict=True):
            places[keys[int(payload)]].append((partition, int(payload)))
    for key, hashed in hashes.items():
        assert {partition for partition, _ in places[key]} == {(hashed & 0x7FFFFFFF) % 4}
        assert [number for _, number in places[key]] == [n for n in range(2000) if keys[n] == key]
    assert len(places[None]) == 500


def test_avro_of_two_versions_through_the_broker(cluster, connect):
    registry = SchemaRegistry("http://127.0.0.1:1")
    for number, more in ((1, []), (2, [{"name": "more", "type": "string", "default": ""}])):
        fields = [{"name": "n", "type": "long"}, *more]
        registry._schemas[number] = RegisteredSchema(number, {"type": "record", "name": "N", "fields": fields})
    topic = cluster.topic()
    with publisher_of(cluster, topic) as publisher:
        publisher.publish([b"\0\0\0\0\1\x02", b"\0\0\0\0\2\x04\x02x", b"{}", b"\0\0\0\0\1\x06"])
    [messages] = drain(connect(topic), 4)
    groups = RegistryValues(registry).split(messages.payloads)
    assert [group.rows.tolist() for group in groups] == [[2], [0, 3], [1]]
    assert [group.payloads.to_pylist() for group in groups] == [[b"{}"], [b"\x02", b"\x06"], [b"\x04\x02x"]]


def test_what_has_no_value_and_any_bytes(cluster, connect):
    topic = cluster.topic()
    cluster.publish(topic, [b"", b"\x00\x00\x00\x00\x07\xff", b"x" * 100_000])
    received = drain(connect(topic), 3)
    assert texts(received) == [b"", b"\x00\x00\x00\x00\x07\xff", b"x" * 100_000]
    assert received[0].event_times is None


def test_a_message_is_received_as_soon_as_there_is_one(cluster, connect):
    topic = cluster.topic()
    subscription = connect(topic)
    cluster.publish(topic, [b"first"])
    drain(subscription, 1)
    timer = threading.Timer(0.5, cluster.publish, [topic, [b"second"]])
    timer.start()
    assert subscription.receive(1000, 1000) is not None  # longer than a test may take
    timer.join()


def test_only_a_prefix_is_committed(cluster, connect):
    topic = cluster.topic()
    cluster.publish(topic, numbers(0, 30))
    subscription = connect(topic)
    first, second, third = (drain(subscription, 10) for _ in range(3))
    acknowledge(subscription, second)
    time.sleep(0.5)
    assert committed(subscription) < 0
    acknowledge(subscription, first)
    until(lambda: committed(subscription) == 20)
    subscription.close()

    again = connect(topic)
    received = drain(again, 10)
    assert ids(received) == ids(third)
    assert texts(received) == texts(third)


def test_acknowledging_does_not_wait_for_the_thread_that_receives(cluster, connect):
    topic = cluster.topic()
    cluster.publish(topic, numbers(0, 10))
    subscription = connect(topic)
    received = drain(subscription, 10)
    waiting = threading.Thread(target=subscription.receive, args=(1, 1000))
    waiting.start()
    acknowledge(subscription, received)
    time.sleep(0.5)
    assert waiting.is_alive()
    cluster.publish(topic, [b"last"])
    waiting.join()
    assert committed(subscription) == 10  # while it was waiting


def test_what_is_acknowledged_just_before_closing_is_committed(cluster, connect):
    topic = cluster.topic()
    cluster.publish(topic, numbers(0, 10))
    subscription = connect(topic)
    received = drain(subscription, 10)
    acknowledge(subscription, received)
    subscription.close()
    again = connect(topic)
    until(lambda: again.receive(1, 0.1) or again.backlog() == 0)
    assert committed(again) == 10
    subscription.close()
    acknowledge(subscription, received)
    with pytest.raises(BrokerError, match="closed"):
        subscription.receive(1, 0)


def test_receipts_of_others_and_used_ones_do_nothing(cluster, connect):
    topic = cluster.topic()
    cluster.publish(topic, numbers(0, 10))
    old = connect(topic)
    stale = drain(old, 10)
    old.close()
    subscription = connect(topic)
    first, second = (drain(subscription, 5) for _ in range(2))
    acknowledge(subscription, stale)
    for _ in range(3):
        acknowledge(subscription, pickle.loads(pickle.dumps(first)))
    time.sleep(0.5)
    assert committed(subscription) == 5
    acknowledge(subscription, second)
    until(lambda: committed(subscription) == 10)


def test_a_new_group_may_start_at_the_end(cluster, connect):
    topic = cluster.topic()
    cluster.publish(topic, numbers(0, 10))
    subscription = connect(topic, start="latest")
    until(lambda: subscription.receive(1, 0.1) is None and subscription.backlog() == 0)
    cluster.publish(topic, numbers(10, 15))
    assert texts(drain(subscription, 5)) == numbers(10, 15)


def test_fetching_stops_at_the_bound_of_messages(cluster, connect):
    topic = cluster.topic(4)
    cluster.publish(topic, numbers(0, 300))
    subscription = connect(topic, max_outstanding_messages=100)
    held = drain(subscription, 100, most=30)
    assert subscription.receive(10, 0.5) is None
    until(lambda: subscription._paused)  # nobody received for a while
    assert subscription.receive(10, 0) is None
    freed = held.pop()
    subscription.acknowledge(freed.receipt)
    held += drain(subscription, len(freed))
    acknowledge(subscription, held)
    seen = len(freed) + sum(map(len, held))
    while seen < 300:
        received = drain(subscription, min(50, 300 - seen))
        acknowledge(subscription, received)
        seen += sum(map(len, received))
    until(lambda: subscription.backlog() == 0)
    assert subscription.receive(1, 0.3) is None


def test_fetching_stops_at_the_bound_of_bytes(cluster, connect):
    topic = cluster.topic()
    cluster.publish(topic, [b"x" * 10_000] * 100)
    subscription = connect(topic, max_outstanding_bytes=100_000)
    [first] = drain(subscription, 1, most=1)
    held = [first, *drain(subscription, 9)]
    assert subscription.receive(100, 0.5) is None
    acknowledge(subscription, held)
    assert sum(len(messages) for messages in drain(subscription, 10)) == 10


def test_one_message_larger_than_the_bound_comes_alone(cluster, connect):
    topic = cluster.topic()
    cluster.publish(topic, [b"x" * 10_000] * 3)
    subscription = connect(topic, max_outstanding_bytes=1000)
    for _ in range(3):
        [messages] = drain(subscription, 1)
        assert subscription.receive(10, 0.2) is None
        subscription.acknowledge(messages.receipt)


def test_backlog(cluster, connect):
    topic = cluster.topic(4)
    cluster.publish(topic, numbers(0, 400))
    subscription = connect(topic, max_outstanding_messages=100)
    assert subscription.backlog() is None
    assert subscription.partitions() == frozenset()
    assert subscription.redelivery_seconds == 0.0
    held: list[Messages] = []
    until(lambda: held.extend(filter(None, [subscription.receive(1, 0.1)])) or len(subscription.partitions()) == 4)
    held += drain(subscription, 90 - sum(map(len, held)))
    until(lambda: subscription.backlog() == 310)
    cluster.publish(topic, numbers(400, 450))  # not fetched: it is paused
    until(lambda: subscription.backlog() == 360)
    acknowledge(subscription, held)
    subscription.close()

    again = connect(topic)
    until(lambda: again.receive(1, 0.1) is not None)
    until(lambda: again.backlog() == 359)


def test_a_topic_that_is_deleted(cluster, connect):
    topic = cluster.topic()
    cluster.publish(topic, numbers(0, 1))
    subscription = connect(topic, settings={**QUICK, "topic.metadata.refresh.interval.ms": 500})
    drain(subscription, 1)
    cluster.delete(topic)
    with pytest.raises(BrokerError, match=f"{topic}.*[Uu]nknown topic"):
        until(lambda: subscription.receive(1, 0.5), seconds=15)


# More than one member --------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["cooperative-sticky", "range"])
def test_a_member_that_joins_and_one_that_leaves(cluster, connect, strategy):
    topic = cluster.topic(4)
    settings = {**QUICK, "partition.assignment.strategy": strategy}
    cluster.publish(topic, numbers(0, 400))
    first = connect(topic, settings=settings)
    held = drain(first, 400, most=40)
    acknowledge(first, held[:5])
    if strategy == "range":  # the mock, unlike Kafka, takes no commits while a group rebalances
        time.sleep(0.5)
    second = connect(topic, settings=settings)
    later: list[Messages] = []

    def receive(*members: KafkaSubscription) -> set[bytes]:
        for member in members:
            if messages := member.receive(1000, 0.1):
                later.append(messages)
                member.acknowledge(messages.receipt)
        return set(texts(later))

    until(lambda: receive(first, second) is not None and [len(first.partitions()), len(second.partitions())] == [2, 2])
    assert not first.partitions() & second.partitions()
    acknowledge(first, held)  # of the partitions that were revoked since, this commits nothing
    cluster.publish(topic, numbers(400, 500))
    until(lambda: receive(first, second) >= set(numbers(400, 500)))
    second.close()
    cluster.publish(topic, numbers(500, 600))
    until(lambda: receive(first) >= set(numbers(500, 600)) and first.partitions() == frozenset(range(4)))
    offsets = {each: payload for part in held + later for each, payload in zip(part.ids, part.payloads, strict=True)}
    assert sorted(offsets.values(), key=int) == numbers(0, 600)  # the same id when a message comes again
    assert not set(ids(held[:5])) & set(ids(later))
    assert first._held == first._held_bytes == 0


@pytest.mark.parametrize("strategy", ["cooperative-sticky", "range"])
def test_a_partition_that_goes_and_comes_back(cluster, connect, strategy):
    """Messages are acknowledged as they come, or too late, and members come and go."""
    topic = cluster.topic(2)
    settings = {**QUICK, "partition.assignment.strategy": strategy}
    first = connect(topic, settings=settings)
    seen: list[Messages] = []
    kept: list[Messages] = []  # of the first member, acknowledged only after a partition has gone and come back
    offsets: dict[int, list[int]] = defaultdict(list)  # committed, as time goes by
    published = 0

    def step(*members: KafkaSubscription, keep: bool = False) -> None:
        nonlocal published
        cluster.publish(topic, numbers(published, published + 10))
        published += 10
        for member in members:
            if messages := member.receive(1000, 0.1):
                seen.append(messages)
                if keep and member is first:
                    kept.append(messages)
                else:
                    member.acknowledge(messages.receipt)
        look()

    def look() -> None:
        places = [confluent_kafka.TopicPartition(topic, each) for each in (0, 1)]
        with first._polling, contextlib.suppress(confluent_kafka.KafkaException):
            for place in first._consumer.committed(places, timeout=2):
                offsets[place.partition].append(place.offset)

    until(lambda: step(first) or len(first.partitions()) == 2)
    for keep in (False, True):
        for _ in range(5):
            step(first, keep=keep)
    second = connect(topic, settings=settings)
    until(lambda: step(first, second, keep=True) or len(second.partitions()) == 1)
    for _ in range(5):
        step(first, second)
    second.close()
    until(lambda: step(first) or len(first.partitions()) == 2)
    acknowledge(first, kept[::-1])  # most are of another time; and what is of this one is out of order
    for _ in range(5):
        time.sleep(0.2)
        look()
    for _ in range(5):
        step(first)

    def rest() -> set[bytes]:
        if messages := first.receive(1000, 0.1):
            seen.append(messages)
            first.acknowledge(messages.receipt)
        return set(texts(seen))

    until(lambda: rest() == set(numbers(0, published)))
    first.close()
    assert kept
    assert len(offsets) == 2
    for each in offsets.values():
        assert len(set(each)) > 1
        assert each == sorted(each)
    last = connect(topic)
    until(lambda: last.backlog() == 0 or last.receive(1, 0.1) is not None)
    assert last.backlog() == 0  # nothing is left, and nothing was skipped


MEMBER = """
import sys, time
from pipelines.brokers.kafka import KafkaBroker
settings = {"session.timeout.ms": 1000, "heartbeat.interval.ms": 100}
subscription = KafkaBroker.parse(sys.argv[1], settings=settings).subscribe()
seen, safe = 0, []
while seen < 100:
    messages = subscription.receive(10, 0.5)
    if messages:
        seen += len(messages)
        if seen <= 50:
            safe += messages.payloads
            subscription.acknowledge(messages.receipt)
time.sleep(1)
print(b" ".join(safe).decode(), flush=True)
time.sleep(60)
"""


def test_a_member_that_is_killed_loses_nothing(cluster, connect):
    topic = cluster.topic(4)
    cluster.publish(topic, numbers(0, 100))
    uri = f"kafka://{cluster.servers}/{topic}?group=readers-{topic}"
    member = subprocess.Popen([sys.executable, "-c", MEMBER, uri], stdout=subprocess.PIPE, text=True)
    assert member.stdout is not None
    safe = set(member.stdout.readline().encode().split())
    member.send_signal(signal.SIGKILL)
    member.wait()
    member.stdout.close()
    received = drain(connect(topic), 100 - len(safe))
    assert safe
    assert set(texts(received)) == set(numbers(0, 100)) - safe


@pytest.mark.parametrize("strategy", ["cooperative-sticky", "range"])
def test_a_member_that_does_not_receive_still_answers(cluster, connect, strategy):
    topic = cluster.topic(4)
    settings = {**QUICK, "max.poll.interval.ms": 2000, "partition.assignment.strategy": strategy}
    cluster.publish_to_each(topic, b"early")
    first = connect(topic, settings=settings)
    held = drain(first, 4)
    second = connect(topic, settings=settings)
    until(lambda: len(first.partitions()) == len(second.partitions()) == 2)  # with nobody receiving
    time.sleep(2.5)  # longer than Kafka has a member be silent
    assert len(first.partitions()) == len(second.partitions()) == 2
    acknowledge(first, held)
    second.close()
    until(lambda: len(first.partitions()) == 4)
    cluster.publish_to_each(topic, b"late")
    seen: set[int] = set()  # all that was paused is fetched again
    until(lambda: seen.update((first.receive(100, 0.1) or NOTHING).partitions) or seen == {0, 1, 2, 3})


# Outages and writing ---------------------------------------------------------------------------------------


def test_seconds_of_outage_lose_nothing_and_keep_memory_bounded(cluster, connect, caplog):
    caplog.set_level(logging.WARNING, "pipelines.brokers.kafka")
    topic = cluster.topic(2)
    publisher = KafkaBroker.parse(f"kafka://{cluster.servers}/{topic}", settings=QUICK).publisher()
    subscription = connect(topic, max_outstanding_messages=200)
    sent, over = [0], threading.Event()

    def publish() -> None:
        while not over.is_set():
            publisher.publish(numbers(sent[0], sent[0] + 50))  # returns when they are safe
            sent[0] += 50
            time.sleep(0.01)

    publishing = threading.Thread(target=publish)
    publishing.start()
    received: list[Messages] = []
    most = 0

    def receive(seconds: float) -> None:
        nonlocal most
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if messages := subscription.receive(100, 0.05):
                received.append(messages)
                subscription.acknowledge(messages.receipt)
            most = max(most, subscription._held + len(subscription._kept) + len(subscription._acknowledged))

    until(lambda: receive(0.1) or len(received) > 5)
    with cluster.down():
        receive(1.0)
        before = sent[0]
        assert subscription.backlog() is None
        receive(4.0)
        assert sent[0] == before
    until(lambda: receive(0.2) or sent[0] >= before + 500)
    over.set()
    publishing.join(30)
    until(lambda: receive(0.2) or set(texts(received)) == set(numbers(0, sent[0])))
    publisher.publish([])
    publisher.close()
    assert most <= 300
    told = [record.getMessage() for record in caplog.records if topic in record.getMessage()]
    assert sum("trying again until it works" in line for line in told) == 2  # the reader, the writer
    assert sum("works again" in line for line in told) == 2
    assert len(told) == 4, told
    assert len(caplog.records) < 10  # with what librdkafka itself says


def test_an_outage_of_what_is_idle_is_over_too(cluster, connect, caplog):
    caplog.set_level(logging.WARNING, "pipelines.brokers.kafka")
    topic = cluster.topic()
    subscription = connect(topic)
    until(lambda: subscription.receive(1, 0.1) is None and subscription.backlog() == 0)
    with cluster.down():
        until(lambda: subscription.receive(1, 0.1) is None and subscription.backlog() is None)
    until(lambda: subscription.receive(1, 0.1) is None and subscription.backlog() == 0)
    assert [record.getMessage() for record in caplog.records if "works again" in record.getMessage()]


def test_closing_does_not_wait_for_a_broker_that_is_down(cluster, connect, monkeypatch):
    monkeypatch.setattr("pipelines.brokers.kafka_subscription._CLOSE_SECONDS", 1.0)
    monkeypatch.setattr("pipelines.brokers.kafka_publisher._CLOSE_SECONDS", 1.0)
    topic = cluster.topic()
    broker = KafkaBroker.parse(f"kafka://{cluster.servers}/{topic}")
    publisher, subscription = broker.publisher(), connect(topic)
    publisher.publish([b"x"])
    drain(subscription, 1)
    failures: list[BrokerError] = []

    def wait() -> None:
        try:
            publisher.publish([b"y"])
        except BrokerError as error:
            failures.append(error)

    with cluster.down():
        waiting = threading.Thread(target=wait)
        waiting.start()
        time.sleep(0.3)
        publisher.close()
        subscription.close()
        waiting.join()
    assert [str(error) for error in failures] == ["closed"]


def test_a_message_that_is_refused(cluster, connect):
    topic = cluster.topic()
    publisher = KafkaBroker.parse(f"kafka://{cluster.servers}/{topic}").publisher()
    with pytest.raises(BrokerError, match=f"{topic}.*too large"):
        publisher.publish([b"x", b"y" * 2_000_000, b"z"])
    publisher.publish([])
    publisher.publish([b"after"])
    assert texts(drain(connect(topic), 3)) == [b"x", b"z", b"after"]
    publisher.close()
