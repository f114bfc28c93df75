"""`headrace features`: a spine gets what events at its times get, blind to what comes later, in whatever order."""

import json
import random

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from models.project.project import load_project
from pipelines.cli.main import app
from pipelines.sources import in_order
from tests.kit.support import write_rows
from tests.kit.window_oracle import as_of_definition

pytestmark = pytest.mark.slow

SCHEMA = """
feature { name: "id" type: INT presence { min_fraction: 1.0 } }
feature { name: "at" type: INT presence { min_fraction: 1.0 } time_domain { integer_format: UNIX_MICROSECONDS } }
feature { name: "card" type: BYTES presence { min_fraction: 1.0 } }
feature { name: "shop" type: INT }
feature { name: "amount" type: FLOAT }
feature { name: "units" type: INT presence { min_fraction: 1.0 } }
feature { name: "fraud" type: INT int_domain { min: 0 max: 1 } }
"""
TEXT = """
name: shops
schema: schema.pbtxt
event: {id: id, time: at}
derive: {bank: "coalesce(card, '')", large: amount > 50}
entities: {card: card, shop: shop, bank: bank}
fixed_point: {amount: 2}
label: {field: fraud, delay: 2d, events: {time: known}}
tables:
  shops: {entity: shop, time: since, fields: {town: text, size: int}}
features:
  row: {night: hour(at) < 6, per_unit: amount / units, usual: amount / mean_D, in_rome: "town == 'Rome'"}
  rolling:
    - entity: card
      windows: {D: 1d, M: month, Q: 40d}
      features:
        "number_{window}": count
        "mean_{window}": mean(amount)
        "second_{window}": last(amount, 2)
        "large_{window}": count where large
        "towns_{window}": distinct(town)
        "pause_{window}": since_last
    - {entity: card, windows: {W: week, D: 1d}, include_current: false, features: {"before_{window}": count, "last_{window}": last(amount)}}
    - {entity: card, windows: {W: 7d}, gap: 6h, features: {in_session: count}}
    - {entity: [bank, shop], missing: skip, windows: {Q: quarter}, features: {there: count, most: max(amount)}}
    - {entity: shop, missing: skip, delay: 2d, windows: {W: 14d}, features: {risk: rate(fraud), frauds: sum(fraud)}}
    - {entity: all, windows: {D: 1d}, features: {everyone: distinct(card)}}
expect:
  mean_D: {max: 80, otherwise: fallback, fallback: 80}
  number_D: {max: 3, otherwise: mark}
output: [town, large]
"""
DAY = 86_400_000_000
START = 17_800 * DAY
FILES = ("events", "labels", "shops")


def make(days=75, number=600, seed=1):
    """Events, no two of one time, labels and rows of the table."""
    chosen = random.Random(seed)
    events = [
        {
            "id": n,
            "at": at,
            "card": chosen.choice(["anna", "ben", "cleo"]),
            "shop": chosen.choice([None, 1, 2, 3]),
            "amount": chosen.choice([None, 0.0, round(chosen.uniform(-9, 99), 2)]),
            "units": chosen.choice([1, 2, 5]),
        }
        for n, at in enumerate(chosen.sample(range(START, START + days * DAY, 1_000_000), number))
    ]
    labelled = chosen.sample(events, number // 2)
    labels = [
        {"id": e["id"], "fraud": chosen.choice([0, 1]), "known": e["at"] + chosen.randrange(12 * DAY)} for e in labelled
    ]
    shops = [
        {"shop": n % 3 + 1, "since": START + n * 5 * DAY, "town": chosen.choice(["Rome", "Oslo"]), "size": n}
        for n in range(12)
    ]
    return dict(zip(FILES, (events, labels, shops), strict=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("project")
    (made / "project.yaml").write_text(TEXT)
    (made / "schema.pbtxt").write_text(SCHEMA)
    return made


def invoke(*args):
    result = CliRunner().invoke(app, list(map(str, args)))
    return result.exit_code, result.output


def write(place, found):
    """The options that name the files, each record in one of three."""
    place.mkdir()
    options = []
    for name in FILES:
        for part in range(3):
            write_rows(place / f"{name}-{part}.jsonl", found[name][part::3])
        path = place / f"{name}-*.jsonl"
        options += {"events": ["--source", path], "labels": ["--labels", path], "shops": ["--table", f"shops={path}"]}[
            name
        ]
    return options


def spine_of(events, *columns):
    return pa.table(
        {name: [event[name] for event in events] for name in columns or ("at", "card", "shop", "amount", "units")}
    )


def texts(column):
    """By which missing values and numbers that are none are equal, too."""
    return list(map(repr, column.to_pylist()))


def answer(folder, options, spine, out, *more):
    path = out.with_name(f"spine-of-{out.stem}.parquet")
    pq.write_table(spine, path)
    code, said = invoke("features", folder, "--spine", path, "--out", out, *options, *more)
    assert code == 0, said
    return pq.read_table(out), said


@pytest.fixture(scope="module")
def found():
    return make()


@pytest.fixture(scope="module")
def options(tmp_path_factory, found):
    return write(tmp_path_factory.mktemp("files") / "source", found)


def test_at_the_times_of_events_it_gets_the_bits_of_the_run(tmp_path, folder, found, options):
    code, said = invoke("run", folder, *options, "--sink", tmp_path / "run")
    assert code == 0, said
    rows = pq.read_table(tmp_path / "run" / "scores", partitioning=None).sort_by("id")
    events = sorted(found["events"], key=lambda event: event["id"])
    table, said = answer(folder, options, spine_of(events), tmp_path / "out.parquet")
    features = load_project(folder).feature_names
    assert table.schema.names == ["at", "card", "shop", "amount", "units", "large", "town", *features]
    assert len(features) == 32
    for name in ("town", "large", *features):
        assert table[name].type == rows[name].type
        assert texts(table[name]) == texts(rows[name]), name
    assert "without" not in said
    assert 80 in table["mean_D"].to_pylist()  # the fallback


def test_between_events_it_gets_the_definition(tmp_path, folder, found, options):
    """At times of no event, with keys that are unknown or missing, before all events and long after them, and twice."""
    chosen = random.Random(3)
    asked = [
        {"at": START + chosen.randrange(-9 * DAY, 99 * DAY), "card": chosen.choice(["anna", "ben", "nobody", None])}
        for _ in range(300)
    ]
    asked += asked[:50]
    spine = spine_of(asked, "at", "card").append_column("note", pa.array([f"note {n}" for n in range(len(asked))]))
    table, said = answer(folder, options, spine, tmp_path / "out.parquet")
    assert table.select(spine.schema.names).equals(spine)
    assert "the spine has no shop: without " in said
    features = [
        f for f in load_project(folder).rolling_features if f.entity == "card" and not f.where and f.field != "town"
    ]
    assert len(features) > 15
    rows = [{**event, "entity": event["card"], "time": event["at"]} for event in found["events"]]
    there = [number for number, row in enumerate(asked) if row["card"] is not None]
    plain = [{"entity": asked[number]["card"], "time": asked[number]["at"]} for number in there]
    expected = as_of_definition(features, plain, rows, {"amount": 2})
    for place, f in enumerate(features):
        got = table[f.name].to_pylist()
        wanted = [min(values[place], 80) if f.name == "mean_D" else values[place] for values in expected]
        assert [repr(got[number]) for number in there] == [
            repr(type(got[number])(v)) for number, v in zip(there, wanted, strict=True)
        ], f
        lost = [got[number] for number in range(len(asked)) if asked[number]["card"] is None]
        assert all(value is None or value != value for value in lost), f
    twice = table.slice(300).drop_columns("note").to_pandas()
    assert twice.equals(table.slice(0, 50).drop_columns("note").to_pandas())


def test_what_comes_later_changes_no_byte(tmp_path, folder, found, options):
    moment = START + 50 * DAY
    spine = spine_of([event for event in found["events"] if event["at"] <= moment])
    _, _ = answer(folder, options, spine, tmp_path / "before.parquet")
    poisoned = {name: [dict(row) for row in rows] for name, rows in found.items()}
    for event in poisoned["events"]:
        if event["at"] > moment:
            event |= {"amount": 9e9, "card": "anna", "shop": 1}
    for n in range(300):
        poisoned["events"].append(
            {"id": 10_000 + n, "at": moment + 1, "card": "anna", "shop": 1, "amount": 7.0, "units": 1}
        )
    for label in poisoned["labels"]:
        if label["known"] > moment:
            label["fraud"] = 1 - label["fraud"]
    poisoned["shops"] += [{"shop": n, "since": moment + 1, "town": "Nowhere", "size": 99} for n in (1, 2, 3)]
    _, _ = answer(folder, write(tmp_path / "poisoned", poisoned), spine, tmp_path / "after.parquet")
    assert (tmp_path / "before.parquet").read_bytes() == (tmp_path / "after.parquet").read_bytes()
    later = spine_of([{**spine.slice(0, 1).to_pylist()[0], "at": moment + 1, "card": "anna", "shop": 1}])
    seen = [
        answer(folder, each, later, tmp_path / f"{n}.parquet")[0]
        for n, each in enumerate((options, write(tmp_path / "again", poisoned)))
    ]
    assert not seen[0].equals(seen[1])  # a microsecond later it is seen


def test_order_files_and_shards_change_no_bit(tmp_path, folder, found, options):
    spine = spine_of(found["events"])
    table, _ = answer(folder, options, spine, tmp_path / "out.parquet")
    chosen = random.Random(7)
    shuffled = {name: chosen.sample(rows, len(rows)) for name, rows in found.items()}
    order = chosen.sample(range(spine.num_rows), spine.num_rows)
    other, _ = answer(
        folder, write(tmp_path / "files", shuffled), spine.take(order), tmp_path / "other.parquet", "--shards", 5
    )
    for name in table.schema.names:
        assert [repr(v) for v in table[name].take(order).to_pylist()] == [repr(v) for v in other[name].to_pylist()], (
            name
        )


@pytest.mark.parametrize("slice_rows", [2, 60])
def test_the_length_of_slices_changes_no_bit(tmp_path, monkeypatch, folder, found, options, slice_rows):
    """Of events in the order of time, slices of some hours or days in place of 30 days."""
    spine = spine_of(found["events"])
    table, _ = answer(folder, options, spine, tmp_path / "out.parquet")
    monkeypatch.setattr(in_order, "SMALL_BYTES", 0)
    monkeypatch.setattr(in_order, "SLICE_ROWS", slice_rows)
    ordered = pa.Table.from_pylist(sorted(found["events"], key=lambda event: event["at"]))
    times = ordered["at"].cast(pa.timestamp("us", tz="UTC"))
    ordered = ordered.set_column(ordered.schema.get_field_index("at"), "at", times)
    pq.write_table(ordered, tmp_path / "events.parquet", row_group_size=50)
    other, said = answer(
        folder, ["--source", tmp_path / "events.parquet", *options[2:]], spine, tmp_path / "other.parquet"
    )
    assert "sorting them" not in said
    for name in table.schema.names:
        assert texts(table[name]) == texts(other[name]), name


def test_a_spine_is_no_event_and_events_that_are_refused_are_none(tmp_path, folder, found, options):
    """Asked for once or a thousand times; a duplicate and a record that is broken are counted and said."""
    broken = {**found, "events": [*found["events"], found["events"][0], {"id": 1}]}
    spine = spine_of(found["events"][:5])
    table, _ = answer(folder, options, spine, tmp_path / "out.parquet")
    many, said = answer(
        folder, write(tmp_path / "files", broken), pa.concat_tables([spine] * 200), tmp_path / "many.parquet"
    )
    assert many.slice(0, 5).to_pandas().equals(table.to_pandas())
    assert "events read: 602" in said
    assert "events history: 600" in said
    assert "events duplicate: 1" in said
    assert "events dead-lettered: 1" in said


def test_csv_in_and_out(tmp_path, folder, found, options):
    spine = spine_of(found["events"])
    table, _ = answer(folder, options, spine, tmp_path / "out.parquet")
    pyarrow.csv.write_csv(spine, tmp_path / "spine.csv")
    code, said = invoke("features", folder, "--spine", tmp_path / "spine.csv", "--out", tmp_path / "out.csv", *options)
    assert code == 0, said
    assert f"feature set {load_project(folder).feature_set}" in said
    other = pyarrow.csv.read_csv(tmp_path / "out.csv")
    for name in ("mean_Q", "there", "risk", "number_D"):
        known = [value if value == value else None for value in table[name].to_pylist()]
        assert other[name].to_pylist() == known, name
    assert pq.read_schema(tmp_path / "out.parquet").metadata[b"headrace.feature_set"].decode() in said


def test_the_feature_set_is_that_of_the_features_alone(folder):
    project = load_project(folder)
    other = project.model_copy(update={"name": "other", "output": []})
    assert other.feature_set == project.feature_set
    assert project.model_copy(update={"fixed_point": {}}).feature_set != project.feature_set
    assert len(project.feature_set) == 16


ROW = {"at": [START], "card": ["anna"], "shop": [1], "amount": [1.0], "units": [1]}


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"card": ["anna"]}, "the spine has no column at, the time as of which"),
        ({"at": [START], "mean_D": [1.0], "card": ["anna"]}, "the spine has a column mean_D already"),
        ({"at": [START, None], "card": ["anna", "ben"]}, "1 of 2 rows of the spine can't be read; the first is row 1, counted from 0: at: missing"),
        ({"at": [START], "card": [7]}, "row 0, counted from 0: card: not UTF-8 text: 7"),
        ({"at": [-5], "card": ["anna"]}, "at: before event.earliest"),
        ({**ROW, "units": pa.array([None], pa.int64())}, "units: missing"),
        ({"at": pa.array([], pa.int64()), "card": pa.array([], pa.string())}, "has no rows"),
    ],
    ids=range(7),
)  # fmt: skip
def test_a_spine_that_cant_be_is_told(tmp_path, folder, options, columns, said):
    pq.write_table(pa.table(columns), tmp_path / "spine.parquet")
    code, told = invoke(
        "features", folder, "--spine", tmp_path / "spine.parquet", "--out", tmp_path / "out.parquet", *options
    )
    assert code == 1
    assert said in told
    assert not (tmp_path / "out.parquet").exists()
    assert told.startswith("headrace: ")


def test_files_that_cant_be_are_told(tmp_path, folder, options):
    spine, out = tmp_path / "spine.parquet", tmp_path / "out.parquet"
    ask = lambda spine, out: invoke("features", folder, "--spine", spine, "--out", out, *options)[1]  # noqa: E731
    assert "spine.parquet: no such file" in ask(spine, out)
    spine.write_bytes(b"PAR1 this is none PAR1")
    assert "spine.parquet: can't be read" in ask(spine, out)
    assert "a spine is a file *.parquet or *.csv" in ask(spine, tmp_path / "out.xlsx")
    assert "nowhere: no such folder" in ask(spine, tmp_path / "nowhere" / "out.parquet")
    out.write_text("precious")
    assert "out.parquet: is there already" in ask(spine, out)
    assert out.read_text() == "precious"


def test_a_spine_without_any_key(tmp_path, folder, options):
    """Of a project that has features of all events, there is always something to answer."""
    table, said = answer(folder, options, pa.table({"at": [START + 20 * DAY]}), tmp_path / "out.parquet")
    assert table.schema.names == ["at", "night", "everyone"]
    assert "the spine has no card: without number_D" in said
    text = json.loads(json.dumps(TEXT)).replace(
        "    - {entity: all, windows: {D: 1d}, features: {everyone: distinct(card)}}\n", ""
    )
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "project.yaml").write_text(text.replace("night: hour(at) < 6, ", ""))
    (tmp_path / "other" / "schema.pbtxt").write_text(SCHEMA)
    code, said = invoke(
        "features",
        tmp_path / "other",
        "--spine",
        tmp_path / "spine-of-out.parquet",
        "--out",
        tmp_path / "x.csv",
        *options,
    )
    assert code == 1
    assert "the spine has no key of any feature: give it a column of " in said


RAW = """
name: raw
schema: schema.pbtxt
derive: {at: "time(seconds, 's')", id: hash(), place: "coalesce(str(area), 'none')", code: "hash(area)"}
event: {id: id, time: at}
entities: {place: place}
features:
  row: {hour: hour(at), is_known: place != 'none'}
  rolling: [{entity: place, windows: {D: 1d}, features: {trips: count, others: distinct(id)}}]
output: [code]
"""


def test_what_is_derived_of_events_is_derived_of_rows(tmp_path):
    """Of raw records without a time, and without the hash of a whole record, which rows are not."""
    (tmp_path / "project.yaml").write_text(RAW)
    (tmp_path / "schema.pbtxt").write_text(
        'feature { name: "seconds" type: INT presence { min_fraction: 1.0 } } feature { name: "area" type: INT }'
    )
    chosen = random.Random(2)
    seconds = chosen.sample(range(START // 1_000_000, START // 1_000_000 + 5 * 86_400), 100)
    records = [{"seconds": at, "area": chosen.choice([None, 1, 2])} for at in sorted(seconds)]
    options = ["--source", write_rows(tmp_path / "events.jsonl", records)]
    code, said = invoke("run", tmp_path, *options, "--sink", tmp_path / "run")
    assert code == 0, said
    rows = pq.read_table(tmp_path / "run" / "scores", partitioning=None).sort_by("at")
    table, said = answer(tmp_path, options, spine_of(records, "seconds", "area"), tmp_path / "out.parquet")
    assert table.schema.names == ["seconds", "area", "code", "hour", "is_known", "trips", "others"]
    for name in table.schema.names[2:]:
        assert texts(table[name]) == texts(rows[name]), name
    assert "the spine has no" not in said
    write_rows(tmp_path / "events.jsonl", [{"area": 1}])
    code, said = invoke(
        "features", tmp_path, "--spine", tmp_path / "spine-of-out.parquet", *options, "--out", tmp_path / "x.csv"
    )
    assert code == 1
    assert "can be used: " in said
