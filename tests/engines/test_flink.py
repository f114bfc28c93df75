"""Flink: the same bytes from a real cluster, and a stream that loses nothing, whatever is killed or upgraded."""

import collections
import json
import shutil
import time
import urllib.parse

import numpy as np
import pytest
from confluent_kafka import TopicPartition

from deploy.flink import cluster
from models import metrics
from models.sample import write_sample
from pipelines.brokers import open_broker
from pipelines.graph import GraphConfig, build
from pipelines.pubsub_emulator import PubsubEmulator
from pipelines.runners import Job, make_pipeline
from pipelines.sinks.files import WriteFiles
from pipelines.sinks.topics import PublishRows
from pipelines.sources.acknowledge import AfterCheckpoint, _AtSecondCheckpoint
from pipelines.sources.payloads import read_payloads
from tests.kit.bad import BAD
from tests.kit.kafka import QUICK, real_kafka
from tests.kit.pulsar import needs_pulsar, new_topic
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


class OverPubsub:
    """An emulated Pub/Sub with topics of events, scores and dead letters."""

    def __init__(self, server):
        self._server = server
        _, self._events = server.create("demo", "events", "events")
        _, self._scored = server.create("demo", "scores", "scores")
        server.create("demo", "dead", "dead")
        self.source = open_broker("pubsub://demo/events", ack_deadline_seconds=10)
        self.sinks = [open_broker("pubsub://demo/scores"), open_broker("pubsub://demo/dead")]

    def count(self):
        """How many scores there are."""
        return self._server.backlog(self._scored).undelivered

    def is_read(self):
        """Whether all events are acknowledged."""
        backlog = self._server.backlog(self._events)
        return backlog.undelivered + backlog.outstanding == 0

    def scores(self):
        """All of them."""
        return _messages("pubsub://demo/scores")


class Tail:
    """Looks on at the scores of a broker that keeps them."""

    def __init__(self, broker):
        self._reader, self._read = broker.tail(from_start=True), []

    def count(self, quiet_seconds=0.2):
        """How many scores there are."""
        while (messages := self._reader.receive(10_000, quiet_seconds)) is not None:
            self._read += map(json.loads, messages.payloads)
            self._reader.acknowledge(messages.receipt)
        return len(self._read)

    def scores(self):
        """All of them."""
        self.count(2.0)
        self._reader.close()
        return self._read


class OverPulsar(Tail):
    """A real Pulsar with such topics, the events in two partitions."""

    def __init__(self, pulsar):
        self._pulsar = pulsar
        topics = [new_topic(pulsar, 2, "readers"), *(new_topic(pulsar, 0, "readers") for _ in range(2))]
        uris = [f"pulsar://{pulsar.service}/{topic}?subscription=readers" for topic in topics]
        self._events = topics[0]
        self.source, *self.sinks = map(open_broker, uris)
        super().__init__(self.sinks[0])

    def is_read(self):
        """Whether all events are acknowledged."""
        found = self._pulsar.ask("GET", f"persistent/{self._events}/partitioned-stats")["subscriptions"]["readers"]
        return found["msgBacklog"] == 0


class OverKafka(Tail):
    """A real Kafka with such topics, the events in two partitions."""

    def __init__(self, kafka):
        topics = [kafka.topic(2), kafka.topic(), kafka.topic()]
        uris = [f"kafka://{kafka.servers}/{topic}?group={topic}-readers" for topic in topics]
        self.source, *self.sinks = (open_broker(uri, settings=QUICK) for uri in uris)
        super().__init__(self.sinks[0])

    def is_read(self):
        """Whether the group has committed all events."""
        consumer, _ = self.source.connect_consumer(self.source.group)
        places = [TopicPartition(self.source.topic, number) for number in range(2)]
        found = consumer.committed(places, timeout=10)
        ends = [consumer.get_watermark_offsets(place, timeout=10)[1] for place in places]
        consumer.close()
        return [place.offset for place in found] == ends

    def scores(self):
        """All of them, and that no more wait."""
        self.count(2.0)
        assert self._reader.backlog() == 0
        return super().scores()


class Streaming:
    """A stream on the cluster over a broker, and what it must come to by a batch over the same events."""

    def __init__(self, flink, over, sample, folder):
        self.flink, self.over, self.project = flink, over, card_fraud()
        here = run_graph(folder / "here", [f"{sample}/*.parquet"])
        self.expected = {row["TRANSACTION_ID"]: self._result(row) for row in here.scores.to_pylist()}
        self.payloads = list(read_payloads([f"{sample}/*.parquet"]))
        self.publisher = over.source.publisher()

    def start(self, bundle_id, *more):
        """The job's id, once the cluster has it."""
        before = self._jobs()
        source = read_stream(
            self.project, self.over.source, 10 * SECOND, idle_us=2 * SECOND, acknowledge=AfterCheckpoint()
        )
        config = GraphConfig(
            self.project,
            source,
            Score(self.project, tiny_scorer(self.project.model.inputs), bundle_id, 0),
            PublishRows(*self.over.sinks),
            lateness_us=100 * 86_400 * SECOND,  # seconds here are months of the events: what comes again is that late
            check_slices=True,
        )
        pipeline = make_pipeline("FlinkRunner", [f"--flink_master={self.flink.address}", *more], Job(streams=True))
        build(pipeline, config)
        pipeline.run()
        _wait(lambda: self._jobs() - before)
        (job,) = self._jobs() - before
        return job

    def metric(self, job, beam_name):
        """The sum of a metric over the cluster's operators; None if none of them has it."""
        found = []
        for vertex in self.flink.rest(f"/jobs/{job}")["vertices"]:
            path = f"/jobs/{job}/vertices/{vertex['id']}/metrics"
            ids = [m["id"] for m in self.flink.rest(path) if m["id"].endswith(f".{metrics.flink_name(beam_name)}")]
            found += [self.flink.rest(f"{path}?get={urllib.parse.quote(id)}")[0]["value"] for id in ids]
        return sum(map(int, found)) if found else None

    def _jobs(self):
        return {job["jid"] for job in self.flink.rest("/jobs/overview")["jobs"]}

    def publish(self, start, stop, pause=0.0):
        for first in range(start, stop, 1000):  # of one call, the parts may change places
            self.publisher.publish(self.payloads[first : min(first + 1000, stop)])
            time.sleep(pause)

    def wait_for_scores(self, count):
        _wait(lambda: self.over.count() >= count)

    def finish(self, job):
        """All scores, when each event has one and all messages are acknowledged."""
        self.wait_for_scores(len(self.payloads))
        _wait(self.over.is_read)
        self.publisher.close()
        self.flink.cancel_job(job)
        scores = self.over.scores()
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
        yield Streaming(flink, OverPubsub(server), sample, tmp_path)


@needs_flink
@pytest.mark.timeout(240)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("killed", ["task manager", "worker"])
def test_a_stream_loses_nothing_when_a_process_is_killed(streaming, flink, killed):
    """Every event is scored as in batch and at last acknowledged; some are published twice, with the same bits."""
    kill_and_finish(streaming, flink, killed)


@needs_flink
@needs_pulsar
@pytest.mark.timeout(400)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("killed", ["task manager", "worker"])
def test_a_stream_over_pulsar_loses_nothing_when_a_process_is_killed(flink, pulsar, sample, tmp_path, killed):
    """The same over a real Pulsar."""
    kill_and_finish(Streaming(flink, OverPulsar(pulsar), sample, tmp_path), flink, killed)


@needs_flink
@pytest.mark.timeout(400)
@pytest.mark.filterwarnings("ignore")
def test_a_stream_over_kafka_loses_nothing_when_a_worker_is_killed(flink, sample, tmp_path):
    """The same over a real Kafka."""
    kill_and_finish(Streaming(flink, OverKafka(real_kafka()), sample, tmp_path), flink, "worker")


def kill_and_finish(streaming, flink, killed):
    """Kill a process in the middle of a stream, and see what it comes to."""
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
@pytest.mark.timeout(400)
@pytest.mark.filterwarnings("ignore")
def test_metrics_of_a_stream_are_flinks_own(streaming):
    """Events that the broker sends once more, as a busy engine takes long to acknowledge, are counted as duplicates."""
    job, rows = streaming.start("bundle"), len(streaming.payloads)
    streaming.publish(0, rows)
    streaming.wait_for_scores(rows)
    _wait(streaming.over.is_read, 180)  # until then, some may be on their way once more

    def events():
        names = ("read", "scored", "duplicate")
        return [streaming.metric(job, metrics.EVENTS.beam_name({"outcome": name})) or 0 for name in names]

    def add_up():
        read, scored, duplicate = events()
        return scored == rows and read == rows + duplicate

    _wait(add_up, tell=events)
    for step in ("read", "scored", "written"):
        assert streaming.metric(job, metrics.ROWS.beam_name({"step": step})) >= rows
    assert streaming.metric(job, metrics.WAITING.beam_name({})) == 0
    assert streaming.metric(job, metrics.MISSING.beam_name({})) is None
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


def _wait(done, seconds=120, tell=lambda: "it took too long"):
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, tell()
        time.sleep(0.2)


def _messages(uri):
    subscription, found = open_broker(uri).subscribe(), []
    while (messages := subscription.receive(10_000, 2.0)) is not None:
        found += [json.loads(payload) for payload in messages.payloads]
        subscription.acknowledge(messages.receipt)
    subscription.close()
    return found
