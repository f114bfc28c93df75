"""The registry's client against a registry of a few lines, and values of messages by way of it."""

import base64
import http.server
import json
import pickle
import threading
import time
from collections.abc import Iterator

import pytest

from models.project.contract import Contract
from models.record import COLUMNS, FORMAT
from pipelines.brokers import BrokerError, schema_registry
from pipelines.brokers.schema_registry import (
    RegisteredSchema,
    RegistryDown,
    SchemaRegistry,
    SchemaRegistryError,
    UnknownSchema,
)
from pipelines.sources.values import RegistryValues, open_values

ORDER = {
    "type": "record",
    "name": "Order",
    "namespace": "shop",
    "fields": [{"name": "id", "type": "string"}, {"name": "amount", "type": "int"}],
}


class Registry(http.server.ThreadingHTTPServer):
    """Answers each path as told; keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, list[tuple[int, bytes]]] = {}
        self.asked: list[tuple[str, dict[str, str], bytes]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/registry"

    def answer(self, path: str, *answers: tuple[int, object]) -> None:
        """The answers to one path in turn, the last one for good."""
        self.answers[path] = [(status, json.dumps(body).encode()) for status, body in answers]

    def paths(self) -> list[str]:
        return [path for path, _, _ in self.asked]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Registry

    def do_GET(self) -> None:
        path = self.path.removeprefix("/registry")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append((path, dict(self.headers), body))
        answers = self.server.answers.get(path, [(404, b'{"error_code": 40403, "message": "Schema not found"}')])
        status, content = answers.pop(0) if len(answers) > 1 else answers[0]
        if status == 0:  # never says all
            self.send_response(200)
            self.end_headers()
            for _ in range(50):
                self.wfile.write(b" ")
                self.wfile.flush()
                time.sleep(0.05)
            return
        self.send_response(status)
        if status == 302:
            self.send_header("Location", self.server.url + "/elsewhere")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def registry(monkeypatch) -> Iterator[Registry]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(schema_registry, "_BACKOFF_SECONDS", 0.01)
    server = Registry()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


# The client ------------------------------------------------------------------------------------------------


def test_a_schema_is_asked_for_once(registry):
    registry.answer("/schemas/ids/7", (200, {"schema": json.dumps(ORDER)}))
    client = SchemaRegistry(registry.url)
    assert client.schema(7) == client.schema(7) == RegisteredSchema(7, ORDER)
    assert pickle.loads(pickle.dumps(client)).schema(7).schema == ORDER
    assert registry.paths() == ["/schemas/ids/7"]


def test_an_unknown_schema_is_not_asked_for_again_and_again(registry):
    client = SchemaRegistry(registry.url)
    for _ in range(3):
        with pytest.raises(UnknownSchema, match=r"schema 8|ids/8.*Schema not found"):
            client.schema(8)
    assert registry.paths() == ["/schemas/ids/8"]


def test_the_cache_is_bounded(registry, monkeypatch):
    monkeypatch.setattr(schema_registry, "_CACHED_SCHEMAS", 2)
    client = SchemaRegistry(registry.url)
    for number in (1, 2, 3):
        registry.answer(f"/schemas/ids/{number}", (200, {"schema": '"int"'}))
        client.schema(number)
    for number in (3, 2, 1):
        client.schema(number)
    assert registry.paths() == [f"/schemas/ids/{number}" for number in (1, 2, 3, 1)]


def test_versions_of_a_subject(registry):
    path = "/subjects/a%2Fb-value/versions"
    registry.answer(path, (200, [3, 1]))
    for number in (1, 3):
        answer = {"subject": "a/b-value", "id": number + 6, "version": number, "schema": json.dumps(ORDER)}
        registry.answer(f"{path}/{number}", (200, answer))
    client = SchemaRegistry(registry.url + "/")
    assert client.versions("a/b-value") == [RegisteredSchema(7, ORDER, 1), RegisteredSchema(9, ORDER, 3)]
    with pytest.raises(UnknownSchema):
        client.versions("c-value")
    for wrong in ({}, ["1"], [True], "1"):
        registry.answer(path, (200, wrong))
        with pytest.raises(SchemaRegistryError, match="not a list of versions"):
            client.versions("a/b-value")


def test_credentials_come_from_the_environment(registry, monkeypatch):
    client = SchemaRegistry(registry.url, credentials="REGISTRY_LOGIN")
    with pytest.raises(SchemaRegistryError, match="REGISTRY_LOGIN"):
        client.schema(1)
    monkeypatch.setenv("REGISTRY_LOGIN", "user:hunter2")
    registry.answer("/schemas/ids/1", (401, {"message": "no"}))
    with pytest.raises(SchemaRegistryError, match="HTTP 401: no") as raised:
        client.schema(1)
    assert base64.b64decode(registry.asked[0][1]["Authorization"].removeprefix("Basic ")) == b"user:hunter2"
    assert "hunter2" not in str(raised.value) + repr(client) + repr(pickle.dumps(client))


def test_a_redirect_is_not_followed(registry, monkeypatch):
    monkeypatch.setenv("REGISTRY_LOGIN", "user:hunter2")
    registry.answer("/schemas/ids/1", (302, {}))
    with pytest.raises(SchemaRegistryError, match="HTTP 302"):
        SchemaRegistry(registry.url, credentials="REGISTRY_LOGIN").schema(1)
    assert registry.paths() == ["/schemas/ids/1"]


def test_a_failure_that_passes(registry):
    registry.answer("/schemas/ids/7", (503, {}), (429, {}), (200, {"schema": '"int"'}))
    assert SchemaRegistry(registry.url).schema(7).schema == "int"


def test_a_registry_that_is_down(registry):
    registry.answer("/schemas/ids/7", (500, {"message": "out of order"}))
    with pytest.raises(RegistryDown, match="out of order"):
        SchemaRegistry(registry.url).schema(7)
    assert len(registry.asked) == 3
    with pytest.raises(RegistryDown, match="refused"):
        SchemaRegistry("http://127.0.0.1:1").schema(7)


def test_an_answer_that_takes_too_long(registry):
    registry.answer("/schemas/ids/7", (0, {}))
    with pytest.raises(RegistryDown, match="timed out"):
        SchemaRegistry(registry.url, timeout_seconds=0.2).schema(7)


def test_an_answer_that_is_too_large(registry):
    registry.answer("/schemas/ids/7", (200, {"schema": "x" * 5000}))
    with pytest.raises(SchemaRegistryError, match="more than 1000 bytes"):
        SchemaRegistry(registry.url, max_bytes=1000).schema(7)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([], "not a JSON object"),
        ({}, "not JSON"),
        ({"schema": "{"}, "not JSON"),
        ({"schema": "[" * 100_000}, "not JSON"),
        ({"schema": 5}, "not JSON"),
        ({"schema": "{}", "schemaType": "PROTOBUF"}, "PROTOBUF"),
        ({"schema": "{}", "references": [{"name": "a", "subject": "b", "version": 1}]}, "refers"),
        ({"schema": "{}", "id": "7"}, "id"),
    ],
)
def test_answers_that_cannot_be_used(registry, answer, message):
    registry.answer("/schemas/ids/7", (200, answer))
    with pytest.raises(SchemaRegistryError, match=message):
        SchemaRegistry(registry.url).schema(7)


def test_an_answer_that_is_not_json(registry):
    registry.answers["/schemas/ids/7"] = [(200, b"<html>")]
    with pytest.raises(SchemaRegistryError, match="not JSON"):
        SchemaRegistry(registry.url).schema(7)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "registry:8081", "http://user:hunter2@registry", "http://r?a=b"])
def test_urls_that_are_refused(url):
    with pytest.raises(ValueError, match="URL is http") as raised:
        SchemaRegistry(url)
    assert "hunter2" not in str(raised.value)


# Values ----------------------------------------------------------------------------------------------------


def test_values_by_way_of_the_registry(registry):
    registry.answer("/schemas/ids/7", (503, {}), (200, {"schema": json.dumps(ORDER)}))
    registry.answer("/schemas/ids/8", (200, {"schema": "{}", "schemaType": "PROTOBUF"}))
    reader = pickle.loads(pickle.dumps(open_values(f"avro:{registry.url}", "orders")))
    payloads = [b"\0\0\0\0" + bytes([number]) + b"datum" for number in (7, 8, 9, 7)]
    for _ in range(3):
        groups = {group.metadata[FORMAT]: group for group in reader.split(payloads[::3])}
        assert groups[b"avro"].payloads.to_pylist() == [b"datum", b"datum"]
        assert json.loads(groups[b"avro"].metadata[COLUMNS]) == ORDER
        reasons = [group.metadata[COLUMNS] for group in reader.split(payloads[1:3])]
        assert b"PROTOBUF" in reasons[0]
        assert b"9" in reasons[1]
    assert registry.paths() == ["/schemas/ids/7", "/schemas/ids/7", "/schemas/ids/8", "/schemas/ids/9"]


def test_a_registry_that_refuses_is_no_fault_of_the_messages(registry):
    registry.answer("/schemas/ids/7", (401, {"message": "no"}))
    with pytest.raises(SchemaRegistryError, match="HTTP 401"):
        RegistryValues(SchemaRegistry(registry.url)).split([b"\0\0\0\0\x07x"])


def test_a_contract_is_checked_against_the_registry(registry):
    path = "/subjects/orders-value/versions"
    later = {**ORDER, "fields": [{"name": "id", "type": "string"}, {"name": "amount", "type": "string"}]}
    registry.answer(path, (200, [1]), (200, [1, 2]))
    registry.answer(f"{path}/1", (200, {"id": 5, "version": 1, "schema": json.dumps(ORDER)}))
    registry.answer(f"{path}/2", (200, {"id": 6, "version": 2, "schema": json.dumps(later)}))
    contract = Contract.parse(b'feature { name: "amount" type: INT }')
    reader = open_values(f"avro:{registry.url}", "orders")
    reader.check(contract)
    with pytest.raises(BrokerError, match="subject orders-value, version 2, field amount: is string, which"):
        reader.check(contract)
    with pytest.raises(UnknownSchema, match="no-such-value"):
        open_values(f"avro:{registry.url}", "no-such").check(contract)


JSON_ORDER = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "amount": {"oneOf": [{"type": "null"}, {"$ref": "#/definitions/money"}]},
        "note": {},
    },
    "definitions": {"money": {"type": "integer"}},
}


def test_json_by_way_of_the_registry(registry):
    registry.answer("/schemas/ids/7", (200, {"schema": json.dumps(JSON_ORDER), "schemaType": "JSON"}))
    registry.answer("/schemas/ids/8", (200, {"schema": json.dumps(ORDER)}))
    reader = pickle.loads(pickle.dumps(open_values(f"json:{registry.url}", "orders")))
    found = reader.split([b'\0\0\0\0\7{"id": 1}', b"\0\0\0\0\x08x", b"{}", b"\0\0\0\0\7{}"])
    groups = {group.metadata[FORMAT]: group for group in found}
    assert groups[b"json"].payloads.to_pylist() == [b'{"id": 1}', b"{}"]
    assert groups[b"json"].rows.tolist() == [0, 3]
    reasons = sorted(group.metadata[COLUMNS] for group in found if group.metadata[FORMAT] == b"unreadable")
    assert [b"no schema id" in reasons[0], b"of the kind AVRO, not JSON" in reasons[1]] == [True, True]


def test_a_contract_is_checked_against_json_schemas(registry):
    path = "/subjects/orders-value/versions"
    properties = JSON_ORDER["properties"]
    changed = [
        JSON_ORDER,
        {**JSON_ORDER, "properties": {**properties, "amount": {"type": ["null", "number"]}}},
        {**JSON_ORDER, "properties": {"id": {"type": "string"}, "note": {}}},
        {"type": "array", "items": JSON_ORDER},
    ]
    for number, schema in enumerate(changed, 1):
        answer = {"id": number, "version": number, "schema": json.dumps(schema), "schemaType": "JSON"}
        registry.answer(f"{path}/{number}", (200, answer))
    text = b'feature { name: "amount" type: INT } feature { name: "note" type: BYTES }'
    reader, contract = open_values(f"json:{registry.url}", "orders"), Contract.parse(text)
    for versions, message in [
        ([1], None),
        ([1, 2], "version 2, field amount: is number, which is not read as the contract's int"),
        ([1, 3], "version 3, field amount: is gone; subject orders-value, version 1 has it"),
        ([3], None),
        ([4], "version 4: not the schema of an object"),
    ]:
        registry.answer(path, (200, versions))
        if message is None:
            reader.check(contract)
        else:
            with pytest.raises(BrokerError, match=message):
                reader.check(contract)
