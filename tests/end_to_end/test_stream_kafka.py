"""Streams over Kafka, through the whole graph: partitions, Avro of two schema versions, a rebalance, the same bits."""

import io
import json

import fastavro
import pytest

pytest.importorskip("confluent_kafka", reason="needs confluent-kafka, which is not installed")

from models.sample import write_sample
from pipelines.brokers import open_broker
from pipelines.brokers.schema_registry import RegisteredSchema, SchemaRegistry
from pipelines.jobs.parity import arrival_order
from pipelines.sources.journal import read_segment_file, segments
from pipelines.sources.payloads import read_payloads, read_texts
from pipelines.sources.values import RegistryValues, open_values
from tests.kit.kafka import QUICK, Cluster, real_kafka
from tests.kit.registry import needs_registry, running
from tests.kit.streams import stream_to_folder
from tests.kit.support import card_fraud, run_graph

pytestmark = [pytest.mark.serial, pytest.mark.usefixtures("haste")]

SECOND = 1_000_000
HOUR = 3600 * SECOND
DAY = 24 * HOUR
FIELDS = [
    {"name": "TRANSACTION_ID", "type": "long"},
    {"name": "TX_DATETIME", "type": "string"},
    {"name": "CUSTOMER_ID", "type": "long"},
    {"name": "TERMINAL_ID", "type": "long"},
    {"name": "TX_AMOUNT", "type": "double"},
    {"name": "TX_FRAUD", "type": ["null", "long"]},
]


JSON_TYPES = {
    "TRANSACTION_ID": "integer",
    "TX_DATETIME": "string",
    "CUSTOMER_ID": "integer",
    "TERMINAL_ID": "integer",
    "TX_AMOUNT": "number",
    "TX_FRAUD": ["null", "integer"],
}


def schema(*more):
    return {"type": "record", "name": "transaction", "fields": [*FIELDS, *more]}


def broker_of(servers: Cluster, topic: str, group: str):
    return open_broker(f"kafka://{servers.servers}/{topic}?group={group}", settings=QUICK)


def stream(tmp_path, broker, values=None, allowance_us=HOUR, silence=2):
    """Score all there is, and go on until nothing has come for some seconds."""
    return stream_to_folder(tmp_path, broker, card_fraud(), allowance_us, silence * SECOND, values=values)


@pytest.fixture
def events(tmp_path):
    write_sample(tmp_path / "events", 3000, seed=4, days=4, format="jsonl")
    return f"{tmp_path}/events/*.jsonl"


@pytest.fixture
def batch(events, tmp_path):
    return run_graph(tmp_path / "batch", [events]).scores


def test_four_partitions_in_disorder_give_the_bits_of_batch(cluster, events, batch, tmp_path):
    project = card_fraud()
    payloads = read_payloads([events])
    order = arrival_order(payloads, project, HOUR, 1, 0.05)
    arriving = [payloads[place] for place in order]
    topic = cluster.topic(4)
    publisher = broker_of(cluster, topic, "none").publisher()
    publisher.publish(arriving, keys=read_texts(arriving, project, "CUSTOMER_ID"))
    publisher.close()
    # The partitions are read one after another, so one is days ahead of the next: a wide allowance, held by a journal.
    found = stream(tmp_path, broker_of(cluster, topic, "four"), allowance_us=10 * DAY)
    assert found.scores.select(batch.schema.names).equals(batch)
    assert not any(found.scores["late"].to_pylist())
    assert found.outcomes["duplicate"] == len(order) - len(payloads)
    partitions = {
        n for path in segments(tmp_path / "journal") for b in read_segment_file(path) for n in b.column(6).to_pylist()
    }
    assert partitions == {0, 1, 2, 3}


def test_avro_of_two_schema_versions_gives_the_bits_of_batch(cluster, events, batch, tmp_path):
    """Every second event is of a schema with one more field."""
    payloads = read_payloads([events])
    versions = [schema(), schema({"name": "NOTE", "type": ["null", "string"], "default": None})]
    encoded = []
    for number, payload in enumerate(payloads):
        sink = io.BytesIO()
        row = {**json.loads(payload), "NOTE": "n" if number % 2 else None}
        fastavro.schemaless_writer(sink, versions[number % 2], row)
        encoded.append(b"\0" + (number % 2 + 1).to_bytes(4, "big") + sink.getvalue())

    topic = cluster.topic(1)
    cluster.publish(topic, encoded)
    registry = SchemaRegistry("http://127.0.0.1:1")
    registry._schemas.update({n: RegisteredSchema(n, version) for n, version in enumerate(versions, 1)})
    found = stream(tmp_path, broker_of(cluster, topic, "avro"), RegistryValues(registry))
    assert found.scores.select(batch.schema.names).equals(batch)
    # The journal, with both schemas, is a source of the batch.
    again = run_graph(tmp_path / "again", [f"{tmp_path}/journal/*.journal"])
    assert again.scores.equals(batch)


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    with running(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


@needs_registry
@pytest.mark.parametrize("kind", ["avro", "json"])
def test_two_versions_by_a_real_registry_give_the_bits_of_batch(registry, events, batch, tmp_path, kind):
    """As a producer with Confluent's serializer: each message with the id of its schema, which a real registry knows."""
    kafka = real_kafka()
    topic = kafka.topic(1)
    types = {name: {"type": each} for name, each in JSON_TYPES.items()}
    properties = {"type": "object", "properties": types, "required": list(types)[:-1]}
    note = {"name": "NOTE", "type": ["null", "string"], "default": None}
    versions = {
        "avro": [schema(), schema(note)],
        "json": [properties, {**properties, "properties": {**types, "NOTE": {"type": "string"}}}],
    }[kind]
    ids = [registry.register(f"{topic}-value", version, kind.upper()) for version in versions]
    encoded = []
    for number, payload in enumerate(read_payloads([events])):
        value = io.BytesIO(b"\0" + ids[number % 2].to_bytes(4, "big"))
        value.seek(5)
        row = {**json.loads(payload), **({"NOTE": "n"} if number % 2 else {})}
        if kind == "avro":
            fastavro.schemaless_writer(value, versions[number % 2], row)
        else:
            value.write(json.dumps(row).encode())
        encoded.append(value.getvalue())
    kafka.publish(topic, encoded)
    values = open_values(f"{kind}:{registry.url}", topic)
    values.check(card_fraud().event_type.read)
    found = stream(tmp_path, broker_of(kafka, topic, f"{kind}-registry"), values)
    assert found.scores.select(batch.schema.names).equals(batch)
    assert found.dead_letters.num_rows == 0


def test_a_rebalance_in_the_middle_loses_nothing(cluster, events, batch, tmp_path, monkeypatch):
    """Another member takes half of the partitions for a while, and gives them back without having done anything."""
    payloads = read_payloads([events])
    topic = cluster.topic(4)
    publisher = broker_of(cluster, topic, "none").publisher()
    publisher.publish(payloads[:1500])
    other = []
    received = 0
    broker = broker_of(cluster, topic, "rebalanced")
    subscribe = type(broker).subscribe

    def subscribe_and_disturb(self, known=()):
        subscription = subscribe(self, known)
        receive = subscription.receive

        def disturbed(most, seconds):
            nonlocal received
            messages = receive(min(most, 200), seconds)
            received += len(messages.payloads) if messages is not None else 0
            if received >= 600 and not other:
                other.append(subscribe(self))
                publisher.publish(payloads[1500:])
            if other and len(other) < 40:
                other[0].receive(50, 0.05)
                other.append(None)
            elif len(other) == 40:
                other.append(None)
                other[0].close()
            return messages

        subscription.receive = disturbed
        return subscription

    monkeypatch.setattr(type(broker), "subscribe", subscribe_and_disturb)
    found = stream(tmp_path, broker, allowance_us=10 * DAY, silence=15)  # longer than two rebalances take
    publisher.close()
    assert len(other) > 40
    assert found.scores.select(batch.schema.names).equals(batch)
    assert found.outcomes.get("duplicate", 0) == 0  # what came twice had its message's id
