"""Prism, Beam's portable runner: another process, real encoding at every stage, watermarks; and the same bits."""

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import pytest

from models.sample import write_sample
from pipelines.brokers import open_broker
from pipelines.graph import GraphConfig
from pipelines.jobs.parity import arrival_order, compare_tables
from pipelines.jobs.score import run_graph
from pipelines.pubsub_emulator import PubsubEmulator
from pipelines.results import read_kind
from pipelines.sinks.files import WriteFiles
from pipelines.sinks.listed import DEAD_LETTERS, SCORES
from pipelines.sources.payloads import read_payloads
from pipelines.sources.release_feed import WithReleases
from tests.kit.bad import BAD
from tests.kit.nights import Shop, assert_same, day, make_days, without_late
from tests.kit.releases import five_releases
from tests.kit.support import ROOT, card_fraud, read_files, read_stream, tiny_scorer, write_rows
from transforms.batches import LazyBatchCoder
from transforms.score import Score

PRISM = pathlib.Path(os.environ.get("HEADRACE_PRISM", ROOT / "build" / "prism" / "prism"))
ARGS = (f"--prism_location={PRISM}",)
SECOND = 1_000_000

pytestmark = [
    pytest.mark.serial,
    pytest.mark.skipif(not PRISM.exists(), reason=f"no Prism in {PRISM}: `make prism` builds it, with Go"),
    # Beam leaves its job server's pipe and the channels to it to the end of the process.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    folder = tmp_path_factory.mktemp("events")
    write_sample(folder, 5000, seed=2, days=40, format="jsonl")
    write_rows(folder / "bad.jsonl", [bad for bad, _ in BAD.values()])
    return f"{folder}/*.jsonl"


def run(directory, source, runner, args=(), shards=1, released=None):
    project = card_fraud()
    bundles = released.bundles if released else None
    score = Score(project, tiny_scorer(project.model.inputs), "bundle", bundles=bundles)
    sink = WriteFiles(str(directory), project.event.id, project.event.time)
    return run_graph(GraphConfig(project, source, score, sink, shards), runner, args, "test")


def files_of(directory):
    return json.loads((directory / "_SUCCESS.json").read_text())["files"]


def refused(directory):
    """What could not be used; of what came twice, once, and no duplicates, which are the stream's own."""
    letters = read_kind(str(directory), DEAD_LETTERS).to_pylist()
    return {(each["payload"], each["reasons"]) for each in letters if each["step"] != "Deduplicate"}


@pytest.fixture(scope="module")
def batch(events, tmp_path_factory):
    directory = tmp_path_factory.mktemp("direct")
    result = run(directory, read_files(card_fraud(), [events]), "DirectRunner")
    assert result.outcomes["scored"] == 5000
    assert result.outcomes["dead-lettered"] == len(BAD)
    return directory


@pytest.mark.parametrize("shards", [1, 4])
def test_batch_writes_the_same_bytes(events, batch, tmp_path, shards):
    run(tmp_path, read_files(card_fraud(), [events]), "PrismRunner", ARGS, shards)
    assert files_of(tmp_path) == files_of(batch)


def test_a_slow_worker_loses_nothing(events, batch, tmp_path, monkeypatch):
    """Each batch that a stateful step takes is slower than Prism waits before it would split a bundle."""
    decode = LazyBatchCoder.decode

    def decode_slowly(self, encoded):
        time.sleep(0.15)
        return decode(self, encoded)

    monkeypatch.setattr(LazyBatchCoder, "decode", decode_slowly)
    run(tmp_path, read_files(card_fraud(), [events]), "PrismRunner", ARGS, 4)
    assert files_of(tmp_path) == files_of(batch)


@contextlib.contextmanager
def worker_pool():
    """Beam's worker pool as a process of its own, as it stands beside a TaskManager on Kubernetes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-m", "apache_beam.runners.worker.worker_pool_main"]
    path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"  # it starts workers as `python`
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    pool = subprocess.Popen(
        [*command, f"--service_port={port}"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment
    )
    try:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        yield f"localhost:{port}"
    finally:
        pool.terminate()
        pool.wait(10)


def test_workers_of_another_process_need_nothing_staged(events, batch, tmp_path):
    from pipelines.runners.profile import SELF_CONTAINED

    with worker_pool() as address:
        external = ("--environment_type=EXTERNAL", f"--environment_config={address}")
        run(tmp_path, read_files(card_fraud(), [events]), "PrismRunner", (*ARGS, *external, *SELF_CONTAINED))
    assert files_of(tmp_path) == files_of(batch)


def stream_of(events, batch, directory, seed, released=None):
    """How many of a stream's score rows are not those of batch."""
    project = card_fraud()
    payloads = read_payloads([events])
    order = arrival_order(payloads, project, 3600 * SECOND, seed, 0.1)
    with PubsubEmulator() as server, pytest.MonkeyPatch.context() as patch:
        server.create("prism", "events", "events")
        patch.setenv("PUBSUB_EMULATOR_HOST", server.address)
        broker = open_broker("pubsub://prism/events")
        publisher = broker.publisher()
        publisher.publish([payloads[i] for i in order])
        publisher.close()
        source = read_stream(project, broker, 3600 * SECOND, idle_us=SECOND, until_idle=True, releases=released)
        stream = run(directory, source, "PrismRunner", ARGS, released=released)
    assert stream.outcomes["scored"] == 5000
    assert stream.outcomes["duplicate"] > 300
    assert refused(directory) == refused(batch)
    ours, theirs = read_kind(str(batch), SCORES), read_kind(str(directory), SCORES)
    return compare_tables("scores", ours, theirs, ours.column_names).different


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_stream_gives_the_same_bits(events, batch, tmp_path, seed):
    """Prism's streams are not proven (docs/prism.md): of some thirty one differs, so one that does is tried again."""
    if (differ := stream_of(events, batch, tmp_path / "first", seed)) == 0:
        return
    print(f"Prism gave {differ} of 5,000 events other scores; trying once more")
    assert stream_of(events, batch, tmp_path / "again", seed) == 0


def test_releases_give_the_same_bits_in_batch_and_in_a_stream(events, tmp_path):
    released = five_releases(card_fraud(), read_payloads([events]), "customer")
    for name, runner, args, shards in (("direct", "DirectRunner", (), 1), ("prism", "PrismRunner", ARGS, 4)):
        source = WithReleases(read_files(card_fraud(), [events]), released.read().records)
        run(tmp_path / name, source, runner, args, shards, released)
    assert files_of(tmp_path / "prism") == files_of(tmp_path / "direct")
    assert len(read_kind(str(tmp_path / "direct"), SCORES)["release"].unique()) == 6
    differ = [stream_of(events, tmp_path / "direct", tmp_path / "first", 0, released)]
    if differ[0]:  # as above
        differ.append(stream_of(events, tmp_path / "direct", tmp_path / "again", 0, released))
    assert differ[-1] == 0


@pytest.mark.skipif(
    not os.environ.get("HEADRACE_UNPROVEN"),
    reason="on a busy machine nights on Prism may be wrong (docs/prism.md): HEADRACE_UNPROVEN=1 tries them",
)
@pytest.mark.timeout(120)
def test_nights_equal_one_run(tmp_path):
    """The second night starts from the state that the first one has kept, by another number of shards."""
    shop = Shop(tmp_path, without_late(make_days()))  # with which a run there fails, and says from when on to score
    for number in range(2):
        shop.write([number])
        shop.night(number, runner="PrismRunner", shards=1 + number)
    shop.run("whole", score_from=day(0), score_to=day(2))
    assert_same(tmp_path / "nights", tmp_path / "whole")
