"""Dataflow's requests, made without a network: what is refused, what an update goes by, and the native source.

After a wanted change of the graph, `python -m tests.pipelines.runners.test_dataflow` renews the lists of steps in deploy/dataflow.
A running stream can't be updated to a graph whose stateful steps have other names or states.
"""

import dataclasses
import datetime
import json
import pathlib
import re
import socket

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.io.gcp.pubsub import PubsubMessage
from apache_beam.transforms.userstate import BagStateSpec

from models.record import FORMAT, MARKS, RECORD_SCHEMA, SLICE
from pipelines.brokers import BrokerError, open_broker
from pipelines.graph import GraphConfig, build
from pipelines.results import read_success
from pipelines.runners import DATAFLOW, make_pipeline
from pipelines.runners.dataflow import DataflowError, describe_steps, dry_run, dry_run_options
from pipelines.runners.profile import SELF_CONTAINED
from pipelines.sinks.files import WriteFiles
from pipelines.sinks.topics import PublishRows
from pipelines.sources.feeds import Topic, feeds_of
from pipelines.sources.native_pubsub import BatchMessages, ReadNativePubsub, batch_messages
from pipelines.sources.release_reader import FollowReleases
from tests.kit.releases import GivenBundles, given_log, make_log
from tests.kit.support import ROOT, card_fraud, read_files, run_graph, tiny_scorer, transaction, write_rows
from transforms.score import Score

pytestmark = pytest.mark.slow

DEPLOY = ROOT / "deploy" / "dataflow"
IMAGE = "europe-docker.pkg.dev/my-project/headrace/headrace:0.1.0"
ARGS = [
    "--project=my-project",
    "--region=europe-west1",
    "--temp_location=gs://my-bucket/tmp",
    f"--sdk_container_image={IMAGE}",
    "--job_name=headrace",
]
EVENTS = open_broker("pubsub://my-project/events?event_time=event_time")
(FEED,) = feeds_of(card_fraud(), {"events": Topic(EVENTS)})


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError(f"a dry run asks the network: {args}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def make_job(mode, args=ARGS, shards=8, options=dry_run_options, log=None):
    project = card_fraud()
    topic = open_broker("pubsub://my-project/scores")
    source, sink = {
        "batch": (
            read_files(project, ["gs://my-bucket/events/*.parquet"]),
            WriteFiles("gs://my-bucket/scores", project.event.id, project.event.time),
        ),
        "stream": (ReadNativePubsub(FEED), PublishRows(topic, topic)),
    }[mode]
    score = Score(project, tiny_scorer(project.model.inputs), "bundle")
    if log is not None:
        source, score = FollowReleases(source, log), Score(project, None, "", bundles=log.bundles)
    pipeline = make_pipeline(DATAFLOW, options(args))
    build(pipeline, GraphConfig(project, source, score, sink, shards))
    return pipeline


def test_a_job_is_made_and_checked_without_a_network(mode):
    summary = dry_run(make_job(mode))
    assert summary.streaming == (mode == "stream")
    assert summary.image == IMAGE
    assert summary.requirements == ("beam:requirement:pardo:stateful:v1",)
    assert "beam:version:sdk_base:apache/beam_python3.11_sdk:2.77.0" in summary.capabilities
    assert summary.graph_bytes < 1_000_000
    request = json.loads(summary.request)
    assert request["type"] == ("JOB_TYPE_STREAMING" if summary.streaming else "JOB_TYPE_BATCH")
    (pool,) = request["environment"]["workerPools"]
    assert not pool.get("packages")
    assert [image["containerImage"] for image in pool["sdkHarnessContainerImages"]] == [IMAGE]
    assert "use_runner_v2" in request["environment"]["experiments"]
    assert ("enable_streaming_engine" in request["environment"]["experiments"]) == summary.streaming
    assert "pickled_main_session" not in summary.request
    assert ("image", IMAGE) in summary.facts()


def test_the_steps_that_an_update_goes_by_are_as_committed(mode):
    committed = (DEPLOY / f"steps.{mode}.tsv").read_text().splitlines()
    assert list(dry_run(make_job(mode)).steps) == committed


def test_neither_shards_nor_a_second_build_change_a_step(mode):
    assert dry_run(make_job(mode, shards=2)).steps == dry_run(make_job(mode, shards=64)).steps


def test_the_native_source_is_dataflows_own_and_the_graph_behind_it_the_same():
    native = dry_run(make_job("stream"))
    assert any(step.split("\t")[1] == "beam:transform:pubsub_read:v1" for step in native.steps)
    between = [
        {step for step in summary.steps if not step.startswith(("Read/", "Write/"))}
        for summary in (native, dry_run(make_job("batch")))
    ]
    assert between[0] == between[1]
    stateful = [step for step in native.steps if "\tstate " in step]
    assert len(stateful) == 3


def test_a_log_of_releases_is_followed_beside_the_native_source():
    scorers = {"old": tiny_scorer(card_fraud().model.inputs)}
    log = given_log(card_fraud(), make_log("old"), GivenBundles(scorers))
    summary = dry_run(make_job("stream", log=log))
    assert "beam:requirement:pardo:splittable_dofn:v1" in summary.requirements
    steps = [step.replace("Read/Feeds/", "Read/") for step in summary.steps]
    assert {*dry_run(make_job("stream")).steps, "Read/Releases\tbeam:transform:pardo:v1"} <= {*steps}
    assert any(step.startswith("Assign/Hold/Advance\t") and "\tstate " in step for step in steps)


@pytest.mark.parametrize("missing", ["--project", "--region", "--temp_location", "--sdk_container_image"])
def test_what_beam_would_ask_google_for_is_asked_of_the_user(missing):
    with pytest.raises(DataflowError, match=f"a job on Dataflow needs {missing}"):
        dry_run_options([arg for arg in ARGS if not arg.startswith(missing)])


def test_a_bad_option_is_named():
    with pytest.raises(ValueError, match="Invalid job_name"):
        make_job("batch", [*ARGS[:-1], "--job_name=Not A Name"])


class Keep(beam.DoFn):
    SEEN = BagStateSpec("seen", beam.coders.BytesCoder())

    def process(self, element, seen=beam.DoFn.StateParam(SEEN)):
        yield element


class Odd:
    pass


class OddCoder(beam.coders.Coder):
    def encode(self, value):
        return b""

    def decode(self, encoded):
        return Odd()

    def is_deterministic(self):
        return True  # so Beam lets it pass

    def to_type_hint(self):
        return Odd


def test_faults_are_found_and_all_named_at_once():
    beam.coders.registry.register_coder(Odd, OddCoder)
    pipeline = make_pipeline(DATAFLOW, [*dry_run_options(ARGS), "--streaming"])
    pairs = pipeline | beam.Create([1]) | beam.Map(lambda x: (Odd(), x)).with_output_types(tuple[Odd, int])
    pairs | "Keep" >> beam.ParDo(Keep())
    with pytest.raises(DataflowError) as caught:
        dry_run(pipeline)
    text = str(caught.value)
    assert "Keep: its keys are encoded by beam:coder:pickled_python:v1" in text
    assert "Map(<lambda at test_dataflow.py" in text
    assert "its name has a line number" in text


def test_what_would_be_staged_is_refused(tmp_path):
    package = tmp_path / "extra-1.0.tar.gz"
    package.write_bytes(b"")
    with pytest.raises(DataflowError, match=r"extra-1\.0\.tar\.gz would be staged"):
        dry_run(make_job("batch", [*ARGS, f"--extra_package={package}"]))


def test_beam_alone_would_pickle_the_main_module(monkeypatch):
    for module in ("pipelines.runners", "pipelines.runners.dataflow"):
        monkeypatch.setattr(f"{module}.SELF_CONTAINED", SELF_CONTAINED[:1] + SELF_CONTAINED[2:])
    with pytest.raises(DataflowError, match="pickled_main_session would be staged"):
        dry_run(make_job("stream"))


def test_the_request_goes_to_a_file(tmp_path):
    path = tmp_path / "job.json"
    summary = dry_run(make_job("stream", [*ARGS, f"--dataflow_job_file={path}"]))
    assert path.read_text() == summary.request


def test_a_template_is_written_and_nothing_but_the_graph_staged(tmp_path):
    """What the launcher of a Flex Template does; an address of this machine keeps Beam from asking Google."""
    places = [f"--{name}={tmp_path}" for name in ("temp_location", "staging_location")]
    args = [arg for arg in ARGS if not arg.startswith("--temp_location")]
    endpoint = ["--dataflow_endpoint=http://localhost:1", "--no_auth", f"--template_location={tmp_path}/job.json"]
    result = make_job("stream", [*args, *places, *endpoint, *SELF_CONTAINED], options=list).run()
    assert result.wait_until_finish() == "DONE"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["job.json", "pipeline.pb"]
    assert json.loads((tmp_path / "job.json").read_text())["type"] == "JOB_TYPE_STREAMING"


def message(row, number):
    published = datetime.datetime(2018, 6, 1, 12, 0, 0, 250_001, tzinfo=datetime.UTC)
    return PubsubMessage(json.dumps(row).encode(), {}, str(number), published)


def test_messages_become_the_batches_that_every_stream_has():
    batch = batch_messages([message(transaction(1), 17), message(transaction(2), "a/18")], FEED)
    assert batch.schema.names == [*RECORD_SCHEMA.names, MARKS]
    assert batch.schema.metadata == {FORMAT: b"json", SLICE: b"1000000"}
    rows = batch.to_pylist()
    assert [row["__position"] for row in rows] == [17, 18]
    assert [row["__message"] for row in rows] == ["17", "a/18"]
    assert rows[0]["__source"] == "pubsub://my-project/events?event_time=event_time"
    assert rows[0]["__published"].isoformat() == "2018-06-01T12:00:00.250001+00:00"
    assert json.loads(rows[1]["__payload"]) == transaction(2)


def feed_of(**changes):
    return dataclasses.replace(FEED, source=Topic(dataclasses.replace(EVENTS, **changes)))


def test_without_an_event_time_attribute_the_source_is_refused():
    with pytest.raises(BrokerError, match=re.escape("pubsub://p/events?event_time=ATTRIBUTE")):
        beam.Pipeline() | ReadNativePubsub(feed_of(project="p", event_time_attribute=None))


def test_a_name_that_google_has_not_is_refused():
    with pytest.raises(BrokerError, match="Invalid PubSub project name: 'p'"):
        beam.Pipeline() | ReadNativePubsub(feed_of(project="p"))


@dataclasses.dataclass(eq=False)
class Replayed(beam.PTransform):
    """The native source with its reader taken out: messages that are there already, with their times."""

    rows: list

    def expand(self, pbegin):
        def timed(numbered):
            number, row = numbered
            moment = datetime.datetime.fromisoformat(row["TX_DATETIME"]).replace(tzinfo=datetime.UTC)
            return beam.window.TimestampedValue(message(row, number), moment.timestamp())

        messages = pbegin | beam.Create(list(enumerate(self.rows))) | beam.Map(timed)
        return {"events": messages | "Batch" >> beam.ParDo(BatchMessages(FEED)).with_output_types(pa.RecordBatch)}


def test_messages_score_to_the_same_bits_as_files(tmp_path):
    rows = [transaction(n) for n in (3, 1, 4, 0, 2, 5)]
    expected = run_graph(tmp_path / "files", [write_rows(tmp_path / "events.jsonl", rows)])
    project = card_fraud()
    pipeline = make_pipeline("DirectRunner", [])
    sink = WriteFiles(str(tmp_path / "messages"), project.event.id, project.event.time)
    score = Score(project, tiny_scorer(project.model.inputs), "bundle")
    build(pipeline, GraphConfig(project, Replayed(rows), score, sink))
    pipeline.run().wait_until_finish()
    said = read_success(str(tmp_path / "messages"))
    assert said["events"] == expected.outcomes == {"read": 6, "scored": 6}
    table = pa.parquet.read_table(next((tmp_path / "messages" / "scores").iterdir()))
    assert table.select(["TRANSACTION_ID", "score"]).equals(expected.scores.select(["TRANSACTION_ID", "score"]))


def test_the_template_asks_for_what_a_run_needs():
    metadata = json.loads((DEPLOY / "metadata.json").read_text())
    names = {parameter["name"] for parameter in metadata["parameters"]}
    assert {"source", "sink", "registry", "model"} <= names
    for parameter in metadata["parameters"]:
        for regex in parameter.get("regexes", ()):
            re.compile(regex)
    assert metadata["streaming"] is True


def test_the_image_is_of_the_beam_that_is_locked():
    lock = (ROOT / "requirements" / "locks" / "py311.txt").read_text()
    version = re.search(r"(?m)^apache-beam(?:\[.*\])?==([0-9.]+)", lock)[1]
    assert f"beam_python3.11_sdk:{version}" in (DEPLOY / "Dockerfile").read_text()


if __name__ == "__main__":
    for kind in ("batch", "stream"):
        path = pathlib.Path(DEPLOY / f"steps.{kind}.tsv")
        graph = make_job(kind).run().job.proto_pipeline
        path.write_text("\n".join(describe_steps(graph)) + "\n")
        print(path)
