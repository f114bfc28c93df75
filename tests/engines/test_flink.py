"""Flink: the same bytes from a real cluster, and a stream that loses nothing, whatever is killed or upgraded."""

import collections
import dataclasses
import os
import pathlib
import random
import time

import pytest

from deploy.flink import cluster
from models import metrics
from models.sample import write_sample
from pipelines.config import RunSpec
from pipelines.graph import GraphConfig, build
from pipelines.jobs.released import follow_log
from pipelines.jobs.score import assemble
from pipelines.prechecks import registry_of
from pipelines.pubsub_emulator import PubsubEmulator
from pipelines.runners import Job, make_pipeline
from pipelines.sinks.files import WriteFiles
from pipelines.sources.acknowledge import _AtSecondCheckpoint
from tests.kit import breakers
from tests.kit.bad import BAD
from tests.kit.flink import (
    OverKafka,
    OverPubsub,
    OverPulsar,
    Streaming,
    checkpoints,
    kill_host,
    needs_flink,
    submit,
    wait_until,
)
from tests.kit.kafka import real_kafka
from tests.kit.nights import Shop, assert_same, day, make_days, without_late
from tests.kit.pulsar import needs_pulsar
from tests.kit.released_shop import TOPICS, Rows, Traffic, check_replay, headrace, make_shop
from tests.kit.support import card_fraud, read_files, read_output, run_graph, tiny_scorer, write_rows
from transforms.score import Score

pytestmark = pytest.mark.serial

KILLS = int(os.environ.get("HEADRACE_FLINK_KILLS", "1"))  # of a stream that takes releases


@pytest.fixture(scope="module")
def flink(tmp_path_factory):
    """A cluster whose workers find what tests hand to them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(pathlib.Path(__file__).parents[2]))
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
    kill_host(flink, job, killed)
    streaming.publish(8000, len(streaming.payloads), 0.2)
    streaming.wait_for_scores(len(streaming.payloads))
    assert checkpoints(flink, job, "restored") == 1
    streaming.finish(job)


@needs_flink
@pytest.mark.timeout(400)
@pytest.mark.filterwarnings("ignore")
def test_metrics_of_a_stream_are_flinks_own(streaming):
    """Events that the broker sends once more, as a busy engine takes long to acknowledge, are counted as duplicates."""
    job, rows = streaming.start("bundle"), len(streaming.payloads)
    streaming.publish(0, rows)
    streaming.wait_for_scores(rows)
    wait_until(streaming.over.is_read, 180)  # until then, some may be on their way once more

    def events():
        names = ("read", "scored", "duplicate")
        return [streaming.metric(job, metrics.EVENTS.beam_name({"outcome": name})) or 0 for name in names]

    def add_up():
        read, scored, duplicate = events()
        return scored == rows and read == rows + duplicate

    wait_until(add_up, tell=events)
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
    assert checkpoints(flink, job, "restored") == 1
    assert len(scores) == len(streaming.payloads)
    by_bundle = collections.Counter(score["bundle_id"] for score in scores)
    assert min(by_bundle["before"], by_bundle["after"]) >= 4000


@needs_flink
@pytest.mark.timeout(240 + 100 * KILLS)
@pytest.mark.filterwarnings("ignore")
def test_a_stream_takes_releases_through_kills_and_a_savepoint(flink, tmp_path, monkeypatch):
    """Two canaries, a promotion and a rollback by commands while it runs; then batch over the same events."""
    monkeypatch.chdir(tmp_path)  # workers are in a folder of their own
    folder, moments = pathlib.Path("project"), random.Random(KILLS)
    project, (old, new, worse) = make_shop(folder, "wall", "1s")

    def release(*command):
        made = headrace(*command, "--reason", "a change")
        assert made.exit_code == 0, made.output

    def start(*more):
        spec = RunSpec(
            project,
            ("pubsub://p/events",),
            "pubsub://p/scores",
            allowance="1s",
            releases=f"sqlite:///{folder}/.headrace/releases.db",
            runner="FlinkRunner",
            beam_args=(f"--flink_master={flink.address}",),
        )
        followed = follow_log(spec, folder, registry_of(folder, None))
        config = assemble(spec, followed.first_bundle(), None, released=followed)
        (feed,) = config.source.feeds
        quick = dataclasses.replace(feed.source.broker, ack_deadline_seconds=10)  # what is not acknowledged comes then
        feed = dataclasses.replace(feed, source=dataclasses.replace(feed.source, broker=quick))
        source = dataclasses.replace(config.source, feeds=(feed,))
        return submit(flink, dataclasses.replace(config, source=source), *more)

    commands = [
        ("release", folder, "2", "--canary", "10%"),
        ("release", folder, "2", "--canary", "50%"),
        ("promote", folder, "2"),
        ("rollback", folder),
    ]
    with PubsubEmulator() as server:
        for name in TOPICS:
            server.create("p", name, name)
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", server.address)
        release("release", folder, "1", "--shadow", "3")
        job, begun = start(), 0
        traffic, rows = Traffic(), Rows()
        traffic.start()
        rows.collect(lambda: rows.have(1))
        for number, command in enumerate(commands):
            release(*command)
            for kill in range(number * KILLS // 4, (number + 1) * KILLS // 4):
                time.sleep(moments.uniform(0, 2))
                kill_host(flink, job, ("task manager", "worker")[kill % 2])
                now = time.time()
                rows.collect(lambda now=now: rows.newest > now)
                if kill % 2:  # else ever more is unacknowledged, and at last more than the broker hands out
                    taken = checkpoints(flink, job, "completed")
                    rows.collect(lambda job=job, taken=taken: checkpoints(flink, job, "completed") > taken)
            if number == 1:
                begun += checkpoints(flink, job, "restored")
                savepoint = flink.stop_job(job, tmp_path / "savepoints")
                job = start(f"--savepoint_path={savepoint}")
            rows.collect(lambda seq=2 + number: rows.have(seq))
        published = traffic.stop()
        rows.collect(lambda: len(rows.scores) >= published)
        begun += checkpoints(flink, job, "restored")
        flink.cancel_job(job)
        rows.close()
    assert begun == KILLS + 1
    assert {row["bundle_id"] for row in rows.scores.values() if row["role"] == "canary"} == {new}
    assert {row["bundle_id"] for row in rows.scores.values() if row["release"] == 5} == {old}
    assert {row["bundle_id"] for row in rows.shadows.values()} == {worse}
    (tmp_path / "all.jsonl").write_bytes(b"\n".join(traffic.payloads))
    check_replay(folder, project, rows, tmp_path / "all.jsonl", tmp_path / "replayed")


@needs_flink
@pytest.mark.timeout(240)
@pytest.mark.filterwarnings("ignore")
def test_a_breaker_falls_back_on_the_cluster_as_here(flink, tmp_path):
    """A bad release: the circuit opens, is tried by a share of keys, closes, and opens again."""
    project, (events, log) = breakers.shop(), breakers.flaky()
    here, _ = breakers.batch(project, tmp_path / "here", events, log)
    master = [f"--flink_master={flink.address}"]
    there, _ = breakers.batch(project, tmp_path / "there", events, log, runner="FlinkRunner", beam_args=master)
    assert {row["role"] for row in here.scores.to_pylist()} == {"champion", "fallback"}
    assert there.digest == here.digest


@needs_flink
@pytest.mark.timeout(240)
@pytest.mark.filterwarnings("ignore")
def test_nights_on_the_cluster_equal_one_run_here(flink, tmp_path):
    """The second night starts from the state that the first one has kept."""
    shop = Shop(tmp_path, without_late(make_days()))  # with which a run there fails, and says from when on to score
    for number in range(2):
        shop.write([number])
        shop.night(number, runner="FlinkRunner", beam_args=(f"--flink_master={flink.address}",), shards=1 + number)
    shop.run("whole", score_from=day(0), score_to=day(2))
    assert_same(tmp_path / "nights", tmp_path / "whole")


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
