"""The Pub/Sub broker against the emulator, and against servers that refuse or do not answer."""

import contextlib
import itertools
import logging
import pickle
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent import futures

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytestmark = pytest.mark.serial

with warnings.catch_warnings():
    # Google's libraries announce at import when they will stop to support this Python.
    warnings.filterwarnings("ignore", "You are using a Python version", FutureWarning)
    from google.pubsub_v1 import SubscriberClient

    from pipelines.brokers import BrokerError, Messages, open_broker, pubsub, pubsub_client, pubsub_publisher
    from pipelines.brokers.pubsub import PubsubBroker, PubsubSubscription
    from pipelines.brokers.pubsub_publisher import PubsubPublisher
    from pipelines.pubsub_emulator import PubsubEmulator, wire
    from pipelines.sources.values import attribute_times_us

HOST = "PUBSUB_EMULATOR_HOST"
_names = itertools.count(1)


class Bench:
    """A topic and its reader on an emulator, and what is open on them."""

    def __init__(self, emulator: PubsubEmulator, stack: contextlib.ExitStack) -> None:
        self.emulator = emulator
        self.topic = f"orders-{next(_names)}"
        self.reader = f"{self.topic}-reader"
        self.full_topic, self.full_reader = emulator.create("project-a", self.topic, self.reader)
        self._stack = stack

    def broker(self, **options: object) -> PubsubBroker:
        return PubsubBroker.parse(f"pubsub://project-a/{self.reader}", **options)

    def subscribe(self, **options: object) -> PubsubSubscription:
        return self._stack.enter_context(contextlib.closing(self.broker(**options).subscribe()))

    def publisher(self, **options: object) -> PubsubPublisher:
        broker = PubsubBroker.parse(f"pubsub://project-a/{self.topic}", **options)
        return self._stack.enter_context(contextlib.closing(broker.publisher()))

    def backlog(self) -> tuple[int, int]:
        """Undelivered and outstanding messages, as the server counts them."""
        backlog = self.emulator.backlog(self.full_reader)
        return backlog.undelivered, backlog.outstanding

    def outside(self) -> SubscriberClient:
        channel = self._stack.enter_context(grpc.insecure_channel(self.emulator.address))
        transport = SubscriberClient.get_transport_class("grpc")(channel=channel)
        return SubscriberClient(transport=transport)


@pytest.fixture(scope="module")
def shared_emulator() -> Iterator[PubsubEmulator]:
    with PubsubEmulator() as emulator:
        yield emulator


@pytest.fixture
def bench(shared_emulator: PubsubEmulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setenv(HOST, shared_emulator.address)
    with contextlib.ExitStack() as stack:
        yield Bench(shared_emulator, stack)


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A bench whose emulator can be stopped."""
    with PubsubEmulator() as emulator, contextlib.ExitStack() as stack:
        monkeypatch.setenv(HOST, emulator.address)
        yield Bench(emulator, stack)


def numbers(count: int, start: int = 0) -> list[bytes]:
    return [b"%d" % number for number in range(start, start + count)]


def take(subscription: PubsubSubscription, count: int, *, ack: bool = True, seconds: float = 60) -> list[Messages]:
    """Receive at least `count` messages."""
    end = time.monotonic() + seconds
    taken: list[Messages] = []
    while (got := sum(map(len, taken))) < count:
        assert time.monotonic() < end, f"{got} of {count} came"
        messages = subscription.receive(1000, 0.2)
        if messages is not None:
            taken.append(messages)
            if ack:
                subscription.acknowledge(messages.receipt)
    return taken


def payloads(taken: list[Messages]) -> list[bytes]:
    return [payload for messages in taken for payload in messages.payloads]


def ids(taken: list[Messages]) -> list[str]:
    return [each for messages in taken for each in messages.ids]


def eventually(check: Callable[[], bool], seconds: float = 40) -> None:
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end
        time.sleep(0.02)


def quiet(subscription: PubsubSubscription, seconds: float) -> bool:
    return subscription.receive(1000, seconds) is None


# Configuration ---------------------------------------------------------------------------------------------


def test_a_broker_is_parsed_and_pickles() -> None:
    broker = PubsubBroker.parse("pubsub://example.com:my-project/orders.v1", ack_deadline_seconds=10)
    assert broker == PubsubBroker("example.com:my-project", "orders.v1", ack_deadline_seconds=10)
    assert broker.uri == "pubsub://example.com:my-project/orders.v1"
    assert pickle.loads(pickle.dumps(broker)) == broker
    broker = open_broker("pubsub://my-project/orders?event_time=happened%20at&ordered=true", max_outstanding_messages=5)
    assert broker == PubsubBroker("my-project", "orders", 5, event_time_attribute="happened at", ordered=True)
    assert broker.uri == "pubsub://my-project/orders?event_time=happened%20at&ordered=true"


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "kafka://project-a/orders",
        "pubsub://project-a",
        "pubsub://project-a/",
        "pubsub:///orders",
        "pubsub://project-a/or",
        "pubsub://project-a/orders/more",
        "pubsub://project-a/1orders",
        "pubsub://Project/orders",
        "pubsub://project-a/orders?",
        "pubsub://project-a/orders?event_time=",
        "pubsub://project-a/orders?ordered=yes",
        "pubsub://project-a/orders?group=g",
    ],
)
def test_what_is_not_a_uri_is_refused(uri: str) -> None:
    with pytest.raises(ValueError, match=r"is not pubsub://PROJECT/NAME"):
        PubsubBroker.parse(uri)


@pytest.mark.parametrize(
    "options", [{"ack_deadline_seconds": 9}, {"ack_deadline_seconds": 601}, {"max_outstanding_bytes": 0}]
)
def test_options_out_of_range_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"ack_deadline_seconds|max_outstanding"):
        PubsubBroker.parse("pubsub://project-a/orders", **options)


# Messages --------------------------------------------------------------------------------------------------


def test_everything_published_is_received_once(bench: Bench) -> None:
    before = time.time_ns() // 1000
    bench.publisher().publish(numbers(4321))
    after = time.time_ns() // 1000
    subscription = bench.subscribe()
    taken = take(subscription, 4321)
    order = [int(payload) for payload in payloads(taken)]
    assert sorted(order) == list(range(4321))
    for request in range(5):  # within a request the order is kept
        inside = [each for each in order if each // 1000 == request]
        assert inside == sorted(inside)
    assert len(set(ids(taken))) == 4321
    for messages in taken:
        assert 0 < len(messages) <= 1000
        assert len(messages.published_us) == len(messages.ids) == len(messages.partitions) == len(messages)
        assert all(before <= each <= after for each in messages.published_us)
        assert set(messages.partitions) <= subscription.partitions() == {0}
        assert messages.event_times is None
    eventually(lambda: bench.backlog() == (0, 0))
    assert subscription.backlog() == 0


def test_receive_takes_at_most_what_it_is_asked_for(bench: Bench) -> None:
    bench.publisher().publish(numbers(10))
    subscription = bench.subscribe()
    eventually(lambda: subscription.backlog() == 10)
    first, second = subscription.receive(7, 1), subscription.receive(7, 1)
    assert first is not None
    assert second is not None
    assert list(first.payloads) == numbers(7)
    assert list(second.payloads) == numbers(3, 7)
    assert subscription.backlog() == 0
    subscription.acknowledge(second.receipt)
    eventually(lambda: bench.backlog() == (0, 7))


def test_the_backlog_is_known_while_the_bounds_have_room(own: Bench) -> None:
    publisher = own.publisher()
    subscription = own.subscribe(max_outstanding_messages=100, max_outstanding_bytes=100_000)
    assert subscription.backlog() is None  # nothing may have come yet
    eventually(lambda: subscription.backlog() == 0)
    publisher.publish(numbers(50))
    eventually(lambda: subscription.backlog() == 50)
    held = take(subscription, 50, ack=False)
    assert subscription.backlog() == 0
    publisher.publish(numbers(200, 50))
    eventually(lambda: len(subscription._waiting) == 50)
    assert subscription.backlog() is None  # 150 wait in truth
    for messages in held:
        subscription.acknowledge(messages.receipt)
    take(subscription, 200)
    eventually(lambda: subscription.backlog() == 0)
    publisher.publish([b"x" * 10_000] * 12)
    eventually(lambda: len(subscription._waiting) >= 9)
    assert subscription.backlog() is None
    take(subscription, 12)
    eventually(lambda: subscription.backlog() == 0)
    assert subscription._held_bytes == 0
    own.emulator.stop()
    eventually(lambda: subscription.backlog() is None)
    own.emulator.start()
    eventually(lambda: subscription.backlog() == 0)


def test_how_long_messages_may_stay_hidden(bench: Bench) -> None:
    assert bench.subscribe().redelivery_seconds == 60.0
    assert bench.subscribe(ack_deadline_seconds=10).redelivery_seconds == 10.0
    backoff = {"minimum_backoff": {"seconds": 5}, "maximum_backoff": {"seconds": 30}}
    bench.emulator.create("project-a", bench.topic, f"{bench.reader}-slow", retry_policy=backoff)
    with contextlib.closing(PubsubBroker("project-a", f"{bench.reader}-slow").subscribe()) as subscription:
        assert subscription.redelivery_seconds == 90.0


def test_what_a_killed_process_held_comes_after_that_time(bench: Bench) -> None:
    bench.publisher().publish(numbers(100))
    code = (
        "import time; from pipelines.brokers import open_broker\n"
        f"subscription = open_broker('pubsub://project-a/{bench.reader}', ack_deadline_seconds=10).subscribe()\n"
        "while len(subscription._held) < 100: time.sleep(0.02)\n"
        "print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-W", "ignore", "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        process.kill()
    subscription = bench.subscribe(ack_deadline_seconds=10)
    assert sorted(payloads(take(subscription, 100)), key=int) == numbers(100)


def test_receive_waits_for_the_first_message_and_no_longer(bench: Bench) -> None:
    subscription = bench.subscribe()
    start = time.monotonic()
    assert subscription.receive(10, 0.3) is None
    assert time.monotonic() - start > 0.25
    assert subscription.receive(10, 0) is None
    publisher = bench.publisher()
    timer = threading.Timer(0.3, publisher.publish, [[b"a"]])
    timer.start()
    messages = subscription.receive(10, 1000)  # longer than a test may take
    assert messages is not None
    assert list(messages.payloads) == [b"a"]
    timer.join()


def test_event_times_are_of_the_attribute(bench: Bench) -> None:
    bench.publisher().publish([b"a", b"b", b"c"], [{"at": "2024-01-02T03:04:05Z"}, {}, {"other": "x"}])
    [messages] = take(bench.subscribe(event_time_attribute="at"), 3)
    assert list(messages.event_times or ()) == ["2024-01-02T03:04:05Z", None, None]


def test_the_event_time_attribute_by_uri(bench: Bench) -> None:
    bench.publisher().publish([b"a", b"b", b"c"], [{"at": "2018-05-21T16:00:00Z"}, {}, {"at": "1526918400123"}])
    subscription = open_broker(f"pubsub://project-a/{bench.reader}?event_time=at").subscribe()
    with contextlib.closing(subscription):
        [messages] = take(subscription, 3)
    times = attribute_times_us(messages.event_times).to_pylist()
    assert times == [1526918400000000, None, 1526918400123000]


def test_keys_are_ordering_keys_only_if_asked(bench: Bench) -> None:
    keys = [["a", "b", None][number % 3] for number in range(30)]
    subscription = bench.subscribe()
    bench.publisher().publish(numbers(30), keys=keys)
    eventually(lambda: len(subscription._waiting) == 30)
    assert {each.message.ordering_key for each in subscription._waiting} == {""}
    bench.publisher(ordered=True).publish(numbers(30, 30), keys=keys)
    eventually(lambda: len(subscription._waiting) == 60)
    ordered = {int(each.message.data): each.message.ordering_key for each in subscription._waiting[30:]}
    assert ordered == {number + 30: key or "" for number, key in enumerate(keys)}
    with pytest.raises(ValueError, match=r"shorter|longer"):
        bench.publisher().publish([b"a", b"b"], keys=["a"])


def test_the_order_of_a_key_is_kept(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pubsub_publisher, "_MESSAGES_PER_PUBLISH", 10)
    name = f"{bench.reader}-ordered"
    bench.emulator.create("project-a", bench.topic, name, enable_message_ordering=True)
    keys = [f"card {number % 7}" for number in range(700)]
    timer = threading.Timer(0.1, bench.emulator.fail_publishing, [0.5])
    bench.emulator.fail_publishing(0.3)
    timer.start()
    bench.publisher(ordered=True).publish(numbers(700), keys=keys)
    timer.join()
    with contextlib.closing(PubsubBroker("project-a", name).subscribe()) as subscription:
        taken = [int(payload) for payload in payloads(take(subscription, 700))]
    for key in set(keys):
        of_key = [number for number in taken if keys[number] == key]
        assert of_key == [number for number in range(700) if keys[number] == key]


def test_a_request_has_one_ordering_key() -> None:
    made = numbers(5000) + [b"x"] * 5000
    keys = ["abc"[n % 3 :][:1] for n in range(5000)] + [None] * 5000
    sent: list[str] = []
    for turn in pubsub_publisher.in_turns(pubsub_publisher.encode_messages(made, [{}] * 10_000, keys), "topic"):
        requests = list(map(pubsub_publisher._PublishRequest.FromString, turn))
        found = [{message.ordering_key for message in request.messages} for request in requests]
        assert all(len(each) == 1 for each in found)
        named = [key for each in found for key in each if key]
        assert len(named) == len(set(named))
        assert len(turn) <= 4
        sent += [message.data for request in requests for message in request.messages]
    assert Counter(sent) == Counter(made)


@given(
    st.lists(
        st.tuples(
            st.binary(max_size=300) | st.sampled_from([b"", b"a" * 127, b"a" * 128, b"a" * 20_000]),
            st.dictionaries(st.text(max_size=5), st.text(max_size=200), max_size=2),
            st.none() | st.text(max_size=3),
        ),
        max_size=8,
    )
)
def test_requests_are_those_of_googles_classes(rows: list[tuple[bytes, dict[str, str], str | None]]) -> None:
    message, request = pubsub_publisher._PubsubMessage, pubsub_publisher._PublishRequest
    payloads, attributes, keys = zip(*rows, strict=True) if rows else ((), (), ())
    for key, messages in pubsub_publisher.encode_messages(payloads, attributes, keys).items():
        of_key = [(payload, said) for payload, said, each in rows if (each or "") == key]
        made = [
            message(data=payload, attributes=said if said or payload else {"empty": "true"}, ordering_key=key)
            for payload, said in of_key
        ]
        (sent,) = pubsub_publisher.requests_of(messages, "projects/p/topics/t")
        assert request.FromString(sent) == request(topic="projects/p/topics/t", messages=made)


def test_empty_and_large_payloads(bench: Bench) -> None:
    large = [bytes([each]) * 5_000_000 for each in range(3)]
    sent = [b"", large[0], b"a", large[1], b"", large[2]]
    bench.publisher().publish(sent)
    # Fewer bytes than a message has: each comes alone.
    subscription = bench.subscribe(max_outstanding_bytes=1_000_000)
    assert Counter(payloads(take(subscription, 6))) == Counter(sent)
    eventually(lambda: bench.backlog() == (0, 0))


def test_a_message_too_large_for_pubsub_is_refused(bench: Bench) -> None:
    with pytest.raises(BrokerError, match="INVALID_ARGUMENT"):
        bench.publisher().publish([b"a" * 10_000_001])


def test_requests_are_of_bounded_messages_and_bytes(bench: Bench) -> None:
    def split(messages: list[bytes], attributes: list[dict[str, str]] | None = None) -> list[int]:
        attributes = attributes or [{}] * len(messages)
        made = pubsub_publisher.encode_messages(messages, attributes, [None] * len(messages)).get("", [])
        sent = list(pubsub_publisher.requests_of(made, bench.full_topic))
        requests = list(map(pubsub_publisher._PublishRequest.FromString, sent))
        assert [each.data for request in requests for each in request.messages] == messages
        assert [dict(each.attributes) for request in requests for each in request.messages] == attributes
        assert all(request.ByteSize() < 10_000_000 for request in requests)
        return [len(request.messages) for request in requests]

    assert split([]) == []
    assert split(numbers(2500)) == [1000, 1000, 500]
    assert split([b"a" * 4_000_000] * 5) == [2, 2, 1]
    assert split([b"a" * 9_500_000, b"a", b"a" * 9_500_000]) == [1, 1, 1]
    assert sum(split(numbers(300), [{"k": "ä" * 500, "l": "b" * 1000}] * 300)) == 300
    assert len(split(numbers(900), [{f"k{i}": "ä" * 500 for i in range(20)}] * 900)) == 3


def test_payloads_and_attributes_are_as_many(bench: Bench) -> None:
    for attributes in ([{"k": "v"}], [{}] * 3, []):
        with pytest.raises(ValueError, match=r"shorter|longer"):
            bench.publisher().publish([b"a", b"b"], attributes)


# Acknowledging ---------------------------------------------------------------------------------------------


def test_what_is_not_acknowledged_is_given_back_at_close(bench: Bench) -> None:
    bench.publisher().publish(numbers(3000))
    first = bench.subscribe(ack_deadline_seconds=600)
    kept = take(first, 1500, ack=False)
    first.acknowledge(kept[0].receipt)
    first.close()
    assert bench.backlog() == (3000 - len(kept[0]), 0)
    again = take(bench.subscribe(), 3000 - len(kept[0]), seconds=5)
    assert set(ids(again)).isdisjoint(kept[0].ids)
    assert set(ids(again)) >= set(ids(kept[1:]))


def test_a_closed_subscription_says_so(bench: Bench) -> None:
    subscription = bench.subscribe()
    timer = threading.Timer(0.3, subscription.close)
    timer.start()
    with pytest.raises(BrokerError, match="closed"):
        subscription.receive(1, 10)
    timer.join()
    subscription.close()
    subscription.acknowledge(["1"])
    with pytest.raises(BrokerError, match="closed"):
        subscription.receive(1, 0)
    assert not [t for t in threading.enumerate() if t in (subscription._reader, subscription._keeper)]


def test_deadlines_are_extended_while_messages_are_held(bench: Bench) -> None:
    bench.publisher().publish(numbers(2500))
    subscription = bench.subscribe(ack_deadline_seconds=10)
    eventually(lambda: subscription.backlog() == 2500)
    held = take(subscription, 1000, ack=False)  # the rest waits here
    other = bench.subscribe()
    assert quiet(other, 11.5)
    held += take(subscription, 2500 - sum(map(len, held)), ack=False)
    assert sorted(payloads(held), key=int) == numbers(2500)
    for messages in held:
        subscription.acknowledge(messages.receipt)
    eventually(lambda: bench.backlog() == (0, 0))


def test_a_message_is_acknowledged_by_its_newest_ack_id(bench: Bench) -> None:
    bench.publisher().publish([b"a"])
    subscription = bench.subscribe()
    [first] = take(subscription, 1, ack=False)
    [(ack_id, _)] = subscription._held.values()
    # As if its deadline had passed.
    request = {"subscription": bench.full_reader, "ack_ids": [ack_id], "ack_deadline_seconds": 0}
    bench.outside().modify_ack_deadline(request=request)
    [second] = take(subscription, 1, ack=False)
    assert second.ids == first.ids
    assert list(second.payloads) == [b"a"]
    subscription.acknowledge(first.receipt)
    eventually(lambda: bench.backlog() == (0, 0))
    subscription.acknowledge(second.receipt)  # does nothing
    assert quiet(subscription, 0.2)


def test_an_ack_whose_lease_has_ended_is_harmless(bench: Bench) -> None:
    bench.publisher().publish([b"a"])
    subscription = bench.subscribe()
    [late] = take(subscription, 1, ack=False)
    with bench.emulator._broker.lock:
        leases = bench.emulator._broker.registry.subscription(bench.full_reader)
        leases.modify_deadline(list(leases._leases), 0, time.monotonic())
        bench.emulator._broker.paused = True
    try:
        subscription.acknowledge(late.receipt)
        time.sleep(0.2)
    finally:
        bench.emulator.resume_delivery()
    [again] = take(subscription, 1)
    assert again.ids == late.ids
    eventually(lambda: bench.backlog() == (0, 0))


# Backpressure ----------------------------------------------------------------------------------------------


class Sampler:
    """Watches the most messages that the server had outstanding."""

    def __init__(self, bench: Bench) -> None:
        self.most = 0
        self._bench = bench
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Sampler":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(0.001):
            self.most = max(self.most, self._bench.backlog()[1])


def test_a_slow_reader_never_has_more_than_its_bound_of_messages(bench: Bench) -> None:
    bench.publisher().publish(numbers(1000))
    subscription = bench.subscribe(max_outstanding_messages=64)
    seen = []
    with Sampler(bench) as sampler:
        held = take(subscription, 64, ack=False)
        assert quiet(subscription, 0.5)
        assert bench.backlog() == (1000 - 64, 64)
        for messages in held:
            subscription.acknowledge(messages.receipt)
        while len(seen) + 64 < 1000:
            messages = subscription.receive(10, 5)
            assert messages is not None
            time.sleep(0.005)
            subscription.acknowledge(messages.receipt)
            seen += messages.payloads
    assert sampler.most == 64
    assert sorted(payloads(held) + seen, key=int) == numbers(1000)


def test_a_slow_reader_never_has_more_than_its_bound_of_bytes(bench: Bench) -> None:
    bench.publisher().publish([b"a" * 1000] * 500)
    subscription = bench.subscribe(max_outstanding_bytes=50_000)
    with Sampler(bench) as sampler:
        held = take(subscription, 40, ack=False)
        assert quiet(subscription, 0.3)
        for messages in held:
            subscription.acknowledge(messages.receipt)
        take(subscription, 500 - sum(map(len, held)))
    assert 40 <= sampler.most <= 50
    eventually(lambda: bench.backlog() == (0, 0))


def test_the_bound_holds_for_a_new_stream_too(own: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pubsub, "_DRAIN_SECONDS", 0.5)
    own.publisher().publish(numbers(1000))
    subscription = own.subscribe(max_outstanding_messages=100)
    with Sampler(own) as sampler:
        eventually(lambda: len(subscription._waiting) == 100)
        assert subscription.backlog() is None  # there may be more
        held = [messages for messages in (subscription.receive(50, 1) for _ in range(2)) if messages is not None]
        subscription.acknowledge(held[0].receipt)
        more = take(subscription, 50, ack=False)
        own.emulator.stop()
        own.emulator.start()
        assert quiet(subscription, 1.0)  # 100 are held
        subscription.acknowledge(held[1].receipt)
        more += take(subscription, 50, ack=False)
        assert quiet(subscription, 0.3)
        for messages in more:
            subscription.acknowledge(messages.receipt)
        rest = take(subscription, 1000 - len(set(payloads(held + more))))
    assert sampler.most <= 100
    assert set(payloads(held + more + rest)) == set(numbers(1000))


# Outages ---------------------------------------------------------------------------------------------------


def test_seconds_of_outage_lose_nothing_and_keep_memory_bounded(own: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, pubsub.__name__)
    publisher, subscription = own.publisher(), own.subscribe(max_outstanding_messages=200)
    sent, over = [0], threading.Event()

    def publish() -> None:
        while not over.is_set():
            publisher.publish(numbers(50, sent[0]))  # returns when they are safe
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
            # Acks whose answer is on its way count no more at the broker, which may send as much again.
            most = max(most, len(subscription._held), len(subscription._waiting), len(subscription._acks) - 200)

    receive(1.0)
    own.emulator.stop()
    receive(0.5)
    before = sent[0]
    assert before > 50
    receive(4.0)
    assert sent[0] == before
    own.emulator.start()
    receive(2.0)
    over.set()
    publishing.join(30)
    assert sent[0] > before
    eventually(lambda: receive(0.2) or set(payloads(received)) == set(numbers(sent[0])))
    eventually(lambda: own.backlog() == (0, 0))
    assert most <= 200
    told = [record.message for record in caplog.records]
    assert sum("trying again until it works" in line for line in told) == 2  # the reader, the writer
    assert sum("works again" in line for line in told) == 2
    assert len(told) == 4


def test_a_subscription_is_opened_before_its_broker_is_up(own: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, pubsub.__name__)
    publisher = own.publisher()
    publisher.publish([b"a"])
    own.emulator.stop()
    subscription = own.subscribe()
    assert quiet(subscription, 0.5)
    own.emulator.start()
    assert payloads(take(subscription, 1)) == [b"a"]
    told = [record.message for record in caplog.records if own.reader in record.message]
    assert len(told) == 2
    assert "UNAVAILABLE" in told[0]
    assert "works again" in told[1]


def test_publishing_waits_for_the_broker(own: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, pubsub.__name__)
    own.emulator.stop()
    publisher = own.publisher()
    timer = threading.Timer(2.0, own.emulator.start)
    timer.start()
    start = time.monotonic()
    publisher.publish(numbers(10_000))
    assert time.monotonic() - start > 1.5
    timer.join()
    assert own.backlog() == (10_000, 0)
    warned = [record.message for record in caplog.records if own.full_topic in record.message]
    assert len(warned) == 2
    assert "UNAVAILABLE" in warned[0]
    assert "trying again" in warned[0]
    assert "works again" in warned[1]
    assert set(payloads(take(own.subscribe(), 10_000))) == set(numbers(10_000))


def test_only_what_failed_is_published_again(bench: Bench) -> None:
    publisher = bench.publisher()
    bench.emulator.fail_publishing(0.5)
    publisher.publish(numbers(6000))
    assert bench.backlog() == (6000, 0)


def test_publishing_can_be_ended_while_the_broker_is_down(own: Bench) -> None:
    publisher = own.publisher()
    own.emulator.stop()
    timer = threading.Timer(0.7, publisher.close)
    timer.start()
    start = time.monotonic()
    with pytest.raises(BrokerError, match="closed"):
        publisher.publish([b"a"])
    assert time.monotonic() - start > 0.5
    timer.join()
    with pytest.raises(BrokerError, match="closed"):
        publisher.publish([b"a"])


def test_close_is_bounded_when_the_broker_is_down(own: Bench, caplog: pytest.LogCaptureFixture) -> None:
    own.publisher().publish(numbers(100))
    subscription = own.subscribe()
    take(subscription, 100, ack=False)
    own.emulator.stop()
    subscription.close()
    assert "some messages come again only later: UNAVAILABLE" in caplog.text


def test_close_is_bounded_when_the_broker_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pubsub_client, "CALL_SECONDS", 0.5)
    monkeypatch.setattr(pubsub, "CALL_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv(HOST, f"127.0.0.1:{silent.getsockname()[1]}")
        subscription = PubsubBroker.parse("pubsub://project-a/reader").subscribe()
        publisher = PubsubBroker.parse("pubsub://project-a/orders").publisher()
        assert quiet(subscription, 0.2)
        threading.Timer(0.5, publisher.close).start()
        with pytest.raises(BrokerError, match="closed"):
            publisher.publish([b"a"])
        subscription.close()


# Refusals --------------------------------------------------------------------------------------------------


def test_what_does_not_exist_is_refused_at_once(bench: Bench) -> None:
    with pytest.raises(BrokerError, match=r"no subscription projects/project-a/subscriptions/nowhere: NOT_FOUND"):
        PubsubBroker.parse("pubsub://project-a/nowhere").subscribe()
    with pytest.raises(BrokerError, match=r"no topic projects/project-a/topics/nowhere: NOT_FOUND"):
        PubsubBroker.parse("pubsub://project-a/nowhere").publisher()


def test_what_is_deleted_meanwhile_is_refused(bench: Bench) -> None:
    publisher = bench.publisher()
    publisher.publish([b"a"])
    subscription = bench.subscribe()
    eventually(lambda: subscription.backlog() == 1)
    with bench.emulator._broker.lock:
        registry = bench.emulator._broker.registry
        registry.delete_subscription(wire.DeleteSubscriptionRequest(subscription=bench.full_reader))
        registry.delete_topic(wire.DeleteTopicRequest(topic=bench.full_topic))
    with pytest.raises(BrokerError, match=f"refuses to read {bench.full_reader}: NOT_FOUND"):
        take(subscription, 2)
    with pytest.raises(BrokerError, match=f"refuses to publish to {bench.full_topic}: NOT_FOUND"):
        publisher.publish([b"a"])


@pytest.fixture
def denying(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Pub/Sub that permits nothing."""

    class Deny(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            def deny(request: object, context: grpc.ServicerContext) -> None:
                context.abort(grpc.StatusCode.PERMISSION_DENIED, "not for you")

            if details.method.endswith("StreamingPull"):
                return grpc.stream_stream_rpc_method_handler(deny)
            return grpc.unary_unary_rpc_method_handler(deny)

    server = grpc.server(futures.ThreadPoolExecutor(4), handlers=[Deny()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    monkeypatch.setenv(HOST, f"127.0.0.1:{port}")
    yield
    server.stop(None).wait()


@pytest.mark.usefixtures("denying")
def test_what_is_not_permitted_is_refused() -> None:
    # A reader need not be permitted to look at its subscription; so that is not enough to refuse.
    subscription = PubsubBroker.parse("pubsub://project-a/reader").subscribe()
    with contextlib.closing(subscription), pytest.raises(BrokerError, match="PERMISSION_DENIED: not for you"):
        subscription.receive(1, 10)
    publisher = PubsubBroker.parse("pubsub://project-a/orders").publisher()
    with contextlib.closing(publisher), pytest.raises(BrokerError, match="PERMISSION_DENIED: not for you"):
        publisher.publish([b"a"])


def test_without_credentials_google_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.delenv(HOST, raising=False)
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    with pytest.raises(BrokerError, match="default credentials"):
        PubsubBroker.parse("pubsub://project-a/reader").subscribe()


# Many at once ----------------------------------------------------------------------------------------------


def test_many_messages_come_out_once(bench: Bench) -> None:
    """Rates are measured by benchmarks/stream.py."""
    count = 60_000
    bench.publisher().publish([b"%0200d" % number for number in range(count)])
    taken = take(bench.subscribe(), count)
    assert sorted(payloads(taken)) == [b"%0200d" % number for number in range(count)]
    eventually(lambda: bench.backlog() == (0, 0))
