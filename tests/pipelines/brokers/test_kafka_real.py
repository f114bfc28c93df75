"""What only a real Kafka has: topics that are made again, retention, compaction, transactions, SASL and TLS."""

import contextlib
import logging
import re
import shutil
import subprocess
import time
import types

import pytest

confluent_kafka = pytest.importorskip("confluent_kafka", reason="needs confluent-kafka, which is not installed")

from confluent_kafka import TopicPartition  # noqa: E402

from deploy.kafka import broker as kafka_broker  # noqa: E402
from pipelines.brokers import BrokerError, open_broker  # noqa: E402
from pipelines.brokers.kafka_topics import _readable_id  # noqa: E402
from tests.kit.kafka import QUICK, RealKafka, real_kafka, require_kafka  # noqa: E402

pytestmark = [pytest.mark.serial, pytest.mark.usefixtures("haste")]


@pytest.fixture(scope="module")
def kafka() -> RealKafka:
    return real_kafka()


def broker_of(kafka, topic, query="group=g", **options):
    return open_broker(f"kafka://{kafka.servers}/{topic}?{query}", **{"settings": QUICK, **options})


def numbers(start, stop):
    return [b"%d" % number for number in range(start, stop)]


def take(subscription, count, seconds=40.0):
    """What comes until there are `count` messages."""
    received, deadline = [], time.monotonic() + seconds
    while sum(map(len, received)) < count:
        assert time.monotonic() < deadline, f"{sum(map(len, received))} of {count} messages"
        received += filter(None, [subscription.receive(1000, 0.5)])
    return received


def payloads(received):
    return [payload for messages in received for payload in messages.payloads]


def ids(received):
    return [name for messages in received for name in messages.ids]


def until(condition, seconds=40.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.05)


def read_and_commit(kafka, topic, count, query="group=g"):
    """Read so many messages, as a stream that then ends; their ids."""
    with contextlib.closing(broker_of(kafka, topic, query).subscribe()) as subscription:
        received = take(subscription, count)
        for messages in received:
            subscription.acknowledge(messages.receipt)
    return ids(received)


def wait(subscription, seconds=30.0):
    """Receive for a while; what is refused is raised."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        subscription.receive(100, 0.2)


# What is lost ----------------------------------------------------------------------------------------------


def expire(kafka, topic, offset, partition=0):
    """Delete all before an offset, as retention does."""
    place = TopicPartition(topic, partition, offset)
    kafka.admin.delete_records([place])[place].result(20)


def test_retention_that_ran_out_while_nobody_read_is_told(kafka, opened, caplog):
    topic = kafka.topic()
    kafka.publish(topic, numbers(0, 30))
    read_and_commit(kafka, topic, 30)
    kafka.publish(topic, numbers(30, 60))
    expire(kafka, topic, 47)
    stopped = opened(broker_of(kafka, topic).subscribe())
    with pytest.raises(BrokerError, match=r"partition 0: 17 messages, offsets 30 to 46, are gone.*on_lost=go_on"):
        wait(stopped)
    stopped.close()
    caplog.set_level(logging.WARNING)
    going_on = opened(broker_of(kafka, topic, "group=g&on_lost=go_on").subscribe())
    assert payloads(take(going_on, 13)) == numbers(47, 60)
    assert "17 messages, offsets 30 to 46, are gone" in caplog.text


def test_retention_that_runs_out_ahead_of_a_slow_reader_is_told(kafka, opened):
    topic = kafka.topic()
    kafka.publish(topic, [b"x" * 10_000] * 300)
    settings = {
        **QUICK,
        "queued.min.messages": 1,
        "queued.max.messages.kbytes": 50,
        "max.partition.fetch.bytes": 20_000,
    }
    subscription = opened(broker_of(kafka, topic, settings=settings).subscribe())
    assert take(subscription, 1)
    expire(kafka, topic, 250)
    with pytest.raises(BrokerError, match=r"messages, offsets \d+ to 249, are gone"):
        wait(subscription)


def test_a_journal_knows_what_was_read_where_commits_are_gone(kafka, opened):
    topic = kafka.topic()
    kafka.publish(topic, numbers(0, 20))
    known = read_and_commit(kafka, topic, 20)
    kafka.publish(topic, numbers(20, 40))
    expire(kafka, topic, 25)
    fresh = opened(broker_of(kafka, topic, "group=other").subscribe(known))
    with pytest.raises(BrokerError, match=r"5 messages, offsets 20 to 24, are gone"):
        wait(fresh)
    assert payloads(take(opened(broker_of(kafka, topic, "group=third").subscribe()), 15)) == numbers(25, 40)


def test_a_topic_that_was_made_again_is_not_mixed_with_the_one_before(kafka, opened, caplog):
    topic = kafka.topic()
    kafka.publish(topic, numbers(0, 30))
    known = read_and_commit(kafka, topic, 30)
    kafka.delete(topic)
    until(lambda: topic not in kafka.admin.list_topics(timeout=10).topics)
    kafka.topic(name=topic)
    kafka.publish(topic, numbers(100, 140))  # more than there were
    with pytest.raises(BrokerError, match=r"made again since the journal was written.*--journal.*on_lost=go_on"):
        broker_of(kafka, topic).subscribe(known)
    caplog.set_level(logging.WARNING)
    received = take(opened(broker_of(kafka, topic, "group=g&on_lost=go_on").subscribe(known)), 40)
    assert payloads(received) == numbers(100, 140)
    assert not set(ids(received)) & set(known)
    assert "made again" in caplog.text
    again = opened(broker_of(kafka, topic, "group=h").subscribe([*known, *ids(received)]))  # told once
    assert payloads(take(again, 40)) == numbers(100, 140)


def test_ids_of_messages_have_the_topics_own_id(kafka):
    names = []
    for topic in [kafka.topic() for _ in range(3)]:
        with contextlib.closing(broker_of(kafka, topic, f"group=g-{topic}").subscribe()) as subscription:
            names.append(subscription._places.name)
    assert all(re.fullmatch(r"topic-[0-9]+:[A-Za-z0-9_-]{8}", name) for name in names)
    # Kafka's tools write ids with - and _, librdkafka with + and /, which would split the id of a message.
    assert _readable_id(types.SimpleNamespace(topic_id="a+/b")) == "a-_b"
    assert _readable_id(types.SimpleNamespace(topic_id="A" * 22)) == ""


@pytest.mark.parametrize("more", [5, 60])
def test_a_topic_that_is_made_again_under_a_reader_is_told(kafka, opened, more):
    topic = kafka.topic()
    kafka.publish(topic, numbers(0, 30))
    subscription = opened(broker_of(kafka, topic).subscribe())
    received = take(subscription, 30)
    for messages in received:
        subscription.acknowledge(messages.receipt)
    kafka.delete(topic)
    until(lambda: topic not in kafka.admin.list_topics(timeout=10).topics)
    kafka.topic(name=topic)
    kafka.publish(topic, numbers(100, 100 + more))
    with pytest.raises(BrokerError, match=r"Unknown topic|made again"):
        wait(subscription)


# What is in a topic ----------------------------------------------------------------------------------------


def test_a_compacted_topic_is_read_to_its_end(kafka, opened):
    config = {"cleanup.policy": "compact", "segment.ms": "200", "min.cleanable.dirty.ratio": "0.01"}
    topic = kafka.topic(config={**config, "max.compaction.lag.ms": "200"})
    publisher = opened(broker_of(kafka, topic).publisher())
    publisher.publish(numbers(0, 100), keys=[f"key {n % 10}" for n in range(100)])
    survivors = numbers(90, 100)
    deadline = time.monotonic() + 90
    found = []
    while len(found) > 20 or not found:
        assert time.monotonic() < deadline, "it was not compacted"
        time.sleep(1)
        publisher.publish([b"filler"], keys=["filler"])  # the last segment is not compacted
        subscription = broker_of(kafka, topic, f"group=g{time.monotonic_ns()}").subscribe()
        received = []
        with contextlib.closing(subscription):
            until(lambda s=subscription, r=received: r.extend(filter(None, [s.receive(1000, 0.2)])) or s.backlog() == 0)
        found = payloads(received)
    assert [each for each in found if each != b"filler"] == survivors
    offsets = [int(name.rsplit("/", 1)[1]) for name in ids(received)]
    assert offsets == sorted(offsets)
    assert offsets[-1] - offsets[0] >= len(offsets)  # there are holes


@pytest.mark.parametrize("tombstones", ["dead_letter", "skip"])
def test_headers_and_null_values(kafka, opened, tombstones):
    topic = kafka.topic()
    producer = confluent_kafka.Producer({"bootstrap.servers": kafka.servers})
    producer.produce(topic, b"a", b"k", headers=[("at", b"17"), ("trace", b"\xff\x00"), ("none", None)])
    producer.produce(topic, None, b"k", headers=[("at", b"18")])
    producer.produce(topic, b"", b"k")
    producer.produce(topic, b"b", b"k")
    producer.produce(topic, None, b"k")
    assert producer.flush(20) == 0
    query = f"group=g&event_time=at&tombstones={tombstones}"
    subscription = opened(broker_of(kafka, topic, query).subscribe())
    wanted = [b"a", b"", b"", b"b", b""] if tombstones == "dead_letter" else [b"a", b"", b"b"]
    received = take(subscription, len(wanted))
    until(lambda: received.extend(filter(None, [subscription.receive(10, 0.1)])) or subscription.backlog() == 0)
    assert payloads(received) == wanted
    times = [time for messages in received for time in messages.event_times]
    assert times[:2] == (["17", "18"] if tombstones == "dead_letter" else ["17", None])
    for messages in received:
        subscription.acknowledge(messages.receipt)
    place = [TopicPartition(topic, 0)]
    until(lambda: subscription._consumer.committed(place, timeout=10)[0].offset == 5)  # the last one, too
    assert subscription._held == subscription._held_bytes == 0


def test_what_is_not_committed_is_not_read(kafka, opened):
    topic = kafka.topic()
    producer = confluent_kafka.Producer({"bootstrap.servers": kafka.servers, "transactional.id": f"t-{topic}"})
    producer.init_transactions(30)
    for number, commits in enumerate([True, False, True]):
        producer.begin_transaction()
        for each in range(5):
            producer.produce(topic, b"%d %d" % (number, each))
        producer.flush(20)
        (producer.commit_transaction if commits else producer.abort_transaction)(20)
    subscription = opened(broker_of(kafka, topic).subscribe())
    received = take(subscription, 10)
    until(lambda: received.extend(filter(None, [subscription.receive(10, 0.1)])) or subscription.backlog() == 0)
    assert payloads(received) == [b"%d %d" % (number, each) for number in (0, 2) for each in range(5)]


# Topics, and looking on ------------------------------------------------------------------------------------


def test_looking_on_takes_nothing_away(kafka, opened):
    topic = kafka.topic(2)
    kafka.publish(topic, numbers(0, 10))
    plain = open_broker(f"kafka://{kafka.servers}/{topic}", settings=QUICK)
    assert sorted(payloads(take(opened(plain.tail(from_start=True)), 10))) == sorted(numbers(0, 10))
    looking = opened(plain.tail())
    until(lambda: looking.receive(10, 0.1) is None and looking.backlog() == 0)
    kafka.publish(topic, numbers(10, 15))
    received = take(looking, 5)
    assert sorted(payloads(received)) == numbers(10, 15)
    for messages in received:
        looking.acknowledge(messages.receipt)
    assert len(payloads(take(opened(broker_of(kafka, topic).subscribe()), 15))) == 15


def test_settings_that_the_cluster_refuses_are_told(kafka, opened):
    settings = {"session.timeout.ms": 400, "heartbeat.interval.ms": 100}
    subscription = opened(broker_of(kafka, kafka.topic(), settings=settings).subscribe())
    with pytest.raises(BrokerError, match="session timeout"):
        wait(subscription)


# Who may -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A broker with a listener of SASL/SCRAM over TLS, and a file of its certificate."""
    require_kafka()
    if shutil.which("keytool") is None:
        pytest.skip("needs keytool, which a JRE has")
    folder = tmp_path_factory.mktemp("guarded")
    store, certificate = folder / "broker.p12", folder / "broker.pem"
    common = ["-keystore", str(store), "-storepass", "changeit", "-alias", "broker"]
    made = ["-genkeypair", "-keyalg", "EC", "-dname", "CN=localhost", "-ext", "san=ip:127.0.0.1", "-validity", "2"]
    subprocess.run(["keytool", *made, *common], check=True, capture_output=True)
    subprocess.run(
        ["keytool", "-exportcert", "-rfc", "-file", str(certificate), *common], check=True, capture_output=True
    )
    (port,) = kafka_broker.free_ports(1)
    login = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
    settings = {
        "listeners": f"SASL_SSL://127.0.0.1:{port}",
        "sasl.enabled.mechanisms": "SCRAM-SHA-512",
        "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": login,
        "ssl.keystore.location": str(store),
        "ssl.keystore.password": "changeit",
        "ssl.keystore.type": "PKCS12",
    }
    users = ["SCRAM-SHA-512=[name=reader,password=hunter2]"]
    kafka = RealKafka(folder / "run", settings=settings, users=users)
    yield kafka, f"127.0.0.1:{port}", certificate
    kafka.close()


PROPERTIES = """\
security.protocol=SASL_SSL
sasl.mechanism=SCRAM-SHA-512
sasl.username=reader
sasl.password=$READER_PASSWORD
ssl.ca.location={certificate}
"""


def test_scram_over_tls_by_a_file_of_settings(guarded, opened, tmp_path, monkeypatch):
    kafka, servers, certificate = guarded
    file = tmp_path / "kafka.properties"
    file.write_text(PROPERTIES.format(certificate=certificate))
    topic = kafka.topic()
    uri = f"kafka://{servers}/{topic}"
    monkeypatch.setenv("READER_PASSWORD", "hunter2")
    opened(open_broker(uri, kafka_config=file).publisher()).publish(numbers(0, 10))
    source = open_broker(f"{uri}?group=g", kafka_config=file)
    assert payloads(take(opened(source.subscribe()), 10)) == numbers(0, 10)
    assert source.exists()
    monkeypatch.setenv("READER_PASSWORD", "hunter3")
    with pytest.raises(BrokerError, match=r"[Aa]uthentication") as raised:
        open_broker(f"{uri}?group=g", kafka_config=file, connect_seconds=10).subscribe()
    assert "hunter" not in str(raised.value)


def test_a_certificate_that_is_not_known_is_refused(guarded, tmp_path, monkeypatch):
    kafka, servers, certificate = guarded
    monkeypatch.setenv("READER_PASSWORD", "hunter2")
    file = tmp_path / "kafka.properties"
    file.write_text(PROPERTIES.format(certificate=certificate).replace("ssl.ca.location", "# ssl.ca.location"))
    broker = open_broker(f"kafka://{servers}/{kafka.topic()}?group=g", kafka_config=file, connect_seconds=10)
    with pytest.raises(BrokerError, match=r"certificate"):
        broker.subscribe()
