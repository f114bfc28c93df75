"""Runs into an object store that speaks S3: staging, replacing, states, kills, nights and Delta tables."""

import dataclasses
import importlib.util
import itertools
import json
import os
import signal
import subprocess
import time

import polars
import pytest

from pipelines.dashboard.sink import STORE_SECONDS, Sink
from pipelines.jobs.nightly import find_missing, run_nights
from pipelines.jobs.score import score_files
from pipelines.prechecks import UsageError, require_file_system
from pipelines.results import count_decisions, read_kind, read_spans
from pipelines.sinks.folder import Folder, SinkError
from pipelines.sources.listing import SourceError
from tests.kit import s3
from tests.kit.bundles import AnyBundle
from tests.kit.command import HEADRACE
from tests.kit.nights import DAY, PROJECT, SCHEMA, SCORER, START, TEXT, Shop, day, make_days

pytestmark = [pytest.mark.slow, pytest.mark.serial, s3.needs_s3]
_numbers = itertools.count()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with s3.running(tmp_path_factory.mktemp("s3")) as variables:
        yield variables


class Bucket:
    """A bucket of its own, and what is in it."""

    def __init__(self):
        import boto3

        self.name, self.client = f"bucket-{next(_numbers)}", boto3.client("s3")
        self.client.create_bucket(Bucket=self.name)

    def uri(self, place):
        return f"s3://{self.name}/{place}"

    def files(self, prefix=""):
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix)
        keys = [each["Key"] for page in pages for each in page.get("Contents", [])]
        return {key: self.client.get_object(Bucket=self.name, Key=key)["Body"].read() for key in keys}

    def put(self, key, content):
        self.client.put_object(Bucket=self.name, Key=key, Body=content)


@pytest.fixture
def bucket(server, monkeypatch):
    for name, value in server.items():
        monkeypatch.setenv(name, value)
    from pipelines.s3 import _client

    _client.cache_clear()
    return Bucket()


@pytest.fixture
def shop(tmp_path):
    shop = Shop(tmp_path / "shop", make_days(events=30))
    shop.folder.mkdir()
    shop.write(range(3))
    return shop


def into(shop, bucket, number, sink="a sink/nights", **options):
    spec = shop.spec("unused", day=day(number), **{"state": bucket.uri("state"), **options})
    spec = dataclasses.replace(spec, sink=bucket.uri(sink))
    spec.check()
    return score_files(spec, AnyBundle(), SCORER)


def scores(files):
    """The score files by their places under a sink."""
    return {name[name.index("scores/") :]: content for name, content in files.items() if "scores/" in name}


def local(shop):
    return {
        str(path.relative_to(shop.folder / "nights")): path.read_bytes()
        for path in (shop.folder / "nights" / "scores").rglob("*.parquet")
    }


def test_nights_in_a_store_equal_nights_on_disk(shop, bucket):
    for kind in ("events", "labels"):
        for path in (shop.folder / kind).iterdir():
            bucket.put(f"in/{kind}/{path.name}", path.read_bytes())
    for number in range(3):
        sources, labels = (bucket.uri("in/events/*.jsonl"),), (bucket.uri("in/labels/*.jsonl"),)
        spec = shop.spec("unused", day=day(number), state=bucket.uri("state"))
        spec = dataclasses.replace(spec, sources=sources, labels=labels, sink=bucket.uri("nights"))
        spec.check()
        score_files(spec, AnyBundle(), SCORER)
        shop.night(number)
    files = bucket.files()
    assert scores(files) == local(shop)
    assert not [name for name in files if ".staging" in name or ".headrace-lock" in name]
    said = json.loads(files["nights/_SUCCESS.json"])
    assert {f"nights/{each['kind']}/{each['name']}" for each in said["files"]} | {"nights/_SUCCESS.json"} == {
        name for name in files if name.startswith("nights/")
    }
    assert bucket.client.get_object(Bucket=bucket.name, Key="in/events/2018-12-01.jsonl")["Body"].read()
    sink = bucket.uri("nights")
    assert read_kind(sink, "scores").num_rows == read_kind(str(shop.folder / "nights"), "scores").num_rows > 60
    assert sum(count_decisions(sink, PROJECT).values()) == read_kind(sink, "scores").num_rows
    assert len(read_spans(sink)) == 1


def test_a_dashboard_shows_a_bucket_as_it_shows_a_folder(shop, bucket, monkeypatch):
    clock = 0.0
    monkeypatch.setattr("pipelines.dashboard.sink.time.monotonic", lambda: clock)
    shown = Sink(PROJECT, bucket.uri("a sink/nights"))
    assert shown.refresh()
    assert (shown.facts()["starts"], shown.facts()["faults"]) == ([], [])
    into(shop, bucket, 0)
    shop.night(0)
    assert not shown.refresh()  # a store is asked once a minute
    clock += STORE_SECONDS
    assert shown.refresh()
    local = Sink(PROJECT, str(shop.folder / "nights"))
    local.refresh()
    assert {**shown.facts(), "folder": ""} == {**local.facts(), "folder": ""}
    assert sum(sum(each["rows"]) for each in shown.facts()["decisions"]) > 20
    bucket.put("a sink/nights/scores/event_day=2018-12-01/part-00000-of-00001.parquet", b"rubbish")
    clock += STORE_SECONDS
    assert shown.refresh()
    (fault,) = shown.facts()["faults"]
    assert "part-00000-of-00001.parquet" in fault


@pytest.mark.parametrize("moves", [0, 2])
@pytest.mark.parametrize("where", ["a sink", "state"])
def test_a_night_that_is_cut_off_as_it_publishes_is_run_again(shop, bucket, monkeypatch, where, moves):
    into(shop, bucket, 0)
    shop.night(0)
    change, left = Folder.move, [moves]

    def cut_off(folder, pairs):
        if where in folder.path and not left[0]:
            raise KeyboardInterrupt
        left[0] -= where in folder.path
        change(folder, pairs)

    monkeypatch.setattr(Folder, "move", cut_off)
    try:
        into(shop, bucket, 1)
    except KeyboardInterrupt:
        left[0] = -1
    monkeypatch.setattr(Folder, "move", change)
    into(shop, bucket, 1)
    shop.night(1)
    assert {name: content for name, content in scores(bucket.files("a sink/nights/scores")).items()} == local(shop)
    states = {name.split("/")[1] for name in bucket.files("state/")}
    assert f"until={day(2)}T000000Z" in states


def test_missing_days_are_scored_in_a_store(shop, bucket):
    spec = dataclasses.replace(shop.spec("unused", state=bucket.uri("state")), sink=bucket.uri("nights"))
    whole = START * 1_000_000, (START + 2 * DAY) * 1_000_000
    nights = list(run_nights(spec, find_missing(spec, *whole), AnyBundle(), SCORER))
    assert [night.name for night in nights] == [day(0), day(1)]
    assert not any(night.error for night in nights)
    assert find_missing(spec, *whole) == []
    for number in range(2):
        shop.night(number)
    assert scores(bucket.files("nights/scores")) == local(shop)


def test_a_foreign_object_in_the_way_is_an_error_and_stays(shop, bucket):
    bucket.put("a sink/nights/scores/mine.parquet", b"mine")
    with pytest.raises(SinkError, match="scores/mine.parquet: was not written by a run"):
        into(shop, bucket, 0)
    assert bucket.files("a sink/nights/scores") == {"a sink/nights/scores/mine.parquet": b"mine"}


def test_a_delta_table_in_a_store(shop, bucket):
    pytest.importorskip("deltalake")
    from pipelines.sources.delta import list_delta

    for number in (0, 1, 1):
        into(shop, bucket, number, sink="table", sink_format="delta")
    for number in (0, 1):
        shop.night(number)
    sink = bucket.uri("table")
    rows = polars.from_arrow(read_kind(sink, "scores")).sort("at", "id")
    wanted = polars.from_arrow(read_kind(str(shop.folder / "nights"), "scores")).sort("at", "id")
    assert rows.equals(wanted)
    assert len([name for name in bucket.files("table/scores/_delta_log") if name.endswith(".json")]) == 2
    paths = list_delta(f"delta:{sink}/scores?version=0")
    assert len(paths) == 1
    assert paths[0].startswith(f"{sink}/scores/event_day=2018-12-01/")


PLAIN = TEXT[: TEXT.index("model:")]  # without a model there is no registry to make


@pytest.mark.timeout(600)
def test_a_process_that_is_killed_anywhere_is_run_again(shop, bucket, server):
    (shop.folder / "project").mkdir()
    (shop.folder / "project" / "project.yaml").write_text(PLAIN)
    (shop.folder / "project" / "schema.pbtxt").write_text(SCHEMA)
    command = [HEADRACE, "nightly", "project", "--source", "events/*.jsonl", "--labels", "labels/*.jsonl"]
    command += ["--from", day(0), "--until", day(2), "--lateness", "2d"]

    def start(sink, state):
        environment = {**os.environ, **server}
        options = {"cwd": shop.folder, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen([*command, "--sink", sink, "--state", state], **options)

    started = time.monotonic()
    whole = start("whole", "whole-state")
    said, _ = whole.communicate()
    assert whole.returncode == 0, said
    took = time.monotonic() - started
    for share in (0.6, 0.9):
        night = start(bucket.uri("nights"), bucket.uri("state"))
        try:
            night.wait(took * share)
        except subprocess.TimeoutExpired:
            night.send_signal(signal.SIGKILL)
        night.communicate()
    last = start(bucket.uri("nights"), bucket.uri("state"))
    said, _ = last.communicate()
    assert last.returncode == 0, said
    files = scores(bucket.files("nights/scores"))
    wanted = {
        path.name + path.parent.name: path.read_bytes() for path in (shop.folder / "whole/scores").rglob("*.parquet")
    }
    assert {name.split("/")[2] + name.split("/")[1]: content for name, content in files.items()} == wanted
    assert len(wanted) == 2


def test_what_can_not_be_is_told_in_a_line(shop, bucket, monkeypatch):
    with pytest.raises(SinkError, match="s3://no-such-bucket/x"):
        score_files(dataclasses.replace(shop.spec("unused"), sink="s3://no-such-bucket/x"), AnyBundle(), SCORER)
    with pytest.raises(SourceError, match="s3://no-such-bucket/"):
        score_files(
            dataclasses.replace(shop.spec("out"), sources=("s3://no-such-bucket/*.jsonl",)), AnyBundle(), SCORER
        )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="needs boto3, which is not installed: pip install boto3"):
        require_file_system("s3://bucket/x")
