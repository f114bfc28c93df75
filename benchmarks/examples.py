"""The features of the examples taxi and support_routing against hand-written polars scripts, which compute the same.

    python benchmarks/examples.py --rows 500000 --runs 5

Each side runs in its own process, in turn; first the features are compared, every value of them. Times leave out
imports; headrace's are from the declarations to `_SUCCESS.json`, with its contract, deduplication and counts.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

HERE = pathlib.Path(__file__).parent
IDS = {"taxi": "trip_id", "support_routing": "ticket_id"}
INPUTS = {"taxi": "trips.csv", "support_routing": "tickets.jsonl"}
DERIVED = {"letters", "asks_for_money", "is_answer"}  # what both compute, but headrace writes only what is a feature
# What a project without a model can't have.
HASHED = "  trip_id: hash()                           # the same record is the same trip\n"
OF_MODELS = ("model", "training", "metrics", "decisions", "fallback", "sinks", "quality")


def without_model(example: str, folder: pathlib.Path) -> pathlib.Path:
    """A copy of an example that computes its features alone, of trips that have an id."""
    project = folder / f"{example}_features"
    shutil.copytree(HERE.parent / "examples" / example, project)
    text = (project / "project.yaml").read_text()
    for section in OF_MODELS:
        text = re.sub(rf"(?m)^{section}:.*\n((?: .*)?\n)*", "", text)
    (project / "project.yaml").write_text(text.replace(HASHED, ""))
    if HASHED in text:
        with (project / "schema.pbtxt").open("a") as schema:
            schema.write('feature { name: "trip_id" type: BYTES presence { min_fraction: 1.0 } }\n')
    return project


def run(script: str, *told: object) -> dict[str, Any]:
    command = [sys.executable, str(HERE / "peers" / script), *map(str, told)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{script} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(ours: pa.Table, theirs: pa.Table, key: str) -> None:
    """Stop unless every feature of the script has the values that headrace has, bit for bit."""
    ours, theirs = (table.sort_by(key) for table in (ours, theirs))
    for name in set(theirs.schema.names) - DERIVED:
        kind = pa.string() if name == key else pa.float64()
        one, other = (table[name].cast(kind).combine_chunks() for table in (ours, theirs))
        if kind == pa.float64():  # what is missing is null on one side and NaN on the other
            one, other = (pc.if_else(pc.is_nan(values), None, values) for values in (one, other))
        if not one.equals(other):
            raise SystemExit(f"outputs differ: {name}: {one.to_pylist()[:20]} {other.to_pylist()[:20]}")


def add_ids(trips: pathlib.Path) -> None:
    """Number the trips, in place of the hash that the script would have to make as headrace does."""
    table = pyarrow.csv.read_csv(trips)
    ids = pa.array([f"trip {number:08}" for number in range(len(table))])
    pyarrow.csv.write_csv(table.append_column("trip_id", ids), trips)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--runs", type=int, default=5)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as scratch:
        folder = pathlib.Path(scratch)
        for example, key in IDS.items():
            source, output = folder / INPUTS[example], folder / example
            sample = [sys.executable, str(HERE.parent / "examples" / example / "sample.py"), str(source)]
            subprocess.run([*sample, "--rows", str(flags.rows)], check=True)
            if example == "taxi":
                add_ids(source)
            project, script = without_model(example, folder), folder / f"{example}.parquet"
            figures: dict[str, list[dict[str, Any]]] = {"headrace": [], "polars": []}
            for number in range(flags.runs):
                shutil.rmtree(output, ignore_errors=True)
                figures["headrace"].append(run("headrace_features.py", project, source, output))
                figures["polars"].append(run("features_polars.py", example, source, script))
                if number == 0:
                    compare(pq.read_table(output / "scores", partitioning=None), pq.read_table(script), key)
            for figure in ("total_s", "cpu_s"):
                ours, theirs = ([each[figure] for each in figures[side]] for side in ("headrace", "polars"))
                ratios = sorted(other / one for one, other in zip(ours, theirs, strict=True))
                seconds = f"headrace {statistics.median(ours):.2f}, polars {statistics.median(theirs):.2f}"
                ratio = f"ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
                print(f"{example} {figure}: {seconds}, {ratio}, {flags.rows} rows", flush=True)


if __name__ == "__main__":
    main()
