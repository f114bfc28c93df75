"""`make bench`: headrace's batch graph against hand-written scripts, on the same events and model.

Each side runs in its own process, in turn, several times; first the outputs are checked to be equal. Times
leave out imports and, for headrace, building the graph; "with start-up" is the process as a whole.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xgboost

from models.project.project import load_project

HERE = pathlib.Path(__file__).parent
SIDES = {
    "headrace": ("headrace_graph.py",),
    "polars": ("polars_script.py",),
    "pandas": ("pandas_handbook.py",),
    "watched 7d": ("headrace_graph.py", "DirectRunner", "7d"),
    "watched 1d": ("headrace_graph.py", "DirectRunner", "1d"),
}


def train(events: pathlib.Path, expected: pathlib.Path, model: pathlib.Path) -> None:
    """A model of the handbook's kind: 100 trees of depth 6 on a week of its own features."""
    inputs = load_project(HERE.parent / "examples" / "card_fraud").model.inputs
    transactions, features = pq.read_table(events), pq.read_table(expected)
    columns = [(features if name in features.column_names else transactions)[name].to_numpy() for name in inputs]
    week = (transactions["TX_TIME_DAYS"].to_numpy() // 7) == 7
    matrix = np.column_stack(columns).astype(np.float32)[week]
    label = transactions["TX_FRAUD"].to_numpy()[week]
    data = xgboost.DMatrix(matrix, label, feature_names=inputs)
    xgboost.train({"objective": "binary:logistic", "max_depth": 6, "nthread": 2}, data, 100).save_model(model)


def run(side: str, events: pathlib.Path, model: pathlib.Path, output: pathlib.Path) -> dict[str, Any]:
    """One run of one side: what it prints, and the whole process's seconds."""
    started = time.perf_counter()
    script, *more = SIDES[side]
    command = [sys.executable, str(HERE / "peers" / script), str(events), str(model), str(output), *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr}")
    return {**json.loads(done.stdout.splitlines()[-1]), "process_s": time.perf_counter() - started}


def read(output: pathlib.Path) -> pa.Table:
    paths = sorted((output / "scores").glob("*.parquet")) if output.is_dir() else [output]
    table = pa.concat_tables([pq.read_table(path) for path in paths])
    return table.sort_by([("TX_DATETIME", "ascending"), ("TRANSACTION_ID", "ascending")])


def compare(ours: pa.Table, theirs: pa.Table, exact: bool) -> None:
    """Stop unless both have the same features, scores and decisions (pandas: but for rounding and ties)."""
    for name in theirs.column_names:
        if name in ("TX_DATETIME", "verdict_id", "TX_AMOUNT"):
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
    arguments = parser.parse_args()
    events = arguments.data / "transactions.parquet"
    if not events.exists():
        raise SystemExit(f"no {events}: name the folder of the card transactions with --data")
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as scratch:
        folder = pathlib.Path(scratch)
        model = folder / "model.ubj"
        train(events, arguments.data / "expected_features.parquet", model)
        figures: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
        for number in range(arguments.runs):
            for side in SIDES:
                if side == "pandas" and number >= arguments.pandas_runs:
                    continue
                output = folder / (side if "headrace_graph.py" in SIDES[side] else f"{side}.parquet")
                figures[side].append(run(side, events, model, output))
                if number == 0 and side != "headrace":
                    compare(read(folder / "headrace"), read(output), exact=side != "pandas")
                    print(f"outputs of headrace and {side} are equal", flush=True)
        report(figures)


def report(figures: dict[str, list[dict[str, Any]]]) -> None:
    ours = figures["headrace"]
    print(f"{'side':<10} {'runs':>4} {'rows/s':>12} {'with start-up':>14} {'peak MiB':>9}")
    figures = {side: runs for side, runs in figures.items() if runs}
    for side, runs in figures.items():
        rate = statistics.median(r["rows"] / r["total_s"] for r in runs)
        whole = statistics.median(r["rows"] / r["process_s"] for r in runs)
        print(f"{side:<10} {len(runs):>4} {rate:>12,.0f} {whole:>14,.0f} {max(r['peak_rss_mib'] for r in runs):>9,.0f}")
    for side in [side for side in figures if side != "headrace"]:
        pairs = list(zip(ours, figures[side], strict=False))
        ratio = statistics.median(b["total_s"] / a["total_s"] for a, b in pairs)
        whole = statistics.median(b["process_s"] / a["process_s"] for a, b in pairs)
        if side.startswith("watched"):
            print(f"{side} / headrace: {1 / ratio:.2f} times the rows/s")
        else:
            print(f"headrace / {side}: {ratio:.2f} times the rows/s; with start-up {whole:.2f}")


if __name__ == "__main__":
    main()
