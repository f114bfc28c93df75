"""The sample of card transactions: any size has the declared columns, order, shares and bytes."""

from __future__ import annotations

import datetime
import hashlib
import json
import pathlib
from typing import Any, get_args

import fastavro
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import sample


def column(table: pa.Table, name: str) -> np.ndarray[Any, Any]:
    values: np.ndarray[Any, Any] = table[name].to_numpy()
    return values


def digest(table: pa.Table) -> str:
    return hashlib.sha256(b"".join(column(table, name).tobytes() for name in table.column_names)).hexdigest()


def read_avro(path: pathlib.Path) -> pa.Table:
    with path.open("rb") as file:
        records = list(fastavro.reader(file))
    for record in records:
        record["TX_DATETIME"] = record["TX_DATETIME"].replace(tzinfo=None)
    return pa.Table.from_pylist(records, schema=sample.SCHEMA)


def read_jsonl(path: pathlib.Path) -> pa.Table:
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        assert isinstance(record["TX_AMOUNT"], float)
        record["TX_DATETIME"] = datetime.datetime.fromisoformat(record["TX_DATETIME"])
    return pa.Table.from_pylist(records, schema=sample.SCHEMA)


def read_csv(path: pathlib.Path) -> pa.Table:
    table = pyarrow.csv.read_csv(path)
    if table.num_rows:
        assert table.schema.field("TX_AMOUNT").type == pa.float64()
        assert table.schema.field("TX_DATETIME").type == pa.timestamp("s")
    return table.cast(sample.SCHEMA)


READERS = {"parquet": pq.read_table, "csv": read_csv, "jsonl": read_jsonl, "avro": read_avro}


@settings(max_examples=50, deadline=None)
@given(
    rows=st.integers(0, 3000),
    seed=st.integers(0, 2**64),
    days=st.integers(1, 400),
    start=st.dates(datetime.date(1900, 1, 1), datetime.date(2100, 1, 1)),
)
def test_rows_of_any_size_hold_what_is_promised(rows: int, seed: int, days: int, start: datetime.date) -> None:
    table = sample.generate_transactions(rows, seed, days, start)

    assert table.schema == sample.SCHEMA
    assert all(values.null_count == 0 for values in table.columns)
    assert column(table, "TRANSACTION_ID").tolist() == list(range(rows))
    seconds = column(table, "TX_TIME_SECONDS")
    assert (np.diff(seconds) >= 0).all()
    assert ((seconds >= 0) & (seconds < days * 86_400)).all()
    assert (column(table, "TX_TIME_DAYS") == seconds // 86_400).all()
    time = column(table, "TX_DATETIME")
    assert ((time - np.datetime64(start, "us")) == seconds.astype("m8[s]")).all()
    amount = column(table, "TX_AMOUNT")
    assert (amount > 0).all()
    assert (amount == np.round(amount * 100) / 100).all()
    scenario = column(table, "TX_FRAUD_SCENARIO")
    assert set(scenario.tolist()) <= {0, 1, 2, 3}
    assert (column(table, "TX_FRAUD") == (scenario > 0)).all()
    assert (scenario[amount > 220] > 0).all()
    assert (amount[scenario == 1] > 220).all()


@pytest.mark.parametrize("rows", [0, 1, 10, 1000, 20_000])
def test_same_arguments_give_the_same_rows_and_other_seeds_others(rows: int) -> None:
    table = sample.generate_transactions(rows, seed=7)

    assert table.num_rows == rows
    assert table.equals(sample.generate_transactions(rows, seed=7))
    if rows:
        assert not table.equals(sample.generate_transactions(rows, seed=8))


def test_bytes_are_those_of_every_machine() -> None:
    table = sample.generate_transactions(50_000, seed=42, days=30, start=datetime.date(2020, 2, 15))

    assert digest(table) == "0956b285f905b047d35231413ca99431b89b7b501b11715c772647b8431c187c"


@pytest.mark.parametrize(("rows", "seed", "days"), [(-1, 0, 75), (10, -1, 75), (10, 0, 0)])
def test_impossible_arguments_are_named(rows: int, seed: int, days: int) -> None:
    with pytest.raises(ValueError, match=f"rows={rows}, seed={seed}, days={days}"):
        sample.generate_transactions(rows, seed, days)


@pytest.mark.parametrize("days", [1, 7, 75])
@pytest.mark.parametrize("rows", [20_000, 200_000])
def test_every_fraud_scenario_is_present_at_the_handbooks_rate(rows: int, days: int) -> None:
    for seed in range(5):
        scenario = column(sample.generate_transactions(rows, seed, days), "TX_FRAUD_SCENARIO")

        assert set(scenario.tolist()) == {0, 1, 2, 3}
        assert 0.005 < (scenario > 0).mean() < 0.015


def test_distributions_are_the_handbooks() -> None:
    table = sample.generate_transactions(200_000, seed=3)
    honest = column(table, "TX_FRAUD") == 0
    customer, terminal = column(table, "CUSTOMER_ID"), column(table, "TERMINAL_ID")
    second = column(table, "TX_TIME_SECONDS") % 86_400

    assert len(np.unique(customer)) == pytest.approx(200_000 / (75 * 1.92), rel=0.01)
    assert len(np.unique(terminal)) == pytest.approx(2 * 200_000 / (75 * 1.92), rel=0.01)
    assert column(table, "TX_AMOUNT")[honest].mean() == pytest.approx(53, rel=0.05)
    # The deviation of a normal of 20,000 s cut at midnight is 18,170 s, as in the handbook's own rows.
    assert second.mean() == pytest.approx(43_200, abs=200)
    assert second.std() == pytest.approx(18_170, abs=200)


def test_customers_stay_near_and_compromised_terminals_and_customers_do_so_for_weeks() -> None:
    table = sample.generate_transactions(200_000, seed=3)
    customer, terminal = column(table, "CUSTOMER_ID"), column(table, "TERMINAL_ID")
    scenario, day = column(table, "TX_FRAUD_SCENARIO"), column(table, "TX_TIME_DAYS")

    pairs = len(np.unique(customer * (terminal.max() + 1) + terminal))
    assert pairs / len(np.unique(customer)) < 100  # of 2,776 terminals

    for hit in np.unique(terminal[scenario == 2]):
        days = day[(terminal == hit) & (scenario == 2)]
        between = (terminal == hit) & (day >= days.min()) & (day <= days.max())
        assert days.max() - days.min() < 28
        assert (scenario[between] > 0).all()
    for hit in np.unique(customer[scenario == 3]):
        days = day[(customer == hit) & (scenario == 3)]
        assert days.max() - days.min() < 14


@pytest.mark.parametrize("format", get_args(sample.Format))
@pytest.mark.parametrize("rows", [0, 1, 2000])
def test_files_of_each_day_read_back_equal(tmp_path: pathlib.Path, format: sample.Format, rows: int) -> None:
    told: list[int] = []
    start = datetime.date(2018, 2, 27)

    paths = sample.write_sample(tmp_path / "new", rows, 5, 4, start, format, told.append)

    days = ["2018-02-27", "2018-02-28", "2018-03-01", "2018-03-02"]
    assert [path.name for path in paths] == [f"transactions-{day}.{format}" for day in days]
    assert sorted((tmp_path / "new").iterdir()) == paths
    tables = [READERS[format](path) for path in paths]
    assert told == [table.num_rows for table in tables]
    for day, table in enumerate(tables):
        assert (column(table, "TX_TIME_DAYS") == day).all()
    assert pa.concat_tables(tables).equals(sample.generate_transactions(rows, 5, 4, start))


@pytest.mark.parametrize("format", get_args(sample.Format))
def test_files_have_the_same_bytes_each_time(tmp_path: pathlib.Path, format: sample.Format) -> None:
    first = sample.write_sample(tmp_path / "a", 1000, days=2, format=format)
    again = sample.write_sample(tmp_path / "b", 1000, days=2, format=format)
    over = sample.write_sample(tmp_path / "b", 1000, days=2, format=format)

    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    assert over == again
    assert len(list((tmp_path / "b").iterdir())) == 2


def test_csv_and_json_lines_are_plain(tmp_path: pathlib.Path) -> None:
    (csv,) = sample.write_sample(tmp_path, 1, days=1, format="csv")
    (jsonl,) = sample.write_sample(tmp_path, 1, days=1, format="jsonl")

    header, row = csv.read_text().splitlines()
    assert header == ",".join(sample.SCHEMA.names)
    event = json.loads(jsonl.read_text())
    assert [str(value) for value in event.values()] == row.split(",")
    assert jsonl.read_text() == json.dumps(event, separators=(",", ":")) + "\n"


def test_whole_amounts_keep_their_decimal_point(tmp_path: pathlib.Path) -> None:
    # So that a reader of a file with only such amounts does not infer integers.
    paths = sample.write_sample(tmp_path, 20_000, days=1, format="csv")
    amounts = [line.split(",")[4] for line in paths[0].read_text().splitlines()[1:]]

    assert any(amount.endswith(".0") for amount in amounts)
    assert all("." in amount for amount in amounts)


def test_a_failed_write_leaves_nothing_half_written(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (kept,) = sample.write_sample(tmp_path, 100, days=1)
    before = kept.read_bytes()

    def fail(table: pa.Table, path: pathlib.Path) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setitem(sample._WRITERS, "parquet", fail)
    with pytest.raises(OSError, match="disk full"):
        sample.write_sample(tmp_path, 200, days=2)

    assert list(tmp_path.iterdir()) == [kept]
    assert kept.read_bytes() == before


def test_an_unknown_format_is_refused_before_any_work(tmp_path: pathlib.Path) -> None:
    with pytest.raises(KeyError):
        sample.write_sample(tmp_path / "new", 10, format="orc")  # type: ignore[arg-type]

    assert not (tmp_path / "new").exists()
