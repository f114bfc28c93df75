"""Decode: every record goes on as a row or becomes a dead letter, with its reasons and where it came from."""

import datetime
import io
import json
import math

import fastavro
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.batches import without
from models.dead_letters import make_dead_letters
from models.decode import decode_batch
from models.record import FORMAT, MARKS, PAYLOAD, POSITION, SLICE, SYSTEM_FIELDS
from pipelines.runners import FN_API
from tests.kit.raw import BAD_TEXT, raw, reasons, rows
from tests.kit.steps import END, through
from tests.kit.support import card_fraud, transaction
from transforms.decode import Decode

pytestmark = pytest.mark.both_sets

PROJECT = card_fraud()
GOOD = json.dumps(transaction(1)).encode()


def project_with(**event):
    return PROJECT.model_copy(update={"event": PROJECT.event.model_copy(update=event)})


def sent(batch, project=PROJECT):
    """Good rows and dead letters of one batch, as dicts."""
    transform = Decode(project.event_type)
    good, dead = [], []
    for output in transform._decode(batch):
        if isinstance(output, pa.RecordBatch):
            good += output.to_pylist()
        else:
            assert output.tag == "dead"
            dead += without(output.value, MARKS).to_pylist()
    assert len(good) + len(dead) == batch.num_rows
    return good, dead


def test_a_dead_letter_says_all_that_is_known():
    bad = json.dumps(transaction(5, CUSTOMER_ID="x", TX_AMOUNT=[])).encode()
    good, (letter,) = sent(raw("json", [GOOD + b"\n", bad + b"\r\n", GOOD]))
    assert [row[POSITION] for row in good] == [0, 20]
    assert reasons(letter) == [
        ("CUSTOMER_ID", "not a 64-bit integer", "x"),
        ("TX_AMOUNT", "not a number", "[]"),
    ]
    del letter["reasons"]
    assert letter == {
        "payload": bad,
        "format": "json",
        "step": "Decode",
        "source": "file",
        "position": 10,
        "event_id": "5",
        "event_time": datetime.datetime(2018, 4, 1, 5, tzinfo=datetime.UTC),
    }


@pytest.mark.parametrize(
    ("payload", "field", "rule", "known_id"),
    [
        (b"", "(record)", "not JSON", None),
        (b"nope", "(record)", "not JSON", None),
        (GOOD[:-1], "(record)", "not JSON", None),
        (GOOD + GOOD, "(record)", "not JSON", None),
        (GOOD + b"}", "(record)", "not JSON", None),
        (GOOD.replace(b"1,", b"\xff,", 1), "(record)", "not JSON", None),
        (b"[" + GOOD + b"]", "(record)", "not a JSON object", None),
        (b"null", "(record)", "not a JSON object", None),
        (b"[" * 5000, "(record)", "nested deeper than 100 levels", None),
        (GOOD[:-1] + b" " * 70_000 + b"}", "(record)", "larger than 65536 bytes", None),
        (json.dumps(transaction(1, TRANSACTION_ID="a")).encode(), "TRANSACTION_ID", "not a 64-bit integer", None),
        (json.dumps(transaction(1, TX_AMOUNT="1.5")).encode(), "TX_AMOUNT", "not a number", "1"),
        (json.dumps(transaction(1, TX_AMOUNT=True)).encode(), "TX_AMOUNT", "not a number", "1"),
        (json.dumps(transaction(1, TX_DATETIME="now")).encode(), "TX_DATETIME", "not a time", "1"),
        (json.dumps(transaction(1, TX_DATETIME=5)).encode(), "TX_DATETIME", "not a time", "1"),
        (json.dumps(transaction(1, TX_FRAUD=0.5)).encode(), "TX_FRAUD", "not a 64-bit integer", "1"),
        (json.dumps(transaction(1, CUSTOMER_ID=2**63)).encode(), "CUSTOMER_ID", "not a 64-bit integer", "1"),
    ],
)
def test_bad_json(payload, field, rule, known_id):
    alone, (letter,) = sent(raw("json", [payload]))
    assert alone == []
    assert reasons(letter)[0][:2] == (field, rule)
    assert letter["payload"] == payload
    assert letter["event_id"] == known_id
    among, (same,) = sent(raw("json", [GOOD, payload, GOOD + b"\n"]))
    assert {**same, "position": 0} == letter
    assert [{**row, POSITION: 0, PAYLOAD: GOOD} for row in among] == sent(raw("json", [GOOD]))[0] * 2


def test_what_is_too_large_is_not_parsed_and_has_one_reason():
    large = b'{"TX_AMOUNT": ' + b"[" * 70_000
    for kind, about in (("json", b""), ("csv", b'["TX_AMOUNT", "x"]')):
        _, dead = sent(raw(kind, [large, b"x" * 65_537, b"x" * 65_536], about))
        assert [reasons(letter)[0][1] for letter in dead[:2]] == ["larger than 65536 bytes"] * 2
        assert [len(reasons(letter)) for letter in dead] == [1, 1, 1]
        assert reasons(dead[0]) == [("(record)", "larger than 65536 bytes", str(len(large)))]
        assert dead[0]["payload"] == large
    wide = rows({"TRANSACTION_ID": [1, 2, 3], "a": ["x" * 40_000, "x", None], "b": [b"x" * 40_000, b"x", None]})
    good, (letter,) = sent(wide)
    assert [row["TRANSACTION_ID"] for row in good] == [2, 3]
    assert reasons(letter) == [("(record)", "larger than 65536 bytes", "80000")]


HEADER = list(transaction(1))
ABOUT = json.dumps(HEADER).encode()


def csv_line(number, **changes):
    return ",".join(str(value) for value in transaction(number, **changes).values()).encode()


@pytest.mark.parametrize(
    ("payload", "field", "rule", "value"),
    [
        (b"", "(record)", "not a line of 6 fields", "0 fields"),
        (b"1,2", "(record)", "not a line of 6 fields", "2 fields"),
        (csv_line(1) + b",", "(record)", "not a line of 6 fields", "7 fields"),
        (b'"' + csv_line(1), "(record)", "not a line of CSV", "a quote opens what nothing closes"),
        (csv_line(1, TX_FRAUD="\r0"), "(record)", "not a line of CSV", None),
        (csv_line(1) + b"\xff", "(record)", "not a line of CSV", None),
        (csv_line(1, TX_AMOUNT="1,5"), "(record)", "not a line of 6 fields", "7 fields"),
        (csv_line(1, TX_AMOUNT="1_0"), "TX_AMOUNT", "not a number", "1_0"),
        (csv_line(1, CUSTOMER_ID="0x1"), "CUSTOMER_ID", "not a 64-bit integer", "0x1"),
        (csv_line(1, CUSTOMER_ID=2**63), "CUSTOMER_ID", "not a 64-bit integer", str(2**63)),
        (csv_line(1, TX_DATETIME="2018-02-30 00:00:00"), "TX_DATETIME", "not a time", "2018-02-30 00:00:00"),
    ],
)
def test_bad_csv(payload, field, rule, value):
    alone, (letter,) = sent(raw("csv", [payload], ABOUT))
    assert alone == []
    assert reasons(letter)[0][:2] == (field, rule)
    assert value is None or reasons(letter)[0][2] == value
    among, (same,) = sent(raw("csv", [csv_line(2), payload, csv_line(3) + b"\n"], ABOUT))
    assert {**same, "position": 0} == letter
    assert [row["TRANSACTION_ID"] for row in among] == [2, 3]


def test_an_absent_column_is_missing_and_a_quoted_one_is_read():
    good, _ = sent(
        raw("csv", [b'"1","2018-04-01 00:00:00",,"a,""b"""'], b'["TRANSACTION_ID","TX_DATETIME","TX_AMOUNT","x"]')
    )
    assert (good[0]["TRANSACTION_ID"], good[0]["TX_AMOUNT"], good[0]["CUSTOMER_ID"]) == (1, None, None)


AVRO = {"type": "record", "name": "T", "fields": [{"name": n, "type": t} for n, t in (
    ("TRANSACTION_ID", "long"), ("TX_DATETIME", "string"), ("CUSTOMER_ID", "long"), ("TERMINAL_ID", "long"),
    ("TX_AMOUNT", "double"), ("TX_FRAUD", ["null", "long"]))]}  # fmt: skip


def avro(number, **changes):
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, fastavro.parse_schema(AVRO), transaction(number, **changes))
    return stream.getvalue()


def test_avro_dead_letters_have_their_bytes_as_they_were():
    ends_in_a_newline = avro(1, TX_FRAUD=5) + b"\r\n"  # 5 is \n in Avro; the rest is left over
    good, dead = sent(raw("avro", [avro(1), avro(2)[:-1], ends_in_a_newline, avro(3)], json.dumps(AVRO).encode()))
    assert [row["TRANSACTION_ID"] for row in good] == [1, 3]
    assert [letter["payload"] for letter in dead] == [avro(2)[:-1], ends_in_a_newline]
    assert {letter["format"] for letter in dead} == {"avro"}
    assert reasons(dead[1]) == [("(record)", "not Avro of its schema", "bytes are left over")]


def test_typed_rows_are_reported_as_they_were():
    good, (letter, other) = sent(
        rows(
            {
                "TRANSACTION_ID": [1, 2, 3],
                "TX_DATETIME": pa.array([0, 2**62, 0]).cast(pa.timestamp("s")),
                "CUSTOMER_ID": [0.5, 2.0, 3.0],
                "NOTE": pa.array([b"\xff", b"b", b"c"]),
                "TX_AMOUNT": [math.nan, 1.0, 2.0],
            }
        )
    )
    assert [row["TRANSACTION_ID"] for row in good] == [3]
    assert reasons(letter) == [("CUSTOMER_ID", "not a 64-bit integer", "0.5")]
    assert (letter["format"], letter["event_id"], letter["position"]) == ("row", "1", 0)
    assert json.loads(letter["payload"]) == {
        "TRANSACTION_ID": 1,
        "TX_DATETIME": "1970-01-01T00:00:00",
        "CUSTOMER_ID": 0.5,
        "NOTE": "/w==",
        "TX_AMOUNT": "nan",
    }
    assert reasons(other) == [("TX_DATETIME", "not a time", str(2**62))]


def test_a_time_that_python_can_not_hold_is_not_passed_on():
    times = pa.array([2**62, 0]).cast(pa.timestamp("us", "UTC"))
    good, (letter,) = sent(rows({"TRANSACTION_ID": [1, 2], "TX_DATETIME": times}))
    assert [row["TRANSACTION_ID"] for row in good] == [2]
    assert letter["event_time"] is None
    assert json.loads(letter["payload"])["TX_DATETIME"] == 2**62


def test_text_of_a_file_that_is_not_utf8_spoils_its_row_only():
    schema_of = {"TRANSACTION_ID": [1, 2], "TX_DATETIME": ["2020-01-01"] * 2, "NOTE": BAD_TEXT}
    assert len(sent(rows(schema_of))[0]) == 2  # an unknown field, which nothing reads
    good, (letter,) = sent(rows({**schema_of, "TX_DATETIME": BAD_TEXT}).slice(1, 1))
    assert good == []
    assert reasons(letter) == [("TX_DATETIME", "not a time", "\\xff")]
    assert json.loads(letter["payload"])["NOTE"] == "/w=="


@pytest.mark.parametrize("refuse", ["ignore", "refuse"])
def test_unknown_fields(refuse):
    project = project_with(unknown_fields=refuse)
    unknown = json.dumps(transaction(2, b=1, a="x")).encode()
    good, dead = sent(raw("json", [GOOD, unknown]), project)
    assert len(good) == (1 if refuse == "refuse" else 2)
    if refuse == "refuse":
        assert reasons(dead[0]) == [("a", "unknown field", "x"), ("b", "unknown field", "1")]
        assert dead[0]["event_id"] == "2"


def test_unreadable_parts_become_dead_letters():
    good, (letter,) = sent(raw("unreadable", [b"x" * 100_000], b"a broken row group: why"))
    assert good == []
    assert reasons(letter) == [("(record)", "unreadable", "a broken row group: why")]
    assert (letter["format"], letter["payload"]) == ("unreadable", b"x" * 100_000)


def test_an_unknown_format_is_no_bad_record():
    with pytest.raises(ValueError, match="unknown format 'xml'"):
        sent(raw("xml", [b"<a/>"]))


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.sampled_from([GOOD, GOOD + b"\n", b"nope", b"", b"{}", b"x" * 70_000, GOOD + b"}"]), min_size=1, max_size=20
    )
)
def test_no_record_is_lost_or_moved(payloads):
    decoded, faults = decode_batch(raw("json", payloads), PROJECT.contract, 65_536, False)
    assert decoded.num_rows == len(payloads)
    assert faults.bad.tolist() == [p.strip() not in (GOOD, b"{}") for p in payloads]
    ids = decoded.column(0).to_pylist()
    assert ids == [1 if p.strip() == GOOD else None for p in payloads]


def test_through_the_transform():
    payloads = [GOOD + b"\n", b"nope\n", json.dumps(transaction(2)).encode()]
    good, dead = through(
        Decode(PROJECT.event_type), [([(0, raw("json", payloads)), (0, raw("json", [b"{"]))], END)], FN_API
    )
    assert good["TRANSACTION_ID"].to_pylist() == [1, 2]
    assert good.schema.metadata[SLICE] == b"1000000"
    assert dead["payload"].to_pylist() == [b"nope", b"{"]
    assert dead["position"].to_pylist() == [10, 0]


def test_rows_without_a_payload_are_written_out_beside_others():
    batch = rows({"TRANSACTION_ID": [1, 2]})
    payloads = pa.array([None, b"kept\n"], pa.binary())
    both = pa.RecordBatch.from_arrays(
        [*batch.columns, payloads], schema=pa.schema([*batch.schema, SYSTEM_FIELDS[PAYLOAD]], {FORMAT: b"json"})
    )
    letters = make_dead_letters(both, np.array([0, 1]), ["[]", "[]"], "Step", card_fraud().event_type).to_pylist()
    assert [letter["payload"] for letter in letters] == [b'{"TRANSACTION_ID": 1}', b"kept"]
    assert [letter["format"] for letter in letters] == ["row", "json"]
    assert [letter["event_id"] for letter in letters] == ["1", "2"]
