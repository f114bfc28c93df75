"""All kinds of windows through the whole graph: the bits of their definition, alike in batch and in stream."""

import math
import random

import numpy as np
import pyarrow as pa
import pytest

from models.project.project import parse_project
from pipelines.jobs.parity import check_parity
from pipelines.sources.files import SLICE_US
from tests.kit.bundles import AnyBundle
from tests.kit.shops import PROJECT, SCHEMA, TEXT, make_rows, project_of
from tests.kit.streams import stream
from tests.kit.support import run_graph, tiny_scorer, write_rows
from tests.kit.window_oracle import by_definition

pytestmark = pytest.mark.slow


def expected(rows):
    """Id → the bits of its features, by definition."""
    found = {row["id"]: {} for row in rows}
    for f in PROJECT.rolling_features:
        keys = PROJECT.key_fields[f.entity]
        there = [row for row in rows if all(row[key] is not None for key in keys)]
        plain = []
        for row in there:
            ready = {**row, "entity": tuple(row[key] for key in keys), "time": row["at"] * 1_000_000}
            ready["night"] = int(row["at"] // 3600 % 24 < 6)
            ready["per_unit"] = None if row["amount"] is None else row["amount"] / 3
            if f.where:
                online, big = row["kind"] == "online", row["amount"] is not None and row["amount"] > 5
                holds = {
                    "kind == 'online'": online,
                    "amount > 5": big,
                    "kind == 'online' and amount > 5": online and big,
                }
                ready[f.column] = (1 if f.field is None else row[f.field]) if holds[f.where.text] else None
            plain.append(ready)
        decimals = {f.column: PROJECT.fixed_point[f.field]} if f.field in PROJECT.fixed_point else {}
        for row in rows:
            found[row["id"]][f.name] = math.nan
        for row, (value,) in zip(there, by_definition([f], plain, decimals), strict=True):
            found[row["id"]][f.name] = value
    names = [f.name for f in PROJECT.rolling_features]
    return {number: np.array([values[name] for name in names], float).tobytes() for number, values in found.items()}


ROWS = make_rows()
EXPECTED = expected(ROWS)


def bits(table):
    columns = [table[f.name].to_numpy().astype(float) for f in PROJECT.rolling_features]
    return dict(zip(table["id"].to_pylist(), (row.tobytes() for row in np.column_stack(columns)), strict=True))


@pytest.mark.parametrize(("shards", "slice_us"), [(1, SLICE_US), (3, 7_200_000_000)])
def test_files_in_any_order_give_what_is_defined(tmp_path, shards, slice_us):
    rows = [*ROWS, *random.Random(1).sample(ROWS, 50)]
    random.Random(shards).shuffle(rows)
    sources = [write_rows(tmp_path / f"{n}.jsonl", rows[n::3]) for n in range(3)]
    output = run_graph(tmp_path / "out", sources, PROJECT, shards=shards, slice_us=slice_us)
    assert bits(output.scores) == EXPECTED
    assert output.outcomes == {"read": 550, "scored": 500, "duplicate": 50}
    for f in PROJECT.rolling_features:
        assert output.scores.schema.field(f.name).type == (pa.int64() if f.is_count else pa.float64())


@pytest.mark.serial
def test_a_stream_gives_the_bits_of_batch(tmp_path):
    source = write_rows(tmp_path / "rows.jsonl", ROWS)
    found = check_parity(PROJECT, AnyBundle(), tiny_scorer(PROJECT.model.inputs), [source], "1h", 0, 0.1)
    assert found.equal, found


def test_at_arrival_the_final_rows_are_those_of_the_definition():
    import json

    rows = sorted(ROWS, key=lambda row: row["at"] + random.Random(row["id"]).randrange(600))
    payloads = [json.dumps(row).encode() for row in rows]
    scores, _ = stream(payloads, 900_000_000, True, project=PROJECT)
    last = {row["id"]: row for row in scores.to_pylist()}  # a correction comes after what it corrects
    found = {}
    for number, row in last.items():
        values = [row[f.name] for f in PROJECT.rolling_features]
        found[number] = np.array([math.nan if v is None else v for v in values], float).tobytes()
    assert found == EXPECTED


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("distinct(kind)", "distinct(at)", "at is a time: there is distinct of numbers and texts"),
        ("distinct(kind)", "first(kind)", "kind is not a number"),
        ("last(amount, 3)", "last(amount, 0)", "last(x, N) takes an N from 1 to 1000"),
        ("last(amount, 3)", "sum(amount, 3)", "is not an aggregate: write count or since_last, or sum, mean"),
        ("count where kind == 'online'", "count where", "is not an aggregate"),
        ("count where kind == 'online'", "count where nope > 1", "'nope' is neither a field of schema.pbtxt nor a row feature"),
        ("count where kind == 'online'", "count where 1 > 0", "its condition '1 > 0' reads no field"),
        ("count where kind == 'online'", "count where kind", "its condition 'kind' is not true or false"),
        ("count where kind == 'online'", "count where kind > 1", "kind is not a number"),
        ("count where kind == 'online'", "count where kind ==", "is not an expression"),
        ("M: month}", "M: moon}", "'moon' is not a duration: write a whole number and us, ms, s, m, h or d, as in 7d; or day, week"),
        ("per_unit: 3}", "nope: 3}", "'nope' is not a field"),
        ("amount: 2, per_unit: 3}", "amount: 2}", "sums are exact: declare the decimal places of per_unit under fixed_point"),
        ("rate(night)", "rate(per_unit)", "rate needs a feature of 0 and 1, such as a comparison: per_unit is float"),
        ("gap: 30m", "gap: 2d", "features.rolling[2].windows.D: is shorter than gap"),
        ("gap: 30m", "gap: 0s", "features.rolling[2].gap: must be longer than zero"),
        ("gap: 30m", "gap: 30m, delay: 1h", "features.rolling[2].gap: a session goes up to the event itself"),
        ("[card, shop]", "[card, card]", "features.rolling[3].entity: card stands twice"),
        ("[card, shop]", "[card, nope]", "features.rolling[3].entity: 'nope' is not an entity; there are card, shop"),
        ("[card, shop]", "[]", "features.rolling[3].entity: names no entity"),
        ("[card, shop]", "7", "features.rolling[3].entity: must be the name of an entity, or a list of several"),
        ("entity: all, windows", "entity: all, missing: skip, windows", "features.rolling[5].missing: no event is without the entity all"),
        ("missing: skip, windows", "missing: fail, windows", "features.rolling[3].missing: Input should be 'skip'"),
        ("card: card, shop: shop}", "card: card, shop: shop, kind: kind}", "entities.kind: kind must be required in the schema"),
    ],
)  # fmt: skip
def test_faults_are_named_with_their_line(old, new, fault):
    before, after = TEXT.split(old, 1)
    _, faults = parse_project((before + new + after).encode(), lambda name: SCHEMA.encode())
    lines = {f"project.yaml:{before.count(chr(10)) + 1}: "}
    if "fixed_point" in fault:  # it is told where the sum is
        lines = {f"project.yaml:{TEXT[: TEXT.index('units_')].count(chr(10)) + 1}: "}
    found = [str(each) for each in faults if fault in str(each)]
    assert found, faults
    assert any(found[0].startswith(line) for line in lines), found


LABEL = "label: {field: fraud, delay: 7d}\n"
FRAUD = 'feature { name: "fraud" type: INT int_domain { min: 0 max: 1 } }\n'


@pytest.mark.parametrize(
    "feature", ["count where fraud == 1", "since_last where fraud > 0", "last(fraud)", "distinct(fraud)"]
)
@pytest.mark.parametrize("delay", ["6d", "7d"])
def test_no_aggregate_reads_a_label_before_it_is_known(feature, delay):
    more = f"    - {{entity: card, delay: {delay}, windows: {{M: 30d}}, features: {{frauds: {feature}}}}}\n"
    text = TEXT.replace("model:", more + LABEL + "model:")
    _, faults = parse_project(text.encode(), lambda name: (SCHEMA + FRAUD).encode())
    assert ["before it is known" in str(fault) for fault in faults] == ([True] if delay == "6d" else [])
    text = text.replace("delay: 7d}\n", "delay: 7d, events: {time: known}}\n")
    _, faults = parse_project(text.encode(), lambda name: (SCHEMA + FRAUD).encode())
    assert any("labels that are records of their own" in str(fault) for fault in faults)


@pytest.mark.parametrize(
    ("old", "new"),
    [("gap: 30m", "gap: 40m"), ("[card, shop]", "[shop, card]"), ("M: month", "M: week"), ("amount, 3", "amount, 4")],
)
def test_what_is_declared_is_part_of_what_defines_a_feature(old, new):
    assert old in TEXT
    assert project_of(TEXT.replace(old, new, 1)).feature_definitions() != PROJECT.feature_definitions()
