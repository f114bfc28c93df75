"""What following a log of releases costs a batch, by processor time; it prints one Markdown table.

    python benchmarks/releases.py [--times 8]

`headrace run` over the card transactions, start-up included, follows logs of one record: a champion, one with a shadow,
one with a canary; and with one model and no log. Sides run in turns; ratios are of one turn.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence

from run import children_seconds
from stream.figures import markdown
from stream.processes import PROJECT, headrace, train

from models.predictors.registry import load
from models.rollout.changes import begin
from models.rollout.records import Canary, ReleaseLog
from pipelines.release_store import export

HERE = pathlib.Path(__file__).parent
PLAIN = "champion"


def write_logs(folder: pathlib.Path, registry: str) -> dict[str, tuple[str, ...]]:
    """The options of each side: a log of one record, or none."""
    champion, other = (load("card_fraud", version, registry).bundle_id for version in (1, 2))
    first = begin(champion, time.time_ns() // 1000, "benchmark")
    records = {
        PLAIN: first,
        "with a shadow": dataclasses.replace(first, shadows=(other,)),
        "with a canary of 10%": dataclasses.replace(first, challenger=other, canary=Canary("customer", 1000, other)),
    }
    sides: dict[str, tuple[str, ...]] = {"no log": ("--model", "1")}
    for number, (name, record) in enumerate(records.items()):
        path = folder / f"{number}.jsonl"
        export(ReleaseLog("wall", 5_000_000, (record,)), "card_fraud", path)
        sides[name] = ("--releases", str(path))
    return sides


def measure(events: pathlib.Path, folder: pathlib.Path, registry: str, times: int) -> None:
    """Processor time of the command over all events."""
    sides, sink = write_logs(folder, registry), folder / "sink"

    def run(options: Sequence[str]) -> float:
        before = children_seconds()
        told = ["--source", str(events), "--sink", str(sink), "--registry", registry, *options]
        headrace(folder, "run", str(PROJECT), *told)
        shutil.rmtree(sink)
        return children_seconds() - before

    compare(sides, run, times)


def compare(sides: dict[str, tuple[str, ...]], run: Callable[[Sequence[str]], float], times: int) -> None:
    """Run all sides `times` times, in turns that each begin with another one, and print what each costs."""
    turns, loads = [], []
    for number in range(times):
        seconds = {}
        for name in _rotated(list(sides), number):
            seconds[name] = run(sides[name])
            loads.append(os.getloadavg()[0])
        turns.append(seconds)
        say(f"turn {number + 1}: " + ", ".join(f"{name} {each:.2f} s" for name, each in seconds.items()))
    rows = []
    for name in sides:
        ratios = sorted(turn[name] / turn[PLAIN] for turn in turns)
        found = [statistics.median(turn[name] for turn in turns), statistics.median(ratios)]
        rows.append([name, *found, f"{ratios[0]:.2f} to {ratios[-1]:.2f}"])
    print(markdown(["followed", "processor s, median", f"of {PLAIN}'s in the same turn, median", "range"], rows))
    print(f"\n{times} turns; load {min(loads):.1f} to {max(loads):.1f}, median {statistics.median(loads):.1f}.")


def _rotated(names: list[str], by: int) -> Iterator[str]:
    place = by % len(names)
    yield from names[place:] + names[:place]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, default=HERE.parents[1] / "shared/data/card_transactions")
    parser.add_argument("--times", type=int, default=8)
    asked = parser.parse_args()
    print(f"`releases.py {' '.join(sys.argv[1:])}`, {os.cpu_count()} cores, load before it {os.getloadavg()[0]:.1f}\n")
    events = asked.data / "transactions.parquet"
    with tempfile.TemporaryDirectory(prefix="headrace-releases-") as scratch:
        folder = pathlib.Path(scratch)
        registry = f"sqlite:///{folder}/.headrace/registry.db"
        say("training two models")
        train(folder, events)
        told = ["--source", str(events), "--registry", registry, "--start", "2018-05-24"]
        headrace(folder, "train", str(PROJECT), *told)
        measure(events, folder, registry, asked.times)


if __name__ == "__main__":
    main()
