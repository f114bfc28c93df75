"""Streams on a Flink cluster, over brokers, and what they must come to."""

import json
import shutil
import time
import urllib.parse

import numpy as np
import pytest
from confluent_kafka import TopicPartition

from deploy.flink import cluster
from models import metrics
from pipelines.brokers import open_broker
from pipelines.graph import GraphConfig, build
from pipelines.runners import Job, make_pipeline
from pipelines.sinks.topics import PublishRows
from pipelines.sources.acknowledge import AfterCheckpoint
from pipelines.sources.payloads import read_payloads
from tests.kit.kafka import QUICK
from tests.kit.pulsar import new_topic
from tests.kit.support import card_fraud, read_stream, run_graph, tiny_scorer
from transforms.score import Score

SECOND = 1_000_000

needs_flink = pytest.mark.skipif(
    shutil.which("java") is None or not cluster.JOB_SERVER.exists(),
    reason=f"no java, or no {cluster.JOB_SERVER}: run deploy/flink/build.sh",
)


def submit(flink, config, *more):
    """Start the graph of a stream on a cluster; the job's id, once the cluster has it."""

    def jobs():
        return {job["jid"] for job in flink.rest("/jobs/overview")["jobs"]}

    before = jobs()
    pipeline = make_pipeline("FlinkRunner", [f"--flink_master={flink.address}", *more], Job(streams=True))
    build(pipeline, config)
    pipeline.run()
    wait_until(lambda: jobs() - before)
    (job,) = jobs() - before
    return job


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
        return read_all("pubsub://demo/scores")


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
        return submit(self.flink, config, *more)

    def metric(self, job, beam_name):
        """The sum of a metric over the cluster's operators; None if none of them has it."""
        found = []
        for vertex in self.flink.rest(f"/jobs/{job}")["vertices"]:
            path = f"/jobs/{job}/vertices/{vertex['id']}/metrics"
            ids = [m["id"] for m in self.flink.rest(path) if m["id"].endswith(f".{metrics.flink_name(beam_name)}")]
            found += [self.flink.rest(f"{path}?get={urllib.parse.quote(id)}")[0]["value"] for id in ids]
        return sum(map(int, found)) if found else None

    def publish(self, start, stop, pause=0.0):
        for first in range(start, stop, 1000):  # of one call, the parts may change places
            self.publisher.publish(self.payloads[first : min(first + 1000, stop)])
            time.sleep(pause)

    def wait_for_scores(self, count):
        wait_until(lambda: self.over.count() >= count)

    def finish(self, job):
        """All scores, when each event has one and all messages are acknowledged."""
        self.wait_for_scores(len(self.payloads))
        wait_until(self.over.is_read)
        self.publisher.close()
        self.flink.cancel_job(job)
        scores = self.over.scores()
        assert {score["TRANSACTION_ID"] for score in scores} == set(self.expected)
        assert not [score["TRANSACTION_ID"] for score in scores if score["late"]]
        assert not [s for s in scores if self._result(s) != self.expected[s["TRANSACTION_ID"]]]
        return scores

    def _result(self, row):
        return [np.float32(row["score"]), row["decision"], *(row[name] for name in self.project.feature_names)]


def host_of(flink, job):
    """The name of the TaskManager that runs the first step of a job."""
    vertex = flink.rest(f"/jobs/{job}")["vertices"][0]["id"]
    return flink.rest(f"/jobs/{job}/vertices/{vertex}/subtasks/0")["taskmanager-id"]


def wait_until(done, seconds=120, tell=lambda: "it took too long"):
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, tell()
        time.sleep(0.2)


def read_all(uri):
    subscription, found = open_broker(uri).subscribe(), []
    while (messages := subscription.receive(10_000, 2.0)) is not None:
        found += [json.loads(payload) for payload in messages.payloads]
        subscription.acknowledge(messages.receipt)
    subscription.close()
    return found


def kill_host(flink, job, killed):
    """Kill the "worker" or the "task manager" that runs the first step of a job; another TaskManager takes its place."""
    if killed == "worker":
        flink.kill_worker(host_of(flink, job))
    else:
        flink.kill_task_manager(host_of(flink, job))
        flink.start_task_manager()


def checkpoints(flink, job, kind):
    """How many checkpoints of a job are "completed", or how often it was "restored" from one or a savepoint."""
    return flink.rest(f"/jobs/{job}/checkpoints")["counts"][kind]
