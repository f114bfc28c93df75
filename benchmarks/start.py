"""Measure how long commands take from start to end, as ratios to another version of headrace.

    git worktree add --detach ../before REVISION
    .venv/bin/python benchmarks/start.py ../before

Each command runs in a process of its own, this version and the other by turns, with one set of libraries; what both
print must be the same. Shown are medians of the processor time (user and system, with child processes) and of the
time that passed. The first pair, which fills caches, is left out.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

import pyarrow.parquet as pq

HERE = pathlib.Path(__file__).resolve().parents[1]
ENTRY = "from pipelines.cli.entry import main; main()"
COMMANDS = {
    "run --help": ["run", "--help"],
    "check": ["check", "project"],
    "run, a wrong path": ["run", "project", "--source", "nowhere.parquet", "--sink", "scores"],
    "run, a wrong option": ["run", "project", "--source", "small.parquet", "--sink", "scores", "--sinkformat", "x"],
    "models": ["models", "project"],
    "run, 1,000 rows": ["run", "project", "--source", "small.parquet", "--sink", "scores", "--replace"],
}


def start(tree: pathlib.Path, argv: list[str], folder: pathlib.Path, bytecode: bool) -> tuple[float, float, str]:
    """Run a command of a version; returns its processor time and its time, in seconds, and what it printed."""
    env = {**os.environ, "PYTHONPATH": str(tree), "PYTHONWARNINGS": "ignore"}
    if not bytecode:  # looked for where there is none, and not written
        env |= {"PYTHONPYCACHEPREFIX": str(folder / "none"), "PYTHONDONTWRITEBYTECODE": "1"}
    with tempfile.TemporaryFile("w+") as output:
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-c", ENTRY, *argv], cwd=folder, env=env, stdout=output, stderr=output
        )
        _, status, used = os.wait4(process.pid, 0)
        passed = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        said = re.sub(r"read a second.*", "", output.read())
    return used.ru_utime + used.ru_stime, passed, f"{process.returncode}\n{said}"


def prepare(folder: pathlib.Path) -> None:
    """Make a project with a registered bundle, and 1,000 rows to score."""
    for argv in (
        ["init", "project"],
        ["sample", "project/data", "--rows", "100000"],
        ["train", "project", "--source", "project/data/*.parquet"],
    ):
        done = start(HERE, argv, folder, True)
        assert done[2].startswith("0\n"), done[2]
    days = sorted((folder / "project" / "data").glob("*.parquet"))
    pq.write_table(pq.read_table(days[-1]).slice(0, 1000), folder / "small.parquet")


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=pathlib.Path, help="Folder of the other version.")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--no-bytecode", action="store_true", help="As where nothing is compiled.")
    args = parser.parse_args()
    trees = (args.before.resolve(), HERE)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        prepare(folder)
        print(
            "| Command | CPU before | CPU now | ratio | time before | time now | ratio |\n|---|--:|--:|--:|--:|--:|--:|"
        )
        for title, argv in COMMANDS.items():
            pairs = [[start(tree, argv, folder, not args.no_bytecode) for tree in trees] for _ in range(args.pairs + 1)]
            for before, now in pairs:
                assert before[2] == now[2], f"{title}: not the same:\n{before[2]}\n{now[2]}"
            cells = []
            for place in (0, 1):  # the processor's time, and the clock's
                old, new = (statistics.median(pair[side][place] for pair in pairs[1:]) for side in (0, 1))
                ratio = statistics.median(pair[1][place] / pair[0][place] for pair in pairs[1:])
                cells += [f"{old:.2f} s", f"{new:.2f} s", f"{ratio:.2f}"]
            print(f"| `{title}` | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
