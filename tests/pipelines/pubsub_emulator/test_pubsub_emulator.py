"""The emulator: its state machine under a fake clock, then Google's client against it and Google's fake."""

import contextlib
import hashlib
import itertools
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kit.support import ROOT

pytestmark = pytest.mark.serial

with warnings.catch_warnings():
    # Google's libraries announce at import when they will stop to support this Python.
    warnings.filterwarnings("ignore", "You are using a Python version", FutureWarning)
    from google.api_core import exceptions
    from google.cloud import pubsub_v1
    from google.pubsub_v1 import PublisherClient as PlainPublisherClient
    from google.pubsub_v1.types import PubsubMessage

    from pipelines.pubsub_emulator import Broker, Clock, PubsubEmulator, wire
    from pipelines.pubsub_emulator.errors import InvalidArgument, NotFound, ResourceExhausted, Unimplemented
    from pipelines.pubsub_emulator.filters import parse_filter
    from pipelines.pubsub_emulator.messages import OVERHEAD_BYTES, Consumer

TOPIC = "projects/test/topics/orders"
READER = "projects/test/subscriptions/reader"
DEAD = "projects/test/topics/dead"
DEAD_READER = "projects/test/subscriptions/dead-reader"
FAR = 1_000


# The state machine -----------------------------------------------------------------------------------------


class Bench:
    """A broker with one topic and one subscription, a clock to turn by hand, and short verbs."""

    def __init__(self, max_backlog_bytes: int = 1 << 30, **reader: object) -> None:
        self.now = 1_000.0
        self.broker = Broker(max_backlog_bytes, Clock(lambda: self.now, lambda: int(self.now * 1e9)))
        self.broker.lock.acquire()  # one thread: held throughout
        for name in (TOPIC, DEAD):
            self.broker.registry.create_topic(wire.Topic(name=name))
        self.subscribe(DEAD_READER, DEAD)
        self.reader = self.subscribe(READER, TOPIC, **reader)
        self.consumer = Consumer()

    def subscribe(self, name: str, topic: str, **fields: object):
        self.broker.create_subscription(wire.Subscription(name=name, topic=topic, **fields))
        return self.broker.registry.subscription(name)

    def publish(self, *texts: str, key: str = "", **attributes: str) -> None:
        messages = [wire.PubsubMessage(data=text.encode(), ordering_key=key, attributes=attributes) for text in texts]
        self.broker.publish(wire.PublishRequest(topic=TOPIC, messages=messages))

    def take(self, count: int = 1000, *, by: Consumer | None = None, name: str = READER) -> dict[str, str]:
        """Leased texts with their ack ids."""
        subscription = self.broker.registry.attached(name)
        received = self.broker.take(subscription, by or self.consumer, count, 10)
        return {wire.PubsubMessage.FromString(body).data.decode(): ack_id for ack_id, body, _ in received}

    def texts(self, count: int = 1000, *, by: Consumer | None = None, name: str = READER) -> str:
        return "".join(self.take(count, by=by, name=name))

    def ack(self, *ack_ids: str) -> None:
        self.reader.acknowledge(ack_ids)

    def nack(self, *ack_ids: str) -> None:
        self.reader.modify_deadline(ack_ids, 0, self.now)

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.broker.tick()


def test_unacked_messages_come_again_when_their_deadline_has_passed() -> None:
    bench = Bench()
    bench.publish("a", "b", "c")
    leased = bench.take()
    bench.ack(leased["b"])
    bench.wait(9.9)
    assert bench.texts() == ""
    bench.wait(0.2)
    assert bench.texts() == "ac"


def test_a_late_ack_is_ignored() -> None:
    bench = Bench()
    bench.publish("a")
    late = bench.take()["a"]
    bench.wait(11)
    bench.ack(late)
    assert bench.texts() == "a"


def test_a_modified_deadline_counts_from_now() -> None:
    bench = Bench()
    bench.publish("a", "b")
    leased = bench.take()
    bench.reader.modify_deadline([leased["a"]], 60, bench.now)
    bench.reader.modify_deadline([leased["b"]], 1, bench.now)
    bench.wait(1.1)
    assert bench.texts() == "b"
    bench.wait(50)
    assert bench.texts() == "b"
    bench.wait(10)
    assert bench.texts() == "ab"


def test_nacked_messages_and_new_ones_take_turns() -> None:
    bench = Bench()
    bench.publish("p", "a", "b")
    seen = ""
    for _ in range(6):
        [(text, ack_id)] = bench.take(1).items()
        seen += text
        bench.nack(ack_id) if text == "p" else bench.ack(ack_id)
    assert seen.startswith("p")
    assert set(seen) == set("pab")


def test_flow_control_counts_what_a_consumer_holds() -> None:
    bench = Bench()
    bench.publish("a", "b", "c", "d")
    two = Consumer(max_messages=2)
    leased = bench.take(by=two)
    assert list(leased) == ["a", "b"]
    assert bench.texts(by=two) == ""
    bench.ack(leased["a"])
    assert bench.texts(by=two) == "c"
    bench.nack(leased["b"])
    assert bench.texts(by=two) in "bd"


def test_a_message_larger_than_the_flow_control_is_delivered_alone() -> None:
    bench = Bench()
    bench.publish("a" * 100, "b" * 100)
    narrow = Consumer(max_bytes=10)
    [(text, ack_id)] = bench.take(by=narrow).items()
    assert text == "a" * 100
    assert bench.texts(by=narrow) == ""
    bench.ack(ack_id)
    assert bench.texts(by=narrow) == "b" * 100


def test_consumers_share_a_subscription() -> None:
    bench = Bench()
    bench.publish("a", "b", "c", "d")
    other = Consumer()
    assert (bench.texts(2), bench.texts(by=other)) == ("ab", "cd")


def test_one_consumer_at_a_time_has_a_key() -> None:
    bench = Bench(enable_message_ordering=True)
    bench.publish("a", "b", key="k")
    other = Consumer()
    leased = bench.take(1)
    bench.publish("x", key="l")
    assert bench.texts(by=other) == "x"
    leased |= bench.take(1)
    assert list(leased) == ["a", "b"]
    bench.publish("c", key="k")
    bench.ack(leased["b"])
    assert bench.texts(by=other) == ""
    bench.ack(leased["a"])
    assert bench.texts(by=other) == "c"


@pytest.mark.parametrize("fail", ["nack", "deadline"])
def test_a_failed_message_is_redelivered_with_all_that_follow_it(fail: str) -> None:
    bench = Bench(enable_message_ordering=True)
    bench.publish("a", "b", "c", "d", key="k")
    leased = bench.take()
    bench.ack(leased["a"], leased["d"])
    if fail == "nack":
        bench.nack(leased["b"])
    else:
        bench.wait(11)
    bench.publish("e", key="k")
    again = bench.take()
    assert list(again) == ["b", "c", "d", "e"]
    bench.ack(leased["c"])  # a lease that was taken back
    bench.ack(*again.values())
    assert bench.reader.backlog() == (0, 0, 0, 0)


def test_an_ack_from_before_a_redelivery_does_not_count_after_it() -> None:
    bench = Bench(enable_message_ordering=True)
    bench.publish("a", "b", "c", key="k")
    leased = bench.take()
    bench.ack(leased["c"])
    bench.nack(leased["a"])
    again = bench.take()
    bench.ack(again["a"])
    bench.nack(again["b"])
    assert bench.texts() == "bc"


def test_a_key_waits_out_its_backoff_though_what_came_before_is_acked() -> None:
    policy = {"minimum_backoff": {"seconds": 20}, "maximum_backoff": {"seconds": 20}}
    bench = Bench(retry_policy=policy, enable_message_ordering=True)
    bench.publish("a", "b", key="k")
    leased = bench.take()
    bench.nack(leased["b"])
    bench.ack(leased["a"])
    bench.publish("c", key="k")
    assert bench.texts() == ""
    bench.wait(20)
    assert bench.texts() == "bc"


def test_a_message_that_fails_too_often_goes_to_the_dead_letter_topic() -> None:
    bench = Bench(dead_letter_policy={"dead_letter_topic": DEAD})
    bench.publish("a", colour="red")
    first = bench.now
    attempts = []
    for _ in range(5):
        [(ack_id, _, attempt)] = bench.broker.take(bench.reader, bench.consumer, 1, 10)
        attempts.append(attempt)
        bench.nack(ack_id)
    assert attempts == [1, 2, 3, 4, 5]
    assert bench.reader.backlog() == (0, 0, 0, 0)
    bench.wait(1)
    dead_reader = bench.broker.registry.attached(DEAD_READER)
    [(_, body, attempt)] = bench.broker.take(dead_reader, Consumer(), 1, 10)
    assert attempt == 0
    message = wire.PubsubMessage.FromString(body)
    assert (message.data, message.message_id) == (b"a", "1000000001")  # the clock's microseconds, and one
    assert dict(message.attributes) == {
        "colour": "red",
        "CloudPubSubDeadLetterSourceDeliveryCount": "5",
        "CloudPubSubDeadLetterSourceSubscription": "reader",
        "CloudPubSubDeadLetterSourceSubscriptionProject": "test",
        "CloudPubSubDeadLetterSourceTopicPublishTime": datetime.fromtimestamp(first, UTC).isoformat(
            timespec="milliseconds"
        ),
    }


def test_a_dead_letter_without_a_topic_stays() -> None:
    bench = Bench(dead_letter_policy={"dead_letter_topic": DEAD}, enable_message_ordering=True)
    bench.publish("a", "b", key="k")
    bench.broker.registry.delete_topic(wire.DeleteTopicRequest(topic=DEAD))
    for _ in range(7):
        leased = bench.take()
        assert list(leased) == ["a", "b"]
        bench.nack(leased["a"])


def test_a_dead_letter_makes_way_for_its_followers() -> None:
    bench = Bench(dead_letter_policy={"dead_letter_topic": DEAD}, enable_message_ordering=True)
    bench.publish("a", "b", key="k")
    for _ in range(5):
        bench.take()
        bench.wait(11)
    assert bench.texts(name=DEAD_READER) == "a"
    assert bench.texts() == "b"


@pytest.mark.parametrize("key", ["", "k"])
def test_a_retry_policy_delays_redelivery(key: str) -> None:
    policy = {"minimum_backoff": {"seconds": 20}, "maximum_backoff": {"seconds": 30}}
    bench = Bench(retry_policy=policy, enable_message_ordering=True)
    bench.publish("a", key=key)
    for backoff in (20, 30, 30):
        bench.nack(bench.take()["a"])
        bench.wait(backoff - 1)
        assert bench.texts() == ""
        bench.wait(1)
    assert bench.texts() == "a"


def test_seek_to_a_time_replays_retained_messages_and_drops_older_ones() -> None:
    bench = Bench(retain_acked_messages=True)
    bench.publish("a", "b")
    bench.wait(10)
    middle = int(bench.now * 1e9)
    bench.publish("c", "d")
    leased = bench.take()
    bench.ack(leased["a"], leased["c"])
    bench.reader.seek_time(middle)
    assert bench.texts() == "cd"
    bench.reader.seek_time(0)
    assert bench.texts() == "abcd"
    bench.reader.seek_time(middle * 2)
    assert bench.reader.backlog()[:3] == (0, 0, 4)
    bench.wait(7 * 86400 + 1)
    assert bench.reader.backlog() == (0, 0, 0, 0)


def test_seek_to_a_snapshot_restores_what_was_unacked_and_what_came_since() -> None:
    bench = Bench()
    bench.publish("a", "b")
    leased = bench.take()
    bench.ack(leased["a"])
    name = "projects/test/snapshots/before"
    bench.broker.create_snapshot(wire.CreateSnapshotRequest(name=name, subscription=READER))
    bench.ack(leased["b"])
    bench.publish("c")
    bench.ack(*bench.take().values())
    for text in ("bc", "bc"):
        bench.broker.seek(wire.SeekRequest(subscription=READER, snapshot=name))
        assert bench.texts() == text
    bench.broker.registry.delete_snapshot(wire.DeleteSnapshotRequest(snapshot=name))
    with pytest.raises(NotFound):
        bench.broker.seek(wire.SeekRequest(subscription=READER, snapshot=name))


def test_the_backlog_is_bounded_and_a_refused_request_leaves_no_trace() -> None:
    bench = Bench(max_backlog_bytes=4 * OVERHEAD_BYTES)
    bench.publish("a", "b", "c")
    with pytest.raises(ResourceExhausted, match="The subscriptions and snapshots hold"):
        bench.publish("d", "e")
    leased = bench.take()
    assert list(leased) == ["a", "b", "c"]
    bench.ack(leased["a"])
    bench.publish("f")
    assert bench.texts() == "f"


def test_the_bound_is_one_for_all_that_the_server_holds() -> None:
    bench = Bench(max_backlog_bytes=4 * (OVERHEAD_BYTES + 60))
    other = "projects/test/subscriptions/other"
    bench.subscribe(other, TOPIC)
    bench.publish("a", "b")  # counts twice
    with pytest.raises(ResourceExhausted):
        bench.publish("c")
    name = "projects/test/snapshots/kept"
    with pytest.raises(ResourceExhausted):
        bench.broker.create_snapshot(wire.CreateSnapshotRequest(name=name, subscription=READER))
    bench.ack(*bench.take().values())
    bench.broker.create_snapshot(wire.CreateSnapshotRequest(name=name, subscription=other))  # of two
    with pytest.raises(ResourceExhausted):
        bench.broker.seek(wire.SeekRequest(subscription=READER, snapshot=name))
    with pytest.raises(ResourceExhausted):
        bench.publish("c")
    bench.broker.registry.delete_subscription(wire.DeleteSubscriptionRequest(subscription=other))
    bench.broker.seek(wire.SeekRequest(subscription=READER, snapshot=name))
    assert bench.texts() == "ab"
    with pytest.raises(ResourceExhausted):
        bench.publish("c")
    bench.broker.registry.delete_snapshot(wire.DeleteSnapshotRequest(snapshot=name))
    bench.publish("c")
    assert bench.texts() == "c"


def test_a_message_that_a_filter_stops_takes_no_room() -> None:
    bench = Bench(max_backlog_bytes=2 * (OVERHEAD_BYTES + 60), filter='attributes.k = "v"')
    bench.publish(*"abcdef")
    bench.publish("g", k="v")
    assert bench.texts() == "g"


def test_a_full_server_still_forwards_what_failed_too_often() -> None:
    policy = wire.Subscription().dead_letter_policy.__class__(dead_letter_topic=DEAD, max_delivery_attempts=5)
    bench = Bench(max_backlog_bytes=3 * OVERHEAD_BYTES, dead_letter_policy=policy)
    bench.publish("a", "b")
    for _ in range(5):
        bench.nack(*bench.take().values())
    assert bench.texts() == ""
    assert bench.texts(name=DEAD_READER) == "ab"


def test_paused_delivery_and_detached_subscriptions_deliver_nothing() -> None:
    bench = Bench()
    bench.publish("a")
    bench.broker.paused = True
    assert bench.texts() == ""
    bench.broker.paused = False
    assert bench.texts() == "a"
    bench.broker.registry.detach_subscription(wire.DetachSubscriptionRequest(subscription=READER))
    assert bench.reader.backlog() == (0, 0, 0, 0)
    bench.publish("b")
    with pytest.raises(Exception, match="detached"):
        bench.take()


@pytest.mark.parametrize(
    ("text", "passing"),
    [
        ('attributes.k = "v"', [{"k": "v"}]),
        ('attributes.k != "v"', [{}, {"k": "w"}, {"k": "vw"}]),
        ("attributes:k", [{"k": "v"}, {"k": "w"}, {"k": "vw"}]),
        ('hasPrefix(attributes.k, "v")', [{"k": "v"}, {"k": "vw"}]),
        ('hasPrefix(attributes.k, "v") AND attributes."k" != "v"', [{"k": "vw"}]),
    ],
)
def test_filters(text: str, passing: list[dict[str, str]]) -> None:
    passes = parse_filter(text)
    assert passes is not None
    assert [each for each in ({}, {"k": "v"}, {"k": "w"}, {"k": "vw"}) if passes(each)] == passing


@pytest.mark.parametrize("text", ["attributes.k", 'attributes.k = "v" OR attributes:l', "NOT attributes:k"])
def test_other_filters_are_refused(text: str) -> None:
    with pytest.raises(Unimplemented, match="cannot read the filter"):
        parse_filter(text)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "no messages"),
        ([{}], "neither data nor attributes"),
        ([{"data": b"x"}] * 1001, "at most 1000 messages"),
        ([{"data": bytes(10_000_000)}], "at most 10000000 bytes"),
        ([{"attributes": {"goog-x": "1"}}], "not start with 'goog'"),
        ([{"attributes": {"k": "é" * 600}}], "more than 1024 bytes"),
        ([{"data": b"x", "ordering_key": "k" * 1025}], "more than 1024 bytes"),
    ],
)
def test_publish_limits(messages: list[dict[str, object]], reason: str) -> None:
    bench = Bench()
    contents = [wire.PubsubMessage(**message) for message in messages]
    with pytest.raises(InvalidArgument, match=reason):
        bench.broker.publish(wire.PublishRequest(topic=TOPIC, messages=contents))


steps = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), st.sampled_from(["", "k", "l"])),
        st.tuples(st.just("take"), st.integers(0, 2)),
        st.tuples(st.sampled_from(["ack", "nack", "extend"]), st.integers(0, 30)),
        st.tuples(st.just("wait"), st.integers(1, 15)),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(steps=steps, backoff=st.booleans())
def test_nothing_is_lost_and_keys_are_in_order_whatever_happens(steps: list, backoff: bool) -> None:
    retry = {"retry_policy": {"minimum_backoff": {"seconds": 3}}} if backoff else {}
    bench = Bench(enable_message_ordering=True, **retry)
    consumers = [Consumer(max_messages=3), Consumer(), Consumer(max_bytes=200)]
    numbers = itertools.count()
    keys: dict[str, str] = {}
    last: dict[str, int] = defaultdict(lambda: -1)  # of each key, the number delivered last
    by_key: dict[str, list[int]] = defaultdict(list)
    leases: dict[str, str] = {}
    seen: set[str] = set()

    def take(count: int, by: Consumer) -> None:
        for text, ack_id in bench.take(count, by=by).items():
            leases[ack_id] = text
            seen.add(text)
            key, number = keys[text], int(text)
            if key:
                # Either the next of its key, or an earlier one from which the key starts over.
                published = by_key[key]
                position = published.index(number)
                following = published.index(last[key]) + 1 if last[key] >= 0 else 0
                assert position <= following
                last[key] = number

    for step, argument in steps:
        if step == "publish":
            text = str(next(numbers))
            keys[text] = argument
            by_key[argument].append(int(text))
            bench.publish(text, key=argument)
        elif step == "take":
            take(argument + 1, consumers[argument])
        elif step == "wait":
            bench.wait(argument)
        elif leases:
            ack_id = list(leases)[argument % len(leases)]
            if step == "extend":
                bench.reader.modify_deadline([ack_id], 20, bench.now)
                continue
            leases.pop(ack_id)
            if step == "ack":
                bench.ack(ack_id)
            else:
                bench.nack(ack_id)
        backlog = bench.reader.backlog()
        assert backlog.outstanding >= sum(each.held_messages for each in consumers)

    # Whatever is left arrives, once all that is leased has come back and all backoffs have ended.
    bench.wait(30)
    bench.wait(700)
    while left := bench.take(by=consumers[1]):
        bench.ack(*left.values())
        seen |= set(left)
    assert seen == set(keys)
    assert bench.reader.backlog() == (0, 0, 0, 0)
    assert [each.held_messages for each in consumers] == [0, 0, 0]
    assert [each.held_bytes for each in consumers] == [0, 0, 0]


# Google's client, against the emulator and against Google's fake -------------------------------------------


@dataclass
class Server:
    """A running broker, and Google's unmodified clients of it."""

    kind: str
    address: str
    emulator: PubsubEmulator | None
    publisher: pubsub_v1.PublisherClient
    subscriber: pubsub_v1.SubscriberClient
    prefix: str

    def topic(self, name: str = "topic") -> str:
        path = f"projects/test/topics/{self.prefix}-{name}"
        self.publisher.create_topic(name=path)
        return path

    def subscription(self, topic: str, name: str = "subscription", **fields: object) -> str:
        path = f"projects/test/subscriptions/{self.prefix}-{name}"
        fields = {"ack_deadline_seconds": 10, **fields}
        self.subscriber.create_subscription(request={"name": path, "topic": topic, **fields})
        return path

    def publish(self, topic: str, *texts: str, **attributes: str) -> list[str]:
        futures = [self.publisher.publish(topic, text.encode(), **attributes) for text in texts]
        return [future.result(20) for future in futures]

    def publish_once(self, topic: str, messages: list[dict[str, object]]) -> None:
        """The plain call below the client's batches and retries."""
        PlainPublisherClient.publish(self.publisher, topic=topic, messages=messages, retry=None)

    def pull(self, subscription: str, count: int, seconds: float = 10) -> dict[str, str]:
        """Pull until `count` distinct texts have come; texts with their last ack ids."""
        found: dict[str, str] = {}
        end = time.monotonic() + seconds
        while len(found) < count and time.monotonic() < end:
            response = self.subscriber.pull(subscription=subscription, max_messages=count, timeout=20)
            for each in response.received_messages:
                found[each.message.data.decode()] = each.ack_id
        return found

    @contextlib.contextmanager
    def streaming(
        self,
        subscription: str,
        callback: Callable[[pubsub_v1.subscriber.message.Message], object],
        **flow: int,
    ) -> Iterator[None]:
        """A subscriber's futures, with `callback` for each message."""
        future = self.subscriber.subscribe(
            subscription, callback=callback, flow_control=pubsub_v1.types.FlowControl(**flow)
        )
        try:
            yield
        finally:
            future.cancel()
            future.result(20)


@contextlib.contextmanager
def started(command: list[str]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that prints its address, ended at the end."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


@pytest.fixture(scope="session")
def google_fake() -> Iterator[str]:
    """The address of Google's own fake, built once and kept in the user's cache."""
    go = shutil.which("go")
    if go is None:
        pytest.skip("Google's fake needs Go: there is no `go` on the PATH")
    source = ROOT / "tests" / "kit" / "pstest"
    digest = hashlib.sha256()
    for name in ("go.mod", "go.sum", "main.go"):
        digest.update((source / name).read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "headrace"
    binary = cache / f"pstest-{digest.hexdigest()[:16]}"
    if not binary.exists():
        cache.mkdir(parents=True, exist_ok=True)
        part = binary.with_suffix(f".{os.getpid()}")
        command = [go, "build", "-buildvcs=false", "-o", str(part), "."]
        built = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=280, check=False)
        if built.returncode:
            pytest.skip(f"Google's fake could not be built: {built.stderr.strip()[-300:]}")
        part.rename(binary)
    with started([str(binary)]) as (_, address):
        yield address


@pytest.fixture(scope="session")
def embedded() -> Iterator[PubsubEmulator]:
    with PubsubEmulator(pull_wait_seconds=0.3) as emulator:
        yield emulator


EXTERNAL = os.environ.get("PUBSUB_EMULATOR_HOST")
PREFIXES = (f"t{os.getpid()}-{number}" for number in itertools.count())


@contextlib.contextmanager
def connect(kind: str, address: str, emulator: PubsubEmulator | None) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PUBSUB_EMULATOR_HOST", address)
        batching = pubsub_v1.types.BatchSettings(max_latency=0.005)
        ordering = pubsub_v1.types.PublisherOptions(enable_message_ordering=True)
        publisher = pubsub_v1.PublisherClient(batch_settings=batching, publisher_options=ordering)
        subscriber = pubsub_v1.SubscriberClient()
    with subscriber, publisher:
        yield Server(kind, address, emulator, publisher, subscriber, next(PREFIXES))
        publisher.stop()


@pytest.fixture(params=["embedded", "google_fake", *(["external"] if EXTERNAL else [])])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    if request.param == "embedded":
        emulator = request.getfixturevalue("embedded")
        address = emulator.address
    else:
        emulator = None
        address = EXTERNAL if request.param == "external" else request.getfixturevalue("google_fake")
    with connect(request.param, address, emulator) as connected:
        yield connected


def lacking(server: Server, reason: str) -> None:
    if server.kind == "google_fake":
        pytest.skip(f"Google's fake {reason}")


def eventually(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def test_futures_publish_and_streams_deliver(server: Server) -> None:
    topic = server.topic()
    subscription = server.subscription(topic)
    start = time.time()
    ids = server.publish(topic, *(str(number) for number in range(100)), colour="red")
    assert len(set(ids)) == 100
    received: dict[str, pubsub_v1.subscriber.message.Message] = {}

    def callback(message: pubsub_v1.subscriber.message.Message) -> None:
        received[message.message_id] = message
        message.ack()

    with server.streaming(subscription, callback):
        eventually(lambda: len(received) == 100)
    assert {message.data.decode() for message in received.values()} == {str(number) for number in range(100)}
    assert set(received) == set(ids)
    one = received[ids[0]]
    assert dict(one.attributes) == {"colour": "red"}
    assert abs(one.publish_time.timestamp() - start) < 20


def test_message_ids_and_publish_times_increase(server: Server) -> None:
    lacking(server, "names its messages m0, m1, ...")
    topic = server.topic()
    subscription = server.subscription(topic)
    ids = [int(each) for each in (*server.publish(topic, "a", "b"), *server.publish(topic, "c"))]
    assert ids == sorted(set(ids))
    response = server.subscriber.pull(subscription=subscription, max_messages=10)
    messages = [each.message for each in response.received_messages]
    assert [int(each.message_id) for each in messages] == ids
    assert messages[0].publish_time <= messages[-1].publish_time


def test_pull_returns_at_once_or_waits(server: Server) -> None:
    topic = server.topic()
    subscription = server.subscription(topic)
    request = {"subscription": subscription, "max_messages": 10, "return_immediately": True}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The return_immediately flag is deprecated", DeprecationWarning)
        assert not server.subscriber.pull(request).received_messages
    assert not server.subscriber.pull(subscription=subscription, max_messages=10).received_messages
    timer = threading.Timer(0.1, server.publish, (topic, "late"))
    timer.start()
    assert list(server.pull(subscription, 1)) == ["late"]
    timer.join()


def test_acked_messages_do_not_come_again_and_nacked_ones_do(server: Server) -> None:
    topic = server.topic()
    subscription = server.subscription(topic)
    server.publish(topic, "a", "b", "c")
    leased = server.pull(subscription, 3)
    server.subscriber.acknowledge(subscription=subscription, ack_ids=[leased["a"]])
    server.subscriber.modify_ack_deadline(
        subscription=subscription, ack_ids=[leased["b"], leased["c"]], ack_deadline_seconds=0
    )
    again = server.pull(subscription, 2)
    assert set(again) == {"b", "c"}
    server.subscriber.acknowledge(subscription=subscription, ack_ids=list(again.values()))
    assert server.pull(subscription, 1, seconds=0.3) == {}


def test_messages_come_again_after_their_deadline(server: Server) -> None:
    topic = server.topic()
    subscription = server.subscription(topic)
    server.publish(topic, "a")
    leased = server.pull(subscription, 1)
    server.subscriber.modify_ack_deadline(
        subscription=subscription, ack_ids=list(leased.values()), ack_deadline_seconds=1
    )
    start = time.monotonic()
    assert set(server.pull(subscription, 1)) == {"a"}
    assert time.monotonic() - start > 0.5


def test_subscriptions_each_get_all_and_streams_of_one_share(server: Server) -> None:
    topic = server.topic()
    shared, other = server.subscription(topic, "shared"), server.subscription(topic, "other")
    seen: dict[str, list[bytes]] = {"left": [], "right": []}
    published = [f"{number}".encode() for number in range(200)]

    def reader(name: str) -> Callable[[pubsub_v1.subscriber.message.Message], None]:
        def callback(message: pubsub_v1.subscriber.message.Message) -> None:
            seen[name].append(message.data)
            message.ack()

        return callback

    with server.streaming(shared, reader("left")), server.streaming(shared, reader("right"), max_messages=5):
        for start in range(0, 200, 20):
            server.publish(topic, *(each.decode() for each in published[start : start + 20]))
        eventually(lambda: len(seen["left"]) + len(seen["right"]) >= 200)
    assert sorted(seen["left"] + seen["right"]) == sorted(published)
    assert seen["left"]
    assert len(server.pull(other, 200)) == 200


def test_messages_of_a_key_come_in_order_and_start_over_at_a_nack(server: Server) -> None:
    topic = server.topic()
    subscription = server.subscription(topic, enable_message_ordering=True)
    count = 20 if server.kind == "google_fake" else 100  # one of a key at a time, every 10 ms
    for number in range(count):
        for key in ("k", "l"):
            server.publisher.publish(topic, str(number).encode(), ordering_key=key)
    seen: dict[str, list[int]] = {"k": [], "l": []}
    nacked = threading.Event()

    def callback(message: pubsub_v1.subscriber.message.Message) -> None:
        number = int(message.data)
        if message.ordering_key == "k" and number == 7 and not nacked.is_set():
            nacked.set()
            message.nack()
            return
        seen[message.ordering_key].append(number)
        message.ack()

    with server.streaming(subscription, callback):
        eventually(lambda: 7 in seen["k"] and all(each[-1:] == [count - 1] for each in seen.values()))
    assert seen["l"] == list(range(count))
    # What the client had already been given after the nacked message may have been handled before it.
    restart = len(seen["k"]) - 1 - seen["k"][::-1].index(7)
    assert seen["k"][restart:] == list(range(7, count))
    assert seen["k"][:restart] == list(range(7)) + list(range(8, 8 + restart - 7))


def test_refusals_have_googles_status_codes(server: Server) -> None:
    topic = server.topic()
    subscription = server.subscription(topic)
    missing = "projects/test/topics/missing"
    with pytest.raises(exceptions.AlreadyExists):
        server.publisher.create_topic(name=topic)
    with pytest.raises(exceptions.AlreadyExists):
        server.subscriber.create_subscription(name=subscription, topic=topic)
    for call in (
        lambda: server.publisher.get_topic(topic=missing),
        lambda: server.publisher.delete_topic(topic=missing),
        lambda: server.publisher.publish(missing, b"x").result(20),
        lambda: server.subscriber.create_subscription(
            request={"name": subscription + "-2", "topic": missing, "ack_deadline_seconds": 10}
        ),
        lambda: server.subscriber.pull(subscription=subscription + "-3", max_messages=1),
        lambda: server.subscriber.acknowledge(subscription=subscription + "-3", ack_ids=["1"]),
        lambda: server.subscriber.delete_subscription(subscription=subscription + "-3"),
        lambda: server.subscriber.subscribe(subscription + "-3", callback=print).result(20),
    ):
        with pytest.raises(exceptions.NotFound):
            call()
    with pytest.raises(exceptions.InvalidArgument):
        server.subscriber.pull(subscription=subscription, max_messages=-1)
    with pytest.raises(exceptions.InvalidArgument):
        server.subscriber.update_subscription(
            subscription={"name": subscription, "topic": missing}, update_mask={"paths": ["topic"]}
        )


def test_requests_that_google_refuses_are_refused(server: Server) -> None:
    lacking(server, "checks no limits and few names")
    topic = server.topic()
    subscription = server.subscription(topic)
    for call in (
        lambda: server.publisher.create_topic(name="orders"),
        lambda: server.publisher.create_topic(name="projects/test/topics/x"),
        lambda: server.publish_once(topic, [{}]),
        lambda: server.publish_once(topic, [{"data": b"x"}] * 1001),
        lambda: server.publish_once(topic, [{"data": bytes(10_000_001)}]),
        lambda: server.subscription(topic, "short", ack_deadline_seconds=9),
        lambda: server.subscriber.acknowledge(subscription=subscription, ack_ids=["nonsense"]),
        lambda: server.subscriber.modify_ack_deadline(
            subscription=subscription, ack_ids=["1"], ack_deadline_seconds=601
        ),
    ):
        with pytest.raises(exceptions.InvalidArgument):
            call()
    for fields in (
        {"enable_exactly_once_delivery": True},
        {"push_config": {"push_endpoint": "https://example.com"}},
        {"filter": "NOT attributes:k"},
    ):
        with pytest.raises(exceptions.MethodNotImplemented, match="The emulator"):
            server.subscription(topic, "other", **fields)


def test_topics_and_subscriptions_are_listed_updated_and_deleted(server: Server) -> None:
    topics = [server.topic(f"topic-{number}") for number in range(5)]
    subscriptions = [server.subscription(topics[0], f"subscription-{number}") for number in range(5)]
    project = "projects/test"
    ours = [each.name for each in server.publisher.list_topics(request={"project": project, "page_size": 2})]
    assert set(topics) <= set(ours)
    listed = server.subscriber.list_subscriptions(request={"project": project, "page_size": 2})
    assert set(subscriptions) <= {each.name for each in listed}
    of_topic = server.publisher.list_topic_subscriptions(request={"topic": topics[0], "page_size": 2})
    assert list(of_topic) == subscriptions

    updated = server.publisher.update_topic(
        topic={"name": topics[0], "labels": {"team": "risk"}}, update_mask={"paths": ["labels"]}
    )
    assert dict(updated.labels) == {"team": "risk"}
    assert server.publisher.get_topic(topic=topics[0]).labels["team"] == "risk"
    server.subscriber.update_subscription(
        subscription={"name": subscriptions[0], "ack_deadline_seconds": 42},
        update_mask={"paths": ["ack_deadline_seconds"]},
    )
    got = server.subscriber.get_subscription(subscription=subscriptions[0])
    assert (got.ack_deadline_seconds, got.topic) == (42, topics[0])

    server.subscriber.delete_subscription(subscription=subscriptions[1])
    assert list(server.publisher.list_topic_subscriptions(topic=topics[0])) == [
        each for each in subscriptions if each != subscriptions[1]
    ]
    server.publisher.delete_topic(topic=topics[0])
    with pytest.raises(exceptions.NotFound):
        server.publisher.get_topic(topic=topics[0])
    if server.kind != "google_fake":  # whose subscription keeps the topic's name
        orphan = server.subscriber.get_subscription(subscription=subscriptions[0])
        assert orphan.topic == "_deleted-topic_"


def test_attempts_are_counted_and_the_last_is_forwarded(server: Server) -> None:
    topic, dead = server.topic(), server.topic("dead")
    dead_reader = server.subscription(dead, "dead")
    subscription = server.subscription(
        topic, dead_letter_policy={"dead_letter_topic": dead, "max_delivery_attempts": 5}
    )
    attempts = []

    def callback(message: pubsub_v1.subscriber.message.Message) -> None:
        attempts.append(message.delivery_attempt)
        message.nack()

    with server.streaming(subscription, callback):
        server.publish(topic, "poison", colour="red")
        eventually(lambda: len(attempts) == 5)
        [forwarded] = server.pull(dead_reader, 1)
    assert forwarded == "poison"
    assert attempts == [1, 2, 3, 4, 5]


def test_seek_to_a_time_drops_what_is_older(server: Server) -> None:
    topic = server.topic()
    subscription = server.subscription(topic)
    server.publish(topic, "old")
    time.sleep(0.05)
    target = datetime.now(UTC)
    time.sleep(0.05)
    if server.kind != "google_fake":  # which forgets the content of what it brings back
        server.publish(topic, "new")
    server.subscriber.seek(request={"subscription": subscription, "time": target})
    assert list(server.pull(subscription, 2, seconds=0.5)) == (["new"] if server.kind != "google_fake" else [])


def test_snapshots(server: Server) -> None:
    lacking(server, "has no snapshots")
    topic = server.topic()
    subscription = server.subscription(topic)
    snapshot = f"projects/test/snapshots/{server.prefix}"
    server.publish(topic, "a")
    made = server.subscriber.create_snapshot(name=snapshot, subscription=subscription)
    assert made.topic == topic
    acks = server.pull(subscription, 1)
    server.subscriber.acknowledge(subscription=subscription, ack_ids=list(acks.values()))
    server.subscriber.seek(request={"subscription": subscription, "snapshot": snapshot})
    assert list(server.pull(subscription, 1)) == ["a"]
    assert [each.name for each in server.subscriber.list_snapshots(project="projects/test")] == [snapshot]
    assert list(server.publisher.list_topic_snapshots(topic=topic)) == [snapshot]
    assert server.subscriber.get_snapshot(snapshot=snapshot).topic == topic
    server.subscriber.delete_snapshot(snapshot=snapshot)
    with pytest.raises(exceptions.NotFound):
        server.subscriber.get_snapshot(snapshot=snapshot)


def test_a_filter_passes_only_what_it_says(server: Server) -> None:
    topic = server.topic()
    subscription = server.subscription(topic, filter='attributes.colour = "red"')
    server.publish(topic, "a", colour="red")
    server.publish(topic, "b", colour="blue")
    server.publish(topic, "c")
    assert list(server.pull(subscription, 3, seconds=0.5)) == ["a"]


def test_a_large_message_travels(server: Server) -> None:
    # With an emulator Google's client keeps gRPC's default: it receives at most 4 MB at once.
    topic = server.topic()
    subscription = server.subscription(topic)
    server.publish(topic, "x" * 3_500_000)
    assert [len(text) for text in server.pull(subscription, 1)] == [3_500_000]


# The emulator's own ----------------------------------------------------------------------------------------


@pytest.fixture
def own(embedded: PubsubEmulator) -> Iterator[Server]:
    with connect("embedded", embedded.address, embedded) as connected:
        yield connected


class RawStream:
    """A StreamingPull without Google's client, which would extend deadlines and ack by itself."""

    def __init__(self, address: str, **first: object) -> None:
        self._requests: queue.SimpleQueue[object] = queue.SimpleQueue()
        self.send(stream_ack_deadline_seconds=10, **first)
        self._channel = grpc.insecure_channel(address)
        call = self._channel.stream_stream(
            "/google.pubsub.v1.Subscriber/StreamingPull",
            wire.StreamingPullRequest.SerializeToString,
            wire.StreamingPullResponse.FromString,
        )
        self._responses = call(iter(self._requests.get, None))
        self.arrived: queue.SimpleQueue[object] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def send(self, **fields: object) -> None:
        self._requests.put(wire.StreamingPullRequest(**fields))

    def hang_up(self) -> None:
        self._requests.put(None)

    def next(self, seconds: float = 10) -> dict[str, str]:
        """The texts of the next response with their ack ids."""
        response = self.arrived.get(timeout=seconds)
        if isinstance(response, grpc.StatusCode):
            raise AssertionError(response)
        return {each.message.data.decode(): each.ack_id for each in response.received_messages}

    def close(self) -> None:
        self._responses.cancel()
        self.hang_up()
        self._channel.close()

    def _read(self) -> None:
        try:
            for response in self._responses:
                self.arrived.put(response)
            self.arrived.put(grpc.StatusCode.OK)
        except grpc.RpcError as error:
            self.arrived.put(error.code())


def test_a_stream_holds_no_more_than_its_flow_control(own: Server) -> None:
    topic = own.topic()
    subscription = own.subscription(topic)
    own.publish(topic, *"abcde")
    with contextlib.closing(RawStream(own.address, subscription=subscription, max_outstanding_messages=2)) as stream:
        leased = stream.next()
        assert len(leased) == 2
        time.sleep(0.3)
        assert stream.arrived.empty()
        stream.send(ack_ids=list(leased.values())[:1])
        assert len(stream.next()) == 1
        stream.send(modify_deadline_ack_ids=list(leased.values())[1:], modify_deadline_seconds=[0])
        assert len(stream.next()) == 1
        time.sleep(0.3)
        assert stream.arrived.empty()
    assert own.emulator is not None
    assert own.emulator.backlog(subscription)[:2] == (2, 2)


def test_a_stream_holds_no_more_bytes_than_its_flow_control(own: Server) -> None:
    topic = own.topic()
    subscription = own.subscription(topic)
    own.publish(topic, *(letter * 1000 for letter in "abcde"))
    with contextlib.closing(RawStream(own.address, subscription=subscription, max_outstanding_bytes=3500)) as stream:
        assert len(stream.next()) == 3
        time.sleep(0.3)
        assert stream.arrived.empty()


def test_a_stream_ends_as_it_should(own: Server) -> None:
    topic = own.topic()
    subscription = own.subscription(topic)
    with contextlib.closing(RawStream(own.address, subscription=subscription)) as stream:
        stream.send(ack_ids=["nonsense"])
        assert stream.arrived.get(timeout=10) is grpc.StatusCode.INVALID_ARGUMENT
    with contextlib.closing(RawStream(own.address, subscription=subscription)) as stream:
        stream.hang_up()
        assert stream.arrived.get(timeout=10) is grpc.StatusCode.OK
    with contextlib.closing(RawStream(own.address, subscription=subscription, protocol_version=1)) as stream:
        stream.send()
        assert stream.next() == {}
        own.subscriber.delete_subscription(subscription=subscription)
        assert stream.arrived.get(timeout=10) is grpc.StatusCode.NOT_FOUND


def test_the_sizes_of_responses_suit_a_client_with_grpcs_defaults(own: Server) -> None:
    topic = own.topic()
    subscription = own.subscription(topic)
    own.publish(topic, *(letter * 1_500_000 for letter in "abcde"))
    with contextlib.closing(RawStream(own.address, subscription=subscription)) as stream:
        assert [len(stream.next()) for _ in range(3)] == [2, 2, 1]


def test_delivery_pauses_and_publishing_fails_as_told(own: Server) -> None:
    assert own.emulator is not None
    topic = own.topic()
    subscription = own.subscription(topic)
    own.emulator.pause_delivery()
    own.publish(topic, "a")
    assert own.pull(subscription, 1, seconds=0.2) == {}
    own.emulator.resume_delivery()
    assert list(own.pull(subscription, 1)) == ["a"]
    own.emulator.fail_publishing(60)
    with pytest.raises(exceptions.ServiceUnavailable):
        own.publish_once(topic, [{"data": b"b"}])
    later = own.publisher.publish(topic, b"c")
    time.sleep(0.2)
    assert not later.done()
    own.emulator.fail_publishing(0)
    later.result(20)
    assert list(own.pull(subscription, 1)) == ["c"]


def test_clients_sit_out_an_outage() -> None:
    emulator = PubsubEmulator()
    emulator.start()
    address = emulator.address
    topic, subscription = emulator.create("test", "orders", "reader", ack_deadline_seconds=20)
    received = []

    def callback(message: pubsub_v1.subscriber.message.Message) -> None:
        received.append(message.data)
        message.ack()

    with connect("embedded", address, emulator) as server, server.streaming(subscription, callback):
        server.publish(topic, "before")
        eventually(lambda: received == [b"before"])
        emulator.pause_delivery()
        server.publish(topic, "kept")
        emulator.stop()
        during = server.publisher.publish(topic, b"during")
        time.sleep(1)
        assert not during.done()
        emulator.start()
        assert emulator.address == address
        emulator.resume_delivery()
        during.result(30)
        # Google's subscriber reopens a stream at most ten times in ten seconds, and has done so in the first
        # moments of the outage; a connection found good by then spares it another ten seconds.
        server.subscriber.get_subscription(subscription=subscription, timeout=30)
        eventually(lambda: set(received) == {b"before", b"kept", b"during"}, seconds=40)
        eventually(lambda: emulator.backlog(subscription).bytes == 0)
    emulator.stop()


def test_a_full_backlog_pushes_back() -> None:
    with PubsubEmulator(max_backlog_bytes=100_000) as emulator:
        topic, subscription = emulator.create("test", "orders", "reader")
        with connect("embedded", emulator.address, emulator) as server:
            server.publish(topic, "a" * 90_000)
            with pytest.raises(exceptions.ResourceExhausted, match="hold 90"):
                server.publish_once(topic, [{"data": bytes(20_000)}])
            later = server.publisher.publish(topic, bytes(20_000))  # the client tries again
            [ack_id] = server.pull(subscription, 1).values()
            server.subscriber.acknowledge(subscription=subscription, ack_ids=[ack_id])
            later.result(20)
            assert emulator.backlog(subscription)[:2] == (1, 0)


def test_streams_beyond_the_bound_are_refused_and_acks_still_work() -> None:
    with PubsubEmulator(max_streams=2) as emulator, contextlib.ExitStack() as stack:
        topic, subscription = emulator.create("test", "orders", "reader")
        streams = [
            stack.enter_context(contextlib.closing(RawStream(emulator.address, subscription=subscription)))
            for _ in range(3)
        ]
        eventually(lambda: any(not stream.arrived.empty() for stream in streams))
        [refused] = [stream for stream in streams if not stream.arrived.empty()]
        assert refused.arrived.get() is grpc.StatusCode.RESOURCE_EXHAUSTED
        server = stack.enter_context(connect("embedded", emulator.address, emulator))
        server.publish(topic, "a")
        assert server.pull(subscription, 1, seconds=0.1) == {}


def test_a_process_ends_that_did_not_stop_its_emulator() -> None:
    program = (
        "from pipelines.pubsub_emulator import PubsubEmulator\n"
        "emulator = PubsubEmulator()\n"
        "emulator.start()\n"
        "print(emulator.address, emulator.create('test', 'orders', 'reader'), flush=True)\n"
        "input()"
    )
    with started([sys.executable, "-W", "ignore", "-c", program]) as (process, line):
        address = line.split()[0]
        reader = "projects/test/subscriptions/reader"
        with contextlib.closing(RawStream(address, subscription=reader, protocol_version=1)) as stream:
            stream.send()
            assert stream.next() == {}
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.wait(20) == 0


def test_a_taken_port_is_an_error(embedded: PubsubEmulator) -> None:
    port = int(embedded.address.rpartition(":")[2])
    with pytest.raises(OSError, match="cannot listen"):
        PubsubEmulator(port).start()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_it_is_told_to_stop(number: signal.Signals) -> None:
    program = (
        "from pipelines.pubsub_emulator import serve\n"
        "serve(port=0, on_start=lambda emulator: print(emulator.address, flush=True))"
    )
    command = [sys.executable, "-W", "ignore", "-c", program]
    with started(command) as (process, address), connect("external", address, None) as server:
        topic = server.topic()
        subscription = server.subscription(topic)
        with contextlib.closing(RawStream(address, subscription=subscription)) as stream:
            server.publish(topic, "a")
            assert list(stream.next()) == ["a"]
            process.send_signal(number)
            assert process.wait(20) == 0
            assert stream.arrived.get(timeout=10) is grpc.StatusCode.UNAVAILABLE


def test_the_raw_classes_are_those_of_the_client() -> None:
    assert wire.PubsubMessage is PubsubMessage.pb()
