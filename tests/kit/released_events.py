"""A shop's events over six days for tests of releases, and what runs wrote of them."""

import random

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.jobs.parity import compare_tables

SCHEMA = """
feature { name: "id" type: INT presence { min_fraction: 1.0 } }
feature { name: "at" type: INT presence { min_fraction: 1.0 } time_domain { integer_format: UNIX_SECONDS } }
feature { name: "card" type: INT }
feature { name: "shop" type: BYTES presence { min_fraction: 1.0 } }
feature { name: "amount" type: FLOAT }
"""
TEXT = """
name: shops
schema: schema.pbtxt
event: {id: id, time: at, deduplicate_within: 1d}
entities: {card: card, shop: shop}
fixed_point: {amount: 2}
features:
  row: {large: amount > 50}
  rolling:
    - {entity: shop, windows: {D: 1d}, features: {n: count, mean: mean(amount)}}
    - {entity: card, missing: skip, windows: {D: 1d}, features: {mine: count}}
output: [amount]
model: {inputs: [amount, large, n, mean]}
decisions:
  - {action: block, at_least: 0.6}
  - {action: review, at_least: 0.3}
  - {action: approve, at_least: 0.0}
"""
START = 1_543_622_400  # 1 December 2018
DAY = 86_400
SECOND = 1_000_000


def at(days):
    return round((START + days * DAY) * SECOND)


def make(seed=0, number=600, days=6):
    chosen = random.Random(seed)
    return [
        {
            "id": n,
            "at": START + chosen.choice([chosen.randrange(days * DAY), chosen.randrange(days) * DAY]),
            "card": chosen.choice([None, *range(40)]),
            "shop": chosen.choice(["x", "y", "z"]),
            "amount": chosen.choice([None, round(chosen.uniform(0, 90), 2)]),
        }
        for n in range(number)
    ]


def shuffled(events, seed):
    """Events up to an hour out of order, some twice."""
    chosen = random.Random(seed)
    delayed = [(event["at"] + chosen.randrange(3600), chosen.random(), event) for event in [*events, *events[::50]]]
    return [event for *_, event in sorted(delayed, key=lambda each: each[:2])]


def shadows_of(folder):
    files = sorted((folder / "shadows").rglob("*.parquet"))
    tables = [pq.read_table(file, partitioning=None) for file in files]
    return pa.concat_tables(tables).sort_by([("bundle_id", "ascending"), ("id", "ascending")]) if tables else None


def same(one, other):
    names = [name for name in one.schema.names if name not in ("published", "ingested", "scored", "late")]
    found = compare_tables("rows", one, other, names)
    assert found.different == 0, found.first
    assert found.rows
