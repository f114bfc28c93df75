"""What is decided of an event that can't be scored, by its dead letter."""

import datetime

import pyarrow as pa
import pytest

from models.fallback import fallback_rows
from models.partitions import Span
from models.project.learned import Fallback
from models.project.project import load_project
from models.record import DEAD_LETTER_SCHEMA, TIMESTAMP
from tests.kit.declared import assert_fault, declared
from tests.kit.support import CARD_FRAUD, ROOT

TEXT = (CARD_FRAUD / "project.yaml").read_text()
SCHEMA = (CARD_FRAUD / "schema.pbtxt").read_text()
NOON = datetime.datetime(2018, 4, 1, 12, tzinfo=datetime.UTC)


def with_fallback(fallback="{action: look}"):
    return TEXT + f"\nfallback: {fallback}\n"


def letters(ids, times=None, **more):
    rows = [{"event_id": id, "event_time": time} for id, time in zip(ids, times or [NOON] * len(ids), strict=True)]
    batch = pa.RecordBatch.from_pylist(rows, DEAD_LETTER_SCHEMA)
    for name, values in more.items():
        batch = batch.append_column(name, values)
    return batch


def test_a_row_has_the_id_the_time_the_decision_and_the_outcome():
    rows = fallback_rows(letters(["17", "-3"], [NOON, None]), declared(with_fallback(), SCHEMA))
    said = {"decision": "look", "outcome": "dead-lettered", "__source": None}
    assert rows.to_pylist() == [
        {"TRANSACTION_ID": 17, "TX_DATETIME": NOON, **said},
        {"TRANSACTION_ID": -3, "TX_DATETIME": None, **said},
    ]
    assert rows.schema.field("TX_DATETIME").type == TIMESTAMP


@pytest.mark.parametrize(
    ("text", "known"),
    [
        (None, None),
        ("", None),
        ("-", None),
        ("--1", None),
        ("abc", None),
        ("1.5", None),
        ("²", None),
        ("9223372036854775807", 9223372036854775807),
        ("-9223372036854775808", -9223372036854775808),
        ("9223372036854775808", None),
        ("9" * 5000, None),
    ],
)
def test_an_event_whose_id_is_no_whole_number_has_no_row(text, known):
    rows = fallback_rows(letters(["1", text, "2"]), declared(with_fallback(), SCHEMA))
    assert rows["TRANSACTION_ID"].to_pylist() == [1, *([known] if known is not None else []), 2]


def test_an_id_of_a_text_is_the_text():
    project = load_project(ROOT / "examples" / "support_routing").model_copy(
        update={"fallback": Fallback(action="look")}
    )
    rows = fallback_rows(letters(["007", "", None, "a b"]), project)
    assert rows["ticket_id"].to_pylist() == ["007", "a b"]


def test_of_no_letter_and_of_none_with_an_id_there_is_no_row():
    project = declared(with_fallback(), SCHEMA)
    for batch in (letters([]), letters([None])):
        rows = fallback_rows(batch, project)
        assert rows.num_rows == 0
        assert rows.schema.names == ["TRANSACTION_ID", "TX_DATETIME", "decision", "outcome", "__source"]


def test_of_what_was_before_scoring_begins_nothing_is_decided():
    batch = letters(["1", "2", "3"], [NOON, NOON - datetime.timedelta(microseconds=1), None])
    rows = fallback_rows(batch, declared(with_fallback(), SCHEMA), Span(int(NOON.timestamp() * 1_000_000)))
    assert rows["TRANSACTION_ID"].to_pylist() == [1, 3]


def test_a_row_of_a_stream_has_its_times_by_the_clock():
    times = pa.array([NOON, NOON], TIMESTAMP)
    rows = fallback_rows(letters([None, "1"], published=times, ingested=times), declared(with_fallback(), SCHEMA))
    assert rows.select(["published", "ingested"]).to_pylist() == [{"published": NOON, "ingested": NOON}]


def test_its_decision_may_be_one_of_the_bands_or_another():
    assert declared(with_fallback(), SCHEMA).actions == ("block", "review", "approve", "look")
    assert declared(with_fallback("{action: review}"), SCHEMA).actions == ("block", "review", "approve")
    declared(with_fallback() + "sinks: {look: people}\n", SCHEMA)


def test_a_project_without_it_is_the_same_as_before():
    project, other = declared(TEXT, SCHEMA), declared(with_fallback(), SCHEMA)
    assert "fallback" not in project.model_dump()
    assert project.feature_definitions() == other.feature_definitions()


@pytest.mark.parametrize(
    ("fallback", "fault"),
    [
        ("{action: ''}", "fallback.action: String should have at least 1 character"),
        ("{}", "fallback.action: Field required"),
        ("look", "fallback: Input should be"),
        ("{decision: look}", "fallback.decision: Extra inputs are not permitted: there are action"),
    ],
)
def test_faults_are_named_with_their_line(fallback, fault):
    assert_fault(with_fallback("X"), SCHEMA, "fallback: X", f"fallback: {fallback}", fault)


def test_it_is_one_of_several_decisions():
    bare = TEXT[: TEXT.index("decisions:")]
    assert_fault(bare + "\nfallback: X\n", SCHEMA, "fallback: X", "fallback: {action: look}", "is one more decision")


def test_its_rows_have_a_column_that_no_id_may_be():
    old, new = "TRANSACTION_ID", "outcome"
    schema = SCHEMA.replace(old, new)
    assert_fault(
        with_fallback("X").replace(old, new), schema, "fallback: X", "fallback: {action: look}", "a column outcome"
    )
