"""What messages' values are: their split into groups of one format, and what a contract asks of their schemas."""

import io
import json
import pickle
import struct

import fastavro
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.decode import decode_batch
from models.project.contract import Contract
from models.record import COLUMNS, FORMAT, MARKS, PAYLOAD, POSITION, SLICE, SOURCE, SYSTEM_FIELDS
from pipelines.brokers.evolution import ContractMismatch, check_schema, field_types
from pipelines.brokers.schema_registry import RegisteredSchema, RegistryDown, SchemaRegistry, UnknownSchema
from pipelines.sources import values
from pipelines.sources.values import (
    AvroValues,
    BrokerValues,
    JsonValues,
    RegistryValues,
    attribute_times_us,
    open_values,
    read_headers,
    strip_headers,
)

CONTRACT = Contract.parse(b"""
    feature { name: "id" type: BYTES presence { min_fraction: 1 } }
    feature { name: "at" type: INT presence { min_fraction: 1 } time_domain { integer_format: UNIX_MILLISECONDS } }
    feature { name: "amount" type: FLOAT presence { min_fraction: 1 } }
    feature { name: "channel" type: BYTES }
    feature { name: "online" type: INT bool_domain { } }
""")
MOMENT = {"type": "long", "logicalType": "timestamp-millis"}


def record(*fields, name="Order"):
    """A record schema of (name, type) or (name, type, default)."""
    made = [{"name": f[0], "type": f[1]} | ({"default": f[2]} if len(f) > 2 else {}) for f in fields]
    return {"type": "record", "name": name, "fields": made}


FIRST = record(("id", "string"), ("at", "long"), ("amount", "double"))
SECOND = record(
    ("id", "string"), ("at", MOMENT), ("amount", "float"), ("note", "string", ""), ("channel", ["null", "string"], None)
)


class Registry(SchemaRegistry):
    """A registry in memory that counts what it is asked."""

    def __init__(self, schemas, subjects=None):
        super().__init__("http://registry")
        self.schemas, self.subjects, self.asked = schemas, subjects or {}, []

    def schema(self, schema_id):
        self.asked.append(schema_id)
        found = self.schemas.get(schema_id)
        if isinstance(found, Exception):
            raise found
        if found is None:
            raise UnknownSchema(f"no schema {schema_id}")
        return RegisteredSchema(schema_id, found)

    def versions(self, subject):
        return [RegisteredSchema(10 + n, schema, n) for n, schema in enumerate(self.subjects[subject], 1)]


def datum(schema, row):
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), row)
    return out.getvalue()


def wire(schema_id, content):
    return struct.pack(">bi", 0, schema_id) + content


def decode(group, contract=CONTRACT):
    rows = len(group.payloads)
    arrays = [
        group.payloads,
        pa.array(range(rows), pa.int64()),
        pa.array(["x"] * rows).dictionary_encode(),
        pa.array([0] * rows, pa.int8()),
    ]
    fields = [SYSTEM_FIELDS[name] for name in (PAYLOAD, POSITION, SOURCE, MARKS)]
    schema = pa.schema(fields, {**group.metadata, SLICE: b"=0"})
    arrays = [array.cast(field.type) for array, field in zip(arrays, fields, strict=True)]
    return decode_batch(pa.RecordBatch.from_arrays(arrays, schema=schema), contract, 10_000, False)


# Splitting -------------------------------------------------------------------------------------------------


def test_json_is_one_group():
    [group] = JsonValues().split([b'{"a": 1}', b"nonsense", b""])
    assert group.rows.tolist() == [0, 1, 2]
    assert group.payloads.to_pylist() == [b'{"a": 1}', b"nonsense", b""]
    assert group.metadata == {FORMAT: b"json"}
    assert JsonValues().split([]) == []
    JsonValues().check(CONTRACT)


def test_avro_of_one_schema():
    reader = AvroValues(json.dumps(FIRST))
    row = {"id": "a", "at": 1000, "amount": 2.5}
    [group] = pickle.loads(pickle.dumps(reader)).split([datum(FIRST, row), b"\xff"])
    decoded, faults = decode(group)
    assert faults.bad.tolist() == [False, True]
    assert decoded.column(0).to_pylist()[0] == "a"
    reader.check(CONTRACT)
    with pytest.raises(ContractMismatch, match="field amount: is not there"):
        AvroValues(json.dumps(record(("id", "string"), ("at", "long"))), "orders.avsc").check(CONTRACT)
    with pytest.raises(ValueError, match="not an Avro schema"):
        AvroValues('{"type": "record"}')


def test_the_wire_format_is_split_by_schema():
    registry = Registry({7: FIRST, 300: SECOND, 8: record(("self", ["null", "Order"]))})
    reader = RegistryValues(registry)
    payloads = [wire(7, b"one"), wire(300, b"two"), b"", b"\x00\x00\x00\x00", b'{"json": true}', wire(7, b"")]
    payloads += [wire(9, b"x"), wire(8, b"x"), b"\x00\xff\xff\xff\xff"]
    groups = {tuple(group.rows.tolist()): group for group in reader.split(payloads)}
    assert groups.keys() == {(0, 5), (1,), (2, 3, 4, 8), (6,), (7,)}
    assert groups[0, 5].payloads.to_pylist() == [b"one", b""]
    assert groups[0, 5].metadata == {FORMAT: b"avro", COLUMNS: json.dumps(FIRST).encode()}
    assert groups[1,].payloads.to_pylist() == [b"two"]
    for rows, why in (((2, 3, 4, 8), b"no schema id"), ((6,), b"no schema 9"), ((7,), b"schema 8: a recursive")):
        assert groups[rows].metadata[FORMAT] == b"unreadable"
        assert why in groups[rows].metadata[COLUMNS]
        assert groups[rows].payloads.to_pylist() == [payloads[row] for row in rows]
        assert decode(groups[rows])[1].bad.all()
    asked = list(registry.asked)
    assert sorted(asked) == [7, 8, 9, 300]
    reader.split([wire(7, b"x"), wire(300, b"x"), wire(8, b"x")])
    assert registry.asked == asked
    assert reader.split([]) == []


def test_what_a_broker_keeps_of_each_message_is_split_by_schema():
    versions = [RegisteredSchema(0, FIRST, 0), RegisteredSchema(1, SECOND, 1), RegisteredSchema(2, FIRST, 2, "JSON")]
    reader = BrokerValues(lambda: versions)
    row = {"id": "a", "at": 1000, "amount": 2.5}
    recursive = RegisteredSchema(3, record(("self", ["null", "Order"])), 3)
    schemas = [versions[0], versions[2], None, versions[0], recursive]
    payloads = [datum(FIRST, row), json.dumps(row).encode(), b"x", b"\xff", b"x"]
    groups = {tuple(group.rows.tolist()): group for group in reader.split(payloads, schemas)}
    assert groups.keys() == {(0, 3), (1,), (2,), (4,)}
    assert groups[0, 3].metadata == {FORMAT: b"avro", COLUMNS: json.dumps(FIRST).encode()}
    assert groups[1,].metadata == {FORMAT: b"json"}
    assert b"no schema of Avro or JSON" in groups[2,].metadata[COLUMNS]
    assert b"schema 3: a recursive" in groups[4,].metadata[COLUMNS]
    assert decode(groups[0, 3])[1].bad.tolist() == [False, True]
    assert [group.metadata[FORMAT] for group in reader.split(payloads)] == [b"unreadable"]  # none is told
    assert reader.split([], []) == []
    with pytest.raises(ContractMismatch, match="schema version 0, field amount: is not there"):
        BrokerValues(lambda: [RegisteredSchema(0, record(("id", "string"), ("at", "long")), 0)]).check(CONTRACT)
    timed = record(("id", "string"), ("at", {"type": "long", "logicalType": "timestamp-millis"}), ("amount", "double"))
    BrokerValues(lambda: [RegisteredSchema(0, timed, 0, "JSON")]).check(CONTRACT)  # JSON has the number alone


@given(st.lists(st.one_of(st.binary(max_size=12), st.builds(wire, st.sampled_from([0, 1, 2**31 - 1]), st.binary()))))
def test_splitting_is_what_it_is_one_by_one(payloads):
    expected = []
    for payload in payloads:
        magic, number = struct.unpack(">bi", payload[:5]) if len(payload) >= 5 else (1, 0)
        expected.append(number if magic == 0 and number >= 0 else -1)
    for offset in (0, 1):  # a slice of a larger array, too
        array = pa.array([b"before"] * offset + payloads + [b"after"], pa.binary())[offset:-1]
        ids, lengths = read_headers(array)
        assert ids.tolist() == expected
        assert lengths.tolist() == [len(payload) for payload in payloads]
        long = np.flatnonzero(lengths >= 5)
        part = array.take(pa.array(long)) if len(long) < len(payloads) else array
        assert strip_headers(part, lengths[long]).to_pylist() == [payloads[i][5:] for i in long]


def test_any_order_and_split_of_messages_gives_the_same():
    reader = RegistryValues(Registry({1: FIRST, 2: SECOND}))
    rng = np.random.default_rng(0)
    payloads = [wire(int(rng.integers(0, 4)), bytes(rng.integers(0, 256, 3, np.uint8))) for _ in range(200)]

    def outcome(chosen):
        return {
            (chosen[row], payload, group.metadata[FORMAT], group.metadata[COLUMNS])
            for group in reader.split(chosen)
            for row, payload in zip(group.rows.tolist(), group.payloads.to_pylist(), strict=True)
        }

    whole = outcome(payloads)
    assert len(whole) == len(set(payloads))
    assert outcome(payloads[::-1]) == whole
    assert outcome(payloads[:70]) | outcome(payloads[70:]) == whole


def test_a_registry_that_is_down_for_a_while_is_waited_for(monkeypatch, caplog):
    monkeypatch.setattr(values, "_RETRY_SECONDS", 0.05)
    registry = Registry({7: RegistryDown("out of order")})
    reader = RegistryValues(registry, patience_seconds=0.2)
    with pytest.raises(RegistryDown):
        reader.split([wire(7, b"x")])
    assert len(registry.asked) > 2
    assert len(caplog.records) == 1
    monkeypatch.setattr(values.time, "sleep", lambda _: registry.schemas.update({7: FIRST}))
    [group] = reader.split([wire(7, b"x")])
    assert group.metadata[FORMAT] == b"avro"


def test_the_cache_is_bounded(monkeypatch):
    monkeypatch.setattr(values, "_MAX_KNOWN", 2)
    reader = RegistryValues(Registry(dict.fromkeys(range(10), FIRST)))
    for number in range(10):
        reader.split([wire(number, b"")])
        assert len(reader._known) <= 2


def test_many_messages_of_two_schemas():
    reader = RegistryValues(Registry({1: FIRST, 2: SECOND}))
    payloads = [wire(1 + number % 2, b"x" * 50) for number in range(100_000)]
    groups = reader.split(payloads)
    assert [len(group.rows) for group in groups] == [50_000, 50_000]


# Where they are declared -----------------------------------------------------------------------------------


def test_values_are_opened(tmp_path, monkeypatch):
    path = tmp_path / "order.avsc"
    path.write_text(json.dumps(FIRST))
    assert open_values("json") == JsonValues()
    assert open_values(f"avro:{path}") == AvroValues(json.dumps(FIRST), str(path))
    opened = open_values("avro:https://registry:8081/path", "orders")
    assert opened == RegistryValues(SchemaRegistry("https://registry:8081/path"), "orders-value")
    monkeypatch.setenv("HEADRACE_SCHEMA_REGISTRY_LOGIN", "user:hunter2")
    opened = open_values("avro:http://registry?subject=a%2Fb", "orders")
    assert opened == RegistryValues(SchemaRegistry("http://registry", "HEADRACE_SCHEMA_REGISTRY_LOGIN"), "a/b")
    assert "hunter2" not in repr(opened) + repr(pickle.dumps(opened))
    assert pickle.loads(pickle.dumps(opened)) == opened
    assert open_values("avro:http://registry").subject is None


@pytest.mark.parametrize(
    "text", ["", "xml", "avro", "avro:", "avro:http://", "avro:http://u:p@host", "avro:http://host?a=b", "json:x"]
)
def test_values_that_can_not_be(text):
    with pytest.raises(ValueError, match=r"values are|registry"):
        open_values(text)


def test_a_schema_file_that_can_not_be(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_values(f"avro:{tmp_path}/none.avsc")
    path = tmp_path / "bad.avsc"
    path.write_text('{"type": "record"}')
    with pytest.raises(ValueError, match=r"bad\.avsc.*not an Avro schema"):
        open_values(f"avro:{path}")


# Evolution -------------------------------------------------------------------------------------------------


def check(*versions):
    RegistryValues(Registry({}, {"orders-value": versions}), "orders-value").check(CONTRACT)


def test_optional_fields_may_be_added():
    check(FIRST)
    check(FIRST, SECOND)
    check(FIRST, SECOND, record(*[(f["name"], f["type"]) for f in SECOND["fields"]], ("online", "boolean", False)))
    check(record(("id", ["null", "string"]), ("at", "int"), ("amount", "long")))
    check(SECOND, FIRST, SECOND)  # it was gone, and is there again


@pytest.mark.parametrize(
    ("versions", "faults"),
    [
        ([FIRST, record(("id", "string"), ("at", "long"))], ["version 2, field amount: is not there"]),
        ([record(("id", "string"), ("at", "long")), FIRST], ["version 1, field amount: is not there"]),
        ([SECOND, FIRST], ["version 2, field channel: is gone; subject orders-value, version 1 has it"]),
        (
            [FIRST, record(("id", "long"), ("at", "string"), ("amount", "string"))],
            [
                "version 2, field id: is long, which is not read as the contract's string",
                "version 2, field at: is string, which is not read as the contract's time in UNIX_MILLISECONDS",
                "version 2, field amount: is string, which is not read as the contract's float",
            ],
        ),
        (
            [record(("id", ["null", "string", "int"]), ("at", "long"), ("amount", "double"))],
            ["field id: is int, which"],
        ),
        ([record(("id", "null"), ("at", "long"), ("amount", "double"))], ["field id: is null"]),
        ([FIRST, {"type": "string"}], ["version 2: not the schema of a record"]),
        ([FIRST, {"type": "recrod"}], ["version 2: not an Avro schema"]),
    ],
)
def test_what_the_contract_needs_may_not_change(versions, faults):
    with pytest.raises(ContractMismatch) as raised:
        check(*versions)
    first, *told = str(raised.value).splitlines()
    assert "does not fit the project's contract" in first
    assert len(told) == len(faults)
    for line, fault in zip(told, faults, strict=True):
        assert line.startswith("subject orders-value, version ")
        assert fault in line


def test_a_subject_that_is_not_named_is_not_checked():
    RegistryValues(Registry({})).check(CONTRACT)


def test_old_and_new_versions_decode_to_the_same_columns():
    reader = RegistryValues(Registry({1: FIRST, 2: SECOND}))
    rows = [{"id": f"id-{n}", "at": 1000 * n, "amount": n / 4} for n in range(20)]
    newer = [{**row, "note": "new", "channel": None if n % 3 else "web"} for n, row in enumerate(rows)]
    old = [wire(1, datum(FIRST, row)) for row in rows]
    new = [wire(2, datum(SECOND, row)) for row in newer]
    [alone] = reader.split(old)
    expected, faults = decode(alone)
    assert not faults.bad.any()
    mixed = [new[n] if n % 2 else old[n] for n in range(20)]
    seen = 0
    for group in reader.split(mixed):
        decoded, faults = decode(group)
        assert not faults.bad.any()
        assert decoded.schema.equals(expected.schema)
        seen += decoded.num_rows
        for name in ("id", "at", "amount"):
            of = expected.schema.get_field_index(name)
            assert decoded.column(of).equals(expected.column(of).take(pa.array(group.rows)))
        channels = decoded.column(decoded.schema.get_field_index("channel")).to_pylist()
        assert channels == ["web" if n % 2 and not n % 3 else None for n in group.rows.tolist()]
    assert seen == 20


SAMPLES = {
    "null": None,
    "boolean": True,
    "int": 5,
    "long": 1_500_000_000_000,
    "float": 1.5,
    "double": 1.5,
    "string": "2024-01-02",
    "bytes": b"2024-01-02",
}


@pytest.mark.parametrize(
    "avro",
    [
        *SAMPLES,
        MOMENT,
        {"type": "int", "logicalType": "date"},
        {"type": "long", "logicalType": "time-micros"},
        {"type": "long", "logicalType": "local-timestamp-micros"},
        {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2},
        {"type": "string", "logicalType": "uuid"},
        {"type": "enum", "name": "E", "symbols": ["A"]},
        {"type": "fixed", "name": "F", "size": 1},
        {"type": "array", "items": "int"},
        {"type": "map", "values": "int"},
        record(("x", "int"), name="Inner"),
    ],
    ids=str,
)
@pytest.mark.parametrize("field", ["id", "at", "amount", "online", "day", "whole"])
def test_what_the_check_lets_pass_decodes(avro, field):
    contract = Contract.parse(
        CONTRACT.text
        + b"""
        feature { name: "day" type: BYTES time_domain { string_format: "%Y-%m-%d" } }
        feature { name: "whole" type: INT }
    """
    )
    only = Contract({field: contract.fields[field]}, b"")
    schema = record((field, avro))
    kind = avro["type"] if isinstance(avro, dict) else avro
    logical = avro.get("logicalType", "") if isinstance(avro, dict) else ""
    value = {"decimal": b"\x01\x05", "uuid": "b" * 32, "time-micros": 5, "date": 5}.get(logical) or SAMPLES.get(kind)
    value = {"enum": "A", "fixed": b"A", "array": [1], "map": {"a": 1}, "record": {"x": 1}}.get(kind, value)
    plain = {"type": kind} if logical else avro
    [group] = AvroValues(json.dumps(schema)).split([datum(record((field, plain)), {field: value})])
    decodes = not decode(group, only)[1].bad.any()
    try:
        check_schema(schema, only, "a schema")
        passes = True
    except ContractMismatch:
        passes = False
    if passes:
        assert decodes or (field, kind) == ("online", "int"), field_types(schema)
    elif kind != "null":
        # What is refused does not decode, but where it depends on the value.
        by_value = {("whole", "bytes"), ("day", "bytes"), ("whole", "null")}
        assert not decodes or (field, kind) in by_value


# Time attributes -------------------------------------------------------------------------------------------


def test_time_attributes():
    texts = ["1526918400123", "2018-05-21T16:00:00.123Z", "2018-05-21T18:00:00+02:00", "-1000", "2018-05-21"]
    expected = [1526918400123000, 1526918400123000, 1526918400000000, -1000000, 1526860800000000]
    assert attribute_times_us(texts).to_pylist() == expected
    assert attribute_times_us([*texts, None, "", "yesterday", "1e9", "9" * 17, "9" * 40]).to_pylist()[5:] == [None] * 6
    assert attribute_times_us(texts[::-1]).to_pylist() == expected[::-1]
    assert [attribute_times_us([text]).to_pylist()[0] for text in texts] == expected
    assert attribute_times_us([]).to_pylist() == []
