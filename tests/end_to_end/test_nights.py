"""Nights: runs of a day each, one from the state of the other, leave what one run over all leaves, bit for bit."""

import io
import json
import random
from typing import ClassVar

import apache_beam as beam
import pyarrow.parquet as pq
import pytest

from models.quality.window_statistics import WindowJudge
from models.state import BEFORE_STATE
from pipelines.config import RunSpec
from pipelines.graph import GraphConfig, build
from pipelines.jobs import nightly
from pipelines.jobs.nightly import find_missing, name_of, run_nights
from pipelines.jobs.resume import restore
from pipelines.jobs.score import score_files
from pipelines.results import RunError, read_success
from pipelines.runners import DIRECT, make_pipeline
from pipelines.sinks.folder import Folder, SinkError
from pipelines.sinks.state import StateError
from tests.kit.bundles import AnyBundle
from tests.kit.declared import declared
from tests.kit.given import Given
from tests.kit.nights import (
    DAY,
    DAYS,
    PROJECT,
    SCHEMA,
    SCORER,
    START,
    TEXT,
    Shop,
    assert_same,
    contents,
    day,
    make_days,
)
from tests.kit.support import read_stream, write_rows
from transforms.gate import WatchScores
from transforms.score import Score

pytestmark = pytest.mark.slow


def events_read(sink):
    return json.loads((sink / "_SUCCESS.json").read_text())["events"]["read"]


@pytest.mark.parametrize(("runner", "shards"), [(DIRECT, [1]), (DIRECT, [1, 3, 2])])
def test_nights_equal_one_run(tmp_path, runner, shards):
    shop = Shop(tmp_path)
    for number in range(DAYS):
        shop.write([number])
        shop.night(number, runner=runner, shards=shards[number % len(shards)])
    shop.whole()
    assert_same(tmp_path / "nights", tmp_path / "whole")
    assert events_read(tmp_path / "nights") < events_read(tmp_path / "whole") / 2


def test_a_run_over_days_before_equals_nights(tmp_path):
    shop = Shop(tmp_path)
    shop.write(range(4))
    shop.run("nights", score_from=day(0), score_to=day(4), state=str(tmp_path / "state"))
    for number in range(4, DAYS):
        shop.write([number])
        shop.night(number)
    shop.whole()
    assert_same(tmp_path / "nights", tmp_path / "whole")


@pytest.mark.parametrize("seed", range(2))
def test_late_files_and_labels_change_the_days_that_they_touch(tmp_path, seed):
    rows, labels = make_days(seed)
    chosen = random.Random(seed)
    late = [[] for _ in range(DAYS)], [[] for _ in range(DAYS)]
    shop = Shop(tmp_path, (rows, labels))
    for days, left in zip((shop.rows, shop.labels), late, strict=True):
        for number in range(DAYS):
            left[number] += [row for row in days[number] if chosen.random() < 0.1]
            days[number] = [row for row in days[number] if row not in left[number]]
    for number in range(DAYS):
        shop.write([number])
        if number and number != 2:  # what is of the day before, or of two before
            for kind, left in zip(("events", "labels"), late, strict=True):
                found = [*left[number - 1], *(left[number - 2] if number == 3 else [])]
                write_rows(tmp_path / kind / f"{day(number)}-late.jsonl", found)
        shop.night(number)
    for kind, left in zip(("events", "labels"), late, strict=True):
        write_rows(tmp_path / kind / "last-late.jsonl", left[DAYS - 1])
    shop.night(DAYS - 1)
    shop.whole()
    assert_same(tmp_path / "nights", tmp_path / "whole")


def test_a_night_that_is_run_again_changes_nothing(tmp_path):
    shop = Shop(tmp_path)
    for number in range(4):
        shop.write([number])
        shop.night(number)
    before = contents(tmp_path / "nights")
    said = (tmp_path / "nights" / "_SUCCESS.json").read_bytes()
    states = {path: path.read_bytes() for path in (tmp_path / "state").rglob("*") if path.is_file()}
    shop.night(3)
    assert contents(tmp_path / "nights") == before
    assert (tmp_path / "nights" / "_SUCCESS.json").read_bytes() == said
    assert {path: path.read_bytes() for path in (tmp_path / "state").rglob("*") if path.is_file()} == states


def test_states_that_no_late_file_needs_are_forgotten(tmp_path):
    shop = Shop(tmp_path)
    for number in range(4):
        shop.write([number])
        shop.night(number)
    foreign = tmp_path / "state" / "until=2018-12-01T000000Z"
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == [
        f"until={day(number)}T000000Z" for number in (2, 3, 4)
    ]
    foreign.mkdir()
    (foreign / "mine.txt").write_text("mine")
    shop.write([4])
    shop.night(4)
    assert (foreign / "mine.txt").read_text() == "mine"


def test_what_is_later_than_the_lateness_is_a_dead_letter(tmp_path):
    shop = Shop(tmp_path)
    for number in range(5):
        shop.write([number])
        shop.night(number)
    row = {"id": 77_777, "at": START + DAY, "card": 1, "shop": "shop 1", "amount": 1.0}
    write_rows(tmp_path / "events" / "too-late.jsonl", [row])
    before, _ = contents(tmp_path / "nights")
    shop.write([5])
    shop.night(5)
    after, untimed = contents(tmp_path / "nights")
    assert {place: after[place] for place in before if "baseline" not in place} == before
    assert any("later than --lateness allows" in str(letter) and "77777" in str(letter) for letter in untimed)


def test_a_day_replaces_itself_alone(tmp_path):
    shop = Shop(tmp_path)
    shop.write(range(DAYS))
    shop.run("out", day=day(2))
    before, _ = contents(tmp_path / "out")
    shop.run("out", day=day(4))
    shop.run("out", day=day(3))
    after, _ = contents(tmp_path / "out")
    assert {place: after[place] for place in before if "baseline" not in place} == {
        place: content for place, content in before.items() if "baseline" not in place
    }
    days = {path.name for path in (tmp_path / "out" / "scores").iterdir()}
    assert days == {f"event_day={day(number)}" for number in (2, 3, 4)}
    shop.whole()
    whole, _ = contents(tmp_path / "whole")
    for place, content in after.items():
        if place.startswith("scores"):  # no window was judged before
            rows, others = (pq.read_table(io.BytesIO(each)).drop(["verdict_id"]) for each in (content, whole[place]))
            assert rows.equals(others)
        elif place.startswith("dead_letters"):
            assert content == whole[place], place
    scores = pq.read_table(tmp_path / "out" / "scores")
    assert set(scores["event_day"].to_pylist()) == {day(number) for number in (2, 3, 4)}


def test_a_file_of_another_in_the_way_is_an_error_before_anything_runs(tmp_path):
    shop = Shop(tmp_path)
    shop.write(range(DAYS))
    shop.run("out", day=day(2))
    mine = tmp_path / "out" / "scores" / f"event_day={day(2)}" / "mine.parquet"
    mine.write_bytes(b"mine")
    for options in ({"day": day(2)}, {"day": day(3)}, {"replace": True}):
        with pytest.raises(SinkError, match="mine.parquet: was not written by a run"):
            shop.run("out", **options)
    assert mine.read_bytes() == b"mine"


def test_a_state_of_other_features_is_refused(tmp_path):
    shop = Shop(tmp_path)
    shop.write([0])
    shop.night(0)
    shop.write([1])
    other = declared(TEXT.replace("3D: 3d", "3D: 4d"), SCHEMA)
    spec = RunSpec(
        other,
        (str(tmp_path / "events" / "*.jsonl"),),
        str(tmp_path / "nights"),
        labels=(str(tmp_path / "labels" / "*.jsonl"),),
        day=day(1),
        state=str(tmp_path / "state"),
    )
    with pytest.raises(StateError, match="other features.*name an empty folder"):
        score_files(spec, AnyBundle(), SCORER)


def test_a_file_that_changed_since_is_an_error(tmp_path):
    shop = Shop(tmp_path)
    shop.write([0])
    shop.night(0)
    shop.rows[0].append(shop.rows[0][0])
    shop.write([0, 1])
    with pytest.raises(StateError, match="has changed since it was read"):
        shop.night(1)


def test_a_state_that_was_changed_is_an_error(tmp_path):
    shop = Shop(tmp_path)
    shop.write([0])
    shop.night(0)
    for file in (tmp_path / "state").rglob("windows-of-card*"):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    shop.write([1])
    with pytest.raises(StateError, match="was changed since a run wrote it"):
        shop.night(1)


def test_spans_tell_of_which_time_a_sink_has_all(tmp_path):
    shop = Shop(tmp_path)
    shop.write(range(DAYS))

    def spans():
        return [[text and text[:10] for text in span] for span in read_success(str(tmp_path / "out"))["spans"]]

    shop.run("out", day=day(1))
    shop.run("out", day=day(4))
    assert spans() == [[day(1), day(2)], [day(4), day(5)]]
    shop.run("out", score_from=day(2), score_to=day(4))
    assert spans() == [[day(1), day(5)]]
    shop.run("out", score_from=day(0), score_to=day(2), replace=True)
    assert spans() == [[day(0), day(2)]]
    shop.run("out", replace=True)
    assert spans() == [[None, None]]


class Found(beam.PTransform):
    """Keeps what a graph in this process gives, by kind."""

    kept: ClassVar = {}

    def expand(self, pcolls):
        for kind in ("scores", "dead_letters", "verdicts", "statistics", "aggregates"):
            pcolls[kind] | kind >> beam.Map(self._keep, kind)

    @classmethod
    def _keep(cls, element, kind):
        cls.kept.setdefault(kind, []).append(element)


def as_json(rows):
    return [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]


@pytest.mark.parametrize("shards", [1, 3])
def test_a_stream_that_starts_from_a_state_goes_on_as_a_night_does(tmp_path, shards):
    shop = Shop(tmp_path)
    # What is earlier than the state is refused, and is to be none of what batch scores.
    early = [row for row in shop.rows[3] if isinstance(row, dict) and row["at"] < START + 3 * DAY]
    shop.rows[3] = [row for row in shop.rows[3] if row not in early]
    for number in range(3):
        shop.write([number])
        shop.night(number)
    state = str(tmp_path / "state" / f"until={day(3)}T000000Z")
    states = restore(RunSpec(PROJECT, ("pubsub://s",), "pubsub://t", history=(state,)))
    ahead = [row for row in shop.rows[2] if isinstance(row, dict) and row["at"] >= START + 3 * DAY]
    events = as_json([*ahead, *(row for rows in shop.rows[3:] for row in rows)])
    labels = as_json(row for rows in shop.labels[3:] for row in rows)
    source = read_stream(
        PROJECT, Given([*events, *as_json(shop.rows[1][:3])], 1), 2 * DAY * 1_000_000, labels=Given(labels, 1, most=9999),
        idle_us=300_000, until_idle=True, cut_us=DAY * 1_000_000, periods=("day", "week"),
    )  # fmt: skip
    watch = WatchScores(WindowJudge(PROJECT, None), PROJECT.quality.window, "fallback", shards, states)
    config = GraphConfig(
        PROJECT, source, Score(PROJECT, SCORER, AnyBundle.bundle_id), Found(), shards, lateness_us=DAY * 1_000_000,
        watch=watch, states=states, boundary_us=DAY * 1_000_000,
    )  # fmt: skip
    Found.kept.clear()
    pipeline = make_pipeline(DIRECT, [])
    build(pipeline, config)
    pipeline.run().wait_until_finish()
    shop.write(range(3, DAYS))
    shop.whole()
    found = {row["id"]: row for batch in Found.kept["scores"] for row in batch.to_pylist()}
    paths = [path for n in range(3, DAYS) for path in (tmp_path / "whole" / "scores").glob(f"event_day={day(n)}/*")]
    expected = {row["id"]: row for path in paths for row in pq.ParquetFile(path).read().to_pylist()}
    assert len(expected) > 150
    assert sorted(found) == sorted(expected)
    names = {"id", "at", "score", "decision", "verdict_id", *PROJECT.model.inputs} & set(next(iter(expected.values())))
    for number, row in expected.items():
        assert {name: found[number][name] for name in names} == {name: row[name] for name in names}
    files = sorted((tmp_path / "whole" / "quality").rglob("verdicts.jsonl"))
    whole = [line for file in files for line in file.read_text().splitlines()]
    assert [verdict.to_json() for verdict in Found.kept["verdicts"]] == whole[1:]
    reasons = [r for batch in Found.kept["dead_letters"] for r in batch.column("reasons").to_pylist()]
    assert sum(BEFORE_STATE in reason for reason in reasons) == 3


def test_a_state_that_is_not_there_or_of_other_features_starts_no_stream(tmp_path):
    shop = Shop(tmp_path)
    shop.write([0])
    shop.night(0)
    state = str(tmp_path / "state" / f"until={day(1)}T000000Z")
    other = declared(TEXT.replace("3D: 3d", "3D: 2d"), SCHEMA)
    for project, path, message in (
        (PROJECT, state.replace(day(1), day(2)), f"no such state; there are .*, until={day(1)}T000000Z"),
        (other, state, "its states are of other features"),
    ):
        with pytest.raises(StateError, match=message):
            restore(RunSpec(project, ("pubsub://s",), "pubsub://t", history=(path,)))


def test_missing_days_are_scored_and_one_that_fails_keeps_no_other_from_it(tmp_path, monkeypatch):
    shop = Shop(tmp_path)
    shop.write(range(DAYS))
    spec = shop.spec("nights", state=str(tmp_path / "state"))
    whole = time_us(0), time_us(DAYS)
    with pytest.raises(RunError, match="say with --from"):
        find_missing(spec, None, whole[1])
    broken = nightly.score_files
    monkeypatch.setattr(nightly, "score_files", lambda spec, *rest: fail_on(day(2), spec) or broken(spec, *rest))
    nights = list(run_nights(spec, find_missing(spec, *whole), AnyBundle(), SCORER))
    assert [night.name for night in nights if night.error] == [day(2)]
    monkeypatch.undo()
    missing = find_missing(spec, None, whole[1])
    assert [name_of(span, PROJECT.partitions) for span in missing] == [f"{day(2)} to {day(DAYS - 1)}"]
    assert all(night.result for night in run_nights(spec, missing, AnyBundle(), SCORER))
    assert find_missing(spec, *whole) == []
    shop.whole()
    assert_same(tmp_path / "nights", tmp_path / "whole")


def fail_on(name, spec):
    if spec.score_from.startswith(name):
        raise SinkError(f"{name}: no space left")


def time_us(number):
    return (START + number * DAY) * 1_000_000


@pytest.mark.parametrize("moves", [0, 1])
@pytest.mark.parametrize("where", ["sink", "state"])
def test_a_night_that_is_cut_off_as_it_publishes_is_run_again(tmp_path, monkeypatch, where, moves):
    shop = Shop(tmp_path, make_days(events=30))
    left = []
    move = Folder.move

    def cut_off(folder, pairs):
        if folder.path.endswith("nights" if where == "sink" else "state") and left:
            left.pop()
            if not left:
                raise ZeroDivisionError("cut off")
        for pair in pairs:
            move(folder, [pair])

    monkeypatch.setattr(Folder, "move", cut_off)
    for number in range(3):
        shop.write([number])
        if number == 1:
            left[:] = [None] * (moves + 1)
            with pytest.raises(Exception, match="cut off"):
                shop.night(number)
            left.clear()
        shop.night(number)
    shop.run("whole", score_from=day(0), score_to=day(3))
    files, untimed = contents(tmp_path / "nights")
    assert (files, untimed) == contents(tmp_path / "whole")
    assert not list(tmp_path.glob("*/.staging-*"))
