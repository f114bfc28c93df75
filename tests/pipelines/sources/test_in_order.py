"""What Parquet files tell of their times, and the order that parts of files are read in by it."""

import random

import apache_beam as beam
import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given

from pipelines.runners import DIRECT, FN_API, make_pipeline
from pipelines.sources.in_order import InOrder, _most_at_once
from pipelines.sources.parquet import row_groups
from pipelines.sources.split import Split

spans = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12)


@given(spans)
def test_the_most_rows_at_once(groups):
    groups = [(rows, min(one, other), max(one, other)) for rows, one, other in groups]
    brute = max(sum(rows for rows, first, last in groups if first <= at <= last) for at in range(10))
    assert _most_at_once(*map(np.array, zip(*groups, strict=True))) == brute


@pytest.mark.parametrize("kind", [*map(pa.timestamp, ("s", "ms", "us", "ns")), pa.timestamp("us", "Europe/Lisbon")])
def test_row_groups_tell_their_times(tmp_path, kind):
    times = pa.array([7, 5, None, 6, -3, 4], pa.int64())
    per_second = {"s": 1, "ms": 1000, "us": 1_000_000, "ns": 1_000_000_000}[kind.unit]
    table = pa.table({"id": range(6), "at": pa.compute.multiply(times, per_second).cast(kind)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2, version="2.6")
    _, groups = row_groups(str(tmp_path / "a.parquet"), None, "at")
    second = 1_000_000
    assert [group.span for group in groups] == [
        (5 * second, 7 * second),
        (6 * second, 6 * second),
        (-3 * second, 4 * second),
    ]


def test_a_nanosecond_before_a_time_is_of_the_microsecond_before(tmp_path):
    table = pa.table({"at": pa.array([-1, 1999], pa.timestamp("ns"))})
    pq.write_table(table, tmp_path / "a.parquet", version="2.6")
    assert row_groups(str(tmp_path / "a.parquet"), None, "at")[1][0].span == (-1, 1)


@pytest.mark.parametrize(
    ("table", "options"),
    [
        (pa.table({"at": pa.array([1, 2], pa.timestamp("us"))}), {"write_statistics": False}),
        (pa.table({"at": pa.array([1, 2], pa.timestamp("us"))}), {"use_deprecated_int96_timestamps": True}),
        (pa.table({"at": pa.array([None, None], pa.timestamp("us"))}), {}),
        (pa.table({"at": pa.array([-(1 << 61), 2], pa.timestamp("us"))}), {}),
        (pa.table({"at": [1, 2]}), {}),
        (pa.table({"at": ["2018-06-08", "2018-06-09"]}), {}),
        (pa.table({"other": pa.array([1, 2], pa.timestamp("us"))}), {}),
        (pa.table({"at": pa.array([{"at": 1}, {"at": 2}], pa.struct([("at", pa.timestamp("us"))]))}), {}),
    ],
)
def test_others_tell_nothing(tmp_path, table, options):
    pq.write_table(table, tmp_path / "a.parquet", **options)
    assert [group.span for group in row_groups(str(tmp_path / "a.parquet"), None, "at")[1]] == [None]
    assert [group.span for group in row_groups(str(tmp_path / "a.parquet"), None)[1]] == [None]


_rounds: list = []


def _note(split):
    _rounds.append(split)
    return split


@pytest.mark.parametrize("runner", [DIRECT, FN_API])
def test_parts_come_in_the_order_of_their_first_times(runner):
    splits = [Split(f"{n}", "parquet", n, first_us=None if n % 5 == 0 else 1_000_000 * n) for n in range(40)]
    random.Random(1).shuffle(splits)
    _rounds.clear()
    with make_pipeline(runner, []) as pipeline:
        pipeline | beam.Create(splits) | InOrder(7_000_000) | beam.Map(_note)
    expected = sorted(splits, key=lambda split: (split.first_us or -1, split.path))
    assert sorted(_rounds, key=splits.index) == splits
    if runner == DIRECT:
        assert _rounds == expected
