"""`make bench`: headrace's batch graph against hand-written scripts, on the same events and model.

Each side runs in its own process, in turn, several times; first the outputs are checked to be equal. Times
leave out imports and, for headrace, building the graph; "whole" is the process from start to end. CPU is processor
time. The side "command" is `headrace run` as shipped, with its imports, its bundle, daily quality and scores against
labels, of which only the whole is known.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xgboost

from models.project.project import load_project

HERE = pathlib.Path(__file__).parent
PROJECT = HERE.parent / "examples" / "card_fraud"
HEADRACE = pathlib.Path(sys.executable).with_name("headrace")
GRAPH = "headrace_graph.py"
SIDES = {
    "headrace": (GRAPH, "0"),
    "polars": ("polars_script.py",),
    "1 worker": (GRAPH, "1"),
    "2 workers": (GRAPH, "2"),
    "4 workers": (GRAPH, "4"),
    "watched 7d": (GRAPH, "0", "7d"),
    "watched 1d": (GRAPH, "0", "1d"),
    "command": (),
    "pandas": ("pandas_handbook.py",),
}


def train(events: pathlib.Path, expected: pathlib.Path, model: pathlib.Path) -> None:
    """A model of the handbook's kind: 100 trees of depth 6 on a week of its own features."""
    inputs = load_project(PROJECT).model.inputs
    transactions, features = pq.read_table(events), pq.read_table(expected)
    columns = [(features if name in features.column_names else transactions)[name].to_numpy() for name in inputs]
    week = (transactions["TX_TIME_DAYS"].to_numpy() // 7) == 7
    matrix = np.column_stack(columns).astype(np.float32)[week]
    label = transactions["TX_FRAUD"].to_numpy()[week]
    data = xgboost.DMatrix(matrix, label, feature_names=inputs)
    xgboost.train({"objective": "binary:logistic", "max_depth": 6, "nthread": 2}, data, 100).save_model(model)


def register(events: pathlib.Path, registry: str) -> None:
    """Train and register a bundle, for the side "command"."""
    told = ["--source", str(events), "--registry", registry]
    subprocess.run([str(HEADRACE), "train", str(PROJECT), *told], capture_output=True, check=True)


def run(side: str, events: pathlib.Path, model: pathlib.Path, output: pathlib.Path, registry: str) -> dict[str, Any]:
    """One run of one side: what it prints, and the whole process's seconds, by the clock and of processors."""
    if side == "command":
        told = ["--source", str(events), "--sink", str(output), "--registry", registry]
        command = [str(HEADRACE), "run", str(PROJECT), *told]
    else:
        script, *more = SIDES[side]
        command = [sys.executable, str(HERE / "peers" / script), str(events), str(model), str(output), *more]
    started, before = time.perf_counter(), children_seconds()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr}")
    whole = {"process_s": time.perf_counter() - started, "process_cpu_s": children_seconds() - before}
    if side == "command":
        return {"rows": json.loads((output / "_SUCCESS.json").read_text())["events"]["read"], **whole}
    return {**json.loads(done.stdout.splitlines()[-1]), **whole}


def children_seconds() -> float:
    """Processor seconds of the child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def read(output: pathlib.Path) -> pa.Table:
    paths = sorted((output / "scores").rglob("*.parquet")) if output.is_dir() else [output]
    table = pa.concat_tables([pq.read_table(path, partitioning=None) for path in paths])
    return table.sort_by([("TX_DATETIME", "ascending"), ("TRANSACTION_ID", "ascending")])


def compare(ours: pa.Table, theirs: pa.Table, exact: bool, scored_alike: bool = True) -> None:
    """Stop unless both have the same features, scores and decisions (pandas: but for rounding and ties)."""
    for name in theirs.column_names:
        if name in ("TX_DATETIME", "verdict_id", "TX_AMOUNT", "bundle_id"):
            continue
        if name in ("score", "decision") and not scored_alike:
            continue
        one, other = ours[name].to_numpy(), theirs[name].to_numpy()
        if exact or one.dtype == object:
            different = int((one != other).sum())
        else:
            different = int((~np.isclose(one.astype(float), other.astype(float), rtol=0, atol=1e-6)).sum())
        if different > (0 if exact else 12):
            raise SystemExit(f"outputs differ: {name} in {different} rows")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=pathlib.Path, default=HERE.parents[1] / "shared/data/card_transactions")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--pandas-runs", type=int, default=1, help="it takes half a minute a run")
    parser.add_argument("--events", type=pathlib.Path, help="another Parquet file of events than that in --data")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="headrace is always one")
    arguments = parser.parse_args()
    known = arguments.data / "transactions.parquet"
    if not known.exists():
        raise SystemExit(f"no {known}: name the folder of the card transactions with --data")
    events = arguments.events or known
    sides = list(dict.fromkeys(["headrace", *arguments.sides]))
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as scratch:
        folder = pathlib.Path(scratch)
        model, registry = folder / "model.ubj", f"sqlite:///{folder}/registry.db"
        train(known, arguments.data / "expected_features.parquet", model)
        if "command" in sides:
            register(known, registry)
        figures: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
        for number in range(arguments.runs):
            for side in sides:
                if side == "pandas" and number >= arguments.pandas_runs:
                    continue
                is_folder = side == "command" or GRAPH in SIDES[side]
                output = folder / (side if is_folder else f"{side}.parquet")
                shutil.rmtree(output, ignore_errors=True)  # each run into a sink of its own
                figures[side].append(run(side, events, model, output, registry))
                if number == 0 and side != "headrace":
                    # The command scores with a bundle of its own.
                    compare(read(folder / "headrace"), read(output), side != "pandas", side != "command")
                    print(f"outputs of headrace and {side} are equal", flush=True)
        report(figures)


def report(figures: dict[str, list[dict[str, Any]]]) -> None:
    figures = {side: runs for side, runs in figures.items() if runs}
    names = ("rows/s", "CPU s", "rows/s whole", "CPU s whole", "peak MiB")
    print(f"{'side':<10} {'runs':>4}" + "".join(f"{name:>14}" for name in names))
    for side, runs in figures.items():
        row = [
            _median(runs, lambda r: r["rows"] / r["total_s"]),
            _median(runs, lambda r: r["cpu_s"]),
            _median(runs, lambda r: r["rows"] / r["process_s"]),
            _median(runs, lambda r: r["process_cpu_s"]),
            _median(runs, lambda r: r["peak_rss_mib"]),
        ]
        shown = [f"{value:>14,.{0 if value > 100 else 2}f}" for value in row]
        print(f"{side:<10} {len(runs):>4}" + "".join(shown))
    if "polars" in figures:
        print("\nagainst polars, medians of pairs: rows/s; rows for a second of processors; both of whole processes")
        for side in [side for side in figures if side != "polars"]:
            keys = ("total_s", "cpu_s", "process_s", "process_cpu_s")
            ratios = [_ratio(figures["polars"], figures[side], key) for key in keys]
            print(f"{side:<10} " + "".join(f"{ratio:>8.2f}" for ratio in ratios))


def _ratio(theirs: list[dict[str, Any]], ours: list[dict[str, Any]], key: str) -> float:
    pairs = list(zip(theirs, ours, strict=False))
    return _median(pairs, lambda pair: pair[0][key] / pair[1][key])


def _median(runs: list[Any], value: Callable[[Any], float]) -> float:
    """Not a number where a side does not tell it."""
    try:
        return statistics.median(map(value, runs))
    except KeyError:
        return math.nan


if __name__ == "__main__":
    main()
