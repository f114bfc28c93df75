"""Rows that a stream publishes: where they go, and what their messages say beside them."""

import contextlib
import itertools
import json

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest

from models.batches import same_text
from pipelines.brokers import BrokerError, open_broker
from pipelines.pubsub_emulator import PubsubEmulator
from pipelines.runners import make_pipeline
from pipelines.sinks.topics import PublishRows, attributes_of
from tests.kit.services import SERVICES

pytestmark = [pytest.mark.serial, pytest.mark.usefixtures("haste")]

DECISIONS = ["bot", "human", "bot", "human", "human"]


def rows(decisions=DECISIONS, first=0):
    columns = {"id": pa.array([f"T{first + n}" for n in range(len(decisions))])}
    columns["decision"] = pa.array(decisions, pa.string()).dictionary_encode()
    return pa.record_batch({**columns, "bundle_id": same_text("b1", len(decisions))})


def publish(sink, scores=(), dead_letters=(), **others):
    pipeline = make_pipeline("DirectRunner", [])
    given = {"scores": scores, "dead_letters": dead_letters, **others}
    {name: pipeline | name >> beam.Create(list(each)) for name, each in given.items()} | sink
    pipeline.run().wait_until_finish()


def read(source, count):
    """(payload, the attribute that the URI names) of so many messages, and of any that come after."""
    found, subscription = [], source.subscribe()
    with contextlib.closing(subscription):
        while (messages := subscription.receive(1000, 30.0 if len(found) < count else 0.5)) is not None:
            found += zip(messages.payloads, messages.event_times or [None] * len(messages), strict=True)
            subscription.acknowledge(messages.receipt)
    return sorted(found)


@pytest.fixture(params=SERVICES)
def service(request):
    with contextlib.closing(request.param(request)) as service:
        yield service


@pytest.mark.parametrize(
    ("attribute", "wanted"),
    [("decision", DECISIONS), ("bundle_id", ["b1"] * 5), ("project", ["support"] * 5)],
)
def test_a_message_says_its_decision_its_bundle_and_its_project(service, attribute, wanted):
    source, scores = service.place(f"event_time={attribute}")
    _, dead = service.place()
    publish(PublishRows(scores, dead, project="support"), [rows(DECISIONS[:2]), rows(DECISIONS[2:], 2)])
    assert [value for _, value in read(source, 5)] == wanted


def test_a_dead_letter_says_its_project_alone(service):
    _, scores = service.place()
    source, dead = service.place("event_time=project")
    letters = pa.record_batch({"payload": pa.array([b"{oops"])})
    publish(PublishRows(scores, dead, project="support"), dead_letters=[letters])
    assert read(source, 1) == [(b'{"payload":"{oops"}', "support")]
    assert attributes_of(letters, "support") == [{"project": "support"}]


def test_attributes_are_of_what_a_row_has():
    batch = rows()
    assert attributes_of(batch, "p")[1] == {"project": "p", "decision": "human", "bundle_id": "b1"}
    assert attributes_of(batch, "p") == attributes_of(batch.set_column(1, "decision", pa.array(DECISIONS)), "p")
    assert attributes_of(batch.select(["id"]), "p") == [{"project": "p"}] * 5
    assert attributes_of(batch.slice(2, 0), "p") == []
    unknown = rows(["bot", None])
    assert [each.get("decision") for each in attributes_of(unknown, "p")] == ["bot", None]


def test_rows_that_say_the_same_share_their_attributes():
    batch = rows(np.random.default_rng(0).choice(["a", "b", "c"], 1000).tolist())
    assert len({id(each) for each in attributes_of(batch, "p")}) == 3


def ids(found):
    return sorted(json.loads(payload)["id"] for payload, _ in found)


def test_rows_of_a_decision_go_to_its_topic_and_all_others_to_the_sinks(service):
    (rest, scores), (people, to_people), (_, dead) = service.place(), service.place(), service.place()
    random = np.random.default_rng(0)
    decisions = random.choice(["bot", "human", "wait"], 200).tolist()
    batch = rows(decisions)
    cuts = [0, *sorted(random.integers(0, 200, 7).tolist()), 200]
    parts = [batch.slice(start, stop - start) for start, stop in itertools.pairwise(cuts)]
    routed = {"human": to_people, "wait": to_people}
    publish(PublishRows(scores, dead, project="p", routed=routed), [parts[n] for n in random.permutation(len(parts))])
    by_bot = [f"T{n}" for n, decision in enumerate(decisions) if decision == "bot"]
    assert ids(read(rest, len(by_bot))) == sorted(by_bot)
    assert ids(read(people, 200 - len(by_bot))) == sorted(f"T{n}" for n in range(200) if f"T{n}" not in by_bot)


def test_a_topic_that_is_the_sinks_gets_each_row_once(service):
    (source, scores), (_, dead) = service.place(), service.place()
    corrected = rows().append_column("correction", pa.array([True] * 5))
    publish(PublishRows(scores, dead, routed={"human": scores}), [corrected])
    assert ids(read(source, 5)) == [f"T{n}" for n in range(5)]


def test_a_missing_topic_of_a_decision_is_told_with_all_that_the_sink_needs(monkeypatch):
    with PubsubEmulator() as server:
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", server.address)
        server.create("demo", "scores")
        server.create("demo", "dead")
        scores, dead, people = (open_broker(f"pubsub://demo/{name}") for name in ("scores", "dead", "people"))
        needed = "the sink needs the topics " + ", ".join(
            f"pubsub://demo/{name}" for name in ("scores", "dead", "people")
        )
        with pytest.raises((BrokerError, RuntimeError), match=f"no topic projects/demo/topics/people: .*{needed}"):
            publish(PublishRows(scores, dead, routed={"human": people, "wait": people}), [rows()])


def unscored():
    return pa.record_batch({"id": ["T9"], "decision": ["human"], "outcome": ["dead-lettered"]})


def test_rows_with_the_fallback_decision_go_where_their_decision_goes(service):
    (rest, scores), (people, to_people), (_, dead) = (
        service.place(),
        service.place("event_time=decision"),
        service.place(),
    )
    publish(PublishRows(scores, dead, fallback=to_people, routed={"human": to_people}), [rows()], fallback=[unscored()])
    found = read(people, 4)
    assert ids(found) == ["T1", "T3", "T4", "T9"]
    assert {decision for _, decision in found} == {"human"}
    assert ids(read(rest, 2)) == ["T0", "T2"]


def test_rows_with_the_fallback_decision_go_with_the_scores_where_it_has_no_topic(service):
    (source, scores), (_, dead) = service.place(), service.place()
    publish(PublishRows(scores, dead), [rows()], fallback=[unscored()])
    assert ids(read(source, 6)) == ["T0", "T1", "T2", "T3", "T4", "T9"]
