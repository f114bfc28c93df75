"""What a record decodes to, in every format: the same however it is read, and whatever stands around it."""

import datetime
import decimal
import io
import json
import math
import struct
import time
import tracemalloc
import uuid
from unittest import mock

import fastavro
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.codecs import (
    WriterSchemaError,
    csv_records,
    decode_avro,
    decode_csv,
    decode_json,
    decode_rows,
    encode_json_lines,
    json_records,
    parse_writer_schema,
    plain_schema,
    row_as_json,
    rows_as_json,
)
from models.codecs.times import times_from_text
from models.faults import RowFaults
from models.project.contract import Contract
from tests.kit.raw import BAD_TEXT

pytestmark = [pytest.mark.both_sets, pytest.mark.slow]

CONTRACT = Contract.parse(b"""
feature { name: "i" type: INT }
feature { name: "b" type: INT int_domain { min: 0 max: 1 } }
feature { name: "f" type: FLOAT }
feature { name: "s" type: BYTES }
feature { name: "t" type: BYTES time_domain { string_format: "%Y-%m-%d %H:%M:%S" } }
feature { name: "u" type: INT time_domain { integer_format: UNIX_SECONDS } }
""")
HEADER = ("i", "b", "f", "s", "t", "u", "x")


def bits(column):
    """A column's values so that equal means equal bits: floats as bytes, times as numbers."""
    if pa.types.is_floating(column.type):
        values = column.to_pylist()
        return [v if v is None or math.isnan(v) else struct.pack("d", v) for v in values]
    return (column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column).to_pylist()


def results(decode, payloads):
    """For each payload: its values and its reasons."""
    faults = RowFaults(len(payloads))
    columns = decode(pa.array(payloads, pa.binary()), faults)
    assert list(columns) == list(CONTRACT.fields)
    for name, field in CONTRACT.fields.items():
        assert columns[name].type == field.arrow_type
        columns[name].validate(full=True)
    reasons = dict(zip(faults.rows.tolist(), faults.reasons(), strict=True))
    rows = zip(*(map(repr, bits(columns[name])) for name in CONTRACT.fields), strict=True)
    return [(row, reasons.get(number)) for number, row in enumerate(rows)]


def as_json(payloads, faults, refuse=False):
    return decode_json(payloads, CONTRACT, refuse, faults)


def as_csv(payloads, faults):
    return decode_csv(payloads, HEADER, CONTRACT, False, faults)


def one(decode, payload):
    """The values of one record that must be good, by name; or the (field, rule) of each reason."""
    faults = RowFaults(1)
    columns = decode(pa.array([payload], pa.binary()), faults)
    if faults.bad.any():
        return [(r["field"], r["rule"]) for r in json.loads(faults.reasons()[0])]
    return {name: column[0].as_py() for name, column in columns.items() if column.null_count == 0}


ODD_NUMBERS = [
    "0", "-0", "-0.0", "1", "1.0", "-1", "+1", "01", "007", ".5", "5.", "1e3", "1E+3", "1e-7", "1e400", "-1e400",
    "1e-400", "9223372036854775807", "9223372036854775808", "-9223372036854775808", "-9223372036854775809",
    "9007199254740993", "12345678901234567890", "1" + "0" * 30, "1" + "0" * 400, "1" + "0" * 5000, "0.1", "0x10",
    "2.2250738585072011e-308", "5e-324", "NaN", "Infinity", "-Infinity", "nan", "inf", "1_0", "1,5", "1600000000",
    "99999999999999", "-62135596801", "253402300799", "253402300800", "1.5", "--1", "1e", "-", "true", "false", "null",
]  # fmt: skip
TIMES = [
    "2020-01-01", "2020-01-01 10", "2020-01-01 10:11", "2020-01-01 10:11:12", "2020-01-01T10:11:12.5",
    "2020-01-01T10:11:12.123456", "2020-01-01T10:11:12.123456789", "2020-01-01T10:11:12Z", "2020-01-01T10:11:12z",
    "2020-01-01T10:11:12+02:00", "2020-01-01T10:11:12+0200", "2020-01-01T10:11:12-23:59", "2020-01-01T10:11:12+24:00",
    "2020-02-30", "2020-02-29", "2021-02-29", "2016-12-31T23:59:60", "2020-01-01T24:00:00", "0000-01-01", "0001-01-01",
    "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59.999999", "9999-12-31T23:59:59-23:59", "10000-01-01", "-1-01-01",
    "20200101", "2020-W01-1", "2020-1-1 1:2:3", " 2020-01-01", "2020-01-01 ", "now", "today", "NaT", "", "2020", "5",
]  # fmt: skip
STRINGS = [
    '"a"', '""', '"\\u0000"', '"\\ud800"', '"\\udc00\\ud800"', '"\\ud83d\\ude00"', '"é😀"', '"a\\nb"', '"\\x"',
    '"a\tb"', '"{[}]"', '"a', '"\\"', "'a'",
]  # fmt: skip
NESTED = [
    "[]",
    "{}",
    "[1,[2]]",
    '{"i":5}',
    "[" * 90 + "]" * 90,
    "[" * 99 + "]" * 99,
    "[" * 100 + "]" * 100,
    "[1",
    "[1}",
]
json_values = st.sampled_from([*ODD_NUMBERS, *(f'"{t}"' for t in TIMES), *STRINGS, *NESTED]) | st.floats().map(str)
spaces = st.sampled_from(["", "", "", " ", "\t", "  ", "\n", "\r", "\x0b", "\xa0"])
endings = st.sampled_from([b"", b"\n", b"\n", b"\n", b"\r\n", b"\n\n", b"\r"])
json_objects = st.lists(
    st.tuples(st.sampled_from([*CONTRACT.fields, "x", "y", "\\u0069", ""]), spaces, json_values), max_size=5
).map(lambda items: ("{" + ",".join(f'"{n}":{gap}{v}' for n, gap, v in items) + "}").encode())
NASTY_LINES = [
    b"", b" ", b"{}", b"{ }", b"[]", b"5", b"null", b'"a"', b"{", b"}", b"{}}", b"{}{}", b'{"i":1}{"i":2}', b'{"i":1}}',
    b'{"i":1}]', b'{"i":1},', b'{"i":1}:}', b'{"i":3}\x00}', b"\xef\xbb\xbf{}", b'\xef\xbb\xbf{"i":1}', b"\xff{}",
    b'{"s":"\xff"}', b'{"s":"\xed\xa0\x80"}', b'{"i":1,"i":2}', b'{"x":1,"x":2}', b'{"i":1', b'"i":1}', b'{"i":1}//}',
    b'{"i":1,}', b"{'i':1}", b'{"i":1} {"i":1}', b'{"i"\n:1}', b'{"i":1}\n{"i":2}', b"\x00", b"{\x00}", b'{"s":"\x00"}',
    b'{"i":1}\x0b}', '{"i":1}'.encode("utf-16"), b"{}\r", b"{" * 300, b"[" * 1000,
]  # fmt: skip


@st.composite
def spoilt(draw, records):
    """A record with a byte taken out, put in or doubled."""
    record = draw(records)
    place = draw(st.integers(0, len(record)))
    put = draw(st.sampled_from([b"", b"{", b"}", b'"', b",", b"\n", b"\r", b"\x00", b"\xff", b"\\", b":", b"0"]))
    return record[:place] + put + record[place + draw(st.integers(0, 2)) :]


good_json = st.fixed_dictionaries(
    {"i": st.integers(-(2**63), 2**63 - 1), "f": st.floats(allow_nan=False, allow_infinity=False), "s": st.text()}
).map(lambda row: json.dumps(row).encode())
json_records_ = st.one_of(
    good_json, json_objects, spoilt(json_objects), st.sampled_from(NASTY_LINES), st.binary(max_size=8)
)
json_payloads = st.lists(st.tuples(json_records_, endings).map(b"".join), min_size=1, max_size=12)


@pytest.fixture(autouse=True, scope="module")
def blocks():
    """Few records are read in blocks, too, so that what is said of these is tested."""
    few = json_records._FEW
    with mock.patch.object(json_records, "_FEW", 0):
        yield few


def test_few_json_records_are_read_one_by_one(blocks):
    payloads = [b'{"i":1}'] * (blocks + 1)
    with (
        mock.patch.object(json_records, "_FEW", blocks),
        mock.patch.object(json_records, "_read_block", side_effect=AssertionError),
    ):
        assert results(as_json, payloads[1:]) == [results(as_json, payloads[:1])[0]] * blocks
        with pytest.raises(AssertionError):
            results(as_json, payloads)


@settings(deadline=None, max_examples=400)
@given(json_payloads, st.booleans())
def test_json_is_the_same_fast_slow_and_alone(payloads, refuse):
    def decode(part, faults):
        return as_json(part, faults, refuse)

    found = results(decode, payloads)
    with mock.patch.object(json_records, "_read_block", return_value=None):
        assert found == results(decode, payloads)
    assert found == [results(decode, [payload])[0] for payload in payloads]


# After JSONTestSuite: what each text is, as a value of a field that nothing reads.
JSON_SUITE = {
    True: [
        "0", "-0", "0e1", "0e+1", "1E22", "1E+2", "123.456e78", "-0.000000000000000000000000000001", "1e-2", "[]", "{}",
        "[ ]", "[[]   ]", '[1,null,null,2]', '{"a":{}}', '{"a":1,"a":2}', '{"":0}', '"\\u0060\\u012a\\u12AB"',
        '"\\ud801\\udc37"', '"\\"\\\\\\/\\b\\f\\n\\r\\t"', '"\\u0000"', '"\x7f"', '"\u2028"', '"\uffff"', '"a/*b*/"', "true",
        "false", "null", " 1 ", "\t1\t", "1e400", "-1e400", "123123e100000", "0.4e00669999999999999999999999999999999",
        "-123123123123123123123123123123", '"\\ud800"', '"\\udc00x"', '"\\ud800\\ud800"', '"\\uD834\\u0041"', "[" * 99 + "]" * 99,
    ],
    False: [
        "", "-", "+1", "01", "-01", "1.", ".1", "-.1", "1.e1", "1e", "1e+", "1eE2", "0e", "0.e1", "1 000", "0x1", "1_0", "1a",
        "--1", "++1", "-NaN", "NaN", "nan", "Inf", "Infinity", "-Infinity", "-Inf", "+Infinity", "[NaN]", '{"a":Infinity}',
        "[1,]", "[,1]", "[1,,2]", "[1 2]", "[1", "1]", "[1:2]", '{"a":1,}', '{"a" 1}', '{"a"}', "{1:1}", "{a:1}", "{'a':1}",
        '{"a":1 "b":2}', '{"a"::1}', '{"a":}', '{,}', "'a'", '"a', 'a"', '"\\a"', '"\\x00"', '"\\u00A"', '"\\uD800\\u1"', '"\\"',
        '"\x01"', '"\t"', '"\x1f"', '"\x00"', "tru", "True", "TRUE", "nul", "undefined", "1//x", "1/**/", "#", "\x0c1", "\u00a01",
        "\ufeff1", "\u20601", "\x001", "1\x00", "*", "<null>", "[1}", '{"a":1]', "]", "}", "\uff11", "1\u0661", "[" * 101 + "]" * 101,
    ],
}  # fmt: skip


@pytest.mark.parametrize("right", [True, False])
def test_json_of_a_suite_is_right_or_refused_fast_slow_and_alone(right):
    for text in JSON_SUITE[right]:
        line = b'{"i":7,"x":%b}' % text.encode()
        for payloads in ([line], [b'{"i":1}\n', line + b"\n", b'{"f":2,"s":"b"}\n']):
            found = results(as_json, payloads)
            with mock.patch.object(json_records, "_read_block", return_value=None):
                assert found == results(as_json, payloads)
            assert found == [results(as_json, [payload])[0] for payload in payloads]
            values, reason = found[len(payloads) // 2]
            assert (reason is None) == right, line
            assert values[0] == ("7" if right else "None")


BROKEN_UTF8 = [
    b"\xff",
    b"\xc0\xaf",
    b"\xe0\xff",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    b"\x80",
    b"\xe2\x82",
    b"\xfc\x83\xbf\xbf\xbf\xbf",
]


@pytest.mark.parametrize("text", BROKEN_UTF8)
def test_json_that_is_not_utf8_is_refused_wherever_it_is_not(text):
    for line in (
        b'{"i":7,"x":"%b"}',
        b'{"i":7,"s":"%b"}',
        b'{"i":7,"%b":1}',
        b'{"i":7,"x":%b}',
        b'{"i":7}%b',
        b'%b{"i":7}',
    ):
        payloads = [b'{"i":1}\n', line % text + b"\n", b'{"i":2}\n']
        assert [reason is None for _, reason in results(as_json, payloads)] == [True, False, True]
        assert results(as_json, payloads[1:2])[0] == results(as_json, payloads)[1]


@pytest.mark.parametrize("name", [*CONTRACT.fields, "x"])
def test_every_odd_json_value_is_the_same_fast_slow_and_alone(name):
    texts = [*ODD_NUMBERS, *(f'"{t}"' for t in TIMES), *STRINGS, *NESTED]
    for line in [*(f'{{"{name}":{text}}}'.encode() for text in texts), *NASTY_LINES]:
        for payloads in ([line], [b'{"i":1}\n', line + b"\n", b'{"f":2,"s":"b"}\n']):
            found = results(as_json, payloads)
            with mock.patch.object(json_records, "_read_block", return_value=None):
                assert found == results(as_json, payloads)
            assert found == [results(as_json, [payload])[0] for payload in payloads]


@settings(deadline=None, max_examples=100)
@given(st.lists(good_json, min_size=1, max_size=8), st.data())
def test_json_in_two_parts_is_the_same(payloads, data):
    payloads[data.draw(st.integers(0, len(payloads) - 1))] = data.draw(json_records_)
    at = data.draw(st.integers(0, len(payloads)))
    parts = [part for part in (payloads[:at], payloads[at:]) if part]
    assert results(as_json, payloads) == [result for part in parts for result in results(as_json, part)]


CSV_TEXTS = [
    "", " ", " 5 ", "\u00a05", "a", "é", "\x00", '"a"', '""', '"a,b"', '"a""b"', 'a"b', '"a', '"a"b', "a\rb", "a\nb",
    '"a\nb"', "\ufeff", "#", "\\", "٣",
]  # fmt: skip
csv_values = st.sampled_from([*ODD_NUMBERS, *TIMES, *CSV_TEXTS])
csv_lines = st.lists(csv_values, min_size=6, max_size=8).map(lambda values: ",".join(values).encode())
plain_csv = st.tuples(st.integers(), st.booleans().map(int), st.floats(), st.just("s"), st.sampled_from(TIMES)).map(
    lambda row: ",".join(map(str, [*row, 0, ""])).encode()
)
csv_lines_ = st.one_of(
    plain_csv,
    csv_lines,
    spoilt(csv_lines),
    st.sampled_from([b"", b",", b",,,,,,", b"\xff,,,,,,", b"\xef\xbb\xbf1,,,,,,"]),
)
csv_payloads = st.lists(st.tuples(csv_lines_, endings).map(b"".join), min_size=1, max_size=12)


@settings(deadline=None, max_examples=400)
@given(csv_payloads)
def test_csv_is_the_same_fast_slow_and_alone(payloads):
    found = results(as_csv, payloads)
    with mock.patch.object(csv_records, "_read_block", return_value=None):
        assert found == results(as_csv, payloads)
        none = np.zeros(len(payloads), bool)
        with mock.patch.object(csv_records, "_are_plain", return_value=none):
            assert found == results(as_csv, payloads)
    assert found == [results(as_csv, [payload])[0] for payload in payloads]


@settings(deadline=None)
@given(
    st.lists(
        st.sampled_from([b"a", b"b\r", b"", b'"', b"c\rd"]).flatmap(lambda p: st.sampled_from([p, p + b"\n"])),
        min_size=1,
    )
)
def test_csv_of_one_column_keeps_its_lines_apart(payloads):
    def decode(part, faults):
        return decode_csv(part, ("s",), CONTRACT, False, faults)

    assert results(decode, payloads) == [results(decode, [payload])[0] for payload in payloads]


def test_a_fast_way_does_not_take_broken_lines_for_others():
    # Arrow's reader takes two records on a line for two, and stops without a word at the stray bracket or NUL.
    for stray in (b"}", b"]", b",}", b":}", b"\x00}"):
        payloads = [b'{"i":1}{"i":2}\n', b'{"i":3}' + stray + b"\n", b'{"i":4}\n']
        assert [reason is None for _, reason in results(as_json, payloads)] == [False, False, True]


def test_a_forged_end_mark_is_no_end():
    payloads = [b'{"i":1}{"i":2}\n', b'{"i":3,"__end":1,"__end_0000000000000000":1}}\n', b'{"i":4}\n']
    assert [reason is None for _, reason in results(as_json, payloads)] == [False, False, True]


@pytest.mark.parametrize("refuse", [False, True])
def test_unknown_fields_are_kept_or_refused(refuse):
    def decode(part, faults):
        return as_json(part, faults, refuse)

    good = {"i": 1}
    assert one(decode, b'{"i":1}') == good
    refused = [("a", "unknown field"), ("z", "unknown field")]
    assert one(decode, b'{"z":[1],"i":1,"a":null}') == (refused if refuse else good)


@pytest.mark.parametrize("refuse", [False, True])
def test_unknown_columns_are_kept_or_refused(refuse):
    def decode(part, faults):
        return decode_csv(part, ("i", "y", "x"), CONTRACT, refuse, faults)

    assert one(decode, b"1,2,3") == ([("y", "unknown field"), ("x", "unknown field")] if refuse else {"i": 1})
    faults = RowFaults(1)
    batch = pa.RecordBatch.from_pydict({"i": [1], "y": [1], "__z": [1]})
    decode_rows(batch, CONTRACT, refuse, faults)
    assert faults.rows.tolist() == ([0] if refuse else [])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b'{"i":5.0,"b":true,"f":2}', {"i": 5, "b": 1, "f": 2.0}),
        (b'{"i":5.5}', [("i", "not a 64-bit integer")]),
        (b'{"i":"5"}', [("i", "not a 64-bit integer")]),
        (b'{"i":true}', [("i", "not a 64-bit integer")]),
        (b'{"i":9223372036854775808}', [("i", "not a 64-bit integer")]),
        (b'{"f":"5"}', [("f", "not a number")]),
        (b'{"f":true}', [("f", "not a number")]),
        (b'{"f":1e400}', {"f": math.inf}),  # not finite: Validate says so
        (b'{"s":5}', [("s", "not UTF-8 text")]),
        (b'{"s":"\\ud800"}', [("s", "not UTF-8 text")]),
        (b'{"t":"now"}', [("t", "not a time")]),
        (b'{"t":5}', [("t", "not a time")]),
        (b'{"u":"5"}', [("u", "not a time")]),
        (b'{"u":99999999999999}', [("u", "not a time")]),
        (b'{"f":-Infinity}', {"f": -math.inf}),  # not finite: Validate says so
        (b'{"i":NaN}', [("i", "not a 64-bit integer")]),
        (b'{"x":{"y":[-Infinity]}}', [("(record)", "not JSON")]),
        (b'{"x": Inf}', [("(record)", "not JSON")]),
        (b'{"s":"a, NaN: [Infinity]"}', {"s": "a, NaN: [Infinity]"}),
        (b'{"i":1,"i":1,"f":2}', [("i", "named twice")]),
        (b'{"i":1,"\\u0069":2}', [("i", "named twice")]),
        (b'{"i":1,"x":1,"x":{"i":2}}', {"i": 1}),
        (b'{"s":[],"f":{}}', [("f", "not a number"), ("s", "not UTF-8 text")]),
        (b'{"i":null}', {}),
        (b"nope", [("(record)", "not JSON")]),
        (b"[1]", [("(record)", "not a JSON object")]),
        (b'{"x":' + b"[" * 100 + b"]" * 100 + b"}", [("(record)", "nested deeper than 100 levels")]),
        (b'{"x":' + b"[" * 99 + b"]" * 99 + b"}", {}),
        (b'{"s":"' + b"[" * 200 + b'"}', {"s": "[" * 200}),
    ],
)
def test_json_values(text, expected):
    assert one(as_json, text) == expected


HARD = [
    b"[" * 100_000, b'{"x":' + b"[" * 100_000, b'{"a":' * 100_000, b'{"f":' + b"9" * 1_000_000 + b"}",
    b'{"i":' + b"9" * 1_000_000 + b"}", b'{"x":1' + b"0" * 100_000 + b"}", b'{"f":1e' + b"9" * 100_000 + b"}",
    b'{"s":"' + b"\\" * 1_000_000 + b'"}', b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
]  # fmt: skip


@pytest.mark.parametrize("bomb", HARD, ids=lambda bomb: repr(bomb[:8]))
def test_a_record_that_is_made_to_be_hard_is_read_or_refused_at_once(bomb):
    good = b'{"i":1}\n'
    started = time.process_time()
    found = results(as_json, [good, bomb + b"\n", good])
    assert time.process_time() - started < 2
    assert found[0] == found[2] == results(as_json, [good])[0]
    assert found[1] == results(as_json, [bomb])[0]


def test_reasons_are_text_that_can_be_written():
    faults = RowFaults(2)
    as_json(pa.array([b'{"s":"\\ud800x","\\udfff":1}', b'{"i":"\\ud800"}']), faults, True)
    assert pa.array(faults.reasons(), pa.string()).cast(pa.binary())
    assert "\\\\ud800" in faults.reasons()[1]


@settings(deadline=None, max_examples=300)
@given(st.lists(st.sampled_from(TIMES) | st.datetimes().map(str) | st.none(), min_size=1, max_size=6))
def test_a_time_is_the_same_whatever_forms_stand_beside_it(texts):
    together = times_from_text(pa.array(texts, pa.string()), "%Y-%m-%d %H:%M:%S").cast(pa.int64()).to_pylist()
    alone = [
        times_from_text(pa.array([t], pa.string()), "%Y-%m-%d %H:%M:%S").cast(pa.int64())[0].as_py() for t in texts
    ]
    assert together == alone


@pytest.mark.parametrize(
    ("time_format", "text", "expected"),
    [
        ("%Y-%m-%d %H:%M:%S", "2020-02-03T04:05:06+01:00", "2020-02-03T03:05:06"),
        ("%Y-%m-%d %H:%M:%S", "2020-2-3 4:5:6", "2020-02-03T04:05:06"),
        ("%Y-%d-%m %H:%M", "2020-03-02 04:05", "2020-02-03T04:05:00"),
        ("%Y-%d-%m %H:%M", "2020-02-13 04:05", None),  # never read as ISO 8601 where the format says otherwise
        ("%d/%m/%Y", "03/02/2020", "2020-02-03T00:00:00"),
        ("%d/%m/%Y", "30/02/2020", None),
        ("%d/%m/%Y", "03/02/2020x", None),
        ("%d/%m/%Y %z", "03/02/2020 +0200", "2020-02-02T22:00:00"),
        ("%Y-%m-%d", "now", None),
    ],
)
def test_time_formats(time_format, text, expected):
    found = times_from_text(pa.array([text]), time_format)[0].as_py()
    assert (found and found.isoformat().removesuffix("+00:00")) == expected


# ---- rows of typed columns

INT, BOOL, FLOAT, TEXT, TIME, UNIX = ({name: CONTRACT.fields[name]} for name in CONTRACT.fields)
UTC = datetime.UTC
JAN_1 = datetime.datetime(1970, 1, 1, tzinfo=UTC)
INTEGERS = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()]


def decoded(fields, column):
    """The values of a column as the one field given, and which rows are bad."""
    (name,) = fields
    faults = RowFaults(len(column))
    contract = Contract(fields, b"")
    batch = pa.RecordBatch.from_arrays([column], [name])
    found = decode_rows(batch, contract, True, faults)[name]
    assert found.type == fields[name].arrow_type
    found.validate(full=True)
    faults.reasons()
    rows_as_json({name: column})
    return found.to_pylist(), faults.rows.tolist()


@pytest.mark.parametrize("kind", INTEGERS, ids=str)
def test_integer_columns(kind):
    column = pa.array([1, None, 0], kind)
    assert decoded(INT, column) == ([1, None, 0], [])
    assert decoded(FLOAT, column) == ([1.0, None, 0.0], [])
    assert decoded(TEXT, column) == ([None] * 3, [0, 2])
    assert decoded(TIME, column) == ([None] * 3, [0, 2])
    assert decoded(UNIX, column) == ([JAN_1 + datetime.timedelta(seconds=1), None, JAN_1], [])
    assert decoded(INT, column.dictionary_encode()) == ([1, None, 0], [])


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()], ids=str)
def test_float_columns(kind):
    column = pa.array([np.float16(1.5), None, np.float16(2), np.float16("inf")], kind)
    assert decoded(FLOAT, column) == ([1.5, None, 2.0, math.inf], [])
    assert decoded(INT, column) == ([None, None, 2, None], [0, 3])
    assert decoded(UNIX, column) == ([None, None, JAN_1 + datetime.timedelta(seconds=2), None], [0, 3])
    assert decoded(TEXT, column)[1] == [0, 2, 3]


def test_columns_at_the_edges():
    assert decoded(INT, pa.array([2**64 - 1, 5], pa.uint64())) == ([None, 5], [0])
    assert decoded(UNIX, pa.array([2**64 - 1, 0], pa.uint64())) == ([None, JAN_1], [0])
    assert decoded(UNIX, pa.array([-(2**63), 2**63 - 1, 0])) == ([None, None, JAN_1], [0, 1])
    assert decoded(INT, pa.array([-(2.0**63), 2.0**63, -0.0])) == ([-(2**63), None, 0], [1])
    assert decoded(FLOAT, pa.array([2**63 - 1])) == ([float(2**63 - 1)], [])
    assert decoded(BOOL, pa.array([True, None, False])) == ([1, None, 0], [])
    assert decoded(INT, pa.array([True, None, False]))[1] == [0, 2]
    assert decoded(FLOAT, pa.array([True]))[1] == [0]


@pytest.mark.parametrize("kind", [pa.decimal128(38, 2), pa.decimal256(60, 2)], ids=str)
def test_decimal_columns(kind):
    column = pa.array(
        [decimal.Decimal("0.10"), None, decimal.Decimal("2.00"), decimal.Decimal("12345678901234567890.12")], kind
    )
    assert decoded(FLOAT, column) == ([0.1, None, 2.0, 12345678901234567890.12], [])
    assert decoded(INT, column) == ([None, None, 2, None], [0, 3])


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.large_binary()], ids=str)
def test_text_columns(kind):
    column = pa.array([b"a", None, b"2020-01-01", "é".encode()], pa.binary()).cast(kind)
    assert decoded(TEXT, column) == (["a", None, "2020-01-01", "é"], [])
    assert decoded(TEXT, column.cast(pa.string()).dictionary_encode()) == (["a", None, "2020-01-01", "é"], [])
    assert decoded(TIME, column) == ([None, None, datetime.datetime(2020, 1, 1, tzinfo=UTC), None], [0, 3])
    assert decoded(INT, column)[1] == decoded(UNIX, column)[1] == decoded(FLOAT, column)[1] == [0, 2, 3]


@pytest.mark.parametrize(
    "column", [BAD_TEXT, BAD_TEXT.cast(pa.binary()), pa.DictionaryArray.from_arrays(pa.array([0, 1]), BAD_TEXT)]
)
def test_text_that_is_not_utf8(column):
    assert decoded(TEXT, column) == (["a", None], [1])
    assert decoded(INT, column)[1] == decoded(TIME, column)[1] == [0, 1]


@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Paris", "+02:00"])
@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_timestamp_columns(unit, zone):
    per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    column = pa.array([0, None, -per_second], pa.int64()).cast(pa.timestamp(unit, zone))
    expected = [JAN_1, None, JAN_1 - datetime.timedelta(seconds=1)]
    assert decoded(TIME, column) == decoded(UNIX, column) == (expected, [])
    assert decoded(INT, column)[1] == decoded(TEXT, column)[1] == [0, 2]


@pytest.mark.parametrize("unit", ["s", "ms", "us"])
def test_times_that_do_not_fit_are_none_and_never_wrap(unit):
    column = pa.array([2**63 - 1, -(2**63), 2**62, -(2**62), 0], pa.int64()).cast(pa.timestamp(unit))
    assert decoded(TIME, column) == ([None] * 4 + [JAN_1], [0, 1, 2, 3])
    assert decoded(INT, column)[1] == [0, 1, 2, 3, 4]


def test_date_columns():
    assert decoded(TIME, pa.array([0, None, 2**31 - 1], pa.int32()).cast(pa.date32())) == ([JAN_1, None, None], [2])
    assert decoded(TIME, pa.array([0, 2**62], pa.int64()).view(pa.date64())) == ([JAN_1, None], [1])


@pytest.mark.parametrize(
    "column",
    [
        pa.array([[1], None]),
        pa.array([{"a": 1}, None]),
        pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int64())),
        pa.array([1, None], pa.int32()).cast(pa.time32("s")),
        pa.array([2**63 - 1, None]).cast(pa.duration("s")),
        pa.ListArray.from_arrays(pa.array([0, 2, 2], pa.int32()), BAD_TEXT),
    ],
    ids=lambda column: str(column.type),
)
@pytest.mark.parametrize("fields", [INT, BOOL, FLOAT, TEXT, TIME, UNIX], ids=lambda fields: next(iter(fields)))
def test_columns_of_no_use(column, fields):
    assert decoded(fields, column)[0] == [None, None]
    assert 0 in decoded(fields, column)[1]
    assert decoded(fields, pa.nulls(2)) == ([None, None], [])


def test_a_missing_time_changes_no_other():
    contract = Contract.parse(b'feature { name: "u" type: INT time_domain { integer_format: UNIX_NANOSECONDS } }')
    nanoseconds = 1_600_000_000_123_457_000
    for values in ([nanoseconds], [nanoseconds, None]):
        batch = pa.RecordBatch.from_arrays([pa.array(values)], ["u"])
        found = decode_rows(batch, contract, False, RowFaults(len(values)))["u"]
        assert found.cast(pa.int64())[0].as_py() == nanoseconds // 1000


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.one_of(st.none(), st.integers(-(2**70), 2**70), st.floats(), st.booleans(), st.text(max_size=3)), min_size=1
    )
)
def test_a_value_is_the_same_whatever_types_stand_beside_it(values):
    payloads = [json.dumps({"i": v, "f": v, "s": v, "u": v}).encode() for v in values]
    assert results(as_json, payloads) == [results(as_json, [payload])[0] for payload in payloads]


# ---- Avro

AVRO = {
    "type": "record",
    "name": "Event",
    "fields": [
        {"name": "i", "type": "long"},
        {"name": "f", "type": ["null", "double"]},
        {"name": "s", "type": "string"},
        {"name": "t", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "x", "type": {"type": "array", "items": "bytes"}},
    ],
}
SCHEMA = parse_writer_schema(json.dumps(AVRO))
TIME_0 = datetime.datetime(2020, 1, 2, 3, 4, 5, 678901, UTC)
DATUM = {"i": 7, "f": 0.5, "s": "é", "t": TIME_0, "x": [b"abc"]}


def datum(row, schema=SCHEMA):
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, schema, row)
    return stream.getvalue()


def as_avro(payloads, faults):
    return decode_avro(payloads, SCHEMA, CONTRACT, False, faults)


def long(number):
    """A number as Avro writes it."""
    number, text = (number << 1) ^ (number >> 63), b""
    while number >= 0x80:
        text, number = text + bytes([number & 0x7F | 0x80]), number >> 7
    return text + bytes([number])


BROKEN = [("(record)", "not Avro of its schema")]


def test_avro_datums():
    good = datum(DATUM)
    assert one(as_avro, good) == {"i": 7, "f": 0.5, "s": "é", "t": TIME_0}
    assert one(as_avro, datum({**DATUM, "f": None})) == {"i": 7, "s": "é", "t": TIME_0}
    assert one(as_avro, good + b"\x00") == BROKEN
    for length in range(len(good)):
        assert one(as_avro, good[:length]) == BROKEN
    payloads = [good, good[:-1], b"", good + b"x", good]
    assert results(as_avro, payloads) == [results(as_avro, [payload])[0] for payload in payloads]


@settings(deadline=None, max_examples=300)
@given(spoilt(st.just(datum(DATUM))) | st.binary(max_size=40))
def test_any_bytes_are_a_datum_or_a_fault(payload):
    results(as_avro, [payload])


@pytest.mark.parametrize("length", [2**62, 2**40, 2**31, -(2**40), -1])
def test_huge_lengths_cost_no_memory(length):
    payloads = [long(7) + b"\x00" + long(length) + b"abc", datum(DATUM)[:-5] + long(length) + b"abc"]
    tracemalloc.start()
    try:
        assert [one(as_avro, payload) for payload in payloads] == [BROKEN, BROKEN]
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()


DOUBLING = {"type": "record", "name": "R0", "fields": [{"name": "a", "type": "null"}]}
for _depth in range(1, 30):
    _halves = [{"name": "a", "type": DOUBLING}, {"name": "b", "type": f"R{_depth - 1}"}]
    DOUBLING = {"type": "record", "name": f"R{_depth}", "fields": _halves}


@pytest.mark.parametrize(
    ("schema", "fault"),
    [
        ({"type": "record", "name": "N", "fields": [{"name": "n", "type": ["null", "N"]}]}, "N holds itself"),
        (
            {"type": "record", "name": "N", "fields": [{"name": "n", "type": {"type": "map", "values": "N"}}]},
            "N holds itself",
        ),
        ({"type": "array", "items": "null"}, "takes no bytes"),
        (
            {"type": "map", "values": {"type": "array", "items": {"type": "fixed", "name": "F", "size": 0}}},
            "takes no bytes",
        ),
        ({"type": "array", "items": {"type": "record", "name": "E", "fields": []}}, "takes no bytes"),
        (DOUBLING, "more than 10000 parts"),
        ({"type": "nope"}, "not an Avro schema"),
        (5, "not an Avro schema"),
        ({"type": "record", "name": "N", "fields": 5}, "not an Avro schema"),
    ],
)
def test_writer_schemas_that_could_be_made_bombs(schema, fault):
    with pytest.raises(WriterSchemaError, match=fault):
        parse_writer_schema(json.dumps(schema))


def test_writer_schemas_that_are_none():
    for text in ("", "{", "[" * 100_000, '{"type":' * 100_000, "\x00"):
        with pytest.raises(WriterSchemaError):
            parse_writer_schema(text)


def test_avro_of_every_type():
    fields = [
        {"name": "i", "type": {"type": "bytes", "logicalType": "decimal", "precision": 10, "scale": 0}},
        {"name": "f", "type": {"type": "bytes", "logicalType": "decimal", "precision": 10, "scale": 2}},
        {"name": "s", "type": {"type": "string", "logicalType": "uuid"}},
        {"name": "t", "type": {"type": "int", "logicalType": "date"}},
        {"name": "u", "type": {"type": "long", "logicalType": "timestamp-millis"}},
    ]
    schema = parse_writer_schema(json.dumps({"type": "record", "name": "E", "fields": fields}))
    row = {
        "i": decimal.Decimal(5),
        "f": decimal.Decimal("0.10"),
        "s": uuid.UUID(int=1),
        "t": datetime.date(2020, 1, 2),
        "u": TIME_0.replace(microsecond=0),
    }
    found = one(lambda p, f: decode_avro(p, schema, CONTRACT, False, f), datum(row, schema))
    assert found == {
        "i": 5,
        "f": 0.1,
        "s": str(uuid.UUID(int=1)),
        "t": datetime.datetime(2020, 1, 2, tzinfo=UTC),
        "u": row["u"],
    }


TIMES = {
    "u": ({"type": "long", "logicalType": "timestamp-micros"}, 253402300800000000, pa.timestamp("us", "UTC")),
    "d": ({"type": "int", "logicalType": "date"}, 2932897, pa.date32()),
    "d64": ({"type": "int", "logicalType": "date"}, 2**40, pa.date32()),
    "ms": (["null", {"type": "long", "logicalType": "timestamp-millis"}], 253402300800000, pa.timestamp("ms", "UTC")),
    "l": ({"type": "long", "logicalType": "local-timestamp-micros"}, -(2**62), pa.timestamp("us")),
    "tm": ({"type": "int", "logicalType": "time-millis"}, 2**31 - 1, pa.time32("ms")),
    "tu": ({"type": "long", "logicalType": "time-micros"}, -1, pa.time64("us")),
    "g": ({"type": "string", "logicalType": "uuid"}, "no UUID", pa.string()),
}


@pytest.mark.parametrize("name", TIMES)
def test_an_avro_value_that_python_cannot_hold_is_no_damage(name):
    kind, value, arrow = TIMES[name]
    fields = [{"name": "i", "type": "long"}, {"name": "x", "type": kind}, {"name": "deep", "type": {
        "type": "array", "items": {"type": "record", "name": "D", "fields": [{"name": "x", "type": kind}]}}}]  # fmt: skip
    schema = parse_writer_schema(json.dumps({"type": "record", "name": "E", "namespace": "n", "fields": fields}))
    plain = plain_schema(schema)
    payload = datum({"i": 1, "x": value, "deep": [{"x": value}]}, plain.schema)
    assert one(lambda p, f: decode_avro(p, schema, Contract(INT, b""), False, f), payload) == {"i": 1}
    column = plain.to_array([value, None], plain.field_types()["x"])
    assert column.type == arrow
    if name != "d64":
        deep = plain.to_array([[{"x": value}]], plain.field_types()["deep"])
        assert deep.type == pa.list_(pa.struct([("x", arrow)]))
    rows_as_json({"x": column})


def test_an_avro_time_that_is_none_costs_its_row_only():
    for logical, value, good in (
        ("timestamp-micros", 253402300800000000, 1577934245678901),
        ("timestamp-millis", 253402300800000, 1577934245678),
        ("timestamp-nanos", -(2**63), 1577934245678901999),
        ("local-timestamp-micros", 253402300800000000, 1577934245678901),
    ):
        kind = ["null", {"type": "long", "logicalType": logical}]
        schema = parse_writer_schema(json.dumps({**AVRO, "fields": [*AVRO["fields"][:3], {"name": "t", "type": kind}]}))
        plain = plain_schema(schema).schema
        payloads = [datum({**DATUM, "t": t}, plain) for t in (good, value, None)]
        faults = RowFaults(3)
        times = decode_avro(pa.array(payloads), schema, CONTRACT, False, faults)["t"].to_pylist()
        micros = 678000 if logical == "timestamp-millis" else 678901
        assert times[0] == TIME_0.replace(microsecond=micros)
        assert times[2] is None
        if logical == "timestamp-nanos":  # of which 64 bits hold no other
            assert times[1] == datetime.datetime(1677, 9, 21, 0, 12, 43, 145224, UTC)
            assert not faults.bad.any()
        else:
            assert faults.rows.tolist() == [1]
            assert "not a time" in faults.reasons()[0]


UNIONS = {
    ("int", "date"): [2**31 - 1, -(2**31)],
    ("long", "timestamp-millis"): [253402300800000, -(2**63)],
    ("long", "timestamp-micros"): [253402300800000000, 2**63 - 1],
    ("long", "local-timestamp-micros"): [-(2**62)],
    ("long", "time-micros"): [-1, 2**62],
}


@pytest.mark.parametrize(("kind", "logical"), UNIONS)
def test_a_time_of_a_union_of_several_types_that_python_cannot_hold_is_no_time(kind, logical):
    def schema(part):
        record = {"type": "record", "name": "E", "fields": [{"name": "t", "type": ["null", part, "string"]}]}
        return parse_writer_schema(json.dumps(record))

    timed = schema({"type": kind, "logicalType": logical})
    for value in UNIONS[kind, logical]:
        payload = datum({"t": value}, schema(kind))
        assert one(lambda p, f: decode_avro(p, timed, CONTRACT, False, f), payload) == [("t", "not a time")]
        assert one(lambda p, f: decode_avro(p, timed, Contract(INT, b""), True, f), payload) == [("t", "unknown field")]
        assert one(lambda p, f: decode_avro(p, timed, Contract(INT, b""), False, f), payload) == {}


@pytest.mark.parametrize("union", [False, True])
@pytest.mark.parametrize(
    ("name", "precision", "scale", "unscaled", "expected"),
    [
        ("f", 4, 2, 12345, 123.45),
        ("f", 4, 2, -123456789, -1234567.89),
        ("f", 40, 10, 10**39 + 1, 1e29),
        ("f", 4, 0, 10**700, [("f", "not a number")]),
        ("i", 4, 0, 123456789, 123456789),
        ("i", 60, 10, 10**40, [("i", "not a 64-bit integer")]),
        ("i", 60, 10, 10**10 + 1, [("i", "not a 64-bit integer")]),
        ("i", 60, 30, 7 * 10**30, 7),
    ],
)
def test_an_avro_decimal_is_exact_whatever_its_precision_says(name, precision, scale, unscaled, expected, union):
    part = {"type": "bytes", "logicalType": "decimal", "precision": precision, "scale": scale}
    kinds = [["null", kind, "string"] if union else kind for kind in (part, "bytes")]
    written, plain = (
        parse_writer_schema(json.dumps({"type": "record", "name": "E", "fields": [{"name": name, "type": kind}]}))
        for kind in kinds
    )
    payload = datum({name: unscaled.to_bytes(unscaled.bit_length() // 8 + 1, "big", signed=True)}, plain)
    found = one(lambda p, f: decode_avro(p, written, CONTRACT, False, f), payload)
    assert found == (expected if isinstance(expected, list) else {name: expected})


# ---- out

finite = st.floats(allow_nan=False, allow_infinity=False)


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.tuples(
            st.integers(-(2**63), 2**63 - 1) | st.none(),
            finite | st.none(),
            st.floats(width=32, allow_nan=False, allow_infinity=False),
            st.text() | st.none(),
            st.datetimes(timezones=st.just(UTC)) | st.none(),
            st.booleans(),
        ),
        max_size=5,
    )
)
def test_json_lines_read_back_to_the_same_bits(rows):
    columns = list(zip(*rows, strict=True)) if rows else [()] * 6
    types = [pa.int64(), pa.float64(), pa.float32(), pa.string(), pa.timestamp("us", tz="UTC"), pa.bool_()]
    names = ["i", "f", 'n"a\\m\ne', "s", "t", "b"]
    arrays = [pa.array(c, t) for c, t in zip(columns, types, strict=True)]
    lines = encode_json_lines(pa.RecordBatch.from_arrays(arrays, names)).splitlines()
    found = [json.loads(line) for line in lines]
    assert len(found) == len(rows)
    for row, back in zip(rows, found, strict=True):
        assert list(back) == names
        assert back["i"] == row[0]
        assert back["f"] is None if row[1] is None else struct.pack("d", back["f"]) == struct.pack("d", row[1])
        assert struct.pack("f", back[names[2]]) == struct.pack("f", row[2])
        assert back["s"] == row[3]
        assert row[4] == (back["t"] and datetime.datetime.fromisoformat(back["t"]))
        assert back["b"] is row[5]


def test_json_lines_of_what_json_has_not():
    batch = pa.RecordBatch.from_pydict(
        {
            "f": [math.nan, math.inf, -0.0],
            "d": pa.array(["a", None, "a"]).dictionary_encode(),
            "y": [b"\xff", None, b"a"],
        }
    )
    assert encode_json_lines(batch).splitlines() == [
        b'{"f":null,"d":"a","y":"\\\\xff"}',
        b'{"f":null,"d":null,"y":null}',
        b'{"f":-0.0,"d":"a","y":"a"}',
    ]


@pytest.mark.parametrize(("unit", "zone"), [("s", "UTC"), ("ms", None), ("us", "UTC"), ("us", None), ("ns", "UTC")])
def test_json_lines_have_times_as_strftime_writes_them(unit, zone):
    per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    seconds = [-62167219201, -62135596800, -1, 0, 1526947200, 253402300799, 253402300800, 2**43]  # 2**43: a year beyond
    times = [each * per_second + per_second // 3 for each in seconds]
    times = [each for each in times if abs(each) < 2**63]
    for some in (times[:-1], times, [None, 0]):
        column = pa.array(some, pa.int64()).cast(pa.timestamp(unit, zone))
        texts = pc.strftime(column, "%Y-%m-%dT%H:%M:%SZ").to_pylist()
        lines = encode_json_lines(pa.RecordBatch.from_arrays([column], ["t"])).splitlines()
        assert [json.loads(line)["t"] for line in lines] == texts


def test_rows_of_anything_become_json():
    columns = {
        "text": BAD_TEXT,
        "time": pa.array([2**62, 0]).cast(pa.timestamp("s")),
        "number": pa.array([math.nan, -0.0]),
        "decimal": pa.array([None, decimal.Decimal("1.5")]),
        "bytes": pa.array([b"\xff", "é".encode()]),
        "nested": pa.array([{"a": [1.0]}, {"a": [math.inf]}]),
    }
    first, second = (json.loads(text) for text in rows_as_json(columns))
    assert (first["text"], first["time"]) == ("a", 2**62)
    assert (first["number"], first["decimal"]) == ("nan", None)
    assert (first["bytes"], first["nested"]) == ("/w==", {"a": [1.0]})
    assert (second["text"], second["time"]) == ("/w==", "1970-01-01T00:00:00")
    assert (second["number"], second["decimal"]) == (-0.0, 1.5)
    assert (second["bytes"], second["nested"]) == ("é", {"a": ["inf"]})


def test_rows_as_json_keep_every_digit():
    big, small = decimal.Decimal("1234567890123456789012345678.0123456789"), decimal.Decimal("-0.1000000000")
    nanos = pa.array([123456789, 1], pa.time64("ns"))
    columns = {
        "d": pa.array([big, small], pa.decimal128(38, 10)),
        "whole": pa.array([decimal.Decimal(2**62 + 1), decimal.Decimal(0)], pa.decimal128(38, 2)),
        "t": nanos,
        "deep": pa.array([{"t": nanos[0], "d": [big]}, None], pa.struct([("t", nanos.type), ("d", pa.list_(
            pa.decimal128(38, 10)))])),
    }  # fmt: skip
    assert rows_as_json(columns) == [
        b'{"d": 1234567890123456789012345678.0123456789, "whole": 4611686018427387905, "t": "00:00:00.123456789",'
        b' "deep": {"t": "00:00:00.123456789", "d": [1234567890123456789012345678.0123456789]}}',
        b'{"d": -0.1000000000, "whole": 0, "t": "00:00:00.000000001", "deep": null}',
    ]
    assert row_as_json({"d": decimal.Decimal("1E+900")}) == b'{"d": 1E+900}'


@pytest.mark.parametrize("digits", ["1" * 5000, "-" + "98" * 2500, "12345678901234567890123" + " " * 1000])
def test_a_reason_has_the_digits_of_an_integer_of_any_length(digits):
    for field in ("i", "s", "t", "u"):
        faults = RowFaults(1)
        as_json(pa.array([f'{{"{field}": {digits}}}'.encode()]), faults)
        (reason,) = json.loads(faults.reasons()[0])
        digits = digits.strip()
        assert reason["value"] == (digits if len(digits) <= 200 else digits[:199] + "…")
