"""The table and the file of a release log: only added to, by one writer at a time, and checked whenever it is read."""

import dataclasses
import threading

import pytest
import sqlalchemy as sa

from models.rollout.changes import Told, begin, follow, with_champion
from models.rollout.log_file import to_lines
from models.rollout.records import ReleaseError, ReleaseLog
from pipelines.databases import DatabaseError, transaction
from pipelines.release_store import WRITTEN_WITHIN_US, append, check_writable, export, place_of_log, read_log
from tests.kit import postgres
from tests.kit.declared import declared
from tests.kit.nights import SCHEMA, TEXT
from tests.kit.release_logs import LEAD_US, chain

pytestmark = pytest.mark.slow

PROJECT = declared(TEXT, SCHEMA).model_copy(update={"entities": {"customer": "card", "terminal": "shop"}})
EMPTY = ReleaseLog("event", LEAD_US, ())
TOLD = Told("because", "ann")


@pytest.fixture(scope="module")
def server():
    with postgres.running() as url:
        yield url


@pytest.fixture(params=postgres.DATABASES)
def place(request, tmp_path, monkeypatch):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/a folder/releases.db"
    return postgres.emptied(request.getfixturevalue("server"), monkeypatch)


def one_more(seen, champion):
    """What adds a record to a log, or begins one."""

    def make(now_us):
        log = seen if seen.records else dataclasses.replace(seen, records=(begin("a", now_us, "ann"),))
        return follow(log, with_champion(log.records[-1], champion), now_us, now_us + LEAD_US, TOLD)

    return make


def written(place, log=None):
    """A log that is written as a whole."""
    log = log or chain()
    return append(place, "shops", dataclasses.replace(log, records=()), lambda: 0, lambda _: log)


def test_a_log_is_read_as_it_was_written(place):
    assert read_log(place, PROJECT) is None
    seen = EMPTY
    for number, champion in enumerate("bcab"):
        seen = append(place, "shops", seen, lambda at=number: at * LEAD_US, one_more(seen, champion))
        assert read_log(place, PROJECT) == seen
    assert [record.champion for record in seen.records] == ["a", "b", "c", "a", "b"]
    others = PROJECT.model_copy(update={"name": "others"})
    assert read_log(place, others) is None
    append(place, "others", EMPTY, lambda: 7, one_more(EMPTY, "x"))
    assert [record.champion for record in read_log(place, others).records] == ["a", "x"]
    assert read_log(place, PROJECT) == seen


def test_all_that_a_record_holds_comes_back(place):
    assert written(place) == read_log(place, PROJECT) == chain()


def test_of_two_writers_one_is_first_and_the_other_is_told(place):
    seen = append(place, "shops", EMPTY, lambda: 0, one_more(EMPTY, "b"))
    outcomes, both = [], threading.Barrier(8)

    def write(champion):
        both.wait()
        try:
            append(place, "shops", seen, lambda: LEAD_US, one_more(seen, champion))
            outcomes.append(champion)
        except ReleaseError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=write, args=(champion,)) for champion in "cdefghij"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (first,) = [outcome for outcome in outcomes if len(outcome) == 1]
    log = read_log(place, PROJECT)
    assert [record.champion for record in log.records] == ["a", "b", first]
    told = [outcome for outcome in outcomes if len(outcome) > 1]
    assert len(told) == 7
    assert all("another release was made meanwhile: record 2, by ann; look at `headrace releases`" in o for o in told)


def test_two_who_begin_a_log_do_not_both(place):
    append(place, "shops", EMPTY, lambda: 0, one_more(EMPTY, "b"))
    with pytest.raises(ReleaseError, match="another release was made meanwhile"):
        append(place, "shops", EMPTY, lambda: 0, one_more(EMPTY, "c"))


def test_a_record_that_cant_be_leaves_nothing_behind(place):
    def fail(now_us):
        raise ReleaseError("no")

    for seen in (EMPTY, written(place)):
        with pytest.raises(ReleaseError, match="no"):
            append(place, "shops", seen, lambda: 0, fail)
    assert read_log(place, PROJECT) == chain()


def test_a_record_that_took_too_long_is_not_written(place):
    times = iter([0, WRITTEN_WITHIN_US + 1, 0, WRITTEN_WITHIN_US])
    with pytest.raises(ReleaseError, match="took too long to write, and nothing was"):
        append(place, "shops", EMPTY, lambda: next(times), one_more(EMPTY, "b"))
    assert read_log(place, PROJECT) is None
    assert len(append(place, "shops", EMPTY, lambda: next(times), one_more(EMPTY, "b")).records) == 2


def change(place, statement, **values):
    with transaction(place) as connection:
        connection.execute(sa.text(statement), values)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        (
            "UPDATE headrace_releases SET record = replace(record, '\"b\"', '\"c\"') WHERE seq = 2",
            "record 2: is not as",
        ),
        ("UPDATE headrace_releases SET record = record || ' ' WHERE seq = 4", "record 4: is not in the canonical"),
        ("UPDATE headrace_releases SET record = '' WHERE seq = 4", "record 4: is not JSON"),
        ("UPDATE headrace_releases SET digest = replace(digest, substr(digest, 1, 1), 'x')", "record 0: is not as it"),
        ("DELETE FROM headrace_releases WHERE seq = 0", "record 0: has seq 1: one is missing"),
        ("DELETE FROM headrace_releases WHERE seq = 3", "record 3: has seq 4: one is missing"),
        ("DELETE FROM headrace_releases", "has no record"),
        ("UPDATE headrace_releases SET seq = 5 WHERE seq = 2", "record 5: is not as it was written"),
        ("UPDATE headrace_release_logs SET lead_us = lead_us + 1", "record 1: takes effect"),
        ("UPDATE headrace_release_logs SET clock = 'sun'", "clock is wall or event"),
    ],
)
def test_a_changed_table_is_found(place, statement, message):
    written(place)
    change(place, statement)
    with pytest.raises(ReleaseError, match=rf"release log .*: {message}"):
        read_log(place, PROJECT)


def test_an_entity_that_the_project_does_not_have_is_found(place):
    written(place)
    with pytest.raises(ReleaseError, match="record 1: 'customer' is no entity of the project; there are: card, shop"):
        read_log(place, declared(TEXT, SCHEMA))


def test_an_exported_log_is_read_as_the_table_is(place, tmp_path):
    log, path = written(place), tmp_path / "log.jsonl"
    for _ in range(2):  # its own file is replaced
        export(log, "shops", path)
    assert read_log(str(path), PROJECT) == log
    assert path.read_bytes() == to_lines(log, "shops")
    assert [each.name for each in tmp_path.iterdir() if each.is_file()] == ["log.jsonl"]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ReleaseError, match=r"release log .*log.jsonl: is not as it was written"):
        read_log(str(path), PROJECT)


@pytest.mark.parametrize("content", [b"", b"mine\n", to_lines(chain(), "others")])
def test_what_is_no_log_of_the_project_is_not_written_over(content, tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_bytes(content)
    with pytest.raises(ReleaseError, match="is there, and is no release log of shops: name another file"):
        export(chain(), "shops", path)
    assert path.read_bytes() == content


def test_where_a_log_is():
    assert place_of_log("sqlite:////p/.headrace/registry.db", None) == "sqlite:////p/.headrace/releases.db"
    assert place_of_log("sqlite:////p/registry.db", "log.jsonl") == "log.jsonl"
    assert place_of_log("http://server", None) is None


def test_releases_are_written_to_databases_alone(tmp_path):
    for place in ("log.jsonl", "http://user:hunter22@host", "mysql://x/y"):
        with pytest.raises(ReleaseError, match="releases are written to a database") as error:
            check_writable(place)
        assert "hunter22" not in str(error.value)
    (tmp_path / "text.db").write_text("no database, but some text that is longer than a header" * 20)
    for call in (lambda place: read_log(place, PROJECT), written):
        with pytest.raises(DatabaseError, match="file is not a database"):
            call(f"sqlite:///{tmp_path}/text.db")
    with pytest.raises(DatabaseError, match="has a password in it") as error:
        read_log("postgresql://user:hunter22@host/db", PROJECT)
    assert "hunter22" not in str(error.value)
    with pytest.raises(FileNotFoundError):
        read_log(str(tmp_path / "none.jsonl"), PROJECT)
