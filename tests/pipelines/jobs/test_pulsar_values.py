"""`--values pulsar`: the stream asks for its messages' schemas, and the topic's are checked before it starts."""

import pytest

from pipelines.brokers.evolution import ContractMismatch
from pipelines.brokers.pulsar import PulsarBroker
from pipelines.brokers.schema_registry import RegisteredSchema
from pipelines.config import RunSpec
from pipelines.jobs.topics import open_stream
from tests.kit.support import card_fraud

SPEC = RunSpec(
    card_fraud(), ("pulsar://h:1/t/n/events?subscription=s",), "pulsar://h:1/t/n/scores?schema=json", values="pulsar"
)


def test_messages_come_with_the_schemas_that_were_checked(monkeypatch):
    monkeypatch.setattr(PulsarBroker, "schema_versions", lambda self: [])
    (feed,) = open_stream(SPEC).feeds
    assert feed.source.broker.schemas
    assert feed.source.broker.topic == "t/n/events"
    assert feed.source.values.split([b"x"], [None])[0].rows.tolist() == [0]


def test_versions_that_do_not_fit_stop_the_start(monkeypatch):
    wrong = {"type": "record", "name": "t", "fields": [{"name": "TRANSACTION_ID", "type": "boolean"}]}
    monkeypatch.setattr(PulsarBroker, "schema_versions", lambda self: [RegisteredSchema(0, wrong, 0)])
    with pytest.raises(ContractMismatch, match="schema version 0, field TRANSACTION_ID: is boolean"):
        open_stream(SPEC)
