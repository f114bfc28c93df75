"""Score rows of a small project with a `quality` section, drawn by numpy."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from models.project.declarations import Project
from models.project.project import parse_project

HOUR = 3_600_000_000
START = 1_522_540_800_000_000  # 2018-04-01, a multiple of an hour and a day

SCHEMA = b"""
feature { name: "id" type: INT presence { min_fraction: 1.0 } }
feature { name: "time" type: INT presence { min_fraction: 1.0 } time_domain { integer_format: UNIX_SECONDS } }
feature { name: "card" type: INT presence { min_fraction: 1.0 } }
feature { name: "amount" type: FLOAT SKEW }
feature { name: "country" type: BYTES DRIFT }
feature { name: "fraud" type: INT int_domain { min: 0 max: 1 } }
"""

DECLARATIONS = """
name: small
schema: schema.pbtxt
event: {id: id, time: time}
entities: {card: card}
label: {field: fraud, delay: 1d}
fixed_point: {amount: 2}
features:
  row: {night: hour(time) <= 6}
  rolling:
    - entity: card
      windows: {D1: 1d, D7: 7d}
      features: {"n_{window}": count, "mean_{window}": mean(amount)}
model: {inputs: [amount, night, n_D1, n_D7, mean_D1, mean_D7]}
decisions: [{action: block, at_least: 0.5}, {action: approve, at_least: 0.0}]
output: [country, amount, fraud]
"""


def small_project(
    quality: str = "", schema: bytes = SCHEMA, skew: str = "", drift: str = "", more: str = ""
) -> Project:
    """The project, with `quality` as the inside of its section, and comparators of amount and country."""
    text = DECLARATIONS + f"quality: {{window: 1h, {quality}}}\n{more}"
    schema = schema.replace(b"SKEW", skew.encode()).replace(b"DRIFT", drift.encode())
    project, faults = parse_project(text.encode(), lambda _: schema)
    assert project is not None, faults
    assert not faults
    return project


def draw(rows: int, seed: int, start_us: int = START, span_us: int = HOUR, first_id: int = 0, **changes) -> pa.Table:
    """Score rows in event time order; `changes` are functions of a column's values, by the column's name."""
    random = np.random.default_rng(seed)
    amount = random.lognormal(3, 1, rows).round(2)
    columns = {
        "id": np.arange(first_id, first_id + rows),
        "time": np.sort(random.integers(start_us, start_us + span_us, rows)),
        "card": random.integers(0, 100, rows),
        "country": np.array(["DE", "FR", "GB"], object)[random.choice(3, rows, p=[0.6, 0.3, 0.1])],
        "amount": amount,
        "fraud": random.integers(0, 2, rows),
        "night": (random.random(rows) < 0.3).astype(np.int64),
        "n_D1": random.poisson(3, rows) + 1,
        "n_D7": random.poisson(20, rows) + 1,
        "mean_D1": random.normal(30, 10, rows),
        "mean_D7": random.normal(30, 4, rows),
        "score": (random.beta(1, 20, rows)).astype(np.float32),
    }
    for name, change in changes.items():
        columns[name] = change(columns[name])
    arrays = {name: pa.array(values) for name, values in columns.items()}
    arrays["time"] = arrays["time"].cast(pa.timestamp("us", tz="UTC"))
    decision = np.where(columns["score"] >= 0.5, "block", "approve")
    arrays["decision"] = pa.array(decision.tolist()).dictionary_encode()
    arrays["bundle_id"] = pa.array(["bundle"] * rows).dictionary_encode()
    return pa.table(arrays)


def batch_of(table: pa.Table) -> pa.RecordBatch:
    (batch,) = table.combine_chunks().to_batches()
    return batch
