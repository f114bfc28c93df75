"""The registry's client against a registry of a few lines, and the evolution of schemas."""

import base64
import http.server
import json
import pickle
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.brokers import schema_registry
from pipelines.brokers.schema_registry import (
    RegisteredSchema,
    RegistryDown,
    SchemaRegistry,
    SchemaRegistryError,
    UnknownSchema,
    WireFormatError,
    check_evolution,
    split_wire,
)

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


def test_the_latest_version(registry):
    registry.answer(
        "/subjects/a%2Fb-value/versions/latest",
        (200, {"subject": "a/b-value", "id": 7, "version": 2, "schema": json.dumps(ORDER)}),
        (200, {"subject": "a/b-value", "id": 9, "version": 3, "schemaType": "AVRO", "schema": json.dumps(ORDER)}),
    )
    client = SchemaRegistry(registry.url + "/")
    assert client.latest("a/b-value") == RegisteredSchema(7, ORDER, 2)
    assert client.latest("a/b-value") == RegisteredSchema(9, ORDER, 3)
    with pytest.raises(UnknownSchema):
        client.latest("c-value")


def test_incompatibilities(registry):
    path = "/compatibility/subjects/orders-value/versions/latest?verbose=true"
    registry.answer(
        path,
        (200, {"is_compatible": True}),
        (200, {"is_compatible": False, "messages": ["amount is gone"]}),
        (200, {"is_compatible": False}),
        (200, {}),
    )
    client = SchemaRegistry(registry.url)
    assert client.incompatibilities("orders-value", ORDER) == []
    assert client.incompatibilities("orders-value", ORDER) == ["amount is gone"]
    assert len(client.incompatibilities("orders-value", ORDER)) == 1
    with pytest.raises(SchemaRegistryError, match="is_compatible"):
        client.incompatibilities("orders-value", ORDER)
    _, headers, body = registry.asked[0]
    assert json.loads(json.loads(body)["schema"]) == ORDER
    assert headers["Content-Type"] == "application/vnd.schemaregistry.v1+json"


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
    started = time.monotonic()
    with pytest.raises(RegistryDown, match="timed out"):
        SchemaRegistry(registry.url, timeout_seconds=0.2).schema(7)
    assert time.monotonic() - started < 5


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


@pytest.mark.parametrize("url", ["file:///etc/passwd", "registry:8081", "http://user:hunter2@registry", "http://r?a=b"])
def test_urls_that_are_refused(url):
    with pytest.raises(ValueError, match="URL is http") as raised:
        SchemaRegistry(url)
    assert "hunter2" not in str(raised.value)


# The wire format -------------------------------------------------------------------------------------------


@given(st.integers(0, 2**31 - 1), st.binary(max_size=20))
def test_split_wire(schema_id, datum):
    assert split_wire(b"\x00" + schema_id.to_bytes(4, "big") + datum) == (schema_id, datum)


@given(st.binary(max_size=8))
def test_split_wire_of_any_bytes(payload):
    try:
        schema_id, datum = split_wire(payload)
    except WireFormatError:
        assert len(payload) < 5 or payload[0] != 0 or payload[1] >= 0x80
    else:
        assert b"\x00" + schema_id.to_bytes(4, "big") + datum == payload


# Evolution -------------------------------------------------------------------------------------------------


def record(*fields: tuple, name: str = "Order", **more: object) -> dict:
    """A record of (name, type) and (name, type, default)."""
    made = [dict(zip(("name", "type", "default"), field, strict=False)) for field in fields]
    return {"type": "record", "name": name, "fields": made, **more}


TIME = {"type": "long", "logicalType": "timestamp-millis"}
DECIMAL = {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}
COLOUR = {"type": "enum", "name": "Colour", "symbols": ["RED", "BLUE"]}
CARD = record(("number", "string"), name="Card")
TREE = record(("value", "int"), ("next", ["null", "Tree"]), name="Tree")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (record(("a", "int")), record(("a", "int"))),
        (record(("a", "int")), record(("b", "string", "x"), ("a", "int"))),
        (record(("a", "int")), record(("a", "int"), ("b", ["null", "string"], None))),
        (record(("a", "int"), ("b", "int")), record(("b", "int"), ("a", "int"))),
        (record(("a", "int")), record(("a", {"type": "int"}))),
        *[
            (record(("a", before)), record(("a", after)))
            for before, after in [
                ("int", "long"),
                ("int", "float"),
                ("int", "double"),
                ("long", "float"),
                ("long", "double"),
                ("float", "double"),
                ("string", "bytes"),
                ("bytes", "string"),
                ("int", ["null", "int"]),
                ("int", ["null", "long"]),
                (["null", "int"], ["long", "null", "string"]),
                (["int", "long"], "long"),
                (TIME, TIME),
                (TIME, ["null", TIME]),
                (TIME, {"type": TIME}),
                (DECIMAL, DECIMAL),
                (COLOUR, {**COLOUR, "symbols": ["BLUE", "GREEN", "RED"]}),
                (COLOUR, {**COLOUR, "symbols": ["RED"], "default": "RED"}),
                (CARD, {**CARD, "namespace": "shop"}),
                (CARD, ["null", record(("number", "string"), ("kind", "string", ""), name="Card")]),
                ({"type": "array", "items": "int"}, {"type": "array", "items": "long"}),
                ({"type": "map", "values": CARD}, {"type": "map", "values": CARD}),
            ]
        ],
        (record(("a", CARD), ("b", "Card")), record(("a", CARD), ("b", {"type": "Card"}))),
        (
            record(("a", CARD), ("b", "shop.Card"), namespace="shop"),
            record(("a", {**CARD, "name": "shop.Card"}), ("b", "shop.Card"), namespace="store"),
        ),
        (TREE, TREE),
    ],
)
def test_a_schema_that_may_follow(old, new):
    assert check_evolution(old, new) == []


@pytest.mark.parametrize(
    ("old", "new", "faults"),
    [
        (record(("a", "int"), ("b", "int")), record(("b", "int")), ["a: is gone"]),
        (record(("a", "int")), record(("a", "int"), ("b", "int")), ["b: is added without a default"]),
        (record(("a", "int")), record(("b", "int", 0)), ["a: is gone"]),
        (record(name="A"), record(name="B"), ["the record: was record A, now is record B"]),
        *[
            (record(("a", before)), record(("a", after)), [fault])
            for before, after, fault in [
                ("long", "int", "a: was long, now is int"),
                ("double", "float", "a: was double, now is float"),
                ("int", "string", "a: was int, now is string"),
                ("int", "boolean", "a: was int, now is boolean"),
                (["null", "int"], "int", "a: could be null, now is int"),
                (["null", "string"], ["null", "int"], "a: could be string, now is null or int"),
                ("int", ["null", "string"], "a: was int, now is null or string"),
                (TIME, "long", "a: was long timestamp-millis, now is long"),
                ("long", TIME, "a: was long, now is long timestamp-millis"),
                ({"type": "int", "logicalType": "date"}, "long", "a: was int date, now is long"),
                (TIME, {**TIME, "logicalType": "timestamp-micros"}, "a: was long timestamp-millis, now is long t"),
                (DECIMAL, {**DECIMAL, "scale": 4}, "a: was bytes decimal precision 9 scale 2, now is bytes"),
                (COLOUR, {**COLOUR, "symbols": ["RED"]}, "a: BLUE is no symbol any more"),
                (COLOUR, "string", "a: was enum Colour, now is string"),
                (
                    {"type": "fixed", "name": "F", "size": 8},
                    {"type": "fixed", "name": "F", "size": 9},
                    "a: was fixed F size 8, now is fixed F size 9",
                ),
                (CARD, record(name="Card"), "a.number: is gone"),
                (["null", CARD], ["null", record(name="Card")], "a.number: is gone"),
                (CARD, record(("number", "string"), name="Account"), "a: was record Card, now is record Account"),
                ({"type": "array", "items": CARD}, {"type": "array", "items": record(name="Card")}, "a[].number: is g"),
                ({"type": "map", "values": "long"}, {"type": "map", "values": "int"}, "a[]: was long, now is int"),
                ({"type": "map", "values": "int"}, {"type": "array", "items": "int"}, "a: was map, now is array"),
            ]
        ],
        (TREE, record(("value", "string"), ("next", ["null", "Tree"]), name="Tree"), ["value: was int, now is string"]),
    ],
)
def test_a_schema_that_may_not_follow(old, new, faults):
    found = check_evolution(old, new)
    assert len(found) == len(faults)
    assert all(map(str.startswith, found, faults))


def test_all_faults_are_told():
    old = record(("a", "int"), ("b", "int"), ("c", CARD), ("d", "int"))
    new = record(("b", "string"), ("c", record(("n", "int"), name="Card")), ("d", "int"))
    assert check_evolution(old, new, required=["a", "d"]) == [
        "a: is gone",
        "b: was int, now is string",
        "c.number: is gone",
        "c.n: is added without a default",
        "a: is required, and not there",
    ]


def test_required_fields():
    old = record(("a", "int"), ("b", "int"))
    new = record(("a", ["null", "int"]), ("b", "long"))
    assert check_evolution(old, new) == []
    assert check_evolution(old, new, required=["b"]) == []
    assert check_evolution(old, new, required=["a", "b", "c"]) == [
        "a: is required, and may be null",
        "c: is required, and not there",
    ]


@pytest.mark.parametrize(
    "schema",
    [
        {},
        [],
        "string",
        {"type": "string"},
        {"type": "record"},
        {"type": "record", "name": "A"},
        {"type": "record", "name": "A", "fields": [{"name": "a"}]},
        {"type": "record", "name": "A", "fields": [{"name": "a", "type": "Unknown"}]},
        {"type": "record", "name": "A", "fields": [{"name": "a", "type": None}]},
        {"type": "record", "name": "A", "fields": 5},
        {"type": "record", "name": 5, "fields": []},
    ],
)
def test_what_is_not_a_record_schema(schema):
    for old, new in ((ORDER, schema), (schema, ORDER)):
        with pytest.raises(ValueError, match="not an Avro"):
            check_evolution(old, new)


def test_a_schema_that_is_nested_too_deep():
    deep: object = "int"
    for _ in range(600):
        deep = {"type": "array", "items": deep}
    with pytest.raises(ValueError, match="Avro"):
        check_evolution(record(("a", deep)), record(("a", deep)))
