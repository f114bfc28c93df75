"""Validate: rows that keep the contract go on, in slices of event time; every other is a dead letter."""

import datetime
import json
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.batches import column, times_us, without
from models.decode import decode_batch
from models.project.project import load_project, parse_project
from models.record import DEAD_LETTER_SCHEMA, EVENT_TIME, MARKS, PAYLOAD, POSITION, SLICE, SOURCE
from models.validate import carry, validate_batch
from pipelines.runners import FN_API
from tests.kit.raw import raw, reasons
from tests.kit.steps import END, through
from tests.kit.support import CARD_FRAUD, card_fraud, transaction
from transforms.validate import Validate

pytestmark = [pytest.mark.both_sets, pytest.mark.slow]

PROJECT = card_fraud()
DAY_US = 86_400_000_000


def decoded(*events):
    payloads = [json.dumps(event).encode() for event in events]
    batch, faults = decode_batch(raw("json", payloads), PROJECT.contract, 65_536, False)
    assert not faults.bad.any()
    return batch


def sent(batch, **options):
    """Valid batches with their timestamps, and dead letters as dicts."""
    good, dead = [], []
    for output in Validate(PROJECT.event_type, **options)._validate(batch):
        if isinstance(output, pa.RecordBatch) or not hasattr(output, "tag"):
            good.append((output.timestamp.micros, output.value))
        else:
            assert without(output.value, MARKS).schema.equals(DEAD_LETTER_SCHEMA)
            dead += output.value.to_pylist()
    assert sum(part.num_rows for _, part in good) + len(dead) == batch.num_rows
    return good, dead


@pytest.mark.parametrize(
    ("changes", "field", "rule", "value"),
    [
        ({"TRANSACTION_ID": None}, "TRANSACTION_ID", "missing", ""),
        ({"TX_DATETIME": None}, "TX_DATETIME", "missing", ""),
        ({"CUSTOMER_ID": None}, "CUSTOMER_ID", "missing", ""),
        ({"TX_AMOUNT": None}, "TX_AMOUNT", "missing", ""),
        ({"CUSTOMER_ID": -1}, "CUSTOMER_ID", "below 0", "-1"),
        ({"TX_FRAUD": 2}, "TX_FRAUD", "above 1", "2"),
        ({"TX_FRAUD_SCENARIO": 9}, "TX_FRAUD_SCENARIO", "above 3", "9"),  # checked though nothing reads it
        ({"TX_AMOUNT": -0.01}, "TX_AMOUNT", "below 0", "-0.01"),
        ({"TX_AMOUNT": 1000000.01}, "TX_AMOUNT", "above 1000000", "1000000.01"),
        ({"TX_AMOUNT": math.nan}, "TX_AMOUNT", "not finite", "nan"),
        ({"TX_AMOUNT": math.inf}, "TX_AMOUNT", "not finite", "inf"),
        ({"TX_AMOUNT": -math.inf}, "TX_AMOUNT", "not finite", "-inf"),
        ({"TX_DATETIME": "1999-12-31T23:59:59.999999"}, "TX_DATETIME", "before event.earliest", None),
        ({"TX_DATETIME": "0001-01-01"}, "TX_DATETIME", "before event.earliest", None),
        ({"TX_DATETIME": "2100-01-01"}, "TX_DATETIME", "not before event.latest", None),
        ({"TX_DATETIME": "9999-12-31T23:59:59.999999"}, "TX_DATETIME", "not before event.latest", None),
    ],
)
def test_rows_that_break_a_rule(changes, field, rule, value):
    event = transaction(1)
    event.update(changes)
    good, (letter,) = sent(decoded(transaction(0), event, transaction(2)))
    assert [row["TRANSACTION_ID"] for _, part in good for row in part.to_pylist()] == [0, 2]
    ((found_field, found_rule, found_value),) = reasons(letter)
    assert (found_field, found_rule) == (field, rule)
    assert value is None or found_value == value
    assert letter["payload"] == json.dumps(event).encode()
    assert (letter["format"], letter["step"], letter["source"], letter["position"]) == ("json", "Validate", "file", 10)
    assert letter["event_id"] == (None if field == "TRANSACTION_ID" else "1")


def test_bounds_are_where_they_are_declared():
    good, dead = sent(
        decoded(
            transaction(0, TX_DATETIME="2000-01-01T00:00:00", TX_AMOUNT=0.0),
            transaction(1, TX_DATETIME="2099-12-31T23:59:59.999999", TX_AMOUNT=1000000.0),
        )
    )
    assert dead == []
    assert len(good) == 2


def test_a_row_has_all_its_reasons_in_the_schemas_order():
    _, (letter,) = sent(decoded(transaction(1, CUSTOMER_ID=None, TX_AMOUNT=-1.0, TX_DATETIME="1900-01-01", TX_FRAUD=5)))
    assert [(field, rule) for field, rule, _ in reasons(letter)] == [
        ("CUSTOMER_ID", "missing"),
        ("TX_AMOUNT", "below 0"),
        ("TX_FRAUD", "above 1"),
        ("TX_DATETIME", "before event.earliest"),
    ]


def test_rows_of_typed_columns_are_reported_as_json():
    batch = decoded(transaction(1, TX_AMOUNT=-1.0))
    place = batch.schema.get_field_index(PAYLOAD)
    columns = [pa.nulls(1, pa.binary()) if i == place else c for i, c in enumerate(batch.columns)]
    _, (letter,) = sent(pa.RecordBatch.from_arrays(columns, schema=batch.schema))
    assert letter["format"] == "row"
    row = json.loads(letter["payload"])
    assert (row["TX_AMOUNT"], row["TX_DATETIME"]) == (-1.0, "2018-04-01T01:00:00+00:00")
    assert not any(name.startswith("__") for name in row)


STRINGS = b"""
feature { name: "id" type: BYTES presence { min_fraction: 1.0 } }
feature { name: "t" type: INT presence { min_fraction: 1.0 } time_domain { integer_format: UNIX_SECONDS } }
feature { name: "who" type: BYTES presence { min_fraction: 1.0 } string_domain { value: "a" value: "b" } }
feature { name: "n" type: INT }
"""
DECLARATIONS = b"""
name: other
schema: s.pbtxt
event: {id: id, time: t, earliest: 1970-01-01, latest: 2030-01-01}
entities: {who: who}
features:
  rolling:
    - {entity: who, windows: {DAY: 1d}, features: {"SUM_{window}": sum(n)}}
model: {inputs: [SUM_DAY]}
"""


def test_string_domains_absurd_unix_times_and_sums_beyond_64_bits():
    project, faults = parse_project(DECLARATIONS, lambda _: STRINGS)
    assert faults == []
    events = [
        {"id": "1", "t": 0, "who": "a", "n": 2**44},
        {"id": "2", "t": -1, "who": "b"},
        {"id": "3", "t": 250_000_000_000, "who": "b"},
        {"id": "4", "t": 5, "who": "c", "n": None},
        {"id": "5", "t": 5, "who": "a", "n": 2**44 + 1},
        {"id": "6", "t": 5, "who": "a", "n": -(2**63)},
        {"id": "", "t": 5, "who": "a", "n": -(2**44)},
    ]
    payloads = [json.dumps(event).encode() for event in events]
    batch, found = decode_batch(raw("json", payloads), project.contract, 65_536, False)
    assert not found.bad.any()
    rules = [json.loads(text)[0]["rule"] for text in validate_batch(batch, project.event_type).reasons()]
    assert rules == [
        "before event.earliest",
        "not before event.latest",
        "not in domain",
        f"beyond {2**44} of exact sums",
        f"beyond {2**44} of exact sums",
    ]
    dead = [
        row
        for output in Validate(project.event_type)._validate(batch)
        if hasattr(output, "tag")
        for row in output.value.to_pylist()
    ]
    assert [row["event_id"] for row in dead] == ["2", "3", "4", "5", "6"]


def test_batches_are_of_one_slice_each_and_stand_at_its_end():
    batch = decoded(*(transaction(n, TX_DATETIME=f"2018-04-0{n}T00:00:00") for n in (3, 1, 2, 1, 3, 2, 2)))
    metadata = {**batch.schema.metadata, SLICE: str(DAY_US).encode()}
    good, dead = sent(batch.replace_schema_metadata(metadata))
    assert dead == []
    assert [part.num_rows for _, part in good] == [2, 3, 2]
    for end, part in good:
        times = times_us(part)
        assert (times < end).all()
        assert (times >= end - DAY_US).all()


def test_only_what_is_read_later_is_carried():
    project = load_project(CARD_FRAUD)
    valid = carry(decoded(transaction(1), transaction(2)), project.event_type, None)
    assert valid.schema.names == [
        "TRANSACTION_ID",
        "CUSTOMER_ID",
        "TERMINAL_ID",
        "TX_AMOUNT",
        "TX_FRAUD",
        EVENT_TIME,
        SOURCE,
        POSITION,
        MARKS,
    ]
    assert not valid.schema.metadata


def test_events_before_the_first_to_be_scored_are_history():
    batch = decoded(*(transaction(n) for n in range(4)))
    second = int(datetime.datetime(2018, 4, 1, 2, tzinfo=datetime.UTC).timestamp() * 1_000_000)
    assert column(carry(batch, PROJECT.event_type, second), MARKS).to_pylist() == [1, 1, 0, 0]
    assert column(carry(batch, PROJECT.event_type, None), MARKS).to_pylist() == [0] * 4


values = st.sampled_from([None, -1, 0, 1, 7, 2**63 - 1])
amounts = st.sampled_from([None, -1.0, 0.0, 1.5, 1e6, 1e7, math.nan, math.inf])
times = st.sampled_from([None, "1999-01-01", "2018-04-01", "2018-05-01T01:02:03.5Z", "2100-01-01"])
events = st.tuples(values, times, values, amounts, values).map(
    lambda v: dict(zip(["TRANSACTION_ID", "TX_DATETIME", "CUSTOMER_ID", "TX_AMOUNT", "TX_FRAUD"], v, strict=True))
)


def is_good(event):
    """The contract of the example, by hand."""
    number, time, customer, amount, fraud = event.values()
    return (
        number in (0, 1, 7, 2**63 - 1)
        and time in ("2018-04-01", "2018-05-01T01:02:03.5Z")
        and customer in (0, 1, 7, 2**63 - 1)
        and amount in (0.0, 1.5, 1e6)
        and fraud in (None, 0, 1)
    )


@settings(deadline=None, max_examples=150)
@given(st.lists(events, min_size=1, max_size=12), st.data())
def test_what_becomes_of_a_row_is_its_own_affair(rows, data):
    rows = [{**row, "TERMINAL_ID": 1} for row in rows]
    faults = validate_batch(decoded(*rows), PROJECT.event_type)
    good = [is_good({k: v for k, v in row.items() if k != "TERMINAL_ID"}) for row in rows]
    assert faults.bad.tolist() == [not g for g in good]
    together = dict(zip(faults.rows.tolist(), faults.reasons(), strict=True))
    for number, row in enumerate(rows):
        alone = validate_batch(decoded(row), PROJECT.event_type)
        assert alone.reasons() == ([together[number]] if number in together else [])
    at = data.draw(st.integers(0, len(rows)))
    parts = [validate_batch(decoded(*part), PROJECT.event_type) for part in (rows[:at], rows[at:]) if part]
    assert np.concatenate([part.bad for part in parts]).tolist() == faults.bad.tolist()


def test_through_the_transform():
    bad = transaction(1, TX_AMOUNT=-1.0)
    steps = [([(0, decoded(transaction(0), bad)), (0, decoded(bad, transaction(2)))], END)]
    good, dead = through(Validate(PROJECT.event_type), steps, FN_API)
    assert good["TRANSACTION_ID"].to_pylist() == [0, 2]
    assert dead["event_id"].to_pylist() == ["1", "1"]
    assert dead.drop([MARKS]).schema.equals(DEAD_LETTER_SCHEMA)
