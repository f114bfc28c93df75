"""A small project for each kind of target, and its events: shops, texts with new values later on, and labels."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from models.project.declarations import Project
from models.project.project import load_project, parse_project
from pipelines.config import RunSpec
from pipelines.jobs import train as training
from tests.kit.support import write_rows

DAY = 86_400
START = 1_600_041_600  # a midnight
DAYS = 8
SCHEMA = """
feature { name: "id" type: INT presence { min_fraction: 1.0 } }
feature { name: "t" type: INT presence { min_fraction: 1.0 } time_domain { integer_format: UNIX_SECONDS } }
feature { name: "shop" type: BYTES presence { min_fraction: 1.0 } }
feature { name: "country" type: BYTES }
feature { name: "code" type: INT }
feature { name: "amount" type: FLOAT float_domain { min: 0 } }
feature { name: "dear" type: INT int_domain { min: 0 max: 1 } }
feature { name: "class" type: BYTES string_domain { value: "low" value: "middle" value: "high" } }
feature { name: "grade" type: INT int_domain { min: 3 max: 5 } }
feature { name: "cost" type: FLOAT }
feature { name: "visits" type: INT int_domain { min: 0 } }
"""
YAML = """
name: shops
schema: schema.pbtxt
event: {{id: id, time: t}}
entities: {{shop: shop}}
label: {{field: {label}, delay: 1d}}
target: {target}
fixed_point: {{amount: 2, cost: 2}}
features:
  row: {{DEVIATION: amount / MEAN_D}}
  rolling:
    - {{entity: shop, windows: {{D: 1d}}, features: {{"N_{{window}}": count, "MEAN_{{window}}": mean(amount)}}}}
model:
  inputs: [amount, N_D, MEAN_D, DEVIATION, country, code, shop]
  params: {params}
  categories: {categories}
training: {{train: 4d, delay: 1d, test: 2d, slices: [code]}}
output: [{label}, code]
decisions: {decisions}
quality: {{window: 1d, min_rows: 30, sample: 200}}
"""
CATEGORIES = "{country: splits, code: one_hot, shop: {encoding: target, most: 20}}"
# By name: the label, the target, parameters beside the number of trees, decisions.
KINDS = {
    "binary": ("dear", "binary", "", "[{action: stop, at_least: 0.5}, {action: go, at_least: 0.0}]"),
    "multiclass": (
        "class",
        "multiclass",
        "",
        "[{action: alarm, of: high, at_least: 0.3}, {action: look, of: middle, at_least: 0.5}, {action: go, at_least: 0}]",
    ),
    "grades": ("grade", "multiclass", "", "[{action: sure, at_least: 0.6}, {action: unsure, at_least: 0.0}]"),
    "regression": (
        "cost",
        "regression",
        ", objective: 'reg:squarederror'",
        "[{action: stop, at_least: 30}, {action: cheap}]",
    ),
    "count": ("visits", "count", "", "[{action: many, at_least: 2.5}, {action: few, at_least: 0}]"),
    "quantile": (
        "cost",
        "{kind: quantile, quantiles: [0.1, 0.5, 0.9]}",
        "",
        "[{action: stop, of: 0.9, at_least: 45}, {action: usual, at_least: -1000}, {action: none}]",
    ),
    "anomaly": ("", "anomaly", "", "[{action: look, at_least: 0.6}, {action: go, at_least: 0.0}]"),
    "known anomaly": ("dear", "anomaly", "", "[{action: look, at_least: 0.6}, {action: go, at_least: 0.0}]"),
    "median": ("cost", "{kind: quantile, quantiles: [0.5]}", "", "[]"),
}


def declarations(kind: str, categories: str = CATEGORIES) -> str:
    """The project.yaml of a kind."""
    label, target, params, decisions = KINDS[kind]
    params = f"{{n_estimators: 8, max_depth: 3{params}}}"
    if target == "anomaly":
        params, categories = (
            "{n_estimators: 30}",
            "{country: one_hot, code: one_hot, shop: {encoding: one_hot, most: 20}}",
        )
    text = YAML.format(label=label, target=target, params=params, decisions=decisions, categories=categories)
    return (
        f"{text}label_metrics: {{window: 2d}}\n"
        if label
        else text.replace("label: {field: , delay: 1d}\n", "").replace("output: [, code]", "output: [code]")
    )


def parsed(kind: str, text: str | None = None) -> Project:
    """The project of a kind, or of a text."""
    project, faults = parse_project((text or declarations(kind)).encode(), lambda name: SCHEMA.encode())
    assert not faults, faults
    assert project is not None
    return project


def make_rows(number: int = 2000, seed: int = 0) -> list[dict[str, Any]]:
    """Events in order; in the last two days there are countries and shops that were not there before."""
    random = np.random.default_rng(seed)
    rows = []
    for place, second in enumerate(np.sort(random.integers(0, DAYS * DAY, number)).tolist()):
        late = second > (DAYS - 2) * DAY
        country = random.choice(["DE", "FR", "it<", "[at]", *(["new", "new", "new", "newer"] if late else [])])
        shop, amount = int(random.integers(30 + 5 * late)), round(float(random.gamma(2, 10)), 2)
        code = int(random.choice([3, 7, 1000]))
        cost = amount * (1 + (country == "DE")) + shop + float(random.normal(0, 3))
        row = {"id": place, "t": START + second, "shop": f"shop {shop}", "country": str(country), "code": code}
        row |= {
            "amount": amount,
            "dear": int(cost > 40),
            "cost": round(cost, 2),
            "visits": int(random.poisson(amount / 10)),
        }
        row |= {
            "class": ["low", "middle", "high"][int(np.digitize(cost, [25, 45]))],
            "grade": 3 + int(cost > 25) + int(cost > 45),
        }
        rows.append(row)
    for row in rows[::50]:
        row["country"] = None
    for row in rows[7::70]:
        row |= dict.fromkeys(("dear", "cost", "class", "grade", "visits"))
    return rows


def write_project(folder: pathlib.Path, text: str) -> Project:
    """Write a project's two files, and load it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "project.yaml").write_text(text)
    (folder / "schema.pbtxt").write_text(SCHEMA)
    return load_project(folder)


def train(
    folder: pathlib.Path, text: str, rows: list[dict[str, Any]] | None = None, **options: Any
) -> training.Trained:
    """Write the project and its events to a folder, and train."""
    project = write_project(folder, text)
    source = write_rows(folder / "events.jsonl", make_rows() if rows is None else rows)
    return training.train(RunSpec(project, (source,), "", threads=options.pop("threads", 1), **options), folder)
