"""An online store that the graph writes: one content whatever the way there, and the graph's own bits out of it."""

import contextlib
import dataclasses
import json
import random

import numpy as np
import pyarrow as pa
import pytest

from models.record import EVENT_TIME
from models.store.kinds import Place, kinds_of
from pipelines.jobs.store import check_store, fill_store, name_entities
from pipelines.prechecks import UsageError
from pipelines.sinks.store import WriteStore
from pipelines.store import open_store
from pipelines.store.compare import Fault
from tests.kit import labelled, nights, redis, shops
from tests.kit.given import Given
from tests.kit.stores import digest, events_of, features_from, same_features
from tests.kit.streams import DAY, SECOND, stream
from tests.kit.support import card_fraud, needs_data, run_graph, write_rows

pytestmark = pytest.mark.slow

ROWS = shops.make_rows()
KEEP_US = 40 * DAY  # a lateness for which all of the past is kept
PROJECTS = {"windows of every kind": shops.PROJECT, "labels apart": nights.PROJECT}


@pytest.fixture(scope="module")
def server():
    with redis.running() as running:
        yield running


@pytest.fixture(params=redis.STORES)
def uri(request, tmp_path):
    return str(tmp_path / "store.db") if request.param == "sqlite" else redis.emptied(request.getfixturevalue("server"))


def days(seed=0):
    """Events and labels of the shop whose labels come later, of which all are valid."""
    rows, labels = nights.make_days(seed)
    good = [row for day in rows for row in day if isinstance(row, dict) and row["shop"]]
    return good, [label for day in labels for label in day]


def batch(folder, uri, project, rows, labels=(), lateness_us=DAY, **options):
    folder.mkdir()
    sources = [write_rows(folder / f"{n}.jsonl", rows[n::3]) for n in range(3)]
    of_labels = [write_rows(folder / "labels.json", list(labels))] if labels else []
    return run_graph(
        folder / "out", sources, project, labels=of_labels, store=WriteStore(uri, project, lateness_us), **options
    )


def streamed(uri, project, rows, labels=(), lateness_us=DAY, seed=0, at_arrival=False):
    """In the order of time but for ten minutes, in calls of any size, some messages twice."""
    chosen = random.Random(seed)

    def arriving(records, time):
        records = sorted(
            [*records, *chosen.sample(records, len(records) // 9)], key=lambda r: r[time] + chosen.randrange(600)
        )
        return [json.dumps(record).encode() for record in records]

    more = {"labels": Given(arriving(labels, "seen"), seed)} if labels else {}
    store = WriteStore(uri, project, lateness_us)
    return stream(arriving(rows, "at"), 600 * SECOND, at_arrival, seed, project, store=store, **more)[0]


def test_any_order_any_parts_and_any_mode_leave_one_store(tmp_path, uri):
    first = str(tmp_path / "first.db")
    batch(tmp_path / "first", first, shops.PROJECT, ROWS)
    whole = digest(first, shops.PROJECT)
    rows = [*ROWS, *random.Random(1).sample(ROWS, 50)]
    random.Random(2).shuffle(rows)
    batch(tmp_path / "second", uri, shops.PROJECT, rows, shards=3, slice_us=7_200 * SECOND)
    assert digest(uri, shops.PROJECT) == whole
    batch(tmp_path / "again", uri, shops.PROJECT, ROWS)
    assert digest(uri, shops.PROJECT) == whole
    for at_arrival in (False, True):
        path = str(tmp_path / f"stream {at_arrival}.db")
        streamed(path, shops.PROJECT, ROWS, seed=3, at_arrival=at_arrival)
        assert digest(path, shops.PROJECT) == whole
    batch(tmp_path / "fewer", str(tmp_path / "fewer.db"), shops.PROJECT, ROWS[1:])
    assert digest(str(tmp_path / "fewer.db"), shops.PROJECT) != whole


@pytest.mark.parametrize("name", PROJECTS)
def test_events_get_from_the_store_the_bits_that_the_graph_gave_them(tmp_path, uri, name, mode):
    project = PROJECTS[name]
    rows, labels = (ROWS, ()) if project is shops.PROJECT else days()
    if mode == "batch":
        scores = batch(tmp_path / "run", uri, project, rows, labels, lateness_us=KEEP_US).scores
    else:
        scores = streamed(uri, project, rows, labels, lateness_us=KEEP_US, seed=1)
    by_id = {(row["id"], row["at"]): row for row in rows}
    times = scores[project.event.time].cast(pa.int64()).to_pylist()
    events = events_of(
        project, [by_id[key, us // SECOND] for key, us in zip(scores["id"].to_pylist(), times, strict=True)]
    )
    assert len(scores) > 300
    assert same_features(project, features_from(uri, project, events), scores)
    # An event at a time, in any order; and as a control those of an event a day later.
    for place in random.Random(0).sample(range(len(scores)), 25):
        one = events.slice(place, 1)
        assert same_features(project, features_from(uri, project, one), scores.slice(place, 1))
    later = events.set_column(
        events.schema.get_field_index(EVENT_TIME), events.schema.field(EVENT_TIME), shifted(events, DAY)
    )
    assert not same_features(project, features_from(uri, project, later), scores)


def shifted(events, us):
    times = events[EVENT_TIME]
    return pa.array(times.cast(pa.int64()).to_numpy() + us).cast(times.type)


def test_labels_known_later_leave_one_store_in_batch_and_stream(tmp_path, uri):
    rows, labels = days(seed=5)
    random.Random(0).shuffle(rows)
    batch(tmp_path / "run", str(tmp_path / "batch.db"), nights.PROJECT, rows, labels, shards=2)
    streamed(uri, nights.PROJECT, rows, labels, seed=2)
    assert digest(uri, nights.PROJECT) == digest(str(tmp_path / "batch.db"), nights.PROJECT)
    kinds = kinds_of(nights.PROJECT)
    assert list(kinds) == ["card", "shop", "labels of shop", "event ids"]
    with contextlib.closing(open_store(uri, nights.PROJECT.feature_set)) as store:
        assert all(list(store.scan(kind)) for kind in kinds)


@needs_data
def test_card_fraud_has_from_the_store_the_bits_of_batch(tmp_path):
    import pyarrow.parquet as pq

    from tests.kit.support import DATA

    project, path = card_fraud(), str(tmp_path / "store.db")
    table = pq.read_table(DATA / "transactions.parquet").sort_by("TX_DATETIME").slice(0, 40_000)
    table = table.filter(np.asarray(table["CUSTOMER_ID"]) % 5 == 0)
    pq.write_table(table, tmp_path / "events.parquet")
    scores = run_graph(
        tmp_path / "out", [str(tmp_path / "events.parquet")], store=WriteStore(path, project, DAY)
    ).scores
    order = table.take(pa.array(np.argsort(np.asarray(table["TRANSACTION_ID"])))).combine_chunks().to_batches()[0]
    times = order["TX_DATETIME"].cast(pa.timestamp("us", "UTC"))
    events = pa.RecordBatch.from_arrays([*order.columns, times], names=[*order.schema.names, EVENT_TIME])
    scores = scores.sort_by("TRANSACTION_ID")
    assert len(scores) == events.num_rows > 5000
    assert same_features(project, features_from(path, project, events), scores)


def test_what_has_passed_all_windows_leaves_the_store(tmp_path):
    path = str(tmp_path / "store.db")
    text = (
        shops.TEXT.replace("M: month", "M: 12h")
        .replace("windows: {W: week}", "windows: {W: 6h}")
        .replace("quarter", "9h")
    )
    project = shops.project_of(text)
    lateness = 3600 * SECOND
    sources = [write_rows(tmp_path / "rows.jsonl", ROWS)]
    run_graph(tmp_path / "out", sources, project, slice_us=7_200 * SECOND, store=WriteStore(path, project, lateness))
    oldest, newest = (end(row["at"] for row in ROWS) * SECOND for end in (min, max))
    with contextlib.closing(open_store(path, project.feature_set)) as store:
        assert store.progress().newest_us == newest
        assert store.progress().watermark_us == newest + 1
        for kind in kinds_of(project).values():
            starts = [place.start_us for place, _ in store.scan(kind.name)]
            assert min(starts) >= newest - lateness - kind.span_us - kind.tile_us
            assert not kind.is_of_events or newest - oldest > 2 * (kind.span_us + kind.tile_us)
    # What is late but finds its windows has all of its bits.
    late = events_of(project, [{**ROWS[0], "id": 9999, "at": newest // SECOND - 3000}])
    whole = run_graph(
        tmp_path / "whole",
        [write_rows(tmp_path / "more.jsonl", [*ROWS, {**ROWS[0], "id": 9999, "at": newest // SECOND - 3000}])],
        project,
    ).scores
    row = whole.filter(np.asarray(whole["id"]) == 9999)
    assert same_features(project, features_from(path, project, late), row)


def spec_of(shop, uri, **options):
    return shop.spec("", store=uri, **options)


def test_a_store_is_filled_from_history_and_what_is_wrong_is_named_and_mended(tmp_path, uri):
    shop = nights.Shop(tmp_path)
    shop.write(range(nights.DAYS))
    spec = spec_of(shop, uri)
    outcomes = fill_store(spec)
    assert outcomes["read"] == outcomes["history"] + outcomes["duplicate"] + outcomes["dead-lettered"]
    whole = digest(uri, nights.PROJECT)
    fill_store(spec)
    assert digest(uri, nights.PROJECT) == whole
    shop.run("sink", store=str(tmp_path / "run.db"))
    assert digest(str(tmp_path / "run.db"), nights.PROJECT) == whole
    checked = check_store(spec, mend=False)
    assert (checked.faults, checked.left, checked.is_behind) == ({}, [], False)

    kinds = kinds_of(nights.PROJECT)
    with contextlib.closing(open_store(uri, nights.PROJECT.feature_set)) as store:
        cards, labels = dict(store.scan("card")), dict(store.scan("labels of shop"))
        gone, less, more, broken = sorted(cards)[::7][:4]
        from models.store.tiles import decode_tiles, encode_tiles

        rows, _ = decode_tiles(kinds["card"].kinds, [cards[less]])
        fewer = encode_tiles(rows.take(np.arange(1, len(rows))), np.zeros(1, np.int64))[0]
        other, _ = decode_tiles(kinds["card"].kinds, [cards[more]])
        moved = encode_tiles(type(other)(other.kinds, other.time + 1, other.columns), np.zeros(1, np.int64))[0]
        label = min(labels)
        changes = {gone: None, less: fewer, more: moved, broken: cards[broken][:-3], label: None}
        assert store.replace({place: ({**cards, **labels}[place], tile) for place, tile in changes.items()}) == []
    expected = {Fault.MISSING: [gone, label], Fault.STALE: [less], Fault.WRONG: [more], Fault.DAMAGED: [broken]}
    for mend in (False, True):
        checked = check_store(spec, mend)
        assert {fault: sorted(places) for fault, places in checked.faults.items()} == expected
    assert sum(1 for _ in name_entities(checked)) == 5
    assert checked.left == []
    assert digest(uri, nights.PROJECT) == whole


def test_only_what_both_know_is_compared(tmp_path):
    path = str(tmp_path / "store.db")
    shop = nights.Shop(tmp_path)
    shop.write(range(4))
    spec = spec_of(shop, path)
    fill_store(spec)
    four = digest(path, nights.PROJECT)
    shop.write(range(4, nights.DAYS))
    checked = check_store(spec, mend=True)  # files go on
    assert (checked.faults, checked.is_behind) == ({}, True)
    assert digest(path, nights.PROJECT) == four
    fill_store(spec)
    for number in range(4, nights.DAYS):  # the store has later events than files
        for kind in ("events", "labels"):
            (tmp_path / kind / f"{nights.day(number)}.jsonl").unlink()
    whole = digest(path, nights.PROJECT)
    checked = check_store(spec, mend=True)
    assert (checked.faults, checked.is_behind) == ({}, False)
    with contextlib.closing(open_store(path, nights.PROJECT.feature_set)) as store:
        tiles = dict(store.scan("card"))
        last, first = (end(tiles, key=lambda place: place.start_us) for end in (max, min))
        store.replace({last: (tiles[last], b"x"), first: (tiles[first], b"x")})
    checked = check_store(spec, mend=True)
    assert checked.faults == {Fault.DAMAGED: [first, last]}
    assert checked.left == [last]  # it may have had rows that these files don't tell of
    assert digest(path, nights.PROJECT) != whole


def test_an_empty_store_is_filled_by_mending(tmp_path):
    path = str(tmp_path / "store.db")
    shop = nights.Shop(tmp_path)
    shop.write(range(3))
    spec = spec_of(shop, path)
    checked = check_store(spec, mend=True)
    assert set(checked.faults) == {Fault.MISSING}
    fill_store(spec_of(shop, str(tmp_path / "filled.db")))
    assert digest(path, nights.PROJECT) == digest(str(tmp_path / "filled.db"), nights.PROJECT)


def test_a_store_that_can_not_be_is_told_before_anything_is_read(tmp_path):
    shop = nights.Shop(tmp_path)
    shop.write(range(1))

    def faults(**options):
        with pytest.raises(UsageError) as raised:
            shop.spec("sink", **options).check()
        return str(raised.value)

    assert "is no store" in faults(store="ftp://x/y")
    assert "does not say which events" in faults(store="s.db", state=str(tmp_path / "state"), day=nights.day(0))
    spec = shop.spec("sink", store="s.db")
    with pytest.raises(UsageError, match="declares no rolling features"):
        dataclasses.replace(spec, project=labelled.PROJECT).check()


def test_places_of_a_key_are_those_of_its_windows():
    kind = kinds_of(card_fraud())["terminal"]
    day = 86_400 * SECOND
    assert kind.span_us == 37 * day
    assert kind.tile_us == 5 * day
    starts = list(kind.starts_us(100 * day))
    assert starts == list(range(60 * day, 101 * day, 5 * day))
    assert Place(kind.name, "7", starts[0]).start_us <= 100 * day - 37 * day + 1
