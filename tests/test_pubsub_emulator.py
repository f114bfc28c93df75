"""The emulator: its state machine under a fake clock, then Google's client against it and against Google's fake."""

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

with warnings.catch_warnings():
    # Google's libraries announce at import when they will stop to support this Python.
    warnings.filterwarnings("ignore", "You are using a Python version", FutureWarning)
    from google.api_core import exceptions
    from google.cloud import pubsub_v1
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
        messages = [
            wire.PubsubMessage(data=text.encode(), ordering_key=key, attributes=attributes) for text in texts
        ]
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
    assert (message.data, message.message_id) == (b"a", "2")
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
    with pytest.raises(ResourceExhausted, match="reader holds"):
        bench.publish("d", "e")
    leased = bench.take()
    assert list(leased) == ["a", "b", "c"]
    bench.ack(leased["a"])
    bench.publish("f")
    assert bench.texts() == "f"


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


@settings(max_examples=150, deadline=None)
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

    def take(count: int, by: Consumer) -> None:
        for text, ack_id in bench.take(count, by=by).items():
            leases[ack_id] = text
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
    assert bench.reader.backlog() == (0, 0, 0, 0)
    assert [each.held_messages for each in consumers] == [0, 0, 0]
    assert [each.held_bytes for each in consumers] == [0, 0, 0]
