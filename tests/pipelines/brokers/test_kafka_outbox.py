"""Transactions of Kafka's: all or nothing, and told apart by whoever comes next in their name."""

import contextlib
import threading
import time

import pytest

pytest.importorskip("confluent_kafka", reason="needs confluent-kafka, which is not installed")

from pipelines.brokers import BrokerError, open_broker
from pipelines.brokers.kafka_outbox import OutboxPublisher
from tests.kit.kafka import QUICK, RealKafka, real_kafka

pytestmark = [pytest.mark.serial, pytest.mark.usefixtures("haste"), pytest.mark.timeout(180)]

NAME = "headrace-test"


@pytest.fixture(scope="module")
def kafka() -> RealKafka:
    return real_kafka()


class Topics:
    """Two topics, and brokers of them whose publishers belong to one outbox."""

    def __init__(self, kafka, key, **settings):
        self.scores, self.dead = (
            open_broker(f"kafka://{kafka.servers}/{kafka.topic(2)}", settings={**QUICK, **settings}, outbox=key)
            for _ in range(2)
        )

    def read(self, broker, isolation="read_committed"):
        plain = open_broker(broker.uri, settings={**QUICK, "isolation.level": isolation})
        with contextlib.closing(plain.tail(from_start=True)) as reader:
            found = []
            while (messages := reader.receive(1000, 0.3)) is not None or reader.backlog() != 0:
                found += messages.payloads if messages is not None else ()
        return sorted(found)


@pytest.fixture
def topics(kafka, request):
    return Topics(kafka, request.node.name)


def test_rows_of_all_topics_and_the_mark_are_committed_together(topics, opened):
    outbox = opened(topics.scores.open_outbox(NAME))
    scores, dead = topics.scores.publisher(), topics.dead.publisher()
    scores.publish([b"a", b"b"], None, ["k", "k"])
    dead.publish([b"x"], [{"why": "y"}])
    assert topics.read(topics.scores) == []
    assert outbox.mark is None
    assert outbox.commit("emitted 3 20 30")
    assert outbox.mark == "emitted 3 20 30"
    assert not outbox.commit("emitted 4 20 30")  # of nothing
    assert (topics.read(topics.scores), topics.read(topics.dead)) == ([b"a", b"b"], [b"x"])
    scores.publish([b"c"])
    outbox.close()  # without a commit
    again = opened(topics.scores.open_outbox(NAME))
    assert again.mark == "emitted 3 20 30"
    assert topics.read(topics.scores) == [b"a", b"b"]


def test_another_name_is_another_stream(topics, opened):
    outbox = opened(topics.scores.open_outbox(NAME))
    topics.scores.publisher().publish([b"a"])
    outbox.commit("emitted 1 1 1")
    assert opened(topics.scores.open_outbox("headrace-other")).mark is None


def fence(topics):
    """End what another process has open in the name."""
    open_broker(topics.scores.uri, settings=QUICK, outbox="fencing").open_outbox(NAME).close()


@pytest.mark.parametrize("was_committed", [True, False])
def test_an_answer_that_was_lost_is_found_out(topics, opened, was_committed):
    """The coordinator ends a producer that may have committed: the same rows are made again only if it has not."""
    outbox = opened(topics.scores.open_outbox(NAME))
    publisher = topics.scores.publisher()
    publisher.publish([b"a"])
    outbox.commit("emitted 1 1 1")
    send, calls = outbox._send, []

    def lose(rows, number, mark):
        if not calls:
            calls.append(number)
            if was_committed:
                send(rows, number, mark)
            fence(topics)
            outbox._producer.begin_transaction()
            outbox._producer.produce(topics.scores.topic, b"cut off")
            outbox._producer.commit_transaction(5)
        send(rows, number, mark)

    outbox._send = lose
    publisher.publish([b"b"])
    assert outbox.commit("emitted 2 2 2")
    assert calls
    publisher.publish([b"c"])
    assert outbox.commit("emitted 3 3 3")
    assert topics.read(topics.scores) == [b"a", b"b", b"c"]


def test_of_two_processes_one_is_told(topics, opened):
    first = opened(topics.scores.open_outbox(NAME))
    second = open_broker(topics.scores.uri, settings=QUICK, outbox="second")
    other = opened(second.open_outbox(NAME))
    second.publisher().publish([b"theirs"])
    assert other.commit("emitted 1 1 1")
    topics.scores.publisher().publish([b"ours"])
    with pytest.raises(BrokerError, match="another stream publishes in the name headrace-test"):
        first.commit("emitted 1 1 1")
    assert topics.read(topics.scores) == [b"theirs"]


def test_an_outage_longer_than_a_transaction_may_take_repeats_nothing(kafka, opened, request):
    topics = Topics(kafka, request.node.name, **{"transaction.timeout.ms": 3000})
    outbox = opened(topics.scores.open_outbox(NAME))
    publisher = topics.scores.publisher()
    publisher.publish([b"a"])
    outbox.commit("emitted 1 1 1")
    with kafka.down():
        publisher.publish([b"b", b"c"])
        committing = threading.Thread(target=outbox.commit, args=("emitted 2 2 2",))
        committing.start()
        time.sleep(6)
        assert committing.is_alive()
    committing.join(60)
    assert not committing.is_alive()
    assert outbox.mark == "emitted 2 2 2"
    assert topics.read(topics.scores) == [b"a", b"b", b"c"]


def test_what_waiting_does_not_mend_is_told(topics, opened):
    outbox = opened(topics.scores.open_outbox(NAME))
    topics.scores.publisher().publish([b"x" * 2_000_000])
    with pytest.raises(BrokerError, match=r"too large|large"):
        outbox.commit("emitted 1 1 1")
    assert topics.read(topics.scores) == []


def test_closing_ends_what_waits_for_a_broker_that_is_down(kafka, topics, opened):
    outbox = opened(topics.scores.open_outbox(NAME))
    raised = []

    def commit():
        try:
            outbox.commit("emitted 1 1 1")
        except BrokerError as error:
            raised.append(str(error))

    with kafka.down():
        OutboxPublisher(topics.scores.outbox, topics.scores.topic).publish([b"a"])
        committing = threading.Thread(target=commit)
        committing.start()
        time.sleep(1)
        outbox.close()
        committing.join(30)
    assert raised == ["closed"]
    again = opened(topics.scores.open_outbox(NAME))  # ends what is still under way, which has all or nothing
    assert (again.mark, topics.read(topics.scores)) in [(None, []), ("emitted 1 1 1", [b"a"])]
