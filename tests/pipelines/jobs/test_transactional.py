"""With --transactional, all topics of a stream are of the one outbox that its journal's keeper commits."""

import dataclasses

import pytest

pytest.importorskip("confluent_kafka", reason="needs confluent-kafka, which is not installed")

from models.project.learned import Fallback
from pipelines.config import RunSpec
from pipelines.jobs.topics import acknowledge, open_topics
from tests.kit.support import card_fraud

SPEC = RunSpec(card_fraud(), ("pubsub://p/events",), "kafka://a:1/scores", journal="journal", transactional=True)


def test_all_topics_are_of_the_journals_outbox():
    topics = open_topics(SPEC)
    brokers = [topics.scores, topics.dead_letters, topics.quality]
    assert [each.topic for each in brokers] == ["scores", "scores-dead-letters", "scores-quality"]
    assert {each.outbox for each in brokers} == {"journal"}
    assert acknowledge(SPEC).sink == topics.scores


def test_those_of_decisions_are_too():
    updates = {"sinks": {"block": "people", "review": "people", "look": "looked"}, "fallback": Fallback(action="look")}
    topics = open_topics(dataclasses.replace(SPEC, project=SPEC.project.model_copy(update=updates)))
    assert {name: each.topic for name, each in topics.routed.items()} == updates["sinks"]
    assert topics.fallback == topics.routed["look"]
    assert {each.outbox for each in topics.routed.values()} == {"journal"}


def test_without_there_is_none():
    plain = dataclasses.replace(SPEC, transactional=False)
    assert open_topics(plain).scores.outbox is None
    assert acknowledge(plain).sink is None
