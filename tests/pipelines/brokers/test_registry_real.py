"""A real registry with Confluent's interface: its answers, and versions of Avro and JSON Schema that evolve."""

import pytest

from models.project.contract import Contract
from pipelines.brokers.evolution import ContractMismatch
from pipelines.brokers.schema_registry import RegisteredSchema, SchemaRegistry, UnknownSchema, UnusableSchema
from pipelines.sources.values import open_values
from tests.kit.registry import needs_registry, running

pytestmark = [pytest.mark.serial, needs_registry]

CONTRACT = Contract.parse(b"""
    feature { name: "id" type: BYTES presence { min_fraction: 1 } }
    feature { name: "amount" type: FLOAT presence { min_fraction: 1 } }
    feature { name: "channel" type: BYTES }
""")


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    with running(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


def avro(**fields):
    return {"type": "record", "name": "Order", "fields": [{"name": n, "type": kind} for n, kind in fields.items()]}


def of_json(**fields):
    return {"type": "object", "properties": {n: {"type": kind} for n, kind in fields.items()}, "required": ["id"]}


def test_versions_and_ids_are_what_was_registered(registry):
    first, second = avro(id="string", amount="double"), avro(id="string", amount="double", channel=["null", "string"])
    ids = [registry.register("orders-value", each) for each in (first, second)]
    client = SchemaRegistry(registry.url)
    assert client.versions("orders-value") == [
        RegisteredSchema(number, schema, version)
        for version, (number, schema) in enumerate(zip(ids, (first, second), strict=True), 1)
    ]
    assert client.schema(ids[0]).schema == first
    with pytest.raises(UnknownSchema):
        client.schema(987_654)
    with pytest.raises(UnknownSchema):
        client.versions("nobody-value")
    protobuf = {"schema": 'syntax = "proto3"; message A { string id = 1; }', "schemaType": "PROTOBUF"}
    number = registry.ask("POST", "/subjects/proto-value/versions", protobuf)["id"]
    with pytest.raises(UnusableSchema, match="PROTOBUF"):
        client.schema(number)


@pytest.mark.parametrize(
    ("kind", "schema", "text"), [("avro", avro, "string"), ("json", of_json, "string")], ids=["avro", "json"]
)
def test_versions_that_do_not_fit_are_told(registry, kind, schema, text):
    """A field is added, which is fine; then one is gone, and one is of another type."""
    number = {"avro": "double", "json": "number"}[kind]
    subject = f"evolving-{kind}"
    values = open_values(f"{kind}:{registry.url}?subject={subject}")
    with pytest.raises(UnknownSchema):
        values.check(CONTRACT)
    registry.register(subject, schema(id=text, amount=number), kind.upper())
    values.check(CONTRACT)
    registry.register(subject, schema(id=text, amount=number, channel=text, more=number), kind.upper())
    values.check(CONTRACT)
    registry.register(subject, schema(id=text, amount="boolean"), kind.upper())
    with pytest.raises(ContractMismatch) as refused:
        values.check(CONTRACT)
    assert [line.partition(":")[0] for line in str(refused.value).splitlines()[1:]] == [
        f"subject {subject}, version 3, field amount",
        f"subject {subject}, version 3, field channel",
    ]
