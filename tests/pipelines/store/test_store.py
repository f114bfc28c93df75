"""Stores of both backends: tiles are united whoever writes, progress never goes back, and troubles are told."""

import contextlib
import dataclasses
import multiprocessing
import random
import sqlite3
import subprocess

import pyarrow as pa
import pytest

from models.batches import times_us
from models.features.columns import with_keys
from models.features.row import before_windows
from models.store.kinds import Kind, Place, keys_of, kinds_of, make_tiles, rows_of
from models.store.recent import read_entry, write_entry
from models.store.tiles import TileError, decode_tiles
from pipelines.store import Progress, StoreError, check_store, go_on, log, open_store
from tests.kit import redis
from tests.kit.shops import PROJECT, TEXT, make_rows, project_of
from tests.kit.stores import digest, events_of

KIND = Kind("card", ("card",), "id", (("amount", "f"),), False, 1_000_000, 30_000_000)
OTHER = Kind("shop", ("shop",), "id", (("kind", "t"),), False, 10_000_000, 30_000_000)


@pytest.fixture(scope="module")
def server():
    with redis.running() as running:
        yield running


@pytest.fixture(params=redis.STORES)
def uri(request, tmp_path):
    return (
        str(tmp_path / "a folder" / "store.db")
        if request.param == "sqlite"
        else redis.emptied(request.getfixturevalue("server"))
    )


@pytest.fixture
def store(uri):
    with contextlib.closing(open_store(uri, "features", create=True)) as opened:
        yield opened


def rows(numbers):
    return [
        {
            "id": n,
            "at": n // 7,
            "card": ["anna", "ben", "é"][n % 3],
            "shop": n % 5 or None,
            "amount": n / 4,
            "kind": "a" * (n % 4),
        }
        for n in numbers
    ]


def tiles(kind, numbers):
    return make_tiles(kind, events_of(PROJECT, rows(numbers)))


def test_tiles_are_united_and_read_back(store):
    whole, numbers = tiles(KIND, range(100)), random.Random(1).sample(range(100), 100)
    for start in range(0, 100, 9):
        store.add(KIND, tiles(KIND, numbers[max(start - 3, 0) : start + 9]))
        store.add(OTHER, tiles(OTHER, numbers[start : start + 9]))
    store.add(KIND, whole)
    store.add(KIND, {})
    assert store.read([*whole, Place("card", "nobody", 0), Place("none", "anna", 0)]) == whole
    assert dict(store.scan("shop")) == tiles(OTHER, range(100))
    found = [place for place, _ in store.scan("card")]
    assert found == sorted(whole, key=lambda place: (place.start_us, place.key.encode()))
    assert store.read([]) == {}
    assert list(store.scan("none")) == []


def append(store, kind, numbers):
    batch = events_of(PROJECT, rows(numbers))
    known, _ = with_keys(batch, kind.keys)
    store.append(kind, rows_of(kind, known), keys_of(kind, known))


def test_rows_that_are_appended_are_read_as_tiles_at_once_and_later(uri, store, monkeypatch):
    monkeypatch.setattr("pipelines.store.log.MAX_ENTRIES", 7)
    whole, others, chosen = tiles(KIND, range(100)), tiles(OTHER, range(100)), random.Random(2)
    numbers, seen = chosen.sample(range(100), 100), []
    with contextlib.closing(open_store(uri, "features")) as reader:
        for start in range(0, 100, 5):
            part = numbers[max(start - 2, 0) : start + 5]
            append(store, KIND, part)
            append(store, OTHER, part)
            append(store, OTHER, [])
            seen += part
            if start % 3 == 0:
                store.add(KIND, tiles(KIND, part))
            for each in (store, reader):
                assert each.read([*whole, *others]) == tiles(KIND, seen) | tiles(OTHER, seen)
        assert dict(reader.scan("card")) == whole
        assert reader.read([*others, *whole]) == others | whole
        # What is replaced is not brought back by what a reader has of the log.
        place = max(whole)
        append(store, KIND, range(100))
        assert reader.read([place])
        assert store.replace({place: (whole[place], None)}) == []
        assert reader.read([place]) == store.read([place]) == {}


def test_what_is_dropped_does_not_come_back_from_the_log(uri, store):
    append(store, KIND, range(100))
    store.drop("card", 5_000_000)
    late = {place: tile for place, tile in tiles(KIND, range(100)).items() if place.start_us >= 5_000_000}
    with contextlib.closing(open_store(uri, "features")) as other:
        assert dict(other.scan("card")) == late
    assert dict(store.scan("card")) == late


def test_a_damaged_entry_of_the_log_is_told():
    entry = write_entry(KIND, rows_of(KIND, events_of(PROJECT, rows([1]))), pa.array(["anna"]))
    assert read_entry(entry).keys.to_pylist() == ["anna"]
    for length in range(len(entry)):
        with pytest.raises(TileError, match="damaged"):
            read_entry(entry[:length])
    for place in range(len(entry)):
        changed = bytearray(entry)
        changed[place] ^= 0xFF
        with pytest.raises(TileError, match="damaged|other columns"):
            read_entry(bytes(changed))


def test_what_is_damaged_is_told_when_the_log_is_put_into_tiles(store):
    place = Place("card", "anna", 0)
    good = tiles(KIND, [0])[place]
    store.replace({place: (None, good[:-1])})
    append(store, KIND, range(60))
    with pytest.raises(TileError, match="card 'anna' at 0: a tile .* damaged.*--mend"):
        store.settle()
    whole = tiles(KIND, range(60))
    with pytest.raises(TileError, match="damaged"):
        store.read(list(whole))
    del whole[place]
    assert store.read(list(whole)) == whole
    store.settle(leave_damaged=True)
    assert dict(store.scan("card")) == {**whole, place: good[:-1]}
    store._backend.log(b"no entry")
    with pytest.raises(TileError, match="damaged: .*--mend"):
        store.settle()
    store.settle(leave_damaged=True)
    store.settle()
    assert store.read(list(whole)) == whole


def test_what_starts_before_a_time_is_dropped_of_one_kind(store):
    store.add(KIND, tiles(KIND, range(100)))
    store.add(OTHER, tiles(OTHER, range(100)))
    before = dict(store.scan("card"))
    late = {place: tile for place, tile in before.items() if place.start_us >= 5_000_000}
    assert store.drop("card", 5_000_000) == len(before) - len(late) > 0
    assert dict(store.scan("card")) == late
    assert store.drop("card", 5_000_000) == 0
    assert dict(store.scan("shop")) == tiles(OTHER, range(100))


def test_progress_never_goes_back(store):
    assert store.progress() == Progress()
    store.advance(Progress(None, 7))
    assert store.progress() == Progress(None, 7)
    store.advance(Progress(9, 3))
    store.advance(Progress(4, None))
    assert store.progress() == Progress(9, 7)


def test_a_tile_is_replaced_where_it_is_as_it_was(store):
    place, other = Place("card", "anna", 0), Place("card", "ben", 0)
    old, new = tiles(KIND, [0])[place], tiles(KIND, [0, 3])[place]
    assert store.replace({place: (None, old)}) == []
    assert store.replace({place: (None, new), other: (None, old)}) == [place]
    assert store.read([place, other]) == {place: old, other: old}
    assert store.replace({place: (old, new), other: (old, None)}) == []
    assert dict(store.scan("card")) == {place: new}
    assert store.replace({place: (new, None)}) == []
    assert list(store.scan("card")) == []


SHORT = project_of(TEXT.replace("M: month", "M: 12h").replace("{W: week}", "{W: 6h}").replace("quarter", "9h"))


def test_forty_orders_of_arrival_leave_one_store(tmp_path):
    found, rows, day = set(), make_rows(), 86_400_000_000
    for seed in range(40):
        uri, chosen = str(tmp_path / f"{seed}.db"), random.Random(seed)
        arriving = [*rows, *chosen.sample(rows, 100)]
        chosen.shuffle(arriving)
        opened = open_store(uri, SHORT.feature_set, create=True)
        while arriving:
            size = chosen.choice([1, 7, 50, 200])
            part, arriving = before_windows(events_of(SHORT, arriving[:size]), SHORT), arriving[size:]
            for kind in (kind for kind in kinds_of(SHORT).values() if kind.is_of_events):
                if chosen.random() < 0.5:
                    opened.add(kind, make_tiles(kind, part))
                else:
                    known, _ = with_keys(part, kind.keys)
                    opened.append(kind, rows_of(kind, known), keys_of(kind, known))
            if chosen.random() < 0.1:
                opened.settle()
            newest = int(times_us(part).max())
            go_on(opened, kinds_of(SHORT).values(), Progress(newest + 1, newest), day)
            if chosen.random() < 0.3:
                opened.close()
                opened = open_store(uri, SHORT.feature_set)
        opened.close()
        found.add(digest(uri, SHORT))
    assert len(found) == 1


def test_few_rows_of_a_large_tile_stay_in_the_log_until_there_are_more(uri, store, monkeypatch):
    kind = dataclasses.replace(KIND, tile_us=1_000_000_000)
    for module in ("models.store.large", "pipelines.store.log", "pipelines.store.sqlite", "pipelines.store.redis"):
        monkeypatch.setattr(f"{module}.LARGE_BYTES", 2_000)
    monkeypatch.setattr("pipelines.store.log._PART", 8)
    append(store, kind, range(300))
    store.settle()
    large = store.read(list(tiles(kind, range(400))))
    with contextlib.closing(open_store(uri, "features")) as reader:
        assert reader.look(list(large))[:2] == (large, {})
        changes = store._backend.marks()[log.CHANGES]
        for few in range(300, 306):
            append(store, kind, [few])
            store.settle()
            assert store._backend.marks()[log.CHANGES] == changes
            found = reader.look(list(large))
            assert found.tiles == large
            assert found.more == tiles(kind, range(300, few + 1))
            assert all(found.tiles[place] is reader.look([place]).tiles[place] for place in large)  # not read again
            assert reader.read(list(large)) == store.read(list(large)) == tiles(kind, range(few + 1))
        append(store, kind, range(306, 400))
        store.settle()
        assert reader.look(list(large))[:2] == (tiles(kind, range(400)), {})
        append(store, kind, [400])
        store.settle()
        assert dict(reader.scan("card")) == tiles(kind, range(401))


def test_feature_sets_stand_apart(uri, store):
    store.add(KIND, tiles(KIND, range(9)))
    store.advance(Progress(5, 5))
    with contextlib.closing(open_store(uri, "others")) as others:
        assert others.progress() == Progress()
        assert others.read(list(tiles(KIND, range(9)))) == {}
        others.add(KIND, tiles(KIND, range(3)))
        others.drop("card", 1 << 60)
    assert dict(store.scan("card")) == tiles(KIND, range(9))


def test_a_damaged_tile_is_told_and_not_written_over(store):
    place = Place("card", "anna", 0)
    good = tiles(KIND, [0])[place]
    store.replace({place: (None, good[:-1])})
    with pytest.raises(TileError, match="damaged"):
        store.add(KIND, tiles(KIND, [0, 3]))
    assert store.read([place]) == {place: good[:-1]}


def write(uri, numbers, parts):
    log.MAX_ENTRIES = 5
    with contextlib.closing(open_store(uri, "features", create=True)) as store:
        for part in range(parts):
            (
                append(store, KIND, numbers[part::parts])
                if part % 3
                else store.add(KIND, tiles(KIND, numbers[part::parts]))
            )
            store.advance(Progress(part, part))


def read(uri, seconds):
    """Look again and again: what is there is whole, and never gets less."""
    import time

    places, seen, until = list(tiles(KIND, range(300))), 0, time.monotonic() + seconds
    with contextlib.closing(open_store(uri, "features")) as store:
        while time.monotonic() < until and seen < 300:
            now = len(decode_tiles(KIND.kinds, list(store.read(places).values()))[0])
            assert now >= seen
            seen = now
    assert seen == 300


@pytest.mark.serial
def test_writers_and_readers_at_once_lose_nothing(uri, store):
    started = multiprocessing.get_context("forkserver")
    halves = [list(range(0, 200)), list(range(100, 300))]
    processes = [started.Process(target=write, args=(uri, half, 40)) for half in halves]
    processes += [started.Process(target=read, args=(uri, 60)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(90)
    assert [process.exitcode for process in processes] == [0] * 4
    assert dict(store.scan("card")) == tiles(KIND, range(300))
    assert store.progress() == Progress(39, 39)


def test_a_place_without_a_store_is_told(tmp_path):
    with pytest.raises(StoreError, match="no store is there"):
        open_store(str(tmp_path / "s.db"), "f")
    with pytest.raises(StoreError, match="no store is there"):
        open_store(str(tmp_path), "f", create=True)
    (tmp_path / "text").write_text("not a database, however long it is made" * 99)
    with pytest.raises(StoreError, match="not a database"):
        open_store(str(tmp_path / "text"), "f")
    foreign = tmp_path / "foreign.db"
    with contextlib.closing(sqlite3.connect(foreign)) as connection:
        connection.execute("CREATE TABLE tiles (x)")
    before = foreign.read_bytes()
    with pytest.raises(StoreError, match="another program"):
        open_store(str(foreign), "f", create=True)
    assert foreign.read_bytes() == before
    with contextlib.closing(open_store(f"sqlite:///{tmp_path}/s.db", "f", create=True)):
        pass
    with contextlib.closing(sqlite3.connect(tmp_path / "s.db")) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="another version"):
        open_store(str(tmp_path / "s.db"), "f")


def test_a_file_that_another_process_locks_is_waited_for_and_then_told(tmp_path):
    path = tmp_path / "s.db"
    with (
        contextlib.closing(open_store(str(path), "f", create=True, wait_seconds=0.1)) as store,
        contextlib.closing(sqlite3.connect(path)) as other,
    ):
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked"):
            store.add(KIND, tiles(KIND, range(9)))
        assert store.read(list(tiles(KIND, range(9)))) == {}  # who reads does not wait
        other.execute("ROLLBACK")
        store.add(KIND, tiles(KIND, range(9)))


WRONG = {
    "redis://:hunter2secret@localhost": "has a password in it",
    "redis://u:hunter2secret@localhost:1": "has a password in it",
    "redis://localhost:port": "no URL of Redis",
    "redis://": "no URL of Redis",
    "redis://localhost/first": "no URL of Redis",
    "redis://localhost?ssl_certfile=x": "no URL of Redis",
    "rediss://localhost?password=hunter2secret": "no URL of Redis",
    "postgresql://localhost/x": "is no store",
    "": "is no store",
}


@redis.needs_redis
@pytest.mark.parametrize(("uri", "said"), WRONG.items())
def test_a_uri_that_can_be_no_store_is_told_without_its_secrets(uri, said):
    with pytest.raises(StoreError, match=said) as raised:
        check_store(uri)
    assert "hunter2secret" not in str(raised.value)


@pytest.mark.serial
@redis.needs_redis
def test_redis_by_tls_with_a_user_of_its_acl(tmp_path, monkeypatch):
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
    files = {name: str(tmp_path / name) for name in ("key.pem", "cert.pem")}
    subprocess.run([*make, "-keyout", files["key.pem"], "-out", files["cert.pem"]], check=True, capture_output=True)
    (tls,) = redis.free_ports(1)
    options = ["--tls-port", str(tls), "--tls-cert-file", files["cert.pem"], "--tls-key-file", files["key.pem"]]
    options += ["--tls-ca-cert-file", files["cert.pem"], "--tls-auth-clients", "no"]
    options += ["--user", "default", "off"]
    options += ["--user", "head", "on", f">{redis.PASSWORD}", "~headrace:*", "+@all", "-@admin", "-@dangerous"]
    place = f"rediss://head:$HR_PW@localhost:{tls}"
    with redis.running(*options):
        with pytest.raises(StoreError, match="is not set"):
            open_store(place, "f")
        monkeypatch.setenv("HR_PW", redis.PASSWORD)
        with pytest.raises(StoreError, match="certificate"):
            open_store(place, "f")
        whole = tiles(KIND, range(50))
        with contextlib.closing(open_store(f"{place}?ssl_ca_certs={files['cert.pem']}", "f")) as store:
            store.add(KIND, whole)
            store.advance(Progress(1, 1))
            assert store.read(list(whole)) == whole == dict(store.scan("card"))
            store.drop("card", 1)
        monkeypatch.setenv("HR_PW", "wrong-" + redis.PASSWORD)
        with pytest.raises(StoreError, match=r"(?i)wrongpass|invalid") as raised:
            open_store(f"{place}?ssl_ca_certs={files['cert.pem']}", "f")
        assert redis.PASSWORD not in str(raised.value)


@pytest.mark.serial
@redis.needs_redis
def test_a_server_that_is_away_is_told_and_found_again():
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(redis.running())
        store = open_store(f"redis://127.0.0.1:{server.port}", "f", wait_seconds=1)
        stack.enter_context(contextlib.closing(store))
        store.add(KIND, tiles(KIND, range(9)))
        server.stop()
        with pytest.raises(StoreError, match=f"redis://127.0.0.1:{server.port}: "):
            store.read([Place("card", "anna", 0)])
        server.start()
        assert dict(store.scan("card")) == tiles(KIND, range(9))
