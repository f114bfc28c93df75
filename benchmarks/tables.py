"""Runs into a Delta table and a table of SQLite against the same run into Parquet files.

    python -m benchmarks.tables --rows 500000 --runs 7

Each run is in a process of its own, the sides in turn; times are of the graph, from its start to `_SUCCESS.json`,
without imports. The features of card_fraud are computed and no model scores, so that writing counts for more.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile

from benchmarks.examples import without_model
from models.project.project import load_project
from pipelines.config import RunSpec
from pipelines.jobs.score import score_files

SIDES = ("parquet", "delta", "sqlite")
HEADRACE = pathlib.Path(sys.executable).with_name("headrace")


def run(side: str, project: pathlib.Path, folder: pathlib.Path) -> dict[str, float]:
    """One run of a side; its seconds, and those of the processor."""
    spec = RunSpec(
        load_project(project),
        (str(folder / "data" / "*.parquet"),),
        str(folder / side),
        databases=(f"sqlite:///{folder / side}/scores.db",) if side == "sqlite" else (),
        sink_format="delta" if side == "delta" else "parquet",
    )
    before = resource.getrusage(resource.RUSAGE_SELF)
    result = score_files(spec, None)
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": result.seconds, "cpu": cpu, "rows": result.outcomes["scored"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.side:
        side, project, told = flags.side
        print(json.dumps(run(side, pathlib.Path(project), pathlib.Path(told))))
        return
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as scratch:
        folder = pathlib.Path(scratch)
        subprocess.run([HEADRACE, "sample", folder / "data", "--rows", str(flags.rows)], check=True)
        project = without_model("card_fraud", folder)
        found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
        for number in range(flags.runs):
            for side in SIDES if number % 2 else SIDES[::-1]:
                shutil.rmtree(folder / side, ignore_errors=True)
                (folder / side).mkdir()
                command = [sys.executable, "-m", "benchmarks.tables", "--side", side, project, folder]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                found[side].append(json.loads(done.stdout.splitlines()[-1]))
        for figure in ("seconds", "cpu"):
            for side in SIDES[1:]:
                pairs = zip(found["parquet"], found[side], strict=True)
                ratios = sorted(one[figure] / other[figure] for one, other in pairs)
                median = statistics.median(each[figure] for each in found[side])
                spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
                print(f"{side}: {median:.2f} {figure}, {spread} of Parquet's rows a second")


if __name__ == "__main__":
    main()
