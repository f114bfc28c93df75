"""Late events of tables of aggregates: the rows that they change come once more, and the last ones are those of batch."""

import json
import random

import apache_beam as beam
import pyarrow as pa
import pytest

from models.batches import as_batch, with_column
from models.metrics import CORRECTED, TOO_LATE, by_label, value_of
from models.steps import Log
from models.totals import SLICE_END, add_parts, add_up, end_us_of, finish, last_revisions, written
from pipelines.graph import GraphConfig, build
from pipelines.runners import make_pipeline
from pipelines.sinks.files import WriteFiles
from tests.kit.declared import declared
from tests.kit.given import Given
from tests.kit.support import read_files, read_stream, write_rows
from transforms.metrics import read
from transforms.score import Score
from transforms.totals import _Close

pytestmark = pytest.mark.slow

HOUR, DAY = 3600, 86_400
SECOND = 1_000_000
TEXT = """
name: shops
schema: schema.pbtxt
event: {id: id, time: at}
entities: {card: card}
fixed_point: {amount: 2}
features: {row: {large: amount > 50}}
aggregates:
  daily:
    period: day
    by: [shop, large]
    columns: {events: count, spent: sum(amount), mean_spent: mean(amount), cards: distinct(card)}
  weekly: {period: week, columns: {events: count, most: max(amount)}}
"""
SCHEMA = """
feature { name: "id" type: INT presence { min_fraction: 1.0 } int_domain { min: 0 } }
feature { name: "at" type: INT presence { min_fraction: 1.0 } time_domain { integer_format: UNIX_SECONDS } }
feature { name: "shop" type: BYTES }
feature { name: "card" type: INT presence { min_fraction: 1.0 } }
feature { name: "amount" type: FLOAT }
"""
PROJECT = declared(TEXT, SCHEMA)
KEYS = {"daily": ("shop", "large"), "weekly": ()}
START = 1_543_600_000


def make_rows(number=500, days=8, seed=0):
    chosen = random.Random(seed)
    return [
        {
            "id": n,
            "at": START + chosen.randrange(days * DAY),
            "shop": chosen.choice([None, "x", "y"]),
            "card": chosen.randrange(20),
            "amount": chosen.choice([None, round(chosen.uniform(-90, 90), 2)]),
        }
        for n in range(number)
    ]


ROWS = make_rows()


def disordered(rows, most_late, share, seed):
    """The events as they come: most of them in order, a share of them late by as much as that."""
    chosen = random.Random(seed)
    late = {row["id"]: chosen.uniform(0, most_late) if chosen.random() < share else 0 for row in rows}
    return sorted(rows, key=lambda row: (row["at"] + late[row["id"]], row["id"]))


_collected: list = []


class Collect(beam.PTransform):
    def expand(self, pcolls):
        return pcolls["aggregates"] | beam.Map(_collect)


def _collect(batch):
    _collected.append(batch)


def run(source, sink, **options):
    config = GraphConfig(PROJECT, source, Score(PROJECT, None, ""), sink, 2, **options)
    pipeline = make_pipeline("DirectRunner", [])
    build(pipeline, config)
    result = pipeline.run()
    result.wait_until_finish()
    return read(result.metrics())


def stream(rows, sink, seed=0, lateness=2 * DAY, **options):
    payloads = [json.dumps(row).encode() for row in rows]
    how = {"idle_us": 300_000, "until_idle": True, "cut_us": DAY * SECOND, "periods": ("day", "week"), **options}
    source = read_stream(PROJECT, Given(payloads, seed, most=12), HOUR * SECOND, **how)
    return run(source, sink, lateness_us=lateness * SECOND, boundary_us=DAY * SECOND)


def streamed(rows, **options):
    """Rows as they came, by table, and the metrics."""
    _collected.clear()
    metrics = stream(rows, Collect(), **options)
    found = {"daily": [], "weekly": []}
    for batch in _collected:
        for row in batch.to_pylist():
            found[row.pop("aggregate")].append(row)
    return found, metrics


def last(name, rows):
    """What a reader keeps who takes the row with the highest revision of each key, by key."""
    kept = {}
    for row in rows:
        key = (row["period_start"], *(row[name] for name in KEYS[name]))
        if key not in kept or row["revision"] > kept[key]["revision"]:
            kept[key] = row
    return {key: {name: value for name, value in row.items() if name != "revision"} for key, row in kept.items()}


def batched(folder, rows):
    run(read_files(PROJECT, [write_rows(folder / "rows.jsonl", rows)]), WriteFiles(str(folder / "out"), "id", "at"))
    return tables(folder / "out")


def tables(folder):
    from pipelines.results import read_aggregates

    found = read_aggregates(str(folder))
    assert not any("revision" in table.schema.names for table in found.values())
    rows = {
        name: [{**row, "revision": 0} for row in table.drop(["aggregate"]).to_pylist()] for name, table in found.items()
    }
    assert all(len(last(name, each)) == len(each) for name, each in rows.items())
    return {name: last(name, each) for name, each in rows.items()}


@pytest.mark.parametrize("seed", range(4))
def test_the_last_rows_are_those_of_batch_whatever_comes_late(tmp_path, seed):
    rows = disordered(ROWS, DAY + 20 * HOUR, 0.15, seed)
    rows = [*rows[:300], *rows[250:]]  # and some of them twice
    found, metrics = streamed(rows, seed=seed)
    wanted = batched(tmp_path, ROWS)
    assert {name: last(name, each) for name, each in found.items()} == wanted
    assert value_of(metrics, CORRECTED) == sum(row["revision"] > 0 for each in found.values() for row in each) > 10
    assert by_label(metrics, TOO_LATE) == {}
    for name, each in found.items():
        keys = [(row["period_start"], *(row[key] for key in KEYS[name]), row["revision"]) for row in each]
        assert len(set(keys)) == len(keys)


def test_in_a_folder_are_the_last_rows_alone(tmp_path):
    stream(disordered(ROWS, DAY + 20 * HOUR, 0.15, 1), WriteFiles(str(tmp_path / "stream"), "id", "at"))
    assert tables(tmp_path / "stream") == batched(tmp_path, ROWS)


def test_without_late_events_there_are_no_revisions_and_nothing_is_said_twice(tmp_path):
    found, metrics = streamed(disordered(ROWS, HOUR - 1, 1.0, 0))
    assert {row["revision"] for each in found.values() for row in each} == {0}
    assert value_of(metrics, CORRECTED) is None
    assert {name: last(name, each) for name, each in found.items()} == batched(tmp_path, ROWS)


def test_only_rows_of_the_keys_of_late_events_come_once_more():
    rows = sorted(ROWS, key=lambda row: row["at"])
    (one,) = [row for row in rows if row["at"] // DAY == START // DAY + 2][3:4]
    late = {**one, "id": 9999, "shop": "z", "amount": 1.0}
    after = next(n for n, row in enumerate(rows) if row["at"] > one["at"] + DAY + 20 * HOUR)
    found, _ = streamed([*rows[:after], late, *rows[after:]])
    (again,) = [row for row in found["daily"] if row["revision"]]
    assert (again["shop"], again["large"], again["events"], again["revision"]) == ("z", 0, 1, 1)
    assert [row["revision"] for row in found["weekly"]].count(1) <= 1


def test_an_event_that_is_later_than_the_lateness_changes_nothing():
    rows = sorted(ROWS, key=lambda row: row["at"])
    late = [{**rows[0], "id": 10_000 + n} for n in range(7)]
    found, metrics = streamed([*rows, *late], lateness=2 * DAY)
    plain, _ = streamed(rows, lateness=2 * DAY)
    assert found["daily"] == plain["daily"]
    assert by_label(metrics, TOO_LATE)["daily"] == 7


def test_a_stream_that_starts_anew_goes_on_with_the_periods_that_may_change(tmp_path):
    """A late event after the restart, of a day that was written before it."""
    rows = disordered(ROWS, DAY + 20 * HOUR, 0.15, 2)
    cut = next(n for n, row in enumerate(rows) if row["at"] > START + 4 * DAY)
    journal = str(tmp_path / "journal")
    first, _ = streamed(rows[:cut], journal=journal)
    found, metrics = streamed_on(rows, cut, journal)
    both = {name: [*first[name], *found[name]] for name in found}
    wanted = batched(tmp_path, ROWS)
    # The first stream ended, so that it wrote the day and the week that were open; they come once more, as they are.
    for name, each in both.items():
        at_the_end = {key: row for key, row in last_as_they_came(name, each).items()}
        assert at_the_end == wanted[name]
    assert value_of(metrics, CORRECTED) > 0


class Rest(Given):
    """A broker that has handed out its first messages before."""

    done = 0

    def subscribe(self, known=()):
        subscription = super().subscribe(known)
        subscription._next = self.done
        return subscription


def streamed_on(rows, done, journal):
    _collected.clear()
    broker = Rest([json.dumps(row).encode() for row in rows], 0, most=12)
    broker.done = done
    how = {"idle_us": 300_000, "until_idle": True, "cut_us": DAY * SECOND, "periods": ("day", "week")}
    source = read_stream(PROJECT, broker, HOUR * SECOND, journal=journal, **how)
    metrics = run(source, Collect(), lateness_us=2 * DAY * SECOND, boundary_us=DAY * SECOND)
    found = {"daily": [], "weekly": []}
    for batch in _collected:
        for row in batch.to_pylist():
            found[row.pop("aggregate")].append(row)
    return found, metrics


def last_as_they_came(name, rows):
    """The row of each key that came last."""
    return {
        (row["period_start"], *(row[key] for key in KEYS[name])): {k: v for k, v in row.items() if k != "revision"}
        for row in rows
    }


def test_parts_in_any_order_and_cuts_give_the_same_rows():
    events = pa.table({
        "__event_time": pa.array([row["at"] * SECOND for row in ROWS], pa.int64()).cast(pa.timestamp("us", tz="UTC")),
        "__marks": pa.array([0] * len(ROWS), pa.int8()),
        **{name: pa.array([row[name] for row in ROWS]) for name in ("shop", "card", "amount")},
        "large": pa.array([None if row["amount"] is None else int(row["amount"] > 50) for row in ROWS], pa.float64()),
    })  # fmt: skip
    found = []
    for seed in range(3):
        chosen = random.Random(seed)
        order = chosen.sample(range(len(ROWS)), len(ROWS))
        cut = chosen.randrange(1, len(ROWS))
        parts = {}
        for places in (order[:cut], order[cut:]):
            for end_us, part in add_up(as_batch(events.take(places)), "daily", PROJECT):
                parts.setdefault(end_us, []).append(part)
        rows = []
        for _, some in sorted(parts.items()):
            first, *more = some
            said = [finish(first, "daily", PROJECT, 0)]
            whole = first
            for number, part in enumerate(more, 1):
                whole = add_parts([written(whole), part], PROJECT.aggregates["daily"].by)
                said.append(finish(whole, "daily", PROJECT, number))
            chosen.shuffle(said)
            rows += last_revisions(said).to_pylist()
        found.append(rows)
    assert found[0] == found[1] == found[2]


def test_a_period_that_was_forgotten_is_not_begun_anew():
    """Though an engine timestamps what is late with its own slice, which was before."""
    events = {"id": 1, "shop": "x", "card": 1, "amount": 2.5, "large": 0.0}
    step = _Close(PROJECT, "daily", DAY * SECOND)
    log = Log(Bag(), Bag(), step.shard(), step)
    day = START // DAY * DAY * SECOND
    said = []
    for days, slice_days in ((0, 1), (1, 2), (0, 2), (5, 6), (0, 1), (4, 6)):
        batch = pa.RecordBatch.from_pylist([{"__event_time": day + days * DAY * SECOND, "__marks": 0, **events}])
        batch = with_column(batch, "__event_time", batch["__event_time"].cast(pa.timestamp("us", tz="UTC")))
        batch = with_column(batch, "__marks", batch["__marks"].cast(pa.int8()))
        end = str(day + slice_days * DAY * SECOND - 1)
        ((end_us, part),) = add_up(batch.replace_schema_metadata({SLICE_END: end}), "daily", PROJECT)
        said.append(
            [
                (row["events"], row["revision"])
                for out in step.advance(part, end_us, None, log)
                for row in out.to_pylist()
            ]
        )
    assert said == [[(1, 0)], [(1, 0)], [(2, 1)], [(1, 0)], [], [(1, 0)]]
    assert [end_us_of(part) for part in log.base.read()] == [day + 6 * DAY * SECOND, day + 5 * DAY * SECOND]


class Bag:
    """A bag of an engine's state."""

    def __init__(self):
        self._held = []

    def read(self):
        return list(self._held)

    def add(self, value):
        self._held.append(value)

    def clear(self):
        self._held.clear()
