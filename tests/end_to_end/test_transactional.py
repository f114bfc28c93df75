"""Transactions on a real Kafka: readers of what is committed get each row once, whatever is killed; without, they don't."""

import collections
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
from tests.kit.kafka_bench import CLOCKED, HOUR, Bench
from tests.kit.support import card_fraud, run_graph

pytestmark = [pytest.mark.serial, pytest.mark.usefixtures("haste"), pytest.mark.timeout(600)]

SECOND = 1_000_000
KILLS = 6
ROUTED = ("block", "review")  # decisions whose rows have a topic of their own
BROKER_KILLS = (1, 3)  # the parts in which the broker is killed, too


@pytest.mark.parametrize("transactional", [True, False])
def test_rows_are_committed_once_whatever_is_killed(tmp_path, transactional):
    """The moments in which a kill could repeat or lose rows are stretched; the control has rows twice."""
    write_sample(tmp_path, 4000, seed=1, days=6, format="jsonl")
    payloads = read_payloads([f"{tmp_path}/*.jsonl"])
    order = arrival_order(payloads, card_fraud(), HOUR, 7, 0.05)
    messages = [payloads[place] for place in order]
    how = {"transactional": transactional, "stretch_seconds": 2.0, "idle_us": 8 * SECOND}
    with contextlib.closing(Bench(real_kafka(), 4, ROUTED)) as bench:
        random, journal = np.random.default_rng(5), tmp_path / "journal"
        left = bench.publish_and_kill(messages, KILLS, random, journal, BROKER_KILLS, at_sight=True, **how)
        assert 0 < len(bench.scores) < len(payloads)  # it was killed at work
        process = bench.start(journal, **how)
        bench.publish(left)
        bench.wait(len(payloads), len(order) - len(payloads))
        bench.finish(process)
        others, dead, routed = bench.read_all("read_committed")
        everything = [row for rows in bench.read_all("read_uncommitted")[::2] for row in rows]
    assert {row["decision"] for row in routed} <= set(ROUTED)
    assert {row["decision"] for row in others}.isdisjoint(ROUTED)
    assert routed
    assert others
    scores = [*others, *routed]
    times = collections.Counter(row["TRANSACTION_ID"] for row in scores)
    batch = run_graph(tmp_path / "batch", [f"{tmp_path}/*.jsonl"])
    expected = [json.loads(line) for line in encode_json_lines(as_batch(batch.scores)).splitlines()]
    assert times.keys() == {row["TRANSACTION_ID"] for row in expected}
    plain = [{name: row[name] for name in row if name not in CLOCKED} for row in scores]
    assert not any(row.pop("late") for row in plain), "late"
    by_id = {row["TRANSACTION_ID"]: row for row in plain}
    assert all(by_id[row["TRANSACTION_ID"]] == row for row in [*plain, *expected])
    if not transactional:
        assert set(times.values()) > {1}  # so this test would tell
        return
    assert set(times.values()) == {1}
    assert len(everything) > len(scores)  # there were transactions that a kill has cut off
    assert [letter["step"] for letter in dead] == ["Deduplicate"] * (len(order) - len(payloads))
    twice = collections.Counter(messages) - collections.Counter(payloads)
    assert collections.Counter(json.loads(each)["TRANSACTION_ID"] for each in twice.elements()) == collections.Counter(
        int(letter["event_id"]) for letter in dead
    )
