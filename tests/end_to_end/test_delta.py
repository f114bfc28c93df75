"""Score rows as a Delta table: each run is one commit, and what was there before can still be read."""

import json
import pathlib
import subprocess
import sys

import polars
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from pipelines.config import RunSpec
from pipelines.prechecks import UsageError
from pipelines.results import read_kind
from pipelines.sinks.folder import SinkError
from tests.kit.nights import DAYS, PROJECT, Shop, day

pytestmark = pytest.mark.slow


@pytest.fixture
def shop(tmp_path):
    shop = Shop(tmp_path / "shop")
    shop.folder.mkdir()
    shop.write(range(DAYS))
    return shop


def read(shop, sink="nights", version=None):
    rows = polars.scan_delta(str(shop.folder / sink / "scores"), version=version).collect()
    return rows.sort("at", "id").drop("event_day")


def plain(shop, sink):
    paths = sorted((shop.folder / sink / "scores").rglob("*.parquet"))
    rows = polars.concat(polars.from_arrow(pq.read_table(path, partitioning=None)) for path in paths)
    return rows.sort("at", "id")


def table(shop, sink="nights"):
    return DeltaTable(str(shop.folder / sink / "scores"))


def test_nights_into_a_table_equal_one_run_into_files(shop):
    for number in range(DAYS):
        shop.night(number, sink_format="delta")
    shop.whole()
    assert read(shop).equals(plain(shop, "whole"))
    assert table(shop).version() == DAYS - 1
    first = read(shop, version=0)
    assert first.equals(plain(shop, "whole").filter(polars.col("at").dt.date().cast(str) == day(0)))
    assert polars.from_arrow(read_kind(str(shop.folder / "nights"), "scores")).sort("at", "id").equals(read(shop))
