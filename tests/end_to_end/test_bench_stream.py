"""The pure parts of the stream benchmarks; nothing is started here."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.stream import figures
from benchmarks.stream.events import NO_DEFECTS, Defects, Transactions, chosen, invalid, twice, write_history
from benchmarks.stream.load import ID, Plan, expected

pytestmark = pytest.mark.serial

SECOND = 1_000_000


@pytest.fixture
def source(tmp_path):
    columns = {
        "TRANSACTION_ID": [0, 1, 2],
        "TX_DATETIME": pa.array([0, 10 * SECOND, 40 * 86_400 * SECOND], pa.timestamp("us")),
        "CUSTOMER_ID": [5, 6, 7],
        "TX_AMOUNT": [1.5, 2.25, 3.0],
    }
    pq.write_table(pa.table(columns), tmp_path / "transactions.parquet")
    return tmp_path / "transactions.parquet"


def test_events_go_on_where_the_file_ends(source):
    events = Transactions(source)
    found = events.messages(np.array([1, 4]), np.array([0, 1_500_000]))
    assert [json.loads(each) for each in found] == [
        {"TRANSACTION_ID": 1, "TX_DATETIME": "1970-01-01 00:00:00.000000", "CUSTOMER_ID": 6, "TX_AMOUNT": 2.25},
        {"TRANSACTION_ID": 4, "TX_DATETIME": "1970-01-01 00:00:01.500000", "CUSTOMER_ID": 6, "TX_AMOUNT": 2.25},
    ]
    assert ID.search(found[1])[1] == b"4"
    days = events.event_times(np.arange(6)) / (86_400 * SECOND)
    assert days == pytest.approx([0, 1 / 8640, 40, 41, 41 + 1 / 8640, 81])


def test_defects_are_the_same_however_the_events_are_cut(source):
    defects, numbers = Defects(0.05, 0.01), np.arange(100_000)
    assert invalid(numbers, defects).mean() == pytest.approx(0.05, abs=0.003)
    assert twice(numbers, defects).mean() == pytest.approx(0.0095, abs=0.002)
    assert not (invalid(numbers, defects) & twice(numbers, defects)).any()
    pieces = [chosen(part, 0.05, 1) for part in np.array_split(numbers, 7)]
    assert (np.concatenate(pieces) == chosen(numbers, 0.05, 1)).all()
    assert not chosen(numbers, 0.0, 1).any()
    events, first = Transactions(source), numbers[:1000]
    spoiled = invalid(first, defects)
    good, bad = (events.messages(first, first, each) for each in (NO_DEFECTS, defects))
    assert [a != b for a, b in zip(good, bad, strict=True)] == spoiled.tolist()
    valid, letters, again = expected(Plan(source, "", 100_000, 1.0, defects=defects))
    assert (len(valid) + letters, letters) == (100_000, invalid(numbers, defects).sum())
    assert again == twice(numbers, defects).sum()


def test_history_ends_where_it_is_told_to(source, tmp_path):
    end = 1_700_000_000 * SECOND
    assert write_history(source, tmp_path / "history.parquet", end) == 2
    table = pq.read_table(tmp_path / "history.parquet")
    assert table["TX_DATETIME"].cast("int64").to_pylist() == [end - 37 * 86_400 * SECOND + t for t in (0, 10 * SECOND)]
    assert min(table["TRANSACTION_ID"].to_pylist()) > 1_000_000_000


def test_a_missing_event_takes_for_ever_and_the_first_score_counts():
    due = np.arange(100) * SECOND
    ids = np.array([*range(1, 100), 1, 500])
    received = np.array([*(due[1:] + 20_000), 900 * SECOND, 0])
    arrived, again = figures.first_arrivals(0, 100, ids, received)
    assert again == 1
    found = figures.latency(due, arrived, again)
    assert (found.events, found.missing, found.again) == (100, 1, 1)
    assert (found.p50, found.p99, found.max) == (0.02, 0.02, float("inf"))
    assert figures.latency(due[1:], arrived[1:]).max == 0.02
    assert np.isnan(figures.latency(due[:0], arrived[:0]).p50)


def test_figures():
    assert figures.slope([0, 1, 2], [5, 7, 9]) == pytest.approx(2)
    assert figures.slope([1], [1]) == 0
    assert figures.at_times([0, 10], [0, 5], 2, 4) == (1, 2)
    assert figures.milliseconds(float("inf")) == "never"
    assert figures.markdown(["a", "b"], [[1234, 0.5], ["x", 123456.7]]).splitlines() == [
        "| a | b |",
        "| --- | --- |",
        "| 1,234 | 0.50 |",
        "| x | 123,457 |",
    ]
