"""Streams over a real Pulsar, through the whole graph: partitions, kills of the stream and the broker, the same bits."""

import json
import time

import numpy as np
import pulsar as pulsar_client
import pytest
from pulsar.schema import AvroSchema, Double, JsonSchema, Long, Record, String

from models.batches import as_batch
from models.codecs import encode_json_lines
from models.project.project import parse_project
from models.sample import write_sample
from pipelines.brokers import BrokerError, open_broker
from pipelines.brokers.evolution import ContractMismatch
from pipelines.graph import GraphConfig, build
from pipelines.jobs.parity import arrival_order
from pipelines.runners import make_pipeline
from pipelines.sinks.files import WriteFiles
from pipelines.sources.journal import read_segment_file, segments
from pipelines.sources.payloads import read_payloads, read_texts
from pipelines.sources.values import BrokerValues
from tests.kit.published import assert_a_stream_says_the_same
from tests.kit.pulsar import needs_pulsar, new_topic
from tests.kit.services import Pulsar
from tests.kit.stream_process import context, run_between
from tests.kit.streams import stream_to_folder
from tests.kit.support import (
    CARD_FRAUD,
    card_fraud,
    read_files,
    read_output,
    run_graph,
    tiny_scorer,
    write_rows,
)
from transforms.score import Score

pytestmark = [pytest.mark.serial, needs_pulsar]

SECOND = 1_000_000
HOUR = 3600 * SECOND
DAY = 24 * HOUR
KILLS = 5
CLOCKED = ("published", "ingested", "scored")


def stream(tmp_path, broker, values=None, allowance_us=HOUR, project=None, labels=None):
    """Score all there is, and go on until nothing has come for a while."""
    project = project or card_fraud()
    return stream_to_folder(tmp_path, broker, project, allowance_us, 4 * SECOND, values=values, labels=labels)


@pytest.fixture
def events(tmp_path):
    write_sample(tmp_path / "events", 3000, seed=4, days=4, format="jsonl")
    return f"{tmp_path}/events/*.jsonl"


@pytest.fixture
def batch(events, tmp_path):
    return run_graph(tmp_path / "batch", [events]).scores


@pytest.mark.parametrize("kind", ["failover", "key_shared"])
def test_four_partitions_in_disorder_give_the_bits_of_batch(pulsar, events, batch, tmp_path, kind):
    project = card_fraud()
    payloads = read_payloads([events])
    order = arrival_order(payloads, project, HOUR, 1, 0.05)
    arriving = [payloads[place] for place in order]
    topic = f"pulsar://{pulsar.service}/{new_topic(pulsar, 4, 'readers')}"
    publisher = open_broker(topic).publisher()
    publisher.publish(arriving, keys=read_texts(arriving, project, "CUSTOMER_ID"))
    publisher.close()
    # The partitions are read one after another, so one is days ahead of the next: a wide allowance, held by a journal.
    source = open_broker(f"{topic}?subscription=readers&type={kind}")
    found = stream(tmp_path, source, allowance_us=10 * DAY)
    assert found.scores.select(batch.schema.names).equals(batch)
    assert not any(found.scores["late"].to_pylist())
    assert found.outcomes["duplicate"] == len(order) - len(payloads)
    partitions = {
        n for path in segments(tmp_path / "journal") for b in read_segment_file(path) for n in b.column(6).to_pylist()
    }
    assert partitions == {0, 1, 2, 3}
    subscriptions = pulsar.ask("GET", f"persistent/{source.topic}/partitioned-stats")["subscriptions"]
    assert subscriptions["readers"]["msgBacklog"] == 0  # all is acknowledged


def test_each_partition_has_a_watermark_and_none_is_late(pulsar, events, batch, tmp_path):
    """Each of four partitions is nearly in order, and read far ahead of the others, with an hour of allowance."""
    payloads = list(read_payloads([events]))
    topic = f"pulsar://{pulsar.service}/{new_topic(pulsar, 4, 'readers')}"
    publisher = open_broker(topic).publisher()
    keys = read_texts(payloads, card_fraud(), "CUSTOMER_ID")
    for first in range(0, len(payloads), 20):  # what is published at once comes by its keys
        publisher.publish(payloads[first : first + 20], keys=keys[first : first + 20])
    publisher.close()
    found = stream(tmp_path, open_broker(f"{topic}?subscription=readers"))
    assert not any(found.scores["late"].to_pylist())
    assert found.scores.select(batch.schema.names).equals(batch)


def test_labels_as_records_of_their_own_give_the_bits_of_batch(pulsar, events, tmp_path):
    """Labels are known some days after their events; one is of no event."""
    text = (CARD_FRAUD / "project.yaml").read_text()
    text = text.replace("  field: TX_FRAUD\n", "  field: TX_FRAUD\n  events: {time: SEEN}\n")
    project, faults = parse_project(text.encode(), lambda name: (CARD_FRAUD / name).read_bytes())
    assert project is not None, faults
    payloads, random = list(read_payloads([events])), np.random.default_rng(2)
    rows = [json.loads(payload) for payload in payloads]
    times = np.array([row["TX_DATETIME"] for row in rows], "datetime64[s]") + random.integers(0, 5 * 86_400, len(rows))
    labels = [
        {"TRANSACTION_ID": row["TRANSACTION_ID"], "TX_FRAUD": int(row["TX_FRAUD"] or 0), "SEEN": str(time)}
        for row, time in zip(rows, times.astype(str).tolist(), strict=True)
    ]
    labels = [{**each, "SEEN": each["SEEN"].replace("T", " ")} for each in labels]
    labels.append({**labels[0], "TRANSACTION_ID": 10**9})
    topics = [f"pulsar://{pulsar.service}/{new_topic(pulsar, 0, 'readers')}" for _ in range(2)]
    for topic, messages in zip(topics, (payloads, [json.dumps(each).encode() for each in labels]), strict=True):
        publisher = open_broker(topic).publisher()
        publisher.publish(messages)
        publisher.close()
    source, known = (open_broker(f"{topic}?subscription=readers") for topic in topics)
    found = stream(tmp_path, source, project=project, labels=known)
    sources = read_files(project, [events], [write_rows(tmp_path / "labels.jsonl", labels)])
    pipeline = make_pipeline("DirectRunner", [])
    score = Score(project, tiny_scorer(project.model.inputs), "bundle")
    sink = WriteFiles(str(tmp_path / "files"), project.event.id, project.event.time)
    build(pipeline, GraphConfig(project, sources, score, sink))
    pipeline.run().wait_until_finish()
    expected = read_output(tmp_path / "files")
    assert expected.scores.num_rows == len(rows)
    assert found.scores.select(expected.scores.schema.names).equals(expected.scores)
    assert sorted(found.reasons) == sorted(expected.reasons)
    assert found.dead_letters.num_rows == 1


FIELDS = {
    "TRANSACTION_ID": "long",
    "TX_DATETIME": "string",
    "CUSTOMER_ID": "long",
    "TERMINAL_ID": "long",
    "TX_AMOUNT": "double",
    "TX_FRAUD": ["null", "long"],
}


def schema(**more):
    fields = [{"name": name, "type": kind} for name, kind in FIELDS.items()]
    return {"type": "record", "name": "transaction", "fields": [*fields, *more.values()]}


def reads_schemas(uri):
    broker = open_broker(uri, schemas=True)
    return broker, BrokerValues(broker.schema_versions, broker.uri)


def test_avro_of_two_versions_by_pulsars_own_schemas_gives_the_bits_of_batch(pulsar, events, batch, tmp_path):
    """Each third event is of a version with one more field; one message has no schema."""
    note = {"name": "NOTE", "type": ["null", "string"], "default": None}
    topic = new_topic(pulsar, 2, "readers")
    rows = [json.loads(payload) for payload in read_payloads([events])]
    client = pulsar_client.Client(f"pulsar://{pulsar.service}")
    versions = [AvroSchema(None, schema()), AvroSchema(None, schema(note=note))]
    producers = [client.create_producer(topic, schema=each, block_if_queue_full=True) for each in versions]
    for number, row in enumerate(rows):
        producers[number % 3 == 0].send_async({**row, "NOTE": "n"} if number % 3 == 0 else row, lambda *_: None)
    for producer in producers:
        producer.flush()
    client.create_producer(topic).send(b"no schema")
    client.close()
    broker, values = reads_schemas(f"pulsar://{pulsar.service}/{topic}?subscription=readers")
    values.check(card_fraud().event_type.read)
    found = stream(tmp_path, broker, values, allowance_us=10 * DAY)
    assert found.scores.select(batch.schema.names).equals(batch)
    assert "no schema of Avro or JSON" in found.dead_letters["reasons"][0].as_py()
    assert [payload.as_py() for payload in found.dead_letters["payload"]] == [b"no schema"]
    again = run_graph(tmp_path / "again", [f"{tmp_path}/journal/*.journal"])
    assert again.scores.equals(batch)  # the journal has the schemas, too


class Transaction(Record):
    TRANSACTION_ID, CUSTOMER_ID, TERMINAL_ID = Long(required=True), Long(required=True), Long(required=True)
    TX_DATETIME, TX_AMOUNT, TX_FRAUD = String(required=True), Double(required=True), Long()


def test_json_by_a_producer_with_a_schema_gives_the_bits_of_batch(pulsar, events, batch, tmp_path):
    topic = new_topic(pulsar, 0, "readers")
    client = pulsar_client.Client(f"pulsar://{pulsar.service}")
    producer = client.create_producer(topic, schema=JsonSchema(Transaction), block_if_queue_full=True)
    for payload in read_payloads([events]):
        producer.send_async(Transaction(**json.loads(payload)), lambda *_: None)
    producer.flush()
    client.close()
    broker, values = reads_schemas(f"pulsar://{pulsar.service}/{topic}?subscription=readers")
    values.check(card_fraud().event_type.read)
    found = stream(tmp_path, broker, values)
    assert found.scores.select(batch.schema.names).equals(batch)
    assert found.dead_letters.num_rows == 0


def test_versions_that_do_not_fit_the_contract_are_told(pulsar):
    """The newest version's producers no longer write a field, and write a required one in another type."""
    topic = new_topic(pulsar)
    pulsar.ask("PUT", "namespaces/public/default/schemaCompatibilityStrategy", "ALWAYS_COMPATIBLE")
    _, values = reads_schemas(f"pulsar://{pulsar.service}/{topic}?subscription=readers")
    with pytest.raises(BrokerError, match="the topic has no schema"):
        values.check(card_fraud().event_type.read)
    wrong = {**schema(), "fields": [each for each in schema()["fields"] if each["name"] != "TX_FRAUD"]}
    wrong["fields"] = [{**each, "type": "boolean"} if each["name"] == "TX_AMOUNT" else each for each in wrong["fields"]]
    client = pulsar_client.Client(f"pulsar://{pulsar.service}")
    for each in (schema(), wrong):
        client.create_producer(topic, schema=AvroSchema(None, each)).close()
    client.close()
    with pytest.raises(ContractMismatch) as refused:
        values.check(card_fraud().event_type.read)
    faults = str(refused.value).splitlines()[1:]
    assert [line.partition(":")[0] for line in faults] == [
        "schema version 1, field TX_AMOUNT",
        "schema version 1, field TX_FRAUD",
    ]
    assert "schema version 0 has it" in str(refused.value)


def describe_until_refused(publisher, kinds):
    """It takes the broker a while to know of its policy; what it has taken until then, it takes again."""
    for wrong in ("string", "boolean", "long", "string", "boolean", "long"):
        publisher.describe({**kinds, "score": wrong})
        time.sleep(3)


def test_a_sink_registers_the_schema_of_its_rows(pulsar, events, tmp_path):
    """Consumers with a schema read the rows; a later stream with other columns is told where they do not fit."""
    source, scores, dead = (f"pulsar://{pulsar.service}/{new_topic(pulsar, 0, 'r')}" for _ in range(3))
    publisher = open_broker(source).publisher()
    publisher.publish([*read_payloads([events])[:500], b"broken"])
    brokers = [open_broker(f"{source}?subscription=r"), *(open_broker(f"{uri}?schema=json") for uri in (scores, dead))]
    arguments = (brokers, str(tmp_path / "journal"), HOUR, {"idle_us": 2 * SECOND})
    process = context().Process(target=run_between, args=arguments, daemon=True)
    process.start()
    broker, _ = reads_schemas(f"{scores}?subscription=r")
    reader, rows = broker.subscribe(), {}
    deadline = time.monotonic() + 120
    while len(rows) < 500 and time.monotonic() < deadline:
        if (messages := reader.receive(1000, 0.5)) is not None:
            assert {each.kind for each in messages.schemas} == {"JSON"}
            (fields,) = {json.dumps(each.schema["fields"]) for each in messages.schemas}
            for row in map(json.loads, messages.payloads):
                assert row.keys() == {each["name"] for each in json.loads(fields)}
                rows[row["TRANSACTION_ID"]] = row
            reader.acknowledge(messages.receipt)
    letters = open_broker(f"{dead}?subscription=r").subscribe()
    letter = json.loads(letters.receive(10, 30).payloads[0])
    letters.close()
    assert letter["payload"] == "broken"
    process.terminate()
    process.join(30)
    assert len(rows) == 500
    kinds = {each["name"]: each["type"][1] for each in json.loads(fields)}
    assert {kinds[name] for name in ("TRANSACTION_ID", "score", "decision", "late")} == {
        *("long", "double", "string", "boolean")
    }
    ours = open_broker(f"{scores}?schema=json").publisher()
    pulsar.ask("PUT", "namespaces/public/default/schemaCompatibilityStrategy", "FULL")
    with pytest.raises(BrokerError, match="IncompatibleSchema"):
        describe_until_refused(ours, kinds)
    publisher.close()
    reader.close()


def collect(reader, scores):
    """Read what came out, and see that no event is scored in two ways."""
    while (messages := reader.receive(10_000, 0.2)) is not None:
        for row in map(json.loads, messages.payloads):
            for name in CLOCKED:
                assert row.pop(name) is not None
            assert scores.setdefault(row["TRANSACTION_ID"], row) == row
        reader.acknowledge(messages.receipt)


@pytest.mark.timeout(600)
def test_the_stream_killed_five_times_and_the_broker_once_give_what_batch_gives(pulsar, events, batch, tmp_path):
    payloads = read_payloads([events])
    order = arrival_order(payloads, card_fraud(), HOUR, 7, 0.05)
    messages = [payloads[place] for place in order]
    topics = [f"pulsar://{pulsar.service}/{new_topic(pulsar, 1, 'r')}" for _ in ("events", "scores", "dead")]
    publisher = open_broker(topics[0]).publisher()
    reader = open_broker(f"{topics[1]}?subscription=r").subscribe()
    uris = [f"{topics[0]}?subscription=r", *topics[1:]]

    def start(idle_us):
        arguments = ([open_broker(uri) for uri in uris], str(tmp_path / "journal"), HOUR, {"idle_us": idle_us})
        process = context().Process(target=run_between, args=arguments, daemon=True)
        process.start()
        return process

    random, scores = np.random.default_rng(3), {}
    parts = np.array_split(np.array(messages, object), KILLS + 1)
    deaths = []
    for number, part in enumerate(parts[:-1]):
        process = start(600 * SECOND)
        for piece in np.array_split(part, 5):
            publisher.publish(piece.tolist())
            time.sleep(random.uniform(0, 1.5))
        if number == KILLS // 2:
            pulsar.kill()
            pulsar.launch()
        time.sleep(random.uniform(0, 6))
        process.kill()
        process.join()
        deaths.append(process.exitcode)
        collect(reader, scores)
    assert deaths == [-9] * KILLS
    assert 0 < len(scores) < len(payloads)  # it was killed at work
    process = start(8 * SECOND)
    publisher.publish(parts[-1].tolist())
    deadline = time.monotonic() + 120
    while len(scores) < len(payloads) and time.monotonic() < deadline:
        collect(reader, scores)
    process.terminate()
    process.join(30)
    assert process.exitcode == 0
    collect(reader, scores)
    for each in (publisher, reader):
        each.close()
    rows = [json.loads(line) for line in encode_json_lines(as_batch(batch)).splitlines()]
    for row in rows:
        row.pop("scored", None)  # which batch does not say
    names = rows[0].keys()
    assert {key: {name: row[name] for name in names} for key, row in scores.items()} == {
        row["TRANSACTION_ID"]: row for row in rows
    }
    assert not any(row["late"] for row in scores.values())
    again = run_graph(tmp_path / "again", [f"{tmp_path}/journal/*.journal"])
    assert again.scores.equals(batch)


@pytest.mark.usefixtures("pulsar")
def test_what_an_endpoint_publishes_while_the_broker_is_killed_gets_its_scores_from_a_stream(tmp_path, request):
    assert_a_stream_says_the_same(Pulsar(request), tmp_path)
