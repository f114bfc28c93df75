"""Tables of aggregates: the sums that plain Python gives of each period, alike over files and messages."""

import collections
import fractions
import json
import random

import apache_beam as beam
import pyarrow as pa
import pytest

from models.metrics import TOO_LATE, by_label
from models.partitions import Span
from models.project.project import parse_project
from pipelines.brokers import open_broker
from pipelines.graph import GraphConfig, build
from pipelines.jobs.parity import check_parity
from pipelines.pubsub_emulator import PubsubEmulator
from pipelines.results import read_aggregates
from pipelines.runners import make_pipeline
from pipelines.sinks.files import WriteFiles
from pipelines.sinks.topics import PublishRows, sink_topics
from tests.kit.bundles import AnyBundle
from tests.kit.declared import assert_fault, declared
from tests.kit.given import Given
from tests.kit.support import read_files, read_stream, tiny_scorer, write_rows
from tests.kit.window_oracle import EPOCH, MICROSECOND, start_of
from transforms.metrics import read
from transforms.score import Score

pytest.importorskip("tfx_bsl", reason="tfx-bsl is not installed", exc_type=ImportError)  # it estimates distinct values

pytestmark = pytest.mark.slow

SCHEMA = """
feature { name: "id" type: INT presence { min_fraction: 1.0 } }
feature { name: "at" type: INT presence { min_fraction: 1.0 } time_domain { integer_format: UNIX_SECONDS } }
feature { name: "shop" type: BYTES }
feature { name: "card" type: INT }
feature { name: "amount" type: FLOAT }
"""
TEXT = """
name: shops
schema: schema.pbtxt
event: {id: id, time: at}
fixed_point: {amount: 2}
features:
  row: {large: amount > 50, third: "bucket(amount, [30, 60])"}
aggregates:
  daily:
    period: day
    by: [shop, large]
    columns:
      events: count
      spent: sum(amount)
      mean_spent: mean(amount)
      least: min(amount)
      most: max(amount)
      cards: distinct(card)
      paid: count where amount > 0
      paid_cards: distinct(card) where amount > 0
      some_cards: approx_distinct(card) where amount > 0
  weekly: {period: week, columns: {events: count, amounts: distinct(amount), shops: approx_distinct(shop)}}
  monthly: {period: month, by: [third], columns: {spent: sum(amount) where large, some: approx_distinct(amount)}}
model: {inputs: [amount, large]}
"""
START = 1_543_600_000  # the evening of Friday, 30 November 2018
DAY_US = 86_400_000_000


def project_of(text=TEXT):
    return declared(text, SCHEMA)


PROJECT = project_of()


def make_rows(number=600, days=12):
    chosen = random.Random(2)
    return [
        {
            "id": n,
            "at": START + chosen.randrange(days * 86_400) // 3600 * 3600,
            "shop": chosen.choice([None, "x", "y"]),
            "card": chosen.choice([None, 1, 2, 3, 1 << 60, (1 << 60) + 1]),
            "amount": chosen.choice([None, 0.0, round(chosen.uniform(-90, 90), 2)]),
        }
        for n in range(number)
    ]


ROWS = make_rows()


def exactly(values, count=1):
    total = sum(fractions.Fraction(round(value * 100)) for value in values)
    return float(total / 100 / count)


def expected(rows):
    """Table → its rows, by definition."""
    found = {}
    for name, period, by in (
        ("daily", "day", ("shop", "large")),
        ("weekly", "week", ()),
        ("monthly", "month", ("third",)),
    ):
        groups = collections.defaultdict(list)
        for row in rows:
            amount = row["amount"]
            row = {**row, "large": int(amount is not None and amount > 50)}
            row["third"] = None if amount is None else (amount >= 30) + (amount >= 60)
            groups[start_of(period, row["at"] * 1_000_000), *(row[key] for key in by)].append(row)
        made = [{"start": start, "by": keys, **sums(name, group)} for (start, *keys), group in groups.items()]
        found[name] = sorted(made, key=lambda row: (row["start"], [(key is None, key) for key in row["by"]]))
    return found


def sums(name, group):
    amounts = [row["amount"] for row in group if row["amount"] is not None]
    if name == "weekly":
        return {
            "events": len(group),
            "amounts": len(set(amounts)),
            "shops": len({row["shop"] for row in group} - {None}),
        }
    if name == "monthly":
        return {"spent": exactly(row["amount"] for row in group if row["large"]), "some": len(set(amounts))}
    paid = [row for row in group if row["amount"] is not None and row["amount"] > 0]
    return {
        "events": len(group),
        "spent": exactly(amounts),
        "mean_spent": exactly(amounts, len(amounts)) if amounts else None,
        "least": min(amounts, default=None),
        "most": max(amounts, default=None),
        "cards": len({row["card"] for row in group} - {None}),
        "paid": len(paid),
        "paid_cards": len({row["card"] for row in paid} - {None}),
        "some_cards": len({row["card"] for row in paid} - {None}),
    }


def tables(folder):
    found = {}
    for name, table in read_aggregates(str(folder)).items():
        by = PROJECT.aggregates[name].by
        assert set(table["aggregate"].to_pylist()) == {name}
        assert table.schema.names == ["aggregate", "period_start", "period_end", *by, *PROJECT.aggregates[name].columns]
        found[name] = []
        for row in table.to_pylist():
            assert row.pop("aggregate") == name
            start, end = row.pop("period_start"), row.pop("period_end")
            assert end > start
            found[name].append({"start": (start - EPOCH) // MICROSECOND, "by": [row.pop(key) for key in by], **row})
    return found


def run(folder, source, shards=2, **options):
    config = GraphConfig(
        PROJECT,
        source,
        Score(PROJECT, tiny_scorer(PROJECT.model.inputs), "bundle"),
        WriteFiles(str(folder), "id", "at"),
        shards,
        **options,
    )
    pipeline = make_pipeline("DirectRunner", [])
    build(pipeline, config)
    result = pipeline.run()
    result.wait_until_finish()
    return by_label(read(result.metrics()), TOO_LATE)


@pytest.mark.parametrize(("shards", "slice_us"), [(1, 30 * DAY_US), (3, 5 * 3600_000_000)])
def test_files_in_any_order_give_the_sums(tmp_path, shards, slice_us):
    rows = [*ROWS, *random.Random(1).sample(ROWS, 60)]
    random.Random(shards).shuffle(rows)
    sources = [write_rows(tmp_path / f"{n}.jsonl", rows[n::4]) for n in range(4)]
    run(tmp_path / "out", read_files(PROJECT, sources, slice_us=slice_us), shards)
    assert tables(tmp_path / "out") == expected(ROWS)
    said = json.loads((tmp_path / "out" / "_SUCCESS.json").read_text())
    files = {f["name"]: f["rows"] for f in said["files"] if f["kind"] == "aggregates"}
    assert sum(files.values()) == sum(map(len, expected(ROWS).values()))
    assert {name.split("/")[0] for name in files} == set(PROJECT.aggregates)
    assert "daily/event_day=2018-12-01/part.parquet" in files  # a period is of the partition that it ends in
    assert "monthly/event_day=2018-11-30/part.parquet" in files


@pytest.mark.serial
def test_parity(tmp_path):
    source = write_rows(tmp_path / "rows.jsonl", ROWS)
    found = check_parity(PROJECT, AnyBundle(), tiny_scorer(PROJECT.model.inputs), [source], "3h", 0, 0.1)
    assert found.equal, found
    compared = {c.what: c.rows for c in found.comparisons}
    assert compared["aggregates daily"] == len(expected(ROWS)["daily"])


def payloads_of(rows):
    return [json.dumps(row).encode() for row in rows]


class Rest(Given):
    """A broker that has handed out its first messages before."""

    def __init__(self, payloads, done):
        super().__init__(payloads, 0)
        self._done = done

    def subscribe(self, known=()):
        subscription = super().subscribe(known)
        subscription._next = self._done
        return subscription


def streamed(folder, payloads, journal=None, allowance_us=4 * 3600_000_000, done=0):
    source = read_stream(
        PROJECT, Rest(payloads, done), allowance_us, journal=journal, idle_us=300_000, until_idle=True,
        cut_us=DAY_US, periods=("day", "week", "month"),
    )  # fmt: skip
    return run(folder, source, boundary_us=DAY_US)


_collected: list = []


class Collect(beam.PTransform):
    """The tables of aggregates, and nothing of the rest."""

    def expand(self, pcolls):
        return pcolls["aggregates"] | beam.Map(_collect)


def _collect(batch):
    _collected.append(batch)


@pytest.mark.parametrize("at_arrival", [False, True])
def test_messages_out_of_order_give_the_sums(at_arrival):
    rows = sorted(ROWS, key=lambda row: row["at"] + random.Random(row["id"]).randrange(3 * 3600))
    rows = [*rows[:400], *rows[350:400], *rows[400:]]
    source = read_stream(
        PROJECT, Given(payloads_of(rows), 1), 4 * 3600_000_000, idle_us=300_000, until_idle=True, cut_us=DAY_US,
        at_arrival=at_arrival,
    )  # fmt: skip
    score = Score(PROJECT, tiny_scorer(PROJECT.model.inputs), "bundle", keep_marks=at_arrival)
    pipeline = make_pipeline("DirectRunner", [])
    config = GraphConfig(
        PROJECT, source, score, Collect(), lateness_us=DAY_US, boundary_us=DAY_US, at_arrival=at_arrival
    )
    _collected.clear()
    build(pipeline, config)
    pipeline.run().wait_until_finish()
    found = collections.defaultdict(list)
    for batch in _collected:
        for row in batch.to_pylist():
            name, start, _ = row.pop("aggregate"), row.pop("period_start"), row.pop("period_end")
            by = [row.pop(key) for key in PROJECT.aggregates[name].by]
            assert row.pop("revision") == 0
            found[name].append({"start": (start - EPOCH) // MICROSECOND, "by": by, **row})
    assert found == expected(ROWS)  # each period once, and in their order


def test_a_stream_that_starts_anew_counts_the_periods_that_were_open(tmp_path):
    """And writes those that were over no second time."""
    rows = sorted(ROWS, key=lambda row: row["at"])
    moment = START + 5 * 86_400
    before = [row for row in rows if row["at"] < moment]
    journal = str(tmp_path / "journal")
    streamed(tmp_path / "first", payloads_of(before), journal)
    streamed(tmp_path / "second", payloads_of(rows), journal, done=len(before))
    wanted, second = expected(rows), tables(tmp_path / "second")
    # At the end of the first, which ends, all that came is written; its watermark had come to its last event.
    reached = max(row["at"] for row in before) * 1_000_000
    for name, period in (("daily", "day"), ("weekly", "week"), ("monthly", "month")):
        open_from = start_of(period, reached)
        assert second[name] == [row for row in wanted[name] if row["start"] >= open_from]
        assert second[name][0]["start"] == open_from


def test_events_of_a_period_that_is_written_are_counted_and_left_out(tmp_path):
    rows = sorted(ROWS, key=lambda row: row["at"])
    first_day = rows[0]["at"] // 86_400
    late = [{**rows[0], "id": 10_000 + n} for n in range(7)]
    assert all(row["at"] // 86_400 == first_day for row in late)
    found = streamed(tmp_path / "out", payloads_of([*rows, *late]), allowance_us=3600_000_000)
    assert found == {"daily": 7, "weekly": 7, "monthly": 7}
    assert tables(tmp_path / "out") == expected(rows)


def test_history_is_counted_where_a_period_is_not_history_alone(tmp_path):
    source = read_files(PROJECT, [write_rows(tmp_path / "rows.jsonl", ROWS)])
    from_us = (START + 5 * 86_400) * 1_000_000
    run(tmp_path / "out", source, span=Span(from_us))
    live = [row["at"] * 1_000_000 for row in ROWS if row["at"] * 1_000_000 >= from_us]
    wanted = {
        name: [row for row in rows if row["start"] in {start_of(period, us) for us in live}]
        for (name, rows), period in zip(expected(ROWS).items(), ("day", "week", "month"), strict=True)
    }
    assert tables(tmp_path / "out") == wanted
    assert len(wanted["daily"]) < len(expected(ROWS)["daily"])


def test_no_event_makes_no_table(tmp_path):
    run(tmp_path / "out", read_files(PROJECT, [write_rows(tmp_path / "rows.jsonl", [])]))
    assert tables(tmp_path / "out") == {}


def test_a_sink_of_topics_has_one_for_the_tables():
    assert sink_topics(PROJECT, "pubsub://p/s")["aggregates"] == "pubsub://p/s-aggregates"


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("by: [shop, large]", "by: [shop, nope]", "aggregates.daily.by[1]: 'nope' is neither a field"),
        ("by: [shop, large]", "by: [shop, shop]", "aggregates.daily.by[1]: shop stands twice"),
        ("by: [shop, large]", "by: [amount]", "aggregates.daily.by[0]: amount is neither a whole number nor a text"),
        ("period: day", "period: year", "aggregates.daily.period: Input should be 'day', 'week', 'month' or 'quarter'"),
        ("spent: sum(amount)\n", "spent: std(amount)\n", "is not an aggregate of a period: there are count, sum"),
        ("spent: sum(amount)\n", "shop: sum(amount)\n", "aggregates.daily.columns.shop: shop is the name of another column"),
        ("spent: sum(amount)\n", "period_end: count\n", "period_end is the name of another column already"),
        ("spent: sum(amount)\n", "spent: sum(shop)\n", "aggregates.daily.columns.spent: shop is not a number"),
        ("spent: sum(amount)\n", "spent: sum(nope)\n", "'nope' is not a field of schema.pbtxt"),
        ("fixed_point: {amount: 2}", "fixed_point: {card: 0}", "declare the decimal places of amount under fixed_point"),
        ("daily:", "Daily:", "String should match pattern"),
    ],
)  # fmt: skip
def test_faults_are_named_with_their_line(old, new, fault):
    assert_fault(TEXT, SCHEMA, old, new, fault)


def test_where_tfx_bsl_is_missing_the_check_says_so(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    _, faults = parse_project(TEXT.encode(), lambda name: SCHEMA.encode())
    assert len(faults) == 3
    assert "aggregates.daily.columns.some_cards: approx_distinct is tfx-bsl's, which is not installed" in str(faults[0])


def test_no_table_reads_a_label():
    schema = SCHEMA + 'feature { name: "fraud" type: INT int_domain { min: 0 max: 1 } }\n'
    text = TEXT.replace("model:", "label: {field: fraud, delay: 1d}\nmodel:").replace(
        "count where amount > 0", "sum(fraud)"
    )
    _, faults = parse_project(text.encode(), lambda name: schema.encode())
    assert ["reads the label fraud, which is not known when a period ends" in str(f) for f in faults] == [True]


def test_times_are_utc_and_types_are_those_of_the_fields(tmp_path):
    run(tmp_path / "out", read_files(PROJECT, [write_rows(tmp_path / "rows.jsonl", ROWS)]))
    schema = read_aggregates(str(tmp_path / "out"))["daily"].schema
    assert schema.field("period_start").type == pa.timestamp("us", tz="UTC")
    assert (schema.field("shop").type, schema.field("large").type) == (pa.string(), pa.int64())
    assert (schema.field("events").type, schema.field("spent").type) == (pa.int64(), pa.float64())


def test_rows_of_a_table_are_messages(monkeypatch):
    columns = {"aggregate": ["daily", "daily"], "period_start": [0, 0], "shop": [None, "x"], "spent": [0.1, 10.5]}
    table = pa.table(columns)
    table = table.set_column(1, "period_start", table["period_start"].cast(pa.timestamp("us", tz="UTC")))
    with PubsubEmulator() as server:
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", server.address)
        for name in ("scores", "dead", "aggregates"):
            server.create("demo", name, name)
        scores, dead, aggregates = (open_broker(f"pubsub://demo/{n}") for n in ("scores", "dead", "aggregates"))
        pipeline = make_pipeline("DirectRunner", [])
        none = {name: pipeline | name >> beam.Create([]) for name in ("scores", "dead_letters")}
        found = pipeline | "tables" >> beam.Create(table.to_batches())
        {**none, "aggregates": found} | PublishRows(scores, dead, aggregates=aggregates)
        pipeline.run().wait_until_finish()
        subscription = aggregates.subscribe()
        messages = subscription.receive(10, 5.0)
        subscription.close()
    assert [json.loads(payload) for payload in messages.payloads] == [
        {"aggregate": "daily", "period_start": "1970-01-01T00:00:00.000000Z", "shop": shop, "spent": spent}
        for shop, spent in ((None, 0.1), ("x", 10.5))
    ]
