"""`headrace features export`: Feast reads the features of a run as they are, and what it has of them between events."""

import json
import math
import random
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from models.project.project import load_project
from pipelines.cli.main import app
from tests.kit.feast import ask_feast, ask_online, needs_feast, run_feast
from tests.kit.support import write_rows

SCHEMA = """
feature { name: "id" type: INT presence { min_fraction: 1.0 } }
feature { name: "at" type: INT presence { min_fraction: 1.0 } time_domain { integer_format: UNIX_MICROSECONDS } }
feature { name: "card" type: INT presence { min_fraction: 1.0 } }
feature { name: "shop" type: BYTES }
feature { name: "amount" type: FLOAT }
"""
TEXT = """
name: shops
schema: schema.pbtxt
event: {id: id, time: at}
entities: {card: card, shop: shop}
fixed_point: {amount: 2}
features:
  row: {night: hour(at) < 6}
  rolling:
    - {entity: card, windows: {D: 1d, W: 7d}, features: {"number_{window}": count, "mean_{window}": mean(amount)}}
    - {entity: shop, missing: skip, delay: 1d, windows: {W: 7d}, features: {sold: sum(amount)}}
    - {entity: [card, shop], missing: skip, windows: {M: month}, features: {there: count}}
    - {entity: all, windows: {D: 1d}, features: {everyone: distinct(card)}}
"""
HOUR = 3_600_000_000
START = 17_800 * 24 * HOUR
VIEWS = {
    "card_features": ["number_D", "mean_D", "number_W", "mean_W"],
    "shop_features": ["sold"],
    "card_and_shop_features": ["there"],
    "all_features": ["everyone"],
}
FEATURES = [f"{view}:{name}" for view, names in VIEWS.items() for name in names]


def day_of(number):
    return str(np.datetime64(START + number * 24 * HOUR, "us").astype("M8[D]"))


def invoke(*args):
    result = CliRunner().invoke(app, list(map(str, args)))
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a project, its events and a run's features of them; events are of whole hours, each of its own."""
    made = tmp_path_factory.mktemp("feast")
    (made / "project").mkdir()
    (made / "project" / "project.yaml").write_text(TEXT)
    (made / "project" / "schema.pbtxt").write_text(SCHEMA)
    chosen = random.Random(4)
    events = [
        {
            "id": n,
            "at": START + hour * HOUR,
            "card": chosen.choice([1, 2, 3]),
            "shop": chosen.choice([None, "x", "y"]),
            "amount": round(chosen.uniform(1, 99), 2),
        }
        for n, hour in enumerate(sorted(chosen.sample(range(40 * 24), 200)))
    ]
    write_rows(made / "events.jsonl", events)
    code, said = invoke("run", made / "project", "--source", made / "events.jsonl", "--sink", made / "run")
    assert code == 0, said
    return made, events


def export(place, to, sink="run"):
    return invoke("features", "export", place / "project", "--sink", place / sink, "--feast", to)


def answer(place, asked):
    """Of rows of at, card and shop by feature what headrace says."""
    names = ("at", "card", "shop")
    pq.write_table(pa.table({name: [row[name] for row in asked] for name in names}), place / "spine.parquet")
    (place / "out.parquet").unlink(missing_ok=True)
    code, said = invoke(
        "features", place / "project", "--spine", place / "spine.parquet", "--source", place / "events.jsonl",
        "--out", place / "out.parquet",
    )  # fmt: skip
    assert code == 0, said
    return pq.read_table(place / "out.parquet")


def numbers(column):
    return ["missing" if v is None or math.isnan(v) else float(v) for v in column.to_pylist()]


@pytest.mark.serial
@needs_feast
@pytest.mark.timeout(900)
def test_feast_applies_materializes_and_gives_the_values_of_the_last_event(place, tmp_path):
    folder, events = place
    repository = tmp_path / "feast"
    code, said = export(folder, repository)
    assert code == 0, said
    said = run_feast(repository, "apply")
    assert all(f"Created feature view {view}" in said for view in VIEWS)

    chosen = random.Random(6)
    at_events = [{name: event[name] for name in ("at", "card", "shop")} for event in events]
    later = [
        {**chosen.choice(at_events), "at": START + chosen.randrange(42 * 24 * 60) * HOUR // 60} for _ in range(200)
    ]
    asked = [*chosen.sample(at_events, len(events)), *later]
    spine = pa.table({"card": [row["card"] for row in asked], "shop": [row["shop"] for row in asked]})
    times = pa.array([row["at"] for row in asked]).cast(pa.timestamp("us", tz="UTC"))
    of_feast = ask_feast(repository, spine.append_column("event_timestamp", times), FEATURES)

    # What is said of a key is what it was at its last event, for as long as that is in a window.
    project, now = load_project(folder / "project"), answer(folder, asked)
    rows, lost, aged = of_feast["row"].to_pylist(), set(), 0
    for view, entity in zip(VIEWS, ("card", "shop", "card and shop", "all"), strict=True):
        fields = project.key_fields[entity]
        lives = max(f.delay_us + f.window_us for f in project.rolling_features if f.entity == entity)
        last = []
        for number, row in enumerate(asked):
            mine = [event["at"] for event in events if all(event[name] == row[name] for name in fields)]
            there = [at for at in mine if row["at"] - lives <= at <= row["at"]]
            last.append(max(there, default=None))
            lost |= {number} if mine and not there else set()
        then = answer(folder, [{**row, "at": at or row["at"]} for row, at in zip(asked, last, strict=True)])
        for name in VIEWS[view]:
            wanted = ["missing" if at is None else v for v, at in zip(numbers(then[name]), last, strict=True)]
            fresh = numbers(now[name])
            assert numbers(of_feast[name]) == [wanted[number] for number in rows], name
            assert wanted[: len(events)] == fresh[: len(events)]
            aged += sum(wanted[number] != fresh[number] for number in rows)
    assert rows == [number for number in range(len(asked)) if number not in lost]
    assert aged > 100  # between events, windows go on, and Feast's values do not

    run_feast(repository, "materialize", day_of(-1), day_of(41))
    found = json.loads(ask_online(repository, json.dumps([{"card": 1}, {"card": 3}]), FEATURES[:4]))
    # Views whose key may be missing are for training alone.
    assert (repository / "definitions.py").read_text().count("online=False") == 2
    newest = {card: max(event["at"] for event in events if event["card"] == card) for card in (1, 3)}
    wanted = answer(folder, [{"at": newest[card], "card": card, "shop": None} for card in (1, 3)])
    assert {name: found[name] for name in VIEWS["card_features"]} == {
        name: wanted[name].to_pylist() for name in VIEWS["card_features"]
    }


def test_an_export_keeps_settings_and_nobody_elses_files(place, tmp_path):
    folder, _ = place
    assert export(folder, tmp_path / "feast")[0] == 0
    made = (tmp_path / "feast" / "definitions.py").read_text()
    compile(made, "definitions.py", "exec")
    assert load_project(folder / "project").feature_set in made
    (tmp_path / "feast" / "feature_store.yaml").write_text("project: mine\n")
    assert export(folder, tmp_path / "feast")[0] == 0
    assert (tmp_path / "feast" / "feature_store.yaml").read_text() == "project: mine\n"
    assert (tmp_path / "feast" / "definitions.py").read_text() == made
    (tmp_path / "feast" / "definitions.py").write_text("mine = 1\n")
    code, said = export(folder, tmp_path / "feast")
    assert code == 1
    assert "definitions.py: was not made by headrace" in said
    assert (tmp_path / "feast" / "definitions.py").read_text() == "mine = 1\n"


def test_a_run_says_which_features_its_files_have(place):
    folder, _ = place
    said, project = json.loads((folder / "run" / "_SUCCESS.json").read_text()), load_project(folder / "project")
    assert said["feature_set"] == project.feature_set
    assert {(file["kind"], file["feature_set"]) for file in said["files"]} == {("scores", project.feature_set)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("number_", "count_"), "is of feature set "),
        (("name: shops", "name: others"), "is of the project shops, not of others"),
        (("fixed_point", "output: [amount]\nfixed_point"), None),
    ],
)
def test_a_table_of_other_features_is_refused(place, tmp_path, change, said):
    folder, _ = place
    shutil.copytree(folder / "run", tmp_path / "run")
    shutil.copytree(folder / "project", tmp_path / "project")
    (tmp_path / "project" / "project.yaml").write_text(TEXT.replace(*change))
    code, told = export(tmp_path, tmp_path / "feast")
    assert code == (1 if said else 0)
    assert (said or "go on there with `feast apply`") in told


def test_days_of_other_features_beside_it_are_refused(place, tmp_path):
    """Runs of single days into one sink, the second of a project that has changed in between."""
    folder, _ = place
    shutil.copytree(folder / "project", tmp_path / "project")
    (tmp_path / "events.jsonl").write_text((folder / "events.jsonl").read_text())
    for day, text in ((day_of(1), TEXT), (day_of(2), TEXT.replace("D: 1d", "D: 2d"))):
        (tmp_path / "project" / "project.yaml").write_text(text)
        code, said = invoke(
            "run", tmp_path / "project", "--source", tmp_path / "events.jsonl", "--sink", tmp_path / "run", "--day", day
        )
        assert code == 0, said
    code, said = export(tmp_path, tmp_path / "feast")
    assert code == 1
    assert f"event_day={day_of(1)}" in said
    assert "run its days again" in said


def test_what_has_no_table_is_told(place, tmp_path):
    folder, _ = place
    assert "it is not the folder of a finished run" in export(folder, tmp_path / "feast", sink="project")[1]
    code, said = invoke(
        "run",
        folder / "project",
        "--source",
        folder / "events.jsonl",
        "--sink",
        tmp_path / "lines",
        "--sink-format",
        "jsonl",
    )
    assert code == 0, said
    assert "is not of Parquet" in export(folder, tmp_path / "feast", sink=tmp_path / "lines")[1]
    shutil.copytree(folder / "project", tmp_path / "project")
    (tmp_path / "project" / "project.yaml").write_text(TEXT[: TEXT.index("  rolling:")].replace(", shop: shop", ""))
    assert (
        "declares no rolling features"
        in invoke("features", "export", tmp_path / "project", "--sink", folder / "run", "--feast", tmp_path / "feast")[
            1
        ]
    )
