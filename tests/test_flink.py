"""Flink: the same bytes from a real cluster, and a stream that loses nothing when a TaskManager is killed."""

import collections
import json
import shutil
import time

import numpy as np
import pytest

from deploy.flink import cluster
from models.sample import write_sample
from pipelines.brokers import open_broker
from pipelines.options import GraphConfig, make_pipeline
from pipelines.parity import read_payloads
from pipelines.pubsub_emulator import PubsubEmulator
from pipelines.score import build
from pipelines.sinks.files import WriteFiles
from pipelines.sinks.topics import PublishRows
from pipelines.sources.files import ReadFiles
from pipelines.sources.flink_stream import ReadFlinkStream, _AtSecondCheckpoint
from tests.support import card_fraud, read_output, run_graph, tiny_scorer, write_rows
from tests.test_graph import BAD
from transforms.score import Score

SECOND = 1_000_000

needs_flink = pytest.mark.skipif(
    shutil.which("java") is None or not cluster.JOB_SERVER.exists(),
    reason=f"no java, or no {cluster.JOB_SERVER}: run deploy/flink/build.sh",
)


@pytest.fixture(scope="module")
def flink(tmp_path_factory):
    with cluster.running(tmp_path_factory.mktemp("flink") / "run", task_managers=2, slots=2) as running:
        yield running


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample")
    write_sample(folder, 20_000)
    return folder


@needs_flink
@pytest.mark.timeout(240)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("shards", "parallelism"), [(1, 1), (4, 4)])
def test_batch_on_the_cluster_writes_the_same_bytes(tmp_path, flink, sample, shards, parallelism):
    project = card_fraud()
    bad = write_rows(tmp_path / "bad.jsonl", [bad for bad, _ in BAD.values()])
    sources = (f"{sample}/*.parquet", bad)
    here = run_graph(tmp_path / "here", sources)
    config = GraphConfig(
        project,
        ReadFiles(sources),
        Score(project, tiny_scorer(project.model.inputs), "bundle", 0),
        WriteFiles(str(tmp_path / "there"), project.event.id, project.event.time),
        shards,
    )
    pipeline = make_pipeline("FlinkRunner", [*cluster.beam_options(flink.address), f"--parallelism={parallelism}"])
    build(pipeline, config)
    pipeline.run().wait_until_finish()
    there = read_output(tmp_path / "there")
    assert there.outcomes == here.outcomes
    assert there.digest == here.digest
    assert here.scores.num_rows == 20_000


@needs_flink
@pytest.mark.timeout(240)
@pytest.mark.filterwarnings("ignore")
def test_a_stream_loses_nothing_when_a_task_manager_is_killed(tmp_path, flink, sample, monkeypatch):
    """Every event is scored as in batch and at last acknowledged; some are published twice, with the same bits."""
    project = card_fraud()
    here = run_graph(tmp_path / "here", [f"{sample}/*.parquet"])
    expected = dict(zip(here.scores["TRANSACTION_ID"].to_pylist(), here.scores["score"].to_numpy(), strict=True))
    payloads = list(read_payloads([f"{sample}/*.parquet"]))
    with PubsubEmulator() as server:
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", server.address)
        _, events = server.create("demo", "events", "events")
        _, scored = server.create("demo", "scores", "scores")
        server.create("demo", "dead", "dead")
        source = ReadFlinkStream(
            open_broker("pubsub://demo/events", ack_deadline_seconds=10), project, 10 * SECOND, idle_us=2 * SECOND
        )
        config = GraphConfig(
            project,
            source,
            Score(project, tiny_scorer(project.model.inputs), "bundle", 0),
            PublishRows(open_broker("pubsub://demo/scores"), open_broker("pubsub://demo/dead")),
            lateness_us=100 * 86_400 * SECOND,  # seconds here are months of the events: what comes again is that late
        )
        environment = {"PUBSUB_EMULATOR_HOST": server.address}
        options = [*cluster.beam_options(flink.address, environment), *cluster.STREAM_OPTIONS]
        pipeline = make_pipeline("FlinkRunner", options)
        build(pipeline, config)
        result = pipeline.run()
        publisher = open_broker("pubsub://demo/events").publisher()
        for start in range(0, 8000, 1000):  # of one call, the parts may change places
            publisher.publish(payloads[start : start + 1000])
        _wait(lambda: server.backlog(scored).undelivered >= 4000)
        job = next(job["jid"] for job in flink.rest("/jobs/overview")["jobs"] if job["state"] == "RUNNING")
        flink.kill_task_manager(_host(flink, job))
        flink.start_task_manager()
        for start in range(8000, len(payloads), 1000):
            publisher.publish(payloads[start : start + 1000])
            time.sleep(0.2)
        publisher.close()
        _wait(lambda: server.backlog(scored).undelivered >= len(payloads) and _empty(server.backlog(events)))
        restored = flink.rest(f"/jobs/{job}/checkpoints")["counts"]["restored"]
        result.cancel()
        scores = _messages("pubsub://demo/scores")
    assert restored == 1
    assert {score["TRANSACTION_ID"] for score in scores} == set(expected)
    assert not [s["TRANSACTION_ID"] for s in scores if s["late"]]
    assert not [s for s in scores if np.float32(s["score"]) != expected[s["TRANSACTION_ID"]]]


def test_what_a_bundle_registers_is_called_at_the_second_checkpoint():
    ripe, called, registered = collections.deque(), [], []

    class Finalizer:
        def register(self, callback):
            registered.append(callback)

    def checkpoint():
        callbacks, registered[:] = list(registered), []
        for callback in callbacks:
            callback()

    _AtSecondCheckpoint(Finalizer(), ripe).register(lambda: called.append("first"))
    checkpoint()
    assert called == []
    assert len(ripe) == 1
    Finalizer().register(ripe.popleft())
    checkpoint()
    assert called == ["first"]


def test_a_journal_is_refused():
    with pytest.raises(ValueError, match="checkpoints take the place"):
        ReadFlinkStream(open_broker("pubsub://demo/events"), card_fraud(), SECOND, journal="journal")


def _host(flink, job):
    """The TaskManager that runs the first step of a job."""
    vertex = flink.rest(f"/jobs/{job}")["vertices"][0]["id"]
    return flink.rest(f"/jobs/{job}/vertices/{vertex}/subtasks/0")["taskmanager-id"]


def _empty(backlog):
    return backlog.undelivered + backlog.outstanding == 0


def _wait(done, seconds=120):
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def _messages(uri):
    subscription, found = open_broker(uri).subscribe(), []
    while (messages := subscription.receive(10_000, 2.0)) is not None:
        found += [json.loads(payload) for payload in messages.payloads]
        subscription.acknowledge(messages.receipt)
    subscription.close()
    return found
