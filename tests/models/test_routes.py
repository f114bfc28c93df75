"""Where rows of a decision go: what may be declared, and what it means in a run."""

import numpy as np
import pyarrow as pa
import pytest

from models.routes import FOLDERS, fault_of, topic_beside
from models.score import take_decided
from pipelines.jobs.retrain import RETRAINING
from pipelines.sinks.listed import KINDS
from tests.kit.declared import assert_fault, declared
from tests.kit.support import CARD_FRAUD

TEXT = (CARD_FRAUD / "project.yaml").read_text()
SCHEMA = (CARD_FRAUD / "schema.pbtxt").read_text()


def with_sinks(sinks):
    return TEXT + f"\nsinks: {sinks}\n"


@pytest.mark.parametrize(
    "place",
    [
        "people",
        "fraud.people-2_b",
        "pubsub://project/people?ordered=true",
        "kafka://a:9092,b:9092/people",
        "pulsar://a:6650/public/default/people?schema=json",
        "pulsar+ssl://a:6651/public/default/people",
    ],
)
def test_a_topic_and_a_name_are_places(place):
    assert fault_of(place) is None


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("s3://bucket/people", "has a scheme that no broker has: write pubsub://PROJECT/TOPIC"),
        ("/data/people", "is not a name"),
        ("../people", "is not a name"),
        ("", "is not a name"),
        ("_SUCCESS.json", "is not a name"),
        ("kafka://a:9092", "is not a topic's URI"),
        ("pulsar://a:6650/people", "is not a topic's URI"),
        ("scores", "is a folder of a run's own"),
    ],
)
def test_what_is_neither_is_a_fault(place, message):
    assert message in fault_of(place)


def test_no_decision_has_a_folder_of_a_run():
    assert set(FOLDERS) == {*KINDS, RETRAINING}


@pytest.mark.parametrize(
    ("sink", "place", "uri"),
    [
        ("pubsub://p/scores", "people", "pubsub://p/people"),
        ("pubsub://p/scores?ordered=true", "people", "pubsub://p/people?ordered=true"),
        ("kafka://a:1,b:1/scores", "people", "kafka://a:1,b:1/people"),
        ("pulsar://a:1/public/default/scores", "people", "pulsar://a:1/public/default/people"),
        ("pubsub://p/scores?ordered=true", "kafka://a:1/people", "kafka://a:1/people"),
    ],
)
def test_a_name_is_beside_the_sink_and_a_uri_is_itself(sink, place, uri):
    assert topic_beside(sink, place) == uri


def test_one_topic_may_have_several_decisions():
    project = declared(with_sinks("{block: people, review: people, approve: kafka://a:1/done}"), SCHEMA)
    assert project.sinks == {"block": "people", "review": "people", "approve": "kafka://a:1/done"}


def test_a_project_without_sinks_is_the_same_as_before():
    one, other = declared(TEXT, SCHEMA), declared(with_sinks("{block: people}"), SCHEMA)
    assert "sinks" not in one.model_dump()
    assert one.feature_definitions() == other.feature_definitions()


@pytest.mark.parametrize(
    ("sinks", "fault"),
    [
        ("{refuse: people}", "sinks.refuse: no rule gives the decision 'refuse'; there are block, review, approve"),
        ("{block: gs://bucket/people}", "sinks.block: 'gs://bucket/people' has a scheme that no broker has"),
        ("{block: quality}", "sinks.block: quality is a folder of a run's own"),
        ("[people]", "sinks: Input should be a valid dictionary"),
    ],
)
def test_faults_are_named_with_their_line(sinks, fault):
    assert_fault(with_sinks("{}"), SCHEMA, "sinks: {}", f"sinks: {sinks}", fault)


def test_sinks_need_decisions():
    bare = TEXT[: TEXT.index("decisions:")]
    assert_fault(bare + "\nsinks: {}\n", SCHEMA, "sinks: {}", "sinks: {block: people}", "there are none")


def rows(decisions, **more):
    columns = {"id": pa.array(range(len(decisions))), "decision": pa.array(decisions, pa.string()), **more}
    return pa.record_batch(columns)


def test_each_row_is_taken_once_by_those_who_share_the_decisions():
    decisions = np.random.default_rng(0).choice(["a", "b", "c", "d"], 500).tolist()
    batch = rows(decisions)
    for given in (batch, batch.set_column(1, "decision", pa.array(decisions).dictionary_encode())):
        taken = [
            take_decided(given, ["a"]),
            take_decided(given, ["b", "c"]),
            take_decided(given, ["a", "b", "c"], True),
        ]
        assert [set(part["decision"].to_pylist()) for part in taken] == [{"a"}, {"b", "c"}, {"d"}]
        assert sorted(id for part in taken for id in part["id"].to_pylist()) == list(range(500))


def test_a_row_without_a_decision_is_of_the_others():
    assert take_decided(rows([None, "a"]), ["a"])["id"].to_pylist() == [1]
    assert take_decided(rows([None, "a"]), ["a"], others=True)["id"].to_pylist() == [0]


def test_a_correction_is_told_to_all():
    batch = rows(["a", "a", "b"], correction=pa.array([False, True, True]))
    assert take_decided(batch, ["a"])["id"].to_pylist() == [0, 1, 2]
    assert take_decided(batch, ["b"])["id"].to_pylist() == [1, 2]
    assert take_decided(batch, ["a"], others=True)["id"].to_pylist() == [1, 2]
