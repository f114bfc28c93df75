"""Score rows in tables of databases: a run replaces its days in one transaction, and a row is that of the run's files."""

import dataclasses
import shutil
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa

from pipelines.config import RunSpec
from pipelines.databases import DatabaseError, check_database, transaction
from pipelines.jobs.score import score_files
from pipelines.prechecks import UsageError, split_sinks
from pipelines.results import read_success
from pipelines.sinks.database import DatabaseTable
from pipelines.sinks.folder import SinkError
from tests.kit import postgres
from tests.kit.bundles import AnyBundle
from tests.kit.declared import declared
from tests.kit.nights import DAYS, PROJECT, SCHEMA, SCORER, TEXT, Shop, day
from tests.kit.support import write_rows

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server():
    with postgres.running() as url:
        yield url


@pytest.fixture(params=postgres.DATABASES)
def url(request, tmp_path, monkeypatch):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/a b.db"
    return postgres.emptied(request.getfixturevalue("server"), monkeypatch)


@pytest.fixture
def shop(tmp_path):
    shop = Shop(tmp_path / "shop")
    shop.folder.mkdir()
    shop.write(range(DAYS))
    return shop


def read(url, name="shops"):
    """The rows of a table by their ids, times as seconds since 1970."""
    with transaction(url, read_only=True) as connection:
        table = sa.Table(name, sa.MetaData(), autoload_with=connection)
        rows = connection.execute(sa.select(table)).mappings()
        return {row["id"]: plain(dict(row)) for row in rows}


def plain(row):
    at = row["at"]
    return {**row, "at": at.replace(tzinfo=None)} if not isinstance(at, str) else row


def of_files(shop, sink="out"):
    """The rows of a sink's files alike."""
    rows = {}
    for path in sorted((shop.folder / sink / "scores").rglob("*.parquet")):
        rows |= {row["id"]: plain(row) for row in pq.read_table(path, partitioning=None).to_pylist()}
    return rows


def same(found, wanted):
    assert sorted(found) == sorted(wanted)
    for number, row in wanted.items():
        nothing = {name for name, value in row.items() if value != value}  # SQLite has no NaN
        assert {**found[number], **dict.fromkeys(nothing)} == {**row, **dict.fromkeys(nothing)}


def test_nights_into_a_table_equal_the_files(shop, url):
    for number in range(DAYS):
        shop.night(number, sink="out", databases=(url,))
    same(read(url), of_files(shop))
    assert len(read(url)) > 300
    shop.night(DAYS - 1, sink="out", databases=(url,))
    same(read(url), of_files(shop))
    assert "HR_PW" not in (shop.folder / "out" / "_SUCCESS.json").read_text()


def test_days_are_replaced_and_rows_that_are_no_more_are_gone(shop, url):
    shop.whole("out", databases=(url,))
    before = read(url)
    write_rows(shop.folder / "events" / f"{day(3)}.jsonl", shop.rows[3][:20])
    write_rows(shop.folder / "events" / f"{day(4)}.jsonl", [])
    shop.run("out", databases=(url,), score_from=day(3), score_to=day(5))
    same(read(url), of_files(shop))
    assert 0 < len(read(url)) < len(before) - 60
    shop.run("out", databases=(url,), day="2019-02-01")
    same(read(url), of_files(shop))


def test_a_first_run_without_rows_makes_no_table(shop, url):
    shop.run("out", databases=(url,), day="2019-02-01")
    with transaction(url) as connection:
        assert not sa.inspect(connection).has_table("shops")
    shop.run("out", databases=(url,), day=day(1))
    same(read(url), of_files(shop))


@pytest.mark.parametrize("after_commit", [False, True])
def test_a_run_that_is_killed_at_its_commit_is_done_again(shop, url, monkeypatch, after_commit):
    shop.run("out", databases=(url,), day=day(1))
    before = read(url)
    commit = DatabaseTable.commit

    def killed(*args):
        if after_commit:
            commit(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(DatabaseTable, "commit", killed)
    with pytest.raises(KeyboardInterrupt):
        shop.run("out", databases=(url,), score_from=day(1), score_to=day(3))
    assert (read(url) == before) is not after_commit
    assert not (shop.folder / "out" / "_SUCCESS.json").exists()
    monkeypatch.undo()
    if "postgres" in url:
        monkeypatch.setenv("HR_PW", postgres.PASSWORD)
    shop.run("out", databases=(url,), score_from=day(1), score_to=day(3))
    same(read(url), of_files(shop))


def test_a_transaction_that_breaks_off_changes_nothing(shop, url, monkeypatch):
    shop.run("out", databases=(url,), day=day(1))
    before = read(url)
    monkeypatch.setattr("pipelines.sinks.database.read_rows", broken)
    with pytest.raises(KeyboardInterrupt):
        shop.run("out", databases=(url,), day=day(1))
    assert read(url) == before


def broken(*_):
    raise KeyboardInterrupt


def test_a_table_of_another_in_the_way_is_an_error_before_anything_runs(shop, url):
    with transaction(url) as connection:
        connection.exec_driver_sql("CREATE TABLE shops (mine INTEGER)")
        connection.exec_driver_sql("INSERT INTO shops VALUES (7)")
    for replace in (False, True):
        with pytest.raises(SinkError, match="the table shops was not made by headrace"):
            shop.run("out", databases=(url,), replace=replace)
    with transaction(url) as connection:
        assert connection.exec_driver_sql("SELECT mine FROM shops").scalar() == 7
    assert not (shop.folder / "out" / "scores").exists()


def test_other_columns_need_the_whole_table_replaced(shop, url):
    shop.run("out", databases=(url,), day=day(1))
    before = read(url)
    more = declared(TEXT.replace("large: amount > 50", "large: amount > 50, huge: amount > 90"), SCHEMA)
    spec = dataclasses.replace(shop.spec("out", databases=(url,)), project=more)
    with pytest.raises(SinkError, match=r"the table shops has other columns.*--replace"):
        score_files(dataclasses.replace(spec, day=day(2)), AnyBundle(), SCORER)
    assert read(url) == before
    score_files(dataclasses.replace(spec, replace=True), AnyBundle(), SCORER)
    same(read(url), of_files(shop))


def put(url, rows, scope_of, tmp_path, name):
    """Commit rows of a file of their own as a run does."""
    from pipelines.sinks.folder import Folder
    from pipelines.sinks.listed import Written

    folder = tmp_path / name / "scores"
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "part.parquet")
    table = DatabaseTable(url, "shops", "id", "at")
    table.commit(Folder(str(tmp_path / name)), [Written("scores", "part.parquet", len(rows), "", {})], {}, scope_of)


def us(number):
    return pa.scalar((17_866 + number) * 86_400_000_000, pa.timestamp("us", "UTC")).as_py()


def test_of_an_id_that_comes_again_the_latest_is_there_in_whatever_order_days_are_run(url, tmp_path):
    from models.partitions import Span
    from pipelines.sinks.listed import Scope

    def scope(number):
        start = (17_866 + number) * 86_400_000_000
        return Scope(span=Span(start, start + 86_400_000_000))

    days = {
        number: [{"id": "same", "at": us(number), "x": number}, {"id": f"{number}", "at": us(number), "x": number}]
        for number in range(3)
    }
    for turn, order in enumerate([(0, 1, 2), (2, 1, 0), (1, 2, 0)]):
        for number in order:
            put(url, days[number], scope(number), tmp_path, f"{turn}-{number}")
        assert {key: row["x"] for key, row in read(url).items()} == {"same": 2, "0": 0, "1": 1, "2": 2}


def test_hostile_texts_and_numbers_go_in_as_they_are(url, tmp_path):
    from pipelines.sinks.listed import Scope

    texts = ["'); DROP TABLE shops; --", 'a "b" %s :x $1', "ü\u2028\U0001f600", "nul\0here", "", None]
    rows = [
        {
            "id": number,
            "at": us(0),
            'drop table; -- "x"': text,
            "n": 2**62 + number,
            "f": 0.1 * number,
            "b": bool(number % 2),
        }
        for number, text in enumerate(texts)
    ]
    put(url, rows, Scope(), tmp_path, "out")
    found = read(url)
    assert [found[n]['drop table; -- "x"'] for n in range(len(texts))] == [
        t and t.replace("\0", "\ufffd") for t in texts
    ]
    for row in rows:
        assert {**row, "at": None, 'drop table; -- "x"': None} == {
            **found[row["id"]],
            "at": None,
            'drop table; -- "x"': None,
        }


def test_two_runs_at_once_leave_one_of_both(shop, url, tmp_path):
    shop.run("out", databases=(url,), day=day(1))
    shutil.copytree(shop.folder / "out", shop.folder / "other")
    errors = []

    def night(sink):
        try:
            shop.run(sink, databases=(url,), day=day(1))
        except SinkError as error:  # SQLite waits some seconds for another's transaction, and says so
            errors.append(str(error))

    threads = [threading.Thread(target=night, args=(sink,)) for sink in ("out", "other")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all("locked" in error for error in errors)
    same(read(url), of_files(shop))


@pytest.mark.serial
@postgres.needs_postgres
def test_a_wrong_password_is_told_and_not_shown(shop, server, monkeypatch):
    monkeypatch.setenv("HR_PW", "wrong-" + postgres.PASSWORD)
    with pytest.raises(SinkError, match="password authentication failed") as raised:
        shop.run("out", databases=(server,))
    assert postgres.PASSWORD not in str(raised.value)
    assert raised.value.__cause__ is None
    assert not (shop.folder / "out" / "scores").exists()


def test_what_can_not_be_is_said_before_anything_runs(tmp_path, monkeypatch):
    for url, said in {
        "postgresql://me:secret-1@db/x": "has a password in it: put it into a variable",
        "postgresql://db/x?password=secret-1": "has a password in it",
        "postgresql://me:$NOT_SET_1@db/x": "needs the environment variable after its \\$",
        "postgresql://me@db:port/x": "is no URL of a database",
        "postgresql://me@db": "names no database",
    }.items():
        with pytest.raises(UsageError, match=said) as raised:
            RunSpec(PROJECT, (__file__,), str(tmp_path / "out"), databases=(url,), labels=(__file__,)).check()
        assert "secret-1" not in str(raised.value)
        assert "NOT_SET_1" not in str(raised.value)
    with pytest.raises(DatabaseError):
        check_database("sqlite://")
    quarantine = declared(TEXT.replace("gate: warn", "gate: quarantine").replace("2d, min", "1d, min"), SCHEMA)
    with pytest.raises(UsageError, match="rows that the gate quarantine releases would not be in a table"):
        RunSpec(
            quarantine, (__file__,), str(tmp_path / "out"), databases=("sqlite:///x.db",), labels=(__file__,)
        ).check()


def test_sinks_are_one_folder_and_databases(tmp_path):
    assert split_sinks(["out"], tmp_path) == ("out", ())
    assert split_sinks(["sqlite:///x.db", "out"], tmp_path) == ("out", ("sqlite:///x.db",))
    assert split_sinks(["sqlite:///x.db"], tmp_path) == (str(tmp_path / ".headrace" / "sink"), ("sqlite:///x.db",))
    assert split_sinks(["a", "b"], tmp_path) == ("b", ())  # as of any option that stands twice


def fill(url, shop):
    """The shop's events of all days in a table `events`; of the broken ones those that are rows."""
    events = [row for rows in shop.rows for row in rows if isinstance(row, dict)]
    kinds = {"id": sa.BigInteger, "at": sa.BigInteger, "card": sa.BigInteger, "shop": sa.Text, "amount": sa.Double}
    with transaction(url) as connection:
        table = sa.Table("events", sa.MetaData(), *(sa.Column(name, kind) for name, kind in kinds.items()))
        table.create(connection)
        connection.execute(sa.insert(table), [{name: row.get(name) for name in kinds} for row in events])
    write_rows(shop.folder / "all.jsonl", events)


def test_a_query_is_a_source_as_files_are(shop, url, monkeypatch):
    from pipelines.sources import query

    fill(url, shop)
    (shop.folder / "events.sql").write_text("SELECT *, ':x %s' AS more FROM events -- 100% at 12:30\nORDER BY id")
    uri = f"{url}?query={shop.folder}/events.sql"
    monkeypatch.setattr(query, "ROWS_AT_ONCE", 100)
    query.list_query.cache_clear()
    for sink, source in (("out", uri), ("files", str(shop.folder / "all.jsonl"))):
        spec = dataclasses.replace(shop.spec(sink), sources=(source,))
        spec.check()
        score_files(spec, AnyBundle(), SCORER)
    assert of_files(shop, "out") == of_files(shop, "files")
    one, other = (read_success(str(shop.folder / sink))["events"] for sink in ("out", "files"))
    assert one["dead-lettered"] > 0
    for name in ("read", "scored", "dead-lettered", "duplicate"):
        assert one[name] == other[name]
    letters = next((shop.folder / "out" / "dead_letters").rglob("*.parquet"))
    assert "events.sql.rows/part-0000" in pq.ParquetFile(letters).read()["source"][0].as_py()
    # The same rows again are the same inputs; others are not.
    query.list_query.cache_clear()
    score_files(dataclasses.replace(shop.spec("out"), sources=(uri,)), AnyBundle(), SCORER)
    with transaction(url) as connection:
        connection.exec_driver_sql("DELETE FROM events WHERE id > 80")
    query.list_query.cache_clear()
    with pytest.raises(SinkError, match="with other inputs"):
        score_files(dataclasses.replace(shop.spec("out"), sources=(uri,)), AnyBundle(), SCORER)
    assert len(list((shop.folder / "events.sql.rows").iterdir())) == 1


def test_a_query_that_can_not_be_is_told(shop, url):
    from pipelines.sources import query

    fill(url, shop)
    uri = f"{url}?query={shop.folder}/q.sql"
    with pytest.raises(UsageError, match=r"q.sql: no such file"):
        dataclasses.replace(shop.spec("out"), sources=(uri,)).check()
    with pytest.raises(UsageError, match="name the file of a query, too"):
        dataclasses.replace(shop.spec("out"), sources=(url,)).check()
    for text, said in {
        "SELECT nothing FROM events": "nothing",
        "SELECT 1; SELECT 2": "one statement|commands|no rows",
        "SELECT id, id FROM events": "each column a name of its own",
        "DELETE FROM events": "read.?only|readonly|syntax error",
        "SELECT id, 1 AS x FROM events WHERE id = 3 UNION ALL SELECT id, 'a' FROM events": "CAST|integer",
    }.items():
        (shop.folder / "q.sql").write_text(text)
        query.list_query.cache_clear()
        with pytest.raises(DatabaseError, match=said) as raised:
            query.list_query(uri)
        assert postgres.PASSWORD not in str(raised.value)
    with transaction(url) as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM events").scalar() > 300


def test_a_query_without_rows_is_read_as_an_empty_file(shop, url):
    from pipelines.sources import query

    fill(url, shop)
    (shop.folder / "q.sql").write_text("SELECT * FROM events WHERE id < 0")
    query.list_query.cache_clear()
    spec = dataclasses.replace(shop.spec("out"), sources=(f"{url}?query={shop.folder}/q.sql",))
    score_files(spec, AnyBundle(), SCORER)
    assert read_success(str(shop.folder / "out"))["events"].get("scored", 0) == 0
