"""Derived fields and row filters: what Python says of each row, alike in every format, in batch and in stream."""

import dataclasses
import datetime
import hashlib
import random

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from models.project.project import parse_project
from pipelines.graph import GraphConfig, build
from pipelines.jobs.parity import check_parity
from pipelines.runners import DIRECT, make_pipeline
from pipelines.sinks.files import WriteFiles
from tests.kit.declared import declared
from tests.kit.support import read_files, read_output, tiny_scorer, write_rows
from transforms.score import Score

pytestmark = pytest.mark.slow

SCHEMA = """
feature { name: "started" type: INT presence { min_fraction: 1.0 } }
feature { name: "fare" type: FLOAT presence { min_fraction: 1.0 } }
feature { name: "tips" type: FLOAT }
feature { name: "paid" type: BYTES }
feature { name: "area" type: INT }
feature { name: "tipped" type: INT int_domain { min: 0 max: 1 } }
"""
TEXT = """
name: trips
schema: schema.pbtxt
derive:
  trip: hash()
  at: time(started, 's')
  tipped: tips > 0.2 * fare
  place: coalesce(str(area), 'nowhere')
  by: lower(split(paid, '/', 0))
where: paid not in ['free', 'void']
event: {id: trip, time: at}
entities: {place: place}
label: {field: tipped, delay: 1d}
fixed_point: {fare: 2}
features:
  row: {night: "hour(at) < 6", card: by == 'card'}
  rolling:
    - {entity: place, windows: {D: 1d}, features: {trips: count, fares: mean(fare)}}
    - {entity: place, delay: 1d, windows: {W: 7d}, features: {risk: rate(tipped)}}
model: {inputs: [fare, night, card, trips, fares, risk]}
output: [tipped, by]
decisions: [{action: tip, at_least: 0.5}, {action: none, at_least: 0.0}]
"""
START = 1_528_416_000


def project_of(text=TEXT):
    return declared(text, SCHEMA)


def make_rows(number=2000, seed=0):
    chosen = random.Random(seed)
    return [
        {
            "started": START + n * 60 + chosen.randrange(30),
            "fare": round(chosen.uniform(3, 60), 2),
            "tips": chosen.choice([None, 0.0, round(chosen.uniform(0, 20), 2)]),
            "paid": chosen.choice(["Card/visa", "CASH", "free", "void", None, "card"]),
            "area": chosen.choice([None, 1, 2, 7]),
        }
        for n in range(number)
    ]


def hashed(row):
    """What `hash()` is said to be, of this row."""
    texts = {name: None if value is None else str(value) for name, value in row.items()}
    for name in ("fare", "tips"):
        texts[name] = (
            None if row[name] is None else str(int(row[name])) if row[name] == int(row[name]) else repr(row[name])
        )
    parts = ("-" if text is None else f"{len(text.encode())}:{text}" for _, text in sorted(texts.items()))
    return hashlib.blake2b("".join(parts).encode(), digest_size=16).hexdigest()


def run(folder, source, project):
    pipeline = make_pipeline(DIRECT, [])
    sink = WriteFiles(str(folder), project.event.id, project.event.time)
    scorer = tiny_scorer(project.model.inputs)
    build(pipeline, GraphConfig(project, read_files(project, [str(source)]), Score(project, scorer, "bundle"), sink))
    pipeline.run()
    return read_output(folder)


def written(path, rows):
    table = pa.Table.from_pylist(rows)
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=300)
    elif path.suffix == ".csv":
        pyarrow.csv.write_csv(table, path)
    else:
        write_rows(path, rows)
    return path


def test_every_format_gives_what_python_says_of_each_row(tmp_path):
    rows, project = make_rows(), project_of()
    random.Random(1).shuffle(rows)
    found = [
        run(tmp_path / f"out-{kind}", written(tmp_path / f"rows.{kind}", rows), project)
        for kind in ("jsonl", "csv", "parquet")
    ]
    assert len({output.digest for output in found}) == 1
    wanted = {hashed(row): row for row in rows if row["paid"] not in ("free", "void")}
    assert found[0].outcomes == {"read": len(rows), "scored": len(wanted), "filtered": len(rows) - len(wanted)}
    for scored in found[0].scores.to_pylist():
        row = wanted.pop(scored["trip"])
        assert scored["at"] == datetime.datetime.fromtimestamp(row["started"], datetime.UTC)
        assert scored["tipped"] == (None if row["tips"] is None else int(row["tips"] > 0.2 * row["fare"]))
        assert scored["place"] == ("nowhere" if row["area"] is None else str(row["area"]))
        assert scored["by"] == (row["paid"] and row["paid"].split("/")[0].lower())
        assert scored["card"] == int(scored["by"] == "card")
    assert not wanted


@dataclasses.dataclass
class AnyBundle:
    bundle_id: str = "bundle"
    baseline: bytes | None = None


@pytest.mark.serial
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_stream_gives_the_bits_of_batch(tmp_path, kind):
    project = project_of()
    bad = [{**make_rows(1)[0], "fare": None}, {**make_rows(1)[0], "started": None}]
    bad = [{**row, "paid": "card"} for row in bad]  # what is left out is not looked at
    source = written(tmp_path / f"rows.{kind}", [*make_rows(), *bad])
    found = check_parity(project, AnyBundle(), tiny_scorer(project.model.inputs), [str(source)], "1h", 0, 0.1)
    assert found.equal, found
    for result in (found.batch, found.stream):
        assert result.outcomes["filtered"] > 500
        assert result.outcomes["dead-lettered"] >= 2  # each time that it comes


def test_a_parity_that_scored_nothing_proves_nothing(tmp_path):
    project = project_of(TEXT.replace("where: paid not in ['free', 'void']", "where: fare < 0"))
    source = written(tmp_path / "rows.jsonl", make_rows(50))
    found = check_parity(project, AnyBundle(), tiny_scorer(project.model.inputs), [str(source)], "1h", 0, 0.1)
    assert not any(compared.different for compared in found.comparisons)
    assert not found.equal


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("trip: hash()", "trip: hash(nothing)", "derive.trip: 'nothing' is neither a field of schema.pbtxt nor derived before"),
        ("by: lower(", "by: lower(late, ", "derive.by: lower() takes 1 argument, not 2"),
        ("  tipped: tips", "  early: concat(by, 'x')\n  tipped: tips", "derive.early: 'by' is neither a field"),
        ("tipped: tips > 0.2 * fare", "tipped: lower(paid)", "derive.tipped: gives string, but schema.pbtxt:7 says that tipped is int"),
        ("tipped: tips > 0.2 * fare", "tipped: tips > paid", "derive.tipped: paid is not a number"),
        ("time(started, 's')", "time(started, 'h')", "derive.at: time() takes the unit s, ms, us, as in time(x, 'ms'), not 'h'"),
        ("time(started, 's')", "started", "event.time: at must be a time"),
        ("  by: lower", "  __by: lower", "derive.__by: '__by' is not a name"),
        ("where: paid not in ['free', 'void']", "where: paid < 1", "where: paid is not a number"),
        ("where: paid", "where: paying", "where: 'paying' is not a field"),
        ("where: paid not in ['free', 'void']", "where: paid", "where: gives a text, and not a number"),
        ("night: \"hour(at) < 6\"", "night: by", "features.row.night: gives a text, and not a number"),
        ("night: \"hour(at) < 6\"", "night: tipped", "features.row.night: reads the label tipped"),
    ],
)  # fmt: skip
def test_faults_are_named(old, new, fault):
    assert old in TEXT
    _, faults = parse_project(TEXT.replace(old, new).encode(), lambda name: SCHEMA.encode())
    assert any(fault in str(found) for found in faults), faults


def test_what_is_derived_is_part_of_what_defines_a_feature():
    known = project_of().feature_definitions()
    for old, new in (("0.2 * fare", "0.3 * fare"), ("['free', 'void']", "['free']")):
        assert project_of(TEXT.replace(old, new)).feature_definitions() != known
    plain = TEXT.replace("where: paid not in ['free', 'void']\n", "")
    assert b'"where"' not in project_of(plain).feature_definitions()
