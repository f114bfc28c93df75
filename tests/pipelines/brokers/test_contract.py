"""What every broker does alike: one suite, run over each of them."""

import contextlib
import dataclasses
import pickle
import threading
import time

import pytest

from pipelines.brokers import BrokerError
from tests.kit.services import SERVICES

pytestmark = [pytest.mark.serial, pytest.mark.usefixtures("haste")]


@pytest.fixture(params=SERVICES)
def service(request):
    with contextlib.closing(request.param(request)) as service:
        yield service


def numbers(start, stop):
    return [b"%d" % number for number in range(start, stop)]


def receive(subscription, count, most=1000):
    """What comes until there are `count` messages, as it came."""
    received, deadline = [], time.monotonic() + 120
    while sum(map(len, received)) < count:
        assert time.monotonic() < deadline, f"{sum(map(len, received))} of {count} messages"
        messages = subscription.receive(most, 0.5)
        received += [messages] if messages is not None else []
    return received


def payloads(received):
    return [payload for messages in received for payload in messages.payloads]


def ids(received):
    return [name for messages in received for name in messages.ids]


def test_all_that_is_published_comes_once(service, opened):
    source, sink = service.place()
    opened(sink.publisher()).publish(numbers(0, 500))
    subscription = opened(source.subscribe())
    received = receive(subscription, 500)
    assert sorted(payloads(received)) == sorted(numbers(0, 500))
    assert len(set(ids(received))) == 500
    assert all(ids(received))
    for messages in received:
        assert set(messages.partitions) <= subscription.partitions()
        assert len(messages.published_us) == len(messages.partitions) == len(messages)
        assert messages.event_times is None
        subscription.acknowledge(messages.receipt)
    assert subscription.receive(10, 1.0) is None


def test_a_broker_that_is_traced_tells_who_sent_each_message(service, opened):
    source, sink = service.place()
    texts = [None, "00-1-2-01", "", "00-3-4-00"]
    attributes = [{"other": "1"} if text is None else {"traceparent": text} for text in texts]
    opened(sink.publisher()).publish(numbers(0, 4), attributes)
    found = {}
    for messages in receive(opened(dataclasses.replace(source, traced=True).subscribe()), 4):
        found |= dict(zip(messages.payloads, messages.traceparents, strict=True))
    assert found == dict(zip(numbers(0, 4), texts, strict=True))


def test_no_more_come_at_once_than_asked_for(service, opened):
    source, sink = service.place()
    opened(sink.publisher()).publish(numbers(0, 100))
    received = receive(opened(source.subscribe()), 100, most=7)
    assert max(map(len, received)) <= 7
    assert sorted(payloads(received)) == sorted(numbers(0, 100))


def test_what_is_not_acknowledged_comes_again_with_its_id(service, opened):
    source, sink = service.place()
    opened(sink.publisher()).publish(numbers(0, 60))
    first = source.subscribe()
    received = receive(first, 60)
    first.close()
    again = receive(opened(source.subscribe()), 60)
    assert dict(zip(ids(again), payloads(again), strict=True)) == dict(
        zip(ids(received), payloads(received), strict=True)
    )


def test_what_is_acknowledged_does_not_come_again(service, opened):
    source, sink = service.place()
    publisher = opened(sink.publisher())
    publisher.publish(numbers(0, 60))
    first = source.subscribe()
    for messages in receive(first, 60):
        first.acknowledge(messages.receipt)
        first.acknowledge(messages.receipt)  # twice does no harm
    first.close()
    publisher.publish([b"new"])
    assert payloads(receive(opened(source.subscribe()), 1)) == [b"new"]


def test_a_receipt_of_a_connection_that_is_over_does_nothing(service, opened):
    source, sink = service.place()
    opened(sink.publisher()).publish(numbers(0, 20))
    first = source.subscribe()
    received = receive(first, 20)
    first.close()
    for messages in received:
        first.acknowledge(messages.receipt)
    assert sorted(payloads(receive(opened(source.subscribe()), 20))) == sorted(numbers(0, 20))


def test_messages_of_a_key_keep_their_order(service, opened):
    source, sink = service.place()
    publisher = opened(sink.publisher())
    for start in range(0, 300, 30):
        publisher.publish(numbers(start, start + 30), keys=[f"key {n % 3}" for n in range(30)])
    received = [int(payload) for payload in payloads(receive(opened(source.subscribe()), 300))]
    for key in range(3):
        assert [n for n in received if n % 30 % 3 == key] == [n for n in range(300) if n % 30 % 3 == key]


def test_event_times_are_of_the_attribute_that_the_uri_names(service, opened):
    source, sink = service.place("event_time=when")
    assert source.event_time_attribute == "when"
    opened(sink.publisher()).publish([b"a", b"b"], [{"when": "17"}, {}])
    received = receive(opened(source.subscribe()), 2)
    times = {p: t for m in received for p, t in zip(m.payloads, m.event_times, strict=True)}
    assert times == {b"a": "17", b"b": None}


def test_any_bytes_come_through(service, opened):
    source, sink = service.place()
    given = [b"\x00\xff\xfe", bytes(range(256)) * 400, "é".encode()]
    opened(sink.publisher()).publish(given)
    assert sorted(payloads(receive(opened(source.subscribe()), 3))) == sorted(given)


def test_an_outage_is_waited_for_and_loses_nothing(service, opened):
    source, sink = service.place()
    publisher, subscription = opened(sink.publisher()), source.subscribe()
    publisher.publish(numbers(0, 50))
    received = receive(subscription, 50)
    with service.down():
        waiting = threading.Thread(target=publisher.publish, args=(numbers(50, 100),))
        waiting.start()
        assert subscription.receive(1, 1.0) is None
        subscription.acknowledge(received[0].receipt)  # which the broker learns after it
        assert waiting.is_alive()
    waiting.join(60)
    assert not waiting.is_alive()
    while set(payloads(received)) != set(numbers(0, 100)):
        received += receive(subscription, 1)
    while (messages := subscription.receive(1000, 1.0)) is not None:  # what comes again has its id
        received.append(messages)
    assert len(set(zip(ids(received), payloads(received), strict=True))) == len(set(ids(received)))
    for messages in received:
        subscription.acknowledge(messages.receipt)
    subscription.close()
    assert opened(source.subscribe()).receive(1, 2.0) is None


def test_the_backlog_is_told_once_it_is_known(service, opened):
    source, sink = service.place()
    opened(sink.publisher()).publish(numbers(0, 30))
    subscription = opened(source.subscribe())
    receive(subscription, 30)
    deadline = time.monotonic() + 60
    while subscription.backlog() != 0:
        assert time.monotonic() < deadline, subscription.backlog()
        subscription.receive(1, 0.1)


def test_a_topic_that_is_not_there_is_refused(service):
    nowhere = service.nowhere()
    with pytest.raises(BrokerError, match="nowhere"):
        nowhere.subscribe()
    with pytest.raises(BrokerError, match="nowhere"):
        nowhere.publisher()


def test_a_broker_pickles(service):
    source, sink = service.place()
    for broker in (source, sink):
        assert pickle.loads(pickle.dumps(broker)) == broker
        assert broker.max_message_bytes > 100_000
