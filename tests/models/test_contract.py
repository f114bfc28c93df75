"""The schema as a contract: what of TensorFlow Metadata is read, and which rows break it."""

import contextlib
import json
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.faults import MAX_VALUE_CHARS, RowFaults
from models.project.contract import FIXED_POINT_LIMIT, Contract, SchemaError, check_event_time, check_fixed_point
from models.record import TIMESTAMP

pytestmark = pytest.mark.both_sets


def feature(name="x", kind="INT", rest=""):
    return f'feature {{ name: "{name}" type: {kind} {rest} }}\n'


def field(kind, rest=""):
    return Contract.parse(feature("x", kind, rest).encode()).fields["x"]


def broken(kind, rest, values, arrow_type):
    """For each row, the (rule, value) of each reason."""
    contract = Contract.parse(feature("x", kind, rest).encode())
    faults = RowFaults(len(values))
    contract.check({"x": pa.array(values, arrow_type)}, faults)
    reasons = dict(zip(faults.rows.tolist(), map(json.loads, faults.reasons()), strict=True))
    assert all(reason["field"] == "x" for found in reasons.values() for reason in found)
    return [[(reason["rule"], reason["value"]) for reason in reasons.get(row, [])] for row in range(len(values))]


def test_reads_types_presence_and_domains():
    assert field("INT").kind == "int"
    assert field("FLOAT").kind == "float"
    assert field("BYTES").kind == "string"
    assert field("BYTES", 'time_domain { string_format: "%Y-%m-%d" }').kind == "time"
    assert field("INT", "time_domain { integer_format: UNIX_SECONDS }").time_format == "UNIX_SECONDS"
    assert field("INT", "presence { min_fraction: 1.0 }").required
    assert not field("INT", "presence { min_fraction: 0.9 }").required
    assert field("INT", "value_count { min: 1 max: 1 }").kind == "int"
    assert not field("INT", "presence { min_count: 1 }").required
    assert field("INT", "int_domain { min: 0 max: 1 }").is_boolean
    assert field("INT", "bool_domain {}").is_boolean
    assert not field("FLOAT", "float_domain { min: 0 max: 1 }").is_boolean
    assert field("FLOAT", "float_domain { min: -inf max: inf }").maximum is None
    assert field("FLOAT", "float_domain { min: -inf max: 5 }").minimum is None
    assert field("INT", "shape { dim { size: 1 } }").kind == "int"
    shared = 'string_domain { name: "d" value: "a" value: "b" }' + feature("x", "BYTES", 'domain: "d"')
    assert Contract.parse(shared.encode()).fields["x"].domain == ("a", "b")


@pytest.mark.parametrize(
    ("kind", "rest", "message"),
    [
        ("STRUCT", "", "needs a type of INT, FLOAT or BYTES"),
        ("TYPE_UNKNOWN", "", "needs a type of INT, FLOAT or BYTES"),
        ("INT", "value_count { min: 0 max: 2 }", "has more than one value a row"),
        ("INT", "shape { dim { size: 2 } }", "has more than one value a row"),
        ("INT", "float_domain { min: 0 }", "its float_domain is not one that headrace checks for its type"),
        ("BYTES", "int_domain { min: 0 }", "its int_domain is not one that headrace checks for its type"),
        ("BYTES", "bool_domain {}", "its bool_domain is not one"),
        ("BYTES", "image_domain {}", "its image_domain is not one"),
        ("INT", "int_domain { min: 2 max: 1 }", "no number is in its int_domain, from 2 to 1"),
        ("FLOAT", "float_domain { min: nan }", "no number is in its float_domain, from nan to None"),
        ("FLOAT", "float_domain { max: nan }", "no number is in its float_domain, from None to nan"),
        ("BYTES", "string_domain {}", "no text is in its domain"),
        ("BYTES", 'domain: "d"', "its domain 'd' is not in the schema"),
        ("INT", "time_domain { integer_format: UNIX_DAYS }", "its integer_format UNIX_DAYS is not one of UNIX_SECONDS"),
        ("BYTES", "time_domain {}", "its integer_format FORMAT_UNKNOWN is not one of"),
        ("BYTES", "time_domain { integer_format: UNIX_SECONDS }", "needs the type INT"),
        ("INT", 'time_domain { string_format: "%Y-%m-%d" }', "needs the type BYTES"),
        ("FLOAT", 'time_domain { string_format: "%Y-%m-%d" }', "needs the type BYTES"),
        ("BYTES", 'time_domain { string_format: "%Q" }', "can't be read: 'Q' is a bad directive"),
        ("BYTES", 'time_domain { string_format: "%" }', "can't be read: stray %"),
        ("BYTES", 'time_domain { string_format: "%H:%M" }', "does not say year, month and day"),
        ("BYTES", 'time_domain { string_format: "%Y-%m-%d %Z" }', "%Z, which says no offset"),
    ],
)
def test_names_what_it_can_not_use(kind, rest, message):
    with pytest.raises(SchemaError, match=r"^field x: ") as error:
        Contract.parse(feature("x", kind, rest).encode())
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_names_all_faults_at_once():
    text = feature("a", "STRUCT") + feature("b", "INT", "int_domain { min: 2 max: 1 }") + feature("b") + feature("")
    with pytest.raises(SchemaError) as error:
        Contract.parse(text.encode())
    lines = str(error.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["field a", "field b", "field b", "field ''"]
    contract, faults = Contract.read(text.encode())
    assert [str(fault) for fault in faults] == lines
    assert list(contract.fields) == ["a", "b", ""]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "has no feature"),
        (b"\xff", "not a TensorFlow Metadata schema"),
        (b"feature {", "not a TensorFlow Metadata schema"),
        (b"feature { nam: 1 }", "not a TensorFlow Metadata schema: 1:11 :"),
        (b"feature { type: 99 }", "^99 is not one of INT, FLOAT, BYTES$"),
        (b"feature { time_domain { integer_format: UNIX } }", "^UNIX is not one of UNIX_SECONDS, UNIX_MILLISECONDS, "),
        (b"feature { lifecycle_stage: OLD }", "^OLD is not one of PLANNED, ALPHA, BETA, "),
        (
            b"feature { name: 'Enum type \"x\" has no value named y.'",
            'not a TensorFlow Metadata schema: 1:.* Expected "}"',
        ),
        (b"feature { struct_domain { " * 30_000, "nested too deep"),
    ],
)
def test_refuses_what_is_no_schema(text, message):
    with pytest.raises(SchemaError, match=message) as error:
        Contract.parse(text)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")  # protobuf's, of odd texts
@settings(deadline=None, max_examples=300)
@given(st.data())
def test_any_change_of_a_schema_is_read_or_refused(data):
    text = (
        feature("a", "INT", "int_domain { min: 0 }") + feature("b", "BYTES", 'time_domain { string_format: "%Y" }')
    ).encode()
    place = data.draw(st.integers(0, len(text)))
    put = data.draw(st.binary(max_size=3) | st.sampled_from([b"{", b"}", b'"', b"nan", b"inf", b"9" * 40, b"-", b"\\"]))
    with contextlib.suppress(SchemaError):
        Contract.parse(text[:place] + put + text[place + data.draw(st.integers(0, 9)) :])


@pytest.mark.parametrize(
    ("kind", "rest", "values", "arrow_type", "expected"),
    [
        ("INT", "presence { min_fraction: 1.0 }", [1, None], pa.int64(), [[], [("missing", "")]]),
        ("INT", "", [1, None], pa.int64(), [[], []]),
        (
            "INT",
            "int_domain { min: -1 max: 5 }",
            [-2, -1, 5, 6, None, -(2**63), 2**63 - 1],
            pa.int64(),
            [
                [("below -1", "-2")],
                [],
                [],
                [("above 5", "6")],
                [],
                [("below -1", str(-(2**63)))],
                [("above 5", str(2**63 - 1))],
            ],
        ),
        (
            "INT",
            "int_domain { min: 9007199254740993 }",  # a double can't tell it from the one before
            [9007199254740992, 9007199254740993],
            pa.int64(),
            [[("below 9007199254740993", "9007199254740992")], []],
        ),
        ("INT", "bool_domain {}", [0, 1, 2], pa.int64(), [[], [], [("above 1", "2")]]),
        (
            "FLOAT",
            "float_domain { min: 0.1 max: 1e20 }",  # 0.1 as written, not as 32 bits have it
            [0.1, 0.09999999999999999, 2e20, None],
            pa.float64(),
            [[], [("below 0.1", "0.09999999999999999")], [("above 1e+20", "2e+20")], []],
        ),
        (
            "FLOAT",
            "float_domain { min: 0 max: 1 }",
            [math.nan, math.inf, -math.inf, None, -0.0],
            pa.float64(),
            [[("not finite", "nan")], [("not finite", "inf")], [("not finite", "-inf")], [], []],
        ),
        ("FLOAT", "", [math.nan, 1.0], pa.float64(), [[("not finite", "nan")], []]),
        ("FLOAT", "float_domain { max: inf }", [1e308], pa.float64(), [[]]),
        (
            "BYTES",
            'string_domain { value: "a" value: "" }',
            ["a", "", "b", None, "A"],
            pa.string(),
            [[], [], [("not in domain", "b")], [], [("not in domain", "A")]],
        ),
    ],
)
def test_rows_that_break_the_contract(kind, rest, values, arrow_type, expected):
    assert broken(kind, rest, values, arrow_type) == expected


def test_an_event_time_lies_in_its_bounds():
    times = pa.array([None, -(2**62), 9, 10, 19, 20, 2**62]).cast(TIMESTAMP)
    faults = RowFaults(7)
    check_event_time(times, "t", 10, 20, faults)
    assert [r[0]["rule"] for r in map(json.loads, faults.reasons())] == ["before event.earliest"] * 2 + [
        "not before event.latest"
    ] * 2
    assert faults.rows.tolist() == [1, 2, 5, 6]


def test_what_is_summed_fits_exact_sums():
    limit = FIXED_POINT_LIMIT // 100
    columns = {
        "f": pa.array([limit, limit + 0.5, -limit - 0.5, None, math.nan, math.inf]),
        "i": pa.array([0, FIXED_POINT_LIMIT, FIXED_POINT_LIMIT + 1, -(2**63), None, 2**63 - 1]),
    }
    faults = RowFaults(6)
    check_fixed_point(columns, {"f": 2}, faults)
    assert faults.rows.tolist() == [1, 2]
    faults = RowFaults(6)
    check_fixed_point(columns, {"i": 0}, faults)
    assert faults.rows.tolist() == [2, 3, 5]


def test_reasons_are_kept_by_row_and_short():
    faults = RowFaults(4)
    faults.add(np.array([2, 1]), "a", "r", ["x" * 1000, b"\xff"])
    faults.add(np.array([2]), "b\ud800", "s")
    faults.add(np.array([], np.int64), "c", "t")
    assert faults.rows.tolist() == [1, 2]
    first, second = map(json.loads, faults.reasons())
    assert first == [{"field": "a", "rule": "r", "value": "\\xff"}]
    assert second[0]["value"] == "x" * (MAX_VALUE_CHARS - 1) + "…"
    assert second[1] == {"field": "b\\ud800", "rule": "s", "value": ""}
    part = RowFaults(2)
    part.add(np.array([1]), "d", "u")
    faults.include(part, np.array([0, 3]))
    assert faults.rows.tolist() == [1, 2, 3]
    assert json.loads(faults.reasons()[2])[0]["field"] == "d"
