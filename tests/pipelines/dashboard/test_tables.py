"""What the dashboard says of a folder: the numbers that are in it, whatever files they are in, and what is new."""

import collections
import itertools
import os
import random
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.objectives import of_run
from models.project.objectives import Objectives
from models.project.project import parse_project
from pipelines.config import RunSpec
from pipelines.dashboard.files import Files
from pipelines.dashboard.quality import read_part, sum_up
from pipelines.dashboard.scores import HOUR_US, add_up, count_file, in_steps
from pipelines.dashboard.sink import Sink
from pipelines.jobs.score import score_files
from pipelines.report.labels import read_label_metrics, read_windows
from pipelines.results import RunError, count_decisions, read_success
from pipelines.sinks.folder import Folder
from tests.kit.bundles import AnyBundle
from tests.kit.dashboards import DAY, EVIL, PROJECT, START, statistics, verdict, write_day, write_quality, write_success
from tests.kit.labelled import PROJECT as LABELLED
from tests.kit.labelled import make_events, make_labels
from tests.kit.support import CARD_FRAUD, run_graph, tiny_scorer, transaction, write_rows

pytestmark = pytest.mark.slow


def sink(folder, project=PROJECT):
    made = Sink(project, str(folder))
    made.refresh()
    return made


def rows_of(facts):
    return {each["name"]: sum(each["rows"]) for each in facts["decisions"]}


def test_totals_are_those_of_the_run(tmp_path):
    rows = [transaction(n, **({"TX_AMOUNT": -1} if n == 5 else {})) for n in range(200)]
    run_graph(tmp_path / "out", [write_rows(tmp_path / "rows.jsonl", rows)])
    facts = sink(tmp_path / "out").facts()
    events = read_success(str(tmp_path / "out"))["events"]
    assert {name: n for name, n in rows_of(facts).items() if n} == {
        name: n for name, n in count_decisions(str(tmp_path / "out"), PROJECT).items() if n
    }
    assert sum(rows_of(facts).values()) == events["scored"] == 199
    assert facts["events"] == {name: n for name, n in events.items() if ":" not in name}
    assert next(iter(facts["events"])) == "read"
    assert facts["faults"] == []
    assert facts["step"] == DAY // 1000
    assert facts["starts"][0] == 1_522_540_800_000  # 1 April 2018, the day of the first one
    assert sum(each["rows"][0] for each in facts["decisions"]) == 23  # without the one that is dead


def test_rows_are_counted_by_hour_and_decision_whatever_files_they_are_in(tmp_path):
    table = pa.concat_tables([write_day(tmp_path / "whole", day) for day in range(3)])
    hours = table["TX_DATETIME"].cast(pa.int64()).to_numpy() // HOUR_US * HOUR_US
    expected = collections.Counter(zip(table["decision"].to_pylist(), hours.tolist(), strict=True))
    chosen = random.Random(1)
    order = list(range(len(table)))
    chosen.shuffle(order)
    shuffled = table.take(order)
    cuts = [0, *sorted(chosen.sample(range(len(table)), 5)), len(table)]
    counts = []
    for n, (start, end) in enumerate(itertools.pairwise(cuts)):
        pq.write_table(shuffled[start:end], tmp_path / f"{n}.parquet")
        counts.append(count_file(str(tmp_path / f"{n}.parquet"), PROJECT))
    chosen.shuffle(counts)
    total = add_up(counts)
    assert {(name, hour): n for name, of in total.items() for hour, n in of.items()} == dict(expected)
    whole = [count_file(str(path), PROJECT) for path in (tmp_path / "whole").rglob("*.parquet")]
    declared = [band.action for band in PROJECT.decisions]
    assert in_steps(total, declared) == in_steps(add_up(whole), declared)
    assert list(in_steps(total, declared)[2]) == declared


def test_steps_are_hours_days_or_weeks_and_lose_no_row():
    for hours, length in ((72, 1), (73, 24), (24 * 400, 24), (24 * 401, 168)):
        first = START // HOUR_US * HOUR_US
        counts = {"a": {first: 2, first + (hours - 1) * HOUR_US: 3}, "b": {first + HOUR_US: 1}}
        step, starts, rows = in_steps(counts, ["b"])
        assert step == length * HOUR_US
        assert list(rows) == ["b", "a"]
        assert {name: sum(of) for name, of in rows.items()} == {"a": 5, "b": 1}
        assert starts == list(range(starts[0], starts[-1] + 1, step))
        assert starts[0] <= first < starts[0] + step
    assert in_steps({}, ["b"]) == (HOUR_US, [], {})


def test_steps_and_decisions_are_few_whatever_the_files_say():
    years = 8000 * 365 * 24 * HOUR_US
    many = {f"d{n:03}": {n % 2 * years: n} for n in range(200)}
    _, starts, rows = in_steps(many, ["d150"])
    assert len(starts) <= 1501
    assert list(rows) == ["d150", *(f"d{n:03}" for n in range(11)), "other decisions"]
    assert sum(map(sum, rows.values())) == sum(range(200))


def test_rows_without_a_decision_are_counted(tmp_path):
    table = write_day(tmp_path, 0, 50)
    nulls = pa.array([None if n < 20 else "block" for n in range(50)])
    pq.write_table(table.set_column(3, "decision", nulls), tmp_path / "some.parquet")
    pq.write_table(table.drop_columns("decision"), tmp_path / "none.parquet")
    some, none = (add_up([count_file(str(tmp_path / f"{name}.parquet"), PROJECT)]) for name in ("some", "none"))
    assert {name: sum(of.values()) for name, of in some.items()} == {"scored": 20, "block": 30}
    assert {name: sum(of.values()) for name, of in none.items()} == {"scored": 50}
    numbers = pa.array([n % 2 for n in range(50)])
    pq.write_table(table.set_column(3, "decision", numbers), tmp_path / "numbers.parquet")
    counts = count_file(str(tmp_path / "numbers.parquet"), PROJECT)
    assert {name: sum(of.values()) for name, of in counts.items()} == {"0": 25, "1": 25}


def test_a_sink_that_grows_shows_the_new_day_and_reads_nothing_else(tmp_path, monkeypatch):
    for day in range(4):
        write_day(tmp_path, day)
    write_success(tmp_path, {"read": 1600, "scored": 1600})
    shown = sink(tmp_path)
    assert len(shown.facts()["starts"]) == 4
    assert not shown.refresh()
    read = []
    monkeypatch.setattr(
        "pipelines.dashboard.sink.count_file", lambda path, project: read.append(path) or count_file(path, project)
    )
    write_day(tmp_path, 4, 30)
    assert shown.refresh()
    assert len(read) == 1
    facts = shown.facts()
    assert (len(facts["starts"]), sum(rows_of(facts).values())) == (5, 1630)
    assert sum(each["rows"][-1] for each in facts["decisions"]) == 30
    write_day(tmp_path, 0, 10)  # a day is done again, another is gone
    shutil.rmtree(sorted((tmp_path / "scores").iterdir())[1])
    assert shown.refresh()
    assert len(read) == 2
    assert sum(rows_of(shown.facts()).values()) == 10 + 400 + 400 + 30
    assert shown.facts() == sink(tmp_path).facts()


def test_files_that_can_not_be_read_are_named_and_the_others_shown(tmp_path):
    write_day(tmp_path, 0, 40)
    (tmp_path / "scores" / "broken.parquet").write_bytes(b"PAR1 it is not")
    (tmp_path / "quality").mkdir()
    (tmp_path / "quality" / "verdicts.jsonl").write_text('{"verdict_id": 3}\n')
    (tmp_path / "label_metrics").mkdir()
    pq.write_table(pa.table({"a": [1]}), tmp_path / "label_metrics" / "x.parquet")
    (tmp_path / "_SUCCESS.json").write_text("[" * 100_000)
    shown = sink(tmp_path)
    said = "\n".join(shown.facts()["faults"])
    assert len(shown.facts()["faults"]) == 4
    for name in ("broken.parquet", "verdicts.jsonl:1", "x.parquet", "_SUCCESS.json"):
        assert name in said
    assert sum(rows_of(shown.facts()).values()) == 40
    assert not shown.refresh()  # what can't be read is not read again and again
    (tmp_path / "scores" / "broken.parquet").unlink()
    assert shown.refresh()
    assert len(shown.facts()["faults"]) == 3


def test_another_projects_folder_is_named(tmp_path):
    write_success(tmp_path, {"read": 1}, project="taxi")
    assert "is of the project taxi" in sink(tmp_path).facts()["faults"][0]


def test_quality_is_that_of_all_files_in_any_order(tmp_path):
    days = [
        verdict(n, *(["score"] if n in (3, 4, 9) else []), value=0.2 if n in (3, 4) else 0.01 * n) for n in range(10)
    ]
    parts = [statistics(n, (10 + n, 20, 70)) for n in range(10)]
    write_quality(tmp_path / "one", "all.jsonl", *days, *parts, days[0])
    chosen = random.Random(2)
    records = [*days, *parts]
    chosen.shuffle(records)
    for n in range(5):
        write_quality(tmp_path / "many", f"{n}.jsonl", *records[n::5], days[1])
    one, many = (
        sum_up([read_part(str(path), PROJECT) for path in sorted((tmp_path / name / "quality").iterdir())], PROJECT)
        for name in ("one", "many")
    )
    assert [v.verdict_id for v in one.verdicts] == [v.verdict_id for v in many.verdicts] == [v.verdict_id for v in days]
    assert (one.incidents, one.alerts, one.recent) == (many.incidents, many.alerts, many.recent)
    assert [alert.event for alert in one.alerts] == ["open", "reminder", "clear", "open"]
    assert [(i.feature, i.opened_us) for i in one.incidents.open] == [("score", START + 10 * DAY)]
    assert sum(one.recent.counts) == sum(100 + n for n in range(3, 10))  # the seven newest days
    (drift,), (other,) = one.drift, many.drift
    assert drift.values.tolist() == other.values.tolist() == [0.0, 0.01, 0.02, 0.2, 0.2, 0.05, 0.06, 0.07, 0.08, 0.09]
    assert drift.worst == 2.0
    assert drift.last == (0.09, 0.1)


def test_performance_is_what_label_metrics_say(tmp_path):
    events = make_events()
    sources = (write_rows(tmp_path / "events.jsonl", events),)
    labels = (write_rows(tmp_path / "labels.jsonl", make_labels(events)),)
    score_files(
        RunSpec(LABELLED, sources, str(tmp_path / "out"), labels=labels),
        AnyBundle(),
        tiny_scorer(LABELLED.model.inputs),
    )
    facts = sink(tmp_path / "out", LABELLED).facts()
    assert facts["faults"] == []
    windows = read_label_metrics(str(tmp_path / "out")).windows[::-1]
    (auc,) = (each for each in facts["figures"] if each["name"] == "AUC")
    assert auc["ends"] == [each.end_us // 1000 for each in windows]
    assert auc["realised"] == pytest.approx([each.figures["roc_auc"] for each in windows], rel=1e-5)
    assert auc["labelled"] == [each.labelled for each in windows]
    slo = Objectives.model_validate(
        {"labels": {"within": "1d", "target": 0.1}, "performance": {"roc_auc": {"at_least": 2, "target": 0.5}}}
    )
    labels, figure = sink(tmp_path / "out", LABELLED.model_copy(update={"slo": slo})).facts()["objectives"]
    assert (labels["name"], figure["name"], figure["met"]) == ("labels", "roc_auc", False)
    told, _ = of_run(slo, {}, [], windows=read_windows(str(tmp_path / "out")))
    assert labels["found"] == f"{told.total - told.bad} of {told.total}"
    assert told.total > told.bad > 0


def test_objectives_are_told_of_a_finished_run(tmp_path):
    text = (CARD_FRAUD / "project.yaml").read_bytes() + b"\nslo: {valid: {target: 0.9}, rows: 100}\n"
    project, faults = parse_project(text, lambda name: (CARD_FRAUD / name).read_bytes())
    assert not faults
    write_success(tmp_path, {"read": 100, "scored": 80, "dead-lettered": 20})
    valid, rows = sink(tmp_path, project).facts()["objectives"]
    assert (valid["met"], valid["used"], valid["found"]) == (False, 2.0, "80 of 100")
    assert (rows["met"], rows["used"], rows["target"]) == (False, None, "100")


def test_long_texts_are_cut(tmp_path):
    write_quality(tmp_path, "v.jsonl", verdict(0, EVIL * 100, name=EVIL))
    (incident,) = sink(tmp_path).facts()["open"]
    assert len(incident["text"]) == 300
    assert sink(tmp_path).facts()["drift"][0]["feature"] == EVIL


def test_a_file_is_read_again_only_if_it_was_replaced(tmp_path):
    read = []

    def parse(path):
        read.append(path)
        if path.endswith("bad"):
            raise RunError("bad")
        return os.path.getsize(tmp_path / path)

    paths = [str(tmp_path / name) for name in ("a", "b", "bad")]
    for path in paths:
        with open(path, "w") as file:
            file.write("x")
    files = Files(parse)
    assert files.refresh(Folder(str(tmp_path)).stamps(""))
    assert (files.values(), files.faults()) == ([1, 1], ["bad"])
    assert not files.refresh(dict(reversed(Folder(str(tmp_path)).stamps("").items())))
    with open(paths[0], "a") as file:
        file.write("y")
    assert files.refresh(Folder(str(tmp_path)).stamps(""))
    assert (files.values(), len(read)) == ([2, 1], 4)
    os.remove(paths[0])
    assert files.refresh(Folder(str(tmp_path)).stamps(""))
    assert files.values() == [1]


def test_days_that_are_promised_are_told_as_time_goes_by(tmp_path, monkeypatch):
    project = PROJECT.model_copy(update={"slo": Objectives(done_within="6h")})
    for day in range(3):
        write_day(tmp_path, day, 10)
    made = Sink(project, str(tmp_path))
    clock = START + 3 * DAY
    monkeypatch.setattr("time.time_ns", lambda: clock * 1000)

    def told():
        changed = made.refresh()
        (objective,) = made.facts()["objectives"]
        return changed, objective["name"], objective["found"], objective["met"]

    def wanted(*, change, found, met):
        assert told() == (change, "done_within", found, met)

    wanted(change=True, found="2 of 2", met=True)  # what is early is not due yet
    clock += 6 * HOUR_US
    wanted(change=True, found="3 of 3", met=True)
    wanted(change=False, found="3 of 3", met=True)
    clock += DAY  # nothing but the clock has changed
    wanted(change=True, found="3 of 4", met=False)
    write_day(tmp_path, 3, 10)
    wanted(change=True, found="4 of 4", met=True)
