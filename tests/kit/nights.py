"""A shop's days: files of events and of labels that come later, and runs over them."""

import pathlib
import random

import pyarrow.parquet as pq

from pipelines.config import RunSpec
from pipelines.jobs.score import score_files
from tests.kit.bundles import AnyBundle
from tests.kit.declared import declared
from tests.kit.estimated import calibrated
from tests.kit.support import tiny_scorer, write_rows

SCHEMA = """
feature { name: "id" type: INT presence { min_fraction: 1.0 } }
feature { name: "at" type: INT presence { min_fraction: 1.0 } time_domain { integer_format: UNIX_SECONDS } }
feature { name: "card" type: INT presence { min_fraction: 1.0 } }
feature { name: "shop" type: BYTES presence { min_fraction: 1.0 } }
feature { name: "amount" type: FLOAT }
feature { name: "fraud" type: INT int_domain { min: 0 max: 1 } }
"""
TEXT = """
name: shops
schema: schema.pbtxt
event: {id: id, time: at, deduplicate_within: 3d}
entities: {card: card, shop: shop}
label: {field: fraud, delay: 1d, events: {time: seen}}
fixed_point: {amount: 2}
features:
  row: {large: amount > 50}
  rolling:
    - entity: card
      windows: {3D: 3d}
      features: {"card_n_{window}": count, "card_mean_{window}": mean(amount), "card_last_{window}": last(amount)}
    - entity: shop
      delay: 1d
      windows: {5D: 5d}
      features: {"shop_n_{window}": count, "risk_{window}": rate(fraud)}
aggregates:
  daily: {period: day, by: [shop], columns: {events: count, spent: sum(amount)}}
  weekly: {period: week, columns: {events: count, cards: distinct(card)}}
model: {inputs: [amount, large, card_n_3D, card_mean_3D, card_last_3D, shop_n_5D, risk_5D]}
decisions:
  - {action: block, at_least: 0.6}
  - {action: approve, at_least: 0.0}
quality: {window: 2d, min_rows: 30, gate: warn, alert_cool_down: 1d}
label_metrics: {window: 2d, estimate: true}
training: {slices: [shop]}
"""
PROJECT = declared(TEXT, SCHEMA)
SCORER = tiny_scorer(PROJECT.model.inputs, calibration=calibrated())
START = 1_543_622_400  # 1 December 2018
DAY = 86_400
DAYS = 6


def day(number):
    return f"2018-12-{1 + number:02d}"


def make_days(seed=0, events=60):
    """By day, what its files hold: events, some twice, some broken, and labels that are known up to three days later."""
    chosen = random.Random(seed)
    rows, labels = [[] for _ in range(DAYS)], [[] for _ in range(DAYS)]
    for number in range(DAYS * events):
        of = number // events
        at = START + of * DAY + chosen.choice([0, DAY - 1, *(chosen.randrange(DAY) for _ in range(20))])
        shop = f"shop {chosen.randrange(4)}"
        row = {
            "id": number,
            "at": at,
            "card": chosen.randrange(7),
            "shop": shop,
            "amount": chosen.randrange(9999) / 100,
        }
        rows[of].append(row)
        if chosen.random() < 0.05:
            rows[min(DAYS - 1, of + chosen.randrange(2))].append({**row, "at": at + chosen.randrange(2) * DAY})
        if chosen.random() < 0.05:
            rows[of].append({**row, "id": 10_000 + number, "shop": None})
        if chosen.random() < 0.02:
            rows[of].append(b"{not json")
        if chosen.random() < 0.6:
            seen = at + chosen.randrange(3 * DAY)
            if (known := (seen - START) // DAY) < DAYS:
                labels[known].append({"id": number, "fraud": int(chosen.random() < 0.2), "seen": seen})
    # A message of the next day is in the file of the day before.
    rows[2].append(rows[3].pop())
    return rows, labels


def without_late(days):
    """Such days without the events that are in the file of a later day than their own."""
    rows, labels = days

    def late(row, number):
        return not isinstance(row, bytes) and row["at"] < START + number * DAY

    return [[row for row in of if not late(row, number)] for number, of in enumerate(rows)], labels


class Shop:
    """Folders of files, of sinks and of states."""

    def __init__(self, folder, days=None):
        self.folder = folder
        self.rows, self.labels = days or make_days()

    def write(self, numbers, name=""):
        for number in numbers:
            for kind, days in (("events", self.rows), ("labels", self.labels)):
                (self.folder / kind).mkdir(parents=True, exist_ok=True)
                write_rows(self.folder / kind / f"{day(number)}{name}.jsonl", days[number])

    def spec(self, sink, **options):
        return RunSpec(
            PROJECT,
            (str(self.folder / "events" / "*.jsonl"),),
            str(self.folder / sink),
            labels=(str(self.folder / "labels" / "*.jsonl"),),
            **{"lateness": "2d", **options},
        )

    def run(self, sink, **options):
        return score_files(self.spec(sink, **options), AnyBundle(), SCORER)

    def night(self, number, sink="nights", state="state", **options):
        return self.run(sink, day=day(number), state=str(self.folder / state), **options)

    def whole(self, sink="whole", **options):
        return self.run(sink, score_from=day(0), score_to=day(DAYS), **options)


def contents(folder):
    """What a sink holds: files by their places, dead letters without a time as rows, and no baseline."""
    found, untimed = {}, []
    for path in sorted(pathlib.Path(folder).rglob("*")):
        place = str(path.relative_to(folder))
        if not path.is_file() or place.startswith((".", "_")):
            continue
        if "HIVE_DEFAULT" in place:
            untimed += [sorted(row.items(), key=str) for row in pq.ParquetFile(path).read().to_pylist()]
        else:
            found[place] = path.read_bytes()
    return found, sorted(untimed, key=str)


def assert_same(one, other):
    """See that two sinks hold the same bytes, and some of each kind."""
    (files, untimed), (others, others_untimed) = contents(one), contents(other)
    assert sorted(files) == sorted(others)
    for place, content in files.items():
        assert content == others[place], place
    assert untimed == others_untimed
    assert any(place.startswith("quality/") for place in files)
    assert any(place.startswith("aggregates/weekly/") for place in files)
    assert any(place.startswith("label_metrics/") for place in files)
