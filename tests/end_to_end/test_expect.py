"""What is expected of features, and what becomes of rows that are not so: alike in batch, stream and training."""

import json
import random

import pytest

from models.metrics import NOT_EXPECTED, ROUNDED, by_label
from pipelines.graph import GraphConfig, build
from pipelines.jobs.parity import check_parity
from pipelines.runners import make_pipeline
from pipelines.sinks.files import WriteFiles
from tests.kit.bundles import AnyBundle
from tests.kit.declared import assert_fault, declared
from tests.kit.streams import METRICS, stream
from tests.kit.support import read_files, read_output, run_graph, tiny_scorer, write_rows
from transforms.examples import CollectExamples

pytestmark = pytest.mark.slow

SCHEMA = """
feature { name: "id" type: INT presence { min_fraction: 1.0 } }
feature { name: "at" type: INT presence { min_fraction: 1.0 } time_domain { integer_format: UNIX_SECONDS } }
feature { name: "card" type: BYTES presence { min_fraction: 1.0 } }
feature { name: "hours" type: INT }
feature { name: "amount" type: FLOAT }
feature { name: "fraud" type: INT int_domain { min: 0 max: 1 } }
"""
TEXT = """
name: shops
schema: schema.pbtxt
event: {id: id, time: at}
entities: {card: card}
label: {field: fraud, delay: 1d}
fixed_point: {amount: 2}
more_places: {amount: refuse}
features:
  row: {rate: amount / hours, large: amount > 50, twice: 2 * amount}
  rolling:
    - {entity: card, windows: {D: 1d}, features: {seen: count, average: mean(amount)}}
expect:
  rate: {finite: true, otherwise: dead_letter}
  twice: {min: -100, max: 150, otherwise: mark}
  average: {required: true, max: 60, otherwise: fallback, fallback: 5}
  seen: {max: 20, otherwise: mark}
model: {inputs: [amount, rate, average, seen]}
"""
START = 1_543_600_000


def project_of(text=TEXT):
    return declared(text, SCHEMA)


PROJECT = project_of()
PLAIN = project_of(TEXT[: TEXT.index("expect:")] + TEXT[TEXT.index("model:") :])


def make_rows(number=500):
    chosen = random.Random(9)
    return [
        {
            "id": n,
            "at": START + chosen.randrange(3 * 86_400),
            "card": chosen.choice("abcdefgh"),
            "hours": chosen.choice([None, 0, 0, 1, 2, 7]),
            "amount": chosen.choice(
                [None, 0.0, round(chosen.uniform(-80, 120), 2), round(chosen.uniform(-80, 120), 2)]
            ),
            "fraud": chosen.choice([0, 1]),
        }
        for n in range(number)
    ]


ROWS = make_rows()


def is_impossible(row):
    return row["hours"] == 0 and row["amount"] is not None


def number(value):
    return None if value is None or value != value else value


def expected(plain):
    """Id → average and marks of the rows that are let through, from rows without expectations."""
    found = {}
    for row in plain.to_pylist():
        average, marks = number(row["average"]), []
        if average is None or average > 60:
            average = 5.0
        if number(row["twice"]) is not None and not -100 <= row["twice"] <= 150:
            marks.append("twice")
        if row["seen"] > 20:
            marks.append("seen")
        found[row["id"]] = (average, ", ".join(marks) or None)
    return {row["id"]: found[row["id"]] for row in ROWS if not is_impossible(row)}


def checked(table):
    return {row["id"]: (number(row["average"]), row["unexpected"]) for row in table.to_pylist()}


@pytest.mark.parametrize("shards", [1, 3])
def test_files_in_any_order(tmp_path, shards):
    rows = [*ROWS, *random.Random(1).sample(ROWS, 40)]
    random.Random(shards).shuffle(rows)
    sources = [write_rows(tmp_path / f"{n}.jsonl", rows[n::3]) for n in range(3)]
    plain = run_graph(tmp_path / "plain", sources, PLAIN, shards=shards)
    output = run_graph(tmp_path / "out", sources, PROJECT, shards=shards)
    wanted = expected(plain.scores)
    assert checked(output.scores) == wanted
    refused = sum(map(is_impossible, ROWS))
    assert 50 < refused < 300
    assert output.outcomes["dead-lettered"] == refused
    assert output.outcomes["dead-lettered: CheckFeatures: rate: not finite"] == refused
    assert output.outcomes["scored"] == len(ROWS) - refused
    marks = [mark for _, mark in wanted.values() if mark]
    assert len(marks) > 10
    assert output.outcomes["not as expected: rate"] == refused
    assert output.outcomes["not as expected: twice"] >= sum("twice" in mark for mark in marks)
    letters = [r for r in output.dead_letters.to_pylist() if r["step"] == "CheckFeatures"]
    by_id = {row["id"]: row for row in ROWS}
    assert all(json.loads(letter["payload"]) == by_id[int(letter["event_id"])] for letter in letters)
    assert "unexpected" not in plain.scores.schema.names


@pytest.mark.serial
def test_parity(tmp_path):
    source = write_rows(tmp_path / "rows.jsonl", ROWS)
    found = check_parity(PROJECT, AnyBundle(), tiny_scorer(PROJECT.model.inputs), [source], "3h", 0, 0.1)
    assert found.equal, found
    for result in (found.batch, found.stream):
        assert result.outcomes["dead-lettered: CheckFeatures: rate: not finite"] > 50
        assert result.outcomes["not as expected: average"] > 0
    dead = next(c for c in found.comparisons if c.what == "dead letters")
    assert dead.rows > 50


@pytest.mark.parametrize("at_arrival", [False, True])
def test_messages_are_refused_whole(at_arrival):
    payloads = [json.dumps(row).encode() for row in sorted(ROWS, key=lambda row: row["at"])]
    scores, dead = stream(payloads, 3600_000_000, at_arrival, project=PROJECT)
    assert sorted(dead["payload"].to_pylist()) == sorted(json.dumps(row).encode() for row in ROWS if is_impossible(row))
    last = {row["id"]: row for row in scores.to_pylist()}
    assert set(last) == {row["id"] for row in ROWS if not is_impossible(row)}
    assert not any(name.startswith("__") for name in scores.schema.names)
    assert by_label(METRICS, NOT_EXPECTED)["rate dead_letter"] == sum(map(is_impossible, ROWS))


def test_training_learns_from_what_will_be_scored(tmp_path):
    source = read_files(PROJECT, [write_rows(tmp_path / "rows.jsonl", ROWS)])
    sink = WriteFiles(str(tmp_path / "out"), "id", "at")
    pipeline = make_pipeline("DirectRunner", [])
    build(pipeline, GraphConfig(PROJECT, source, CollectExamples(PROJECT), sink))
    pipeline.run().wait_until_finish()
    plain = run_graph(tmp_path / "plain", [str(tmp_path / "rows.jsonl")], PLAIN)
    assert checked(read_output(tmp_path / "out").scores) == expected(plain.scores)


PLACES = [
    {**ROWS[0], "id": n, "hours": 1, "card": "a", "at": START + n, "amount": amount}
    for n, amount in enumerate([10.505, 10.5, 10.535])
]


def test_values_with_more_places_are_refused_or_rounded_with_a_word(tmp_path):
    source = [write_rows(tmp_path / "rows.jsonl", PLACES)]
    refused = run_graph(tmp_path / "refused", source, PLAIN)
    assert refused.reasons == [("amount", "more than 2 decimal places")] * 2
    assert refused.scores["average"].to_pylist() == [10.5]
    text = TEXT[: TEXT.index("expect:")] + TEXT[TEXT.index("model:") :]
    for how in ("more_places: {amount: round}\n", ""):
        project = project_of(text.replace("more_places: {amount: refuse}\n", how))
        rounded = run_graph(tmp_path / f"rounded{len(how)}", source, project)
        said = {"rounded: amount": 2} if how else {}
        assert rounded.outcomes == {"read": 3, "scored": 3, **said}
        assert rounded.scores["average"].to_pylist() == [10.50, 10.50, (10.50 + 10.50 + 10.54) / 3]
    _, dead = stream([json.dumps(row).encode() for row in PLACES], 1_000_000, False, project=PLAIN)
    assert len(dead) == 2
    stream([json.dumps(row).encode() for row in PLACES], 1_000_000, False, project=project)
    assert by_label(METRICS, ROUNDED) == {"amount": 2}


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("  rate: {finite", "  nope: {finite", "expect.nope: 'nope' is not a feature; there are seen, average, rate"),
        ("{finite: true, otherwise: dead_letter}", "{otherwise: dead_letter}", "expect.rate: expects nothing: write min"),
        ("{finite: true, otherwise: dead_letter}", "{finite: true}", "expect.rate.otherwise: Field required"),
        ("{finite: true, otherwise: dead_letter}", "{finite: true, otherwise: drop}", "expect.rate.otherwise: Input should be"),
        ("{min: -100, max: 150", "{min: 200, max: 150", "expect.twice.min: is more than max"),
        ("otherwise: fallback, fallback: 5", "otherwise: fallback", "expect.average.fallback: goes with otherwise: fallback"),
        ("max: 150, otherwise: mark", "max: 150, otherwise: mark, fallback: 1", "expect.twice.fallback: goes with otherwise"),
        ("fallback: 5", "fallback: 70", "expect.average.fallback: is not as expected itself"),
        ("seen: {max: 20, otherwise: mark", "seen: {max: 20, otherwise: fallback, fallback: 1.5", "must be a whole number, as seen is"),
        ("required: true, max: 60", "finite: true, max: 60", "expect.average.finite: no window gives an infinite number"),
        ("twice: 2 * amount", "unexpected: 2 * amount, twice: amount", "expect: unexpected is the name of a field or feature"),
        ("more_places: {amount: refuse}", "more_places: {hours: refuse}", "more_places.hours: declare the decimal places of hours"),
        ("more_places: {amount: refuse}", "more_places: {amount: cut}", "more_places.amount: Input should be 'round' or 'refuse'"),
    ],
)  # fmt: skip
def test_faults_are_named_with_their_line(old, new, fault):
    assert_fault(TEXT, SCHEMA, old, new, fault)


def test_expectations_are_part_of_what_defines_a_feature():
    assert PROJECT.feature_definitions() != PLAIN.feature_definitions()
    assert b'"expect"' not in PLAIN.feature_definitions()
