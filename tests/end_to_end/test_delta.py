"""Score rows as a Delta table: each run is one commit, and what was there before can still be read."""

import dataclasses
import importlib.util
import json

import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.config import RunSpec
from pipelines.jobs.score import score_files
from pipelines.prechecks import UsageError
from pipelines.results import read_kind, read_success
from pipelines.sinks.folder import SinkError
from pipelines.sources.delta import DeltaSourceError, list_delta
from tests.kit.bundles import AnyBundle
from tests.kit.declared import declared
from tests.kit.nights import DAYS, PROJECT, SCHEMA, SCORER, TEXT, Shop, day
from tests.kit.support import write_rows

deltalake = pytest.importorskip("deltalake")
pytestmark = pytest.mark.slow


@pytest.fixture
def shop(tmp_path):
    shop = Shop(tmp_path / "shop")
    shop.folder.mkdir()
    shop.write(range(DAYS))
    return shop


def read(shop, sink="nights", version=None):
    rows = polars.scan_delta(str(shop.folder / sink / "scores"), version=version).collect()
    return rows.sort("at", "id").drop("event_day", "verdict_id")  # a verdict is of what its window had, in this run


def plain(shop, sink="whole"):
    paths = sorted((shop.folder / sink / "scores").rglob("*.parquet"))
    rows = polars.concat(polars.from_arrow(pq.read_table(path, partitioning=None)) for path in paths)
    return rows.sort("at", "id").drop("verdict_id")


def of_days(rows, *numbers):
    return rows.filter(polars.col("at").dt.date().cast(str).is_in([day(number) for number in numbers]))


def version(shop, sink="nights"):
    return deltalake.DeltaTable(str(shop.folder / sink / "scores")).version()


def changed(shop, number):
    """A day's events in another file, without some of them."""
    path = shop.folder / "events" / f"{day(number)}.jsonl"
    write_rows(path, shop.rows[number][:40])


def test_nights_into_a_table_equal_one_run_into_files(shop):
    for number in range(DAYS):
        shop.night(number, sink_format="delta")
    shop.whole()
    whole = plain(shop)
    assert read(shop).equals(whole)
    assert version(shop) == DAYS - 1
    assert read(shop, version=0).equals(of_days(whole, 0))
    assert read(shop, version=2).equals(of_days(whole, 0, 1, 2))
    found = polars.from_arrow(read_kind(str(shop.folder / "nights"), "scores"))
    assert found.sort("at", "id").drop("verdict_id").equals(whole)
    shop.night(DAYS - 1, sink_format="delta")
    assert version(shop) == DAYS - 1  # the same run again is no commit


@pytest.mark.parametrize("files", [1, 2])
def test_the_days_of_a_run_are_replaced_by_one_commit(shop, files):
    shop.whole("table", sink_format="delta", files=files)
    before = read(shop, "table")
    changed(shop, 3)
    shop.run("table", sink_format="delta", files=files, score_from=day(2), score_to=day(5))
    shop.whole()
    now = read(shop, "table")
    assert version(shop, "table") == 1
    assert of_days(now, 2, 3, 4).equals(of_days(plain(shop), 2, 3, 4))
    assert of_days(now, 0, 1, 5).equals(of_days(before, 0, 1, 5))
    assert len(of_days(now, 3)) < len(of_days(before, 3))
    assert read(shop, "table", version=0).equals(before)


def test_a_day_without_events_leaves_the_table(shop):
    shop.whole("table", sink_format="delta")
    before = read(shop, "table")
    write_rows(shop.folder / "events" / f"{day(4)}.jsonl", [])
    shop.run("table", sink_format="delta", day=day(4))
    assert read(shop, "table").equals(of_days(before, 0, 1, 2, 3, 5))
    shop.run("table", sink_format="delta", day="2019-02-01")
    assert version(shop, "table") == 1


def test_a_first_run_without_rows_makes_no_table_and_the_next_does(shop):
    shop.run("table", sink_format="delta", day="2019-02-01")
    assert not (shop.folder / "table" / "scores" / "_delta_log").exists()
    shop.run("table", sink_format="delta", day=day(1))
    shop.whole()
    assert read(shop, "table").equals(of_days(plain(shop), 1))


@pytest.mark.parametrize("after_commit", [False, True])
def test_a_run_that_is_killed_at_its_commit_is_done_again(shop, monkeypatch, after_commit):
    from pipelines.sinks.delta import Delta

    shop.run("table", sink_format="delta", day=day(1))
    before = read(shop, "table")
    commit = Delta.commit

    def killed(*args):
        if after_commit:
            commit(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(Delta, "commit", killed)
    with pytest.raises(KeyboardInterrupt):
        shop.run("table", sink_format="delta", score_from=day(1), score_to=day(3))
    assert version(shop, "table") == int(after_commit)
    if not after_commit:
        assert read(shop, "table").equals(before)
    assert not (shop.folder / "table" / "_SUCCESS.json").exists()
    monkeypatch.undo()
    shop.run("table", sink_format="delta", score_from=day(1), score_to=day(3))
    shop.whole()
    assert read(shop, "table").equals(of_days(plain(shop), 1, 2))
    assert version(shop, "table") == 1
    assert read_success(str(shop.folder / "table"))["events"]["scored"] == len(read(shop, "table"))


def test_a_commit_of_somebody_else_meanwhile_is_an_error_and_the_run_can_be_done_again(shop, monkeypatch):
    from pipelines.sinks import delta

    shop.run("table", sink_format="delta", day=day(1))
    opened = delta.open_delta

    def late(*args):
        table = opened(*args)
        other = deltalake.DeltaTable(str(shop.folder / "table" / "scores"))
        other.delete(f"event_day = '{day(1)}'")
        return table

    monkeypatch.setattr(delta, "open_delta", late)
    monkeypatch.setattr(delta.Delta, "check", lambda *_: None)
    with pytest.raises(SinkError, match="the Delta table can't be used"):
        shop.run("table", sink_format="delta", day=day(2))
    monkeypatch.undo()
    shop.run("table", sink_format="delta", day=day(2))
    shop.whole()
    assert read(shop, "table").equals(of_days(plain(shop), 2))


def test_a_table_that_was_compacted_and_vacuumed_goes_on(shop):
    for number in (0, 1):
        shop.run("table", sink_format="delta", files=3, day=day(number))
    table = deltalake.DeltaTable(str(shop.folder / "table" / "scores"))
    assert table.optimize.compact()["numFilesRemoved"] == 6
    table.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    shop.run("table", sink_format="delta", files=3, day=day(1))
    shop.whole()
    assert read(shop, "table").equals(of_days(plain(shop), 0, 1))


def test_a_table_of_another_in_the_way_is_an_error_before_anything_runs(shop):
    place = shop.folder / "table" / "scores"
    deltalake.write_deltalake(str(place), pa.table({"mine": [1]}))
    for replace in (False, True):
        with pytest.raises(SinkError, match="scores/_delta_log.*was not written by a run"):
            shop.run("table", sink_format="delta", replace=replace)
    assert polars.scan_delta(str(place)).collect()["mine"].to_list() == [1]


@pytest.mark.parametrize(("one", "other"), [("parquet", "delta"), ("delta", "parquet")])
def test_a_table_and_plain_files_do_not_take_each_others_place(shop, one, other):
    shop.run("table", sink_format=one, day=day(1))
    for options in ({"day": day(1)}, {"day": day(2)}, {"replace": True}):
        with pytest.raises(SinkError, match="holds files of another --sink-format: name another sink"):
            shop.run("table", sink_format=other, **options)


def test_other_columns_need_the_whole_table_replaced(shop):
    shop.run("table", sink_format="delta", day=day(1))
    before = read(shop, "table")
    more = declared(TEXT.replace("large: amount > 50", "large: amount > 50, huge: amount > 90"), SCHEMA)
    spec = dataclasses.replace(shop.spec("table", sink_format="delta"), project=more)
    with pytest.raises(SinkError, match="columns are not those of this run's rows.*--replace"):
        score_files(dataclasses.replace(spec, day=day(2)), AnyBundle(), SCORER)
    assert read(shop, "table").equals(before)
    score_files(dataclasses.replace(spec, replace=True), AnyBundle(), SCORER)
    assert {"huge", *before.columns} == set(read(shop, "table").columns)
    assert read(shop, "table", version=0).equals(before)


def test_hours_are_partitions_of_two_columns(shop):
    hourly = declared(TEXT + "partition: hour\ntimezone: Europe/Berlin\n", SCHEMA)
    spec = dataclasses.replace(shop.spec("table", sink_format="delta"), project=hourly, day=day(2))
    score_files(spec, AnyBundle(), SCORER)
    rows = polars.scan_delta(str(shop.folder / "table" / "scores")).collect()
    local = polars.col("at").dt.convert_time_zone("Europe/Berlin")
    wrong = rows.filter((local.dt.hour() != polars.col("event_hour")) | (local.dt.date() != polars.col("event_day")))
    assert len(rows) > 30
    assert wrong.is_empty()
    score_files(dataclasses.replace(spec, day=None, hour=f"{day(2)}T05"), AnyBundle(), SCORER)
    again = polars.scan_delta(str(shop.folder / "table" / "scores")).collect()
    assert again.sort("at", "id").drop("verdict_id").equals(rows.sort("at", "id").drop("verdict_id"))
    assert version(shop, "table") == 1


def test_a_table_is_a_source_as_its_files_are(shop):
    events = [row for rows in shop.rows for row in rows if isinstance(row, dict)]
    deltalake.write_deltalake(str(shop.folder / "in"), pa.Table.from_pylist(events[:200]))
    deltalake.write_deltalake(str(shop.folder / "in"), pa.Table.from_pylist(events[200:]), mode="append")
    paths = list_delta(f"delta:{shop.folder / 'in'}")
    assert len(paths) == 2
    outputs = {}
    for name, sources in {
        "table": (f"delta:{shop.folder / 'in'}",),
        "files": tuple(paths),
        "first": (f"delta:{shop.folder / 'in'}?version=0",),
        "first file": tuple(list_delta(f"delta:{shop.folder / 'in'}?version=0")),
    }.items():
        spec = dataclasses.replace(shop.spec(name), sources=sources)
        spec.check()
        score_files(spec, AnyBundle(), SCORER)
        outputs[name] = read_success(str(shop.folder / name))
        assert outputs[name]["events"]["dead-lettered"] > 0
    for one, other in (("table", "files"), ("first", "first file")):
        assert outputs[one]["events"] == outputs[other]["events"]
        assert outputs[one]["files"] == outputs[other]["files"]
        assert outputs[one]["inputs"] == outputs[other]["inputs"]
    assert outputs["first"]["events"]["read"] < outputs["table"]["events"]["read"]


def test_a_source_that_is_no_table_or_not_its_files_alone_is_an_error(shop, tmp_path):
    with pytest.raises(UsageError, match="nowhere: no such file"):
        dataclasses.replace(shop.spec("out"), sources=("delta:nowhere",)).check()
    for uri in (f"delta:{tmp_path}", f"delta:{tmp_path}/shop?version=9"):
        with pytest.raises(DeltaSourceError, match="no Delta table that can be read"):
            list_delta(uri)
    rows = [row for row in shop.rows[0] if isinstance(row, dict)]
    deltalake.write_deltalake(str(tmp_path / "in"), pa.Table.from_pylist(rows), partition_by=["shop"])
    spec = dataclasses.replace(shop.spec("out"), sources=(f"delta:{tmp_path / 'in'}",))
    with pytest.raises(DeltaSourceError, match="partitioned by shop, which its files do not hold"):
        score_files(spec, AnyBundle(), SCORER)


def test_partitions_with_hostile_names_are_read(tmp_path):
    hostile = ["a b", "ü/%20", "x=y", "#?"]
    deltalake.write_deltalake(str(tmp_path / "in"), pa.table({"of": hostile, "x": [1, 2, 3, 4]}), partition_by=["of"])
    paths = list_delta(f"delta:{tmp_path / 'in'}")
    assert sorted(value for path in paths for value in pq.ParquetFile(path).read()["x"].to_pylist()) == [1, 2, 3, 4]


def test_a_table_with_deleted_rows_in_its_files_is_refused(tmp_path):
    place = tmp_path / "in"
    deltalake.write_deltalake(str(place), pa.table({"x": [1]}))
    log = place / "_delta_log" / f"{1:020}.json"
    protocol = {
        "minReaderVersion": 3,
        "minWriterVersion": 7,
        "readerFeatures": ["deletionVectors"],
        "writerFeatures": ["deletionVectors"],
    }
    log.write_text(json.dumps({"protocol": protocol}) + "\n")
    with pytest.raises(DeltaSourceError, match=r"deletionVectors"):
        list_delta(f"delta:{place}")


def test_what_can_not_be_is_said_before_anything_runs(shop, monkeypatch):
    quarantine = declared(TEXT.replace("gate: warn", "gate: quarantine").replace("2d, min", "1d, min"), SCHEMA)
    with pytest.raises(UsageError, match="rows that the gate quarantine releases would not be in a table"):
        dataclasses.replace(shop.spec("out", sink_format="delta"), project=quarantine).check()
    with pytest.raises(SinkError, match="its path has a %"):
        shop.run("a%20b", sink_format="delta")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="--sink-format delta needs deltalake, which is not installed: pip install"):
        RunSpec(PROJECT, ("x.jsonl",), "out", sink_format="delta").check()
