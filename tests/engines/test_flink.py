"""Flink: the same bytes from a real cluster, and a stream that loses nothing, whatever is killed or upgraded."""

import collections
import json
import shutil
import time

import numpy as np
import pytest

from deploy.flink import cluster
from models.sample import write_sample
from pipelines.brokers import open_broker
from pipelines.config import GraphConfig, make_pipeline
from pipelines.graph import build
from pipelines.pubsub_emulator import PubsubEmulator
from pipelines.runners import Job
from pipelines.sinks.files import WriteFiles
from pipelines.sinks.topics import PublishRows
from pipelines.sources.acknowledge import AfterCheckpoint, _AtSecondCheckpoint
from pipelines.sources.payloads import read_payloads
from tests.kit.bad import BAD
from tests.kit.support import card_fraud, read_files, read_output, read_stream, run_graph, tiny_scorer, write_rows
from transforms.score import Score

pytestmark = pytest.mark.serial

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
@pytest.mark.parametrize("shards", [1, 4])
def test_batch_on_the_cluster_writes_the_same_bytes(tmp_path, flink, sample, shards):
    project = card_fraud()
    bad = write_rows(tmp_path / "bad.jsonl", [bad for bad, _ in BAD.values()])
    sources = (f"{sample}/*.parquet", bad)
    here = run_graph(tmp_path / "here", sources)
    config = GraphConfig(
        project,
        read_files(project, sources),
        Score(project, tiny_scorer(project.model.inputs), "bundle", 0),
        WriteFiles(str(tmp_path / "there"), project.event.id, project.event.time),
        shards,
    )
    pipeline = make_pipeline("FlinkRunner", [f"--flink_master={flink.address}"], Job(shards=shards))
    build(pipeline, config)
    pipeline.run().wait_until_finish()
    there = read_output(tmp_path / "there")
    assert there.outcomes == here.outcomes
    assert there.digest == here.digest
    assert here.scores.num_rows == 20_000


class Streaming:
    """A stream on the cluster over an emulated Pub/Sub, and what it must come to by a batch over the same events."""

    def __init__(self, flink, server, sample, folder):
        self.flink, self.server, self.project = flink, server, card_fraud()
        here = run_graph(folder / "here", [f"{sample}/*.parquet"])
        self.expected = {row["TRANSACTION_ID"]: self._result(row) for row in here.scores.to_pylist()}
        self.payloads = list(read_payloads([f"{sample}/*.parquet"]))
        _, self.events = server.create("demo", "events", "events")
        _, self.scored = server.create("demo", "scores", "scores")
        server.create("demo", "dead", "dead")
        self.publisher = open_broker("pubsub://demo/events").publisher()

    def start(self, bundle_id, *more):
        """The job's id, once the cluster has it."""
        before = self._jobs()
        broker = open_broker("pubsub://demo/events", ack_deadline_seconds=10)
        source = read_stream(self.project, broker, 10 * SECOND, idle_us=2 * SECOND, acknowledge=AfterCheckpoint())
        config = GraphConfig(
            self.project,
            source,
            Score(self.project, tiny_scorer(self.project.model.inputs), bundle_id, 0),
            PublishRows(open_broker("pubsub://demo/scores"), open_broker("pubsub://demo/dead")),
            lateness_us=100 * 86_400 * SECOND,  # seconds here are months of the events: what comes again is that late
        )
        pipeline = make_pipeline("FlinkRunner", [f"--flink_master={self.flink.address}", *more], Job(streams=True))
        build(pipeline, config)
        pipeline.run()
        _wait(lambda: self._jobs() - before)
        (job,) = self._jobs() - before
        return job

    def _jobs(self):
        return {job["jid"] for job in self.flink.rest("/jobs/overview")["jobs"]}

    def publish(self, start, stop, pause=0.0):
        for first in range(start, stop, 1000):  # of one call, the parts may change places
            self.publisher.publish(self.payloads[first : min(first + 1000, stop)])
            time.sleep(pause)

    def wait_for_scores(self, count):
        _wait(lambda: self.server.backlog(self.scored).undelivered >= count)

    def finish(self, job):
        """All scores, when each event has one and all messages are acknowledged."""
        self.wait_for_scores(len(self.payloads))
        _wait(lambda: _empty(self.server.backlog(self.events)))
        self.publisher.close()
        self.flink.cancel_job(job)
        scores = _messages("pubsub://demo/scores")
        assert {score["TRANSACTION_ID"] for score in scores} == set(self.expected)
        assert not [score["TRANSACTION_ID"] for score in scores if score["late"]]
        assert not [s for s in scores if self._result(s) != self.expected[s["TRANSACTION_ID"]]]
        return scores

    def _result(self, row):
        return [np.float32(row["score"]), row["decision"], *(row[name] for name in self.project.feature_names)]


@pytest.fixture
def streaming(tmp_path, flink, sample, monkeypatch):
    with PubsubEmulator() as server:
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", server.address)
        yield Streaming(flink, server, sample, tmp_path)


@needs_flink
@pytest.mark.timeout(240)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("killed", ["task manager", "worker"])
def test_a_stream_loses_nothing_when_a_process_is_killed(streaming, flink, killed):
    """Every event is scored as in batch and at last acknowledged; some are published twice, with the same bits."""
    job = streaming.start("bundle")
    streaming.publish(0, 8000)
    streaming.wait_for_scores(4000)
    if killed == "worker":
        flink.kill_worker(_host(flink, job))
    else:
        flink.kill_task_manager(_host(flink, job))
        flink.start_task_manager()
    streaming.publish(8000, len(streaming.payloads), 0.2)
    streaming.wait_for_scores(len(streaming.payloads))
    assert flink.rest(f"/jobs/{job}/checkpoints")["counts"]["restored"] == 1
    streaming.finish(job)


@needs_flink
@pytest.mark.timeout(240)
@pytest.mark.filterwarnings("ignore")
def test_a_stream_goes_on_from_a_savepoint_with_another_bundle(streaming, flink, tmp_path):
    """Each event has one score, by the bundle before or the one after, with the windows of all events before it."""
    job = streaming.start("before")
    streaming.publish(0, 8000)
    streaming.wait_for_scores(4000)
    savepoint = flink.stop_job(job, tmp_path / "savepoints")
    streaming.publish(8000, 12_000)
    job = streaming.start("after", f"--savepoint_path={savepoint}")
    streaming.publish(12_000, len(streaming.payloads), 0.2)
    scores = streaming.finish(job)
    assert flink.rest(f"/jobs/{job}/checkpoints")["counts"]["restored"] == 1
    assert len(scores) == len(streaming.payloads)
    by_bundle = collections.Counter(score["bundle_id"] for score in scores)
    assert min(by_bundle["before"], by_bundle["after"]) >= 4000


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


def _host(flink, job):
    """The name of the TaskManager that runs the first step of a job."""
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
