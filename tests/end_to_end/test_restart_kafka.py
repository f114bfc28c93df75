"""A stream over a real Kafka: it and the broker are killed again and again, and what comes out equals batch."""

import contextlib
import json

import numpy as np
import pytest

pytest.importorskip("confluent_kafka", reason="needs confluent-kafka, which is not installed")

from models.batches import as_batch
from models.codecs import encode_json_lines
from models.sample import write_sample
from pipelines.jobs.parity import arrival_order
from pipelines.sources.payloads import read_payloads
from tests.kit.kafka import real_kafka
from tests.kit.kafka_bench import HOUR, Bench
from tests.kit.published import assert_a_stream_says_the_same
from tests.kit.services import RealKafka
from tests.kit.support import card_fraud, run_graph, transaction

pytestmark = [pytest.mark.serial, pytest.mark.usefixtures("haste"), pytest.mark.timeout(600)]

SECOND = 1_000_000
KILLS = 6
BROKER_KILLS = (1, 4)  # the parts in which the broker is killed, too


def test_stream_and_broker_are_killed_and_every_bit_equals_batch(tmp_path):
    write_sample(tmp_path, 6000, seed=1, days=6, format="jsonl")
    payloads = read_payloads([f"{tmp_path}/*.jsonl"])
    order = arrival_order(payloads, card_fraud(), HOUR, 7, 0.05)
    messages = [payloads[place] for place in order]
    random = np.random.default_rng(3)
    with contextlib.closing(Bench(real_kafka(), partitions=4)) as bench:
        journal = tmp_path / "journal"
        left = bench.publish_and_kill(messages, KILLS, random, journal, BROKER_KILLS, idle_us=60 * SECOND)
        assert 0 < len(bench.scores) < len(payloads)  # it was killed at work
        process = bench.start(journal, idle_us=8 * SECOND)
        bench.publish(left)
        bench.wait(len(payloads), len(order) - len(payloads))
        bench.finish(process)
    assert not any(row["late"] for row in bench.scores.values())
    batch = run_graph(tmp_path / "batch", [f"{tmp_path}/*.jsonl"])
    expected = [json.loads(line) for line in encode_json_lines(as_batch(batch.scores)).splitlines()]
    assert bench.scores == {row["TRANSACTION_ID"]: {**row, "late": False} for row in expected}
    assert {letter["step"] for letter in bench.dead} == {"Deduplicate"}
    assert len(bench.twice) == len(order) - len(payloads)


def test_partitions_without_messages_hold_nothing_back(tmp_path):
    """Three of four partitions are empty for good, and then a second one is silent, too."""
    events = [json.dumps(transaction(number)).encode() for number in range(60)]
    with contextlib.closing(Bench(real_kafka(), partitions=4)) as bench:
        process = bench.start(tmp_path / "journal", idle_us=2 * SECOND)
        bench.publisher.publish(events[:20], keys=["a"] * 20)
        bench.publisher.publish(events[20:40], keys=["b"] * 20)
        bench.wait(40)
        bench.publisher.publish(events[40:], keys=["a"] * 20)
        bench.wait(60)
        bench.finish(process)
    assert not any(row["late"] for row in bench.scores.values())


def test_what_an_endpoint_publishes_while_the_broker_is_killed_gets_its_scores_from_a_stream(tmp_path, request):
    assert_a_stream_says_the_same(RealKafka(request), tmp_path)
