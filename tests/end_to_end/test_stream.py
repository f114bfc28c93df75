"""Streams: the same graph, the same bits, nothing lost, and a journal that survives a cut."""

import collections
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time

import apache_beam as beam
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest

from models.batches import column
from models.record import PAYLOAD
from models.sample import write_sample
from pipelines.brokers import BrokerError, open_broker
from pipelines.graph import GraphConfig, build
from pipelines.jobs.parity import Comparison, arrival_order, check_parity, compare_counts, compare_tables
from pipelines.pubsub_emulator import PubsubEmulator
from pipelines.runners import make_pipeline
from pipelines.sinks.files import WriteFiles
from pipelines.sinks.topics import PublishRows
from pipelines.sources.journal import JournalError, read_segment, segments
from pipelines.sources.journal_writer import JournalWriter
from pipelines.sources.watermark import StreamWatermark
from tests.kit.bad import BAD
from tests.kit.command import HEADRACE
from tests.kit.messages import records
from tests.kit.support import (
    CARD_FRAUD,
    ROOT,
    card_fraud,
    read_files,
    read_stream,
    tiny_scorer,
    transaction,
    write_rows,
)
from transforms.score import Score

pytestmark = pytest.mark.serial

SECOND = 1_000_000


def test_stream_and_batch_differ_in_source_and_sink_only():
    project, scorer = card_fraud(), tiny_scorer(card_fraud().model.inputs)
    broker = open_broker("pubsub://project/events")

    def transforms(source, sink):
        pipeline = make_pipeline("DirectRunner", [])
        build(pipeline, GraphConfig(project, source, Score(project, scorer, "b"), sink))
        found = {}
        for transform in pipeline.to_runner_api().components.transforms.values():
            name = transform.unique_name
            if name and not name.startswith(("Read", "Write")):
                found[name] = (transform.spec.urn, sorted(transform.inputs), sorted(transform.outputs))
        return found

    batch = transforms(read_files(project, ["events.jsonl"]), WriteFiles("out", project.event.id, project.event.time))
    stream = transforms(read_stream(project, broker, SECOND), PublishRows(broker, broker))
    assert len(batch) > 20
    assert stream == batch


@dataclasses.dataclass
class AnyBundle:
    bundle_id: str = "bundle"
    baseline: bytes | None = None


@pytest.mark.parametrize(("seed", "workers"), [(0, 1), (1, 2), (2, 4)])
def test_stream_equals_batch_with_disorder_duplicates_and_bad_events(tmp_path, monkeypatch, seed, workers):
    monkeypatch.setattr("pipelines.runners.cores", lambda: workers)
    write_sample(tmp_path, 3000, seed=seed, days=3, format="jsonl")
    write_rows(tmp_path / "bad.jsonl", [bad for bad, _ in BAD.values()] + [transaction(9000)])
    scorer = tiny_scorer(card_fraud().model.inputs)
    found = check_parity(card_fraud(), AnyBundle(), scorer, [f"{tmp_path}/*.jsonl"], "1h", seed, 0.1)
    assert found.equal, found
    assert {c.what: c.rows for c in found.comparisons} == {
        "ids and fields": 3001,
        "features": 3001,
        "scores": 3001,
        "decisions": 3001,
        "verdicts on windows": 4,
        "dead letters": len(BAD),
    }
    assert found.stream.outcomes["duplicate"] > 200
    assert found.controls[0].different > 1000


def test_the_comparison_sees_one_bit():
    ours = pa.table({"x": pa.array([0.1, 0.2]), "y": pa.array(["a", "b"])})
    theirs = pa.table({"x": pa.array([0.1, np.nextafter(0.2, 1)]), "y": pa.array(["a", "b"])})
    found = compare_tables("x", ours, theirs, ["x", "y"])
    assert (found.rows, found.different) == (2, 1)
    assert found.first.startswith("row 1: x 0.2, 0.2000")
    assert compare_tables("x", ours, ours, ["x", "y"]).different == 0
    assert compare_tables("x", ours, ours.slice(1), ["x"]).different == 1
    assert compare_tables("x", pa.table({}), pa.table({}), ["x"]) == Comparison("x", 0, 0)


@pytest.mark.parametrize(
    ("one", "other", "different"),
    [
        (pa.array([1, None, 3]), pa.array([1, None, 3]), 0),
        (pa.array([1, None, 3]), pa.array([1, 0, 3]), 1),
        (pa.array([2**53, None]), pa.array([2**53 + 1, None]), 1),
        (pa.array([1.0, None, np.nan, 0.0]), pa.array([1.0, None, np.nan, 0.0]), 0),
        (pa.array([1.0, None, np.nan, 0.0]), pa.array([1.0, np.nan, None, -0.0]), 3),
        (pa.array([0.5, None], pa.float32()), pa.array([0.5, None], pa.float32()), 0),
        (pa.array([0.5, None], pa.float16()), pa.array([np.float16(0.25), None], pa.float16()), 1),
        (pa.array([1, None]), pa.array([1.0, None]), 2),
        (pa.array([True, None, False]), pa.array([True, None, None]), 1),
        (pa.array(["a", None, ""]), pa.array(["a", None, None]), 1),
        (pa.array([5, None], pa.timestamp("us")), pa.array([5, None], pa.timestamp("us")), 0),
        (pa.array([None, None]), pa.array([None, None]), 0),
        (pa.array(["a", None]).dictionary_encode(), pa.array(["a", None]).dictionary_encode(), 0),
        (pa.array([b"a", None]), pa.array([b"a", b"b"]), 1),
    ],
)
def test_a_null_equals_a_null_alone(one, other, different):
    found = compare_tables("x", pa.table({"x": one}), pa.table({"x": other}), ["x"])
    assert found.different == different
    assert bool(found.first) == bool(different)
    chunked = pa.table({"x": pa.chunked_array([one.slice(0, 1), one.slice(1)])})
    assert compare_tables("x", chunked, pa.table({"x": other}), ["x"]) == found


def test_things_without_an_order_are_compared_as_often_as_they_come():
    ours, theirs = collections.Counter("aab"), collections.Counter("abbc")
    assert compare_counts("x", ours, ours) == Comparison("x", 3, 0)
    found = compare_counts("x", ours, theirs)
    assert (found.rows, found.different) == (3, 3)
    assert found.first == "2 in batch, 1 streamed: a"


def test_dead_letters_count_as_often_as_their_records_come(tmp_path):
    write_rows(tmp_path / "events.jsonl", [transaction(n) for n in range(30)] + [b"{oops", b"{oops", b"{ah"] * 5)
    scorer = tiny_scorer(card_fraud().model.inputs)
    found = check_parity(card_fraud(), AnyBundle(), scorer, [f"{tmp_path}/*.jsonl"], "1h", 0, 0.5)
    assert found.equal, found
    (dead,) = (c for c in found.comparisons if c.what == "dead letters")
    assert dead.rows == found.batch.outcomes["dead-lettered"] == 15 < found.stream.outcomes["dead-lettered"]


def test_arrival_keeps_to_the_allowance_and_repeats_some():
    payloads = [json.dumps(transaction(n)).encode() for n in range(200)]
    order = arrival_order(payloads, card_fraud(), 5 * 3600 * SECOND, 3, 0.2)
    assert set(order) == set(range(200))
    assert len(order) > 220
    assert order != sorted(order)
    newest = np.maximum.accumulate(order)
    assert all(newest - order <= 5)


@hypothesis.given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 10**9), st.integers(0, 4 * SECOND))))
def test_a_watermark_never_moves_back_nor_past_the_newest_event(steps):
    watermark, now, before, newest = StreamWatermark(SECOND, 2 * SECOND), 0, -(1 << 62), -(1 << 62)
    for partition, event_time, passed in steps:
        now += passed
        watermark.observe(np.array([partition]), np.array([event_time]), now)
        newest = max(newest, event_time)
        current = watermark.current({0, 1, 2}, now)
        assert before <= current <= newest
        before = current


def test_a_watermark_waits_for_every_busy_partition_and_for_no_idle_one():
    watermark = StreamWatermark(allowance_us=10, idle_us=1000)
    assert watermark.current({0, 1}, 0) < 0
    watermark.observe(np.array([0, 0]), np.array([500, 400]), 0)
    assert watermark.current({0, 1}, 1) < 0  # partition 1 may still have something older
    watermark.observe(np.array([1]), np.array([300]), 2)
    assert watermark.current({0, 1}, 3) == 290
    watermark.observe(np.array([0]), np.array([900]), 1500)
    assert watermark.current({0, 1}, 1600) == 890  # partition 1 was silent for long
    assert watermark.current({0, 1}, 9999) == 900  # both are: up to the newest event


def test_a_journal_gives_back_whole_batches_only(tmp_path):
    writer = JournalWriter(tmp_path)
    batch = records([b"one", b"two"])
    for _ in range(3):
        writer.append([batch])
    (path,) = segments(tmp_path)
    data = path.read_bytes()
    assert len(list(read_segment(data))) == 3  # what was appended is there before the segment is ended
    for length in range(len(data)):
        found = list(read_segment(data[:length]))
        assert len(found) <= 3
        assert all(column(b, PAYLOAD).to_pylist() == [b"one", b"two"] for b in found)
    with pytest.raises(JournalError, match="another stream"):
        JournalWriter(tmp_path)
    writer.close()
    again = JournalWriter(tmp_path, segment_bytes=10)
    again.append([batch])
    again.append([batch, batch])
    again.close()
    assert [p.name for p in segments(tmp_path)] == [f"{n:012d}.journal" for n in (0, 6, 8)]
    assert again.rows == 12


@pytest.mark.parametrize("missing", ["scores", "scores-dead-letters", "scores-quality"])
def test_a_missing_topic_is_told_with_all_that_the_sink_needs(monkeypatch, missing):
    names = ["scores", "scores-dead-letters", "scores-quality"]
    with PubsubEmulator() as server:
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", server.address)
        for name in names:
            if name != missing:
                server.create("demo", name)
        scores, dead, quality = (open_broker(f"pubsub://demo/{name}") for name in names)
        pipeline = make_pipeline("DirectRunner", [])
        batch = pa.record_batch({"payload": pa.array([b"{}"])})
        rows = {name: pipeline | name >> beam.Create([batch]) for name in ("scores", "dead_letters")}
        none = {name: pipeline | name >> beam.Create([]) for name in ("statistics", "verdicts")}
        {**rows, **none} | PublishRows(scores, dead, quality=quality)
        needed = "the sink needs the topics " + ", ".join(f"pubsub://demo/{name}" for name in names)
        with pytest.raises((BrokerError, RuntimeError), match=f"no topic projects/demo/topics/{missing}: .*{needed}"):
            pipeline.run().wait_until_finish()


def test_a_stream_in_two_terminals(tmp_path):
    """Serve, run, publish, stop: every event comes out once, and all is acknowledged."""
    write_sample(tmp_path / "data", 40_000)
    registry = f"sqlite:///{tmp_path}/registry.db"
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "HEADRACE_REGISTRY": registry}

    def headrace(*args):
        return subprocess.run(
            [HEADRACE, *args], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )

    headrace("train", str(CARD_FRAUD), "--source", "data/*.parquet")
    with PubsubEmulator() as server:
        environment["PUBSUB_EMULATOR_HOST"] = server.address
        _, events = server.create("demo", "events", "events")
        _, scored = server.create("demo", "scores", "scores")
        server.create("demo", "scores-dead-letters", "dead")
        server.create("demo", "scores-quality", "quality")  # and no scores-quarantine: the gate is `warn`
        run = [HEADRACE, "run", str(CARD_FRAUD), "--source", "pubsub://demo/events", "--sink", "pubsub://demo/scores"]
        stream = subprocess.Popen(
            [*run, "--journal", "journal"], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
        )
        files = "data/transactions-2018-04-0*.parquet"
        said = headrace("publish", str(CARD_FRAUD), "--source", files, "--to", "pubsub://demo/events").stdout
        assert re.fullmatch(r"[0-9,]+ events published to pubsub://demo/events\n", said)
        published = int(said.split()[0].replace(",", ""))
        write_rows(tmp_path / "bad.jsonl", [b"{oops", transaction(5, TX_AMOUNT=-1)])
        headrace("publish", str(CARD_FRAUD), "--source", "bad.jsonl", "--to", "pubsub://demo/events")
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            left = server.backlog(events)
            if left.undelivered + left.outstanding == 0 and server.backlog(scored).undelivered >= published:
                break
            time.sleep(0.1)
        stream.send_signal(signal.SIGTERM)
        _, log = stream.communicate(timeout=30)
        assert stream.returncode == 0, log
        assert left.undelivered + left.outstanding == 0, log
        code = (
            "import sys; from pipelines.brokers import BrokerError, open_broker\n"
            "s = open_broker(sys.argv[1]).subscribe()\n"
            "while (m := s.receive(1000, 2.0)) is not None:\n"
            "    [print(p.decode()) for p in m.payloads]; s.acknowledge(m.receipt)\n"
            "s.close()"
        )

        def messages(name):
            done = subprocess.run(
                [sys.executable, "-W", "ignore", "-c", code, name],
                cwd=ROOT,
                env=environment,
                capture_output=True,
                text=True,
                check=True,
            )
            return [json.loads(line) for line in done.stdout.splitlines()]

        scores, dead, quality = (messages(f"pubsub://demo/{name}") for name in ("scores", "dead", "quality"))
    ids = [score["TRANSACTION_ID"] for score in scores]
    assert sorted(ids) == list(range(len(ids)))
    assert len(ids) == published > 4000
    assert {"published", "ingested", "scored", "late", "bundle_id"} <= set(scores[0])
    assert not any(score["late"] for score in scores)
    verdicts = {record["verdict_id"] for record in quality if "verdict_id" in record}
    assert 0 < len({score["verdict_id"] for score in scores} - {""}) <= len(verdicts)
    assert sorted(json.loads(letter["reasons"])[0]["rule"] for letter in dead) == ["below 0", "not JSON"]
    journaled = sum(b.num_rows for p in segments(tmp_path / "journal") for b in read_segment(p.read_bytes()))
    assert journaled == len(ids) + 2
