"""A run's spec: all faults at once, and nothing of a run that could not be told again."""

import dataclasses
import re

import pytest

from pipelines.config import RunSpec
from pipelines.prechecks import UsageError
from pipelines.runners import DATAFLOW, FLINK, PRISM
from tests.kit.support import card_fraud

TOPICS = {"sources": ("pubsub://p/events",), "sink": "pubsub://p/scores"}
TO_KAFKA = {**TOPICS, "sink": "kafka://a:1/scores"}
EXACTLY = {**TO_KAFKA, "transactional": True, "journal": "j"}
ON_FLINK = {"runner": FLINK, "beam_args": ("--flink_master=h:1",)}


@pytest.fixture
def spec(tmp_path):
    (tmp_path / "events.csv").write_text("")
    return RunSpec(card_fraud(), (str(tmp_path / "events.csv"),), str(tmp_path / "out"))


def test_a_spec_without_fault_passes(spec):
    spec.check()
    dataclasses.replace(spec, **TOPICS).check()
    dataclasses.replace(spec, **EXACTLY, dead_letters="kafka://a:1/dead").check()
    assert not spec.streams
    assert dataclasses.replace(spec, **TOPICS).streams


@pytest.mark.parametrize(
    "change",
    [
        TOPICS,
        {"sink": "gs://bucket/scores"},
        {"labels": ("s3://bucket/labels.csv",)},
        {"alert_to": ("pubsub://p/alerts",)},
        {"beam_args": ("--temp_location=gs://bucket/temp",)},
        {"runner": FLINK},
    ],
)
def test_what_is_not_of_this_machine_alone_is_not_local(spec, change):
    assert spec.local
    assert not dataclasses.replace(spec, **change).local


def test_all_faults_are_told_at_once(spec):
    wrong = dataclasses.replace(
        spec,
        sources=("none.csv", "other.csv"),
        sink="",
        sink_format="xml",
        order="random",
        score_from="soon",
        allowance="x",
        lateness="y",
        labels=("labels.csv",),
        values="xml",
        kafka_config="none.properties",
        history=("old.csv",),
        runner="Foo",
    )
    with pytest.raises(UsageError) as error:
        wrong.check()
    said = [line.split()[0].rstrip(":") for line in str(error.value).splitlines()]
    assert said == [
        *["--sink-format", "--order", "--score-from", "--allowance", "--lateness", "--labels", "--runner"],
        *["--values", "--kafka-config", "--history", "--sink"],
        *["none.csv", "other.csv", "labels.csv", "old.csv"],
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sources": ("pubsub://p/events",)}, "a stream has one broker's --source and a broker's --sink"),
        ({"sink": "kafka://h:1/scores"}, "a stream has one broker's --source and a broker's --sink"),
        ({**TOPICS, "files": 2}, "are for files, not for a stream"),
        ({**TOPICS, "replace": True}, "are for files, not for a stream"),
        ({**TOPICS, "runner": FLINK, "journal": "j"}, "on Flink, checkpoints take the place of --journal"),
        (
            {**TOPICS, "runner": PRISM, "journal": "j"},
            "on Prism a --journal would take events for scored that are lost",
        ),
        ({**TOPICS, "transactional": True, "journal": "j"}, "--sink is kafka://HOST:PORT/TOPIC, not pubsub://p/scores"),
        ({**TO_KAFKA, "transactional": True}, "--transactional needs a --journal"),
        ({**EXACTLY, "order": "arrival"}, "--transactional is for --order event_time"),
        ({**EXACTLY, "dead_letters": "kafka://b:2/dead"}, "a topic of kafka://a:1, not kafka://b:2/dead"),
        ({**EXACTLY, "runner": PRISM}, "--transactional is for the engine of this process"),
        ({**EXACTLY, "runner": FLINK}, "--transactional is for the engine of this process"),
        ({"transactional": True}, "--transactional is for a stream"),
        ({**TOPICS, "values": "pulsar"}, "--values pulsar reads by the schemas that Pulsar keeps"),
        ({**TOPICS, "runner": DATAFLOW, "journal": "j"}, "without --journal"),
        ({**TOPICS, "runner": DATAFLOW, "order": "arrival"}, "without --order arrival"),
        ({**TOPICS, "runner": FLINK}, "FlinkRunner needs a cluster"),
        ({"sources": ("kafka://h:1/e",), "sink": "kafka://h:1/s", "runner": DATAFLOW}, "streams of pubsub:// alone"),
        ({"sources": ("here.csv",), **ON_FLINK}, r"\$PWD/here.csv"),
        ({"state": "states", "day": "2018-06-08", **ON_FLINK}, r"\$PWD/states"),
        ({**TOPICS, "history": ("past.csv",), **ON_FLINK}, r"\$PWD/past.csv"),
        ({"beam_args": ("--num_workers=2",)}, "--num_workers is none of headrace's options, and InProcessRunner"),
        ({"beam_args": ("--runner=x",)}, "--runner stands before a --"),
        ({"beam_args": ("--fils=2",), "ours": ("--files",)}, r"did you mean --files\?"),
        ({"beam_args": ("--fils=2",), "ours": ("--files",), "runner": "fnapi"}, r"did you mean --files\?"),
        ({"alert_to": ("log",), "project": None}, "--alert-to is for a project that declares quality"),
        ({"dry_run": True}, "--dry-run is for --runner DataflowRunner"),
        (
            {"runner": "prismrunner", "state": "state", "day": "2018-06-08"},
            "--state: on a busy machine a run on PrismRunner",
        ),
    ],
)
def test_a_fault_is_told_in_one_line(spec, change, message):
    if "project" in change:
        change = {**change, "project": spec.project.model_copy(update={"quality": None})}
    (line,) = [fault for fault in dataclasses.replace(spec, **change).faults() if "no such file" not in fault]
    assert re.search(message, line)


def test_what_was_told_is_kept_without_secrets_and_without_defaults(spec):
    url = "http://user:secret1@host"
    told = dataclasses.replace(spec, score_from="2018-06-08", replace=True, runner=PRISM, kafka_config=url)
    assert told.options() == {
        "sources": [spec.sources[0]],
        "sink": spec.sink,
        "score_from": "2018-06-08",
        "kafka_config": "http://***@host",
    }


def test_transactions_have_all_topics_of_decisions(spec):
    def of(place):
        project = spec.project.model_copy(update={"sinks": {"block": "people", "review": place}})
        return list(dataclasses.replace(spec, **EXACTLY, project=project).faults())

    assert of("others") == of("kafka://a:1/others") == []
    for place in ("kafka://b:2/others", "pubsub://p/others"):
        (line,) = of(place)
        assert line.startswith("--transactional has all rows in the transactions of kafka://a:1: sinks sends review to")


def test_decisions_with_a_name_have_folders_and_those_of_a_topic_none(spec):
    sinks = {"block": "people", "approve": "kafka://a:1/done", "review": "people"}
    project = spec.project.model_copy(update={"sinks": sinks})
    assert dataclasses.replace(spec, project=project).folders == {"people": ("block", "review")}
