"""Benchmarks of Flink on this machine against the in-process engine; each sub-command prints one Markdown table.

    python benchmarks/flink.py batch [--slots 1,2,4] [--rows 200000,719307,3000000] [--times 2]
    python benchmarks/flink.py stream [--broker kafka] [--rates 1000,5000] [--seconds 60]

Needs `make flink`. A cluster is started for each: a JobManager and a TaskManager, whose Python worker is a process of
its own. Batch: Flink's own duration of the job, and how much of it passed until the first event was read, which is the
start of the worker and the job's setting up; each cluster has run the job once before. Stream: `headrace run` on Flink
with a checkpoint every 2 s, measured from outside as by stream.py.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from run import train as train_model
from stream.figures import markdown
from stream.measure import Setting, measure
from stream.processes import train

sys.path.append(str(pathlib.Path(__file__).parents[1]))
from deploy.flink import cluster

HERE = pathlib.Path(__file__).parent
DATA = HERE.parent.parent / "shared" / "data" / "card_transactions"
HEAP_MB = 1024
ONE = f"""
import json, sys, pathlib
sys.path.insert(0, {str(HERE / "peers")!r})
import headrace_graph
options = json.loads(sys.argv[1])
print(json.dumps(headrace_graph.run(**options)))
"""


def write_rows(source: pathlib.Path, target: pathlib.Path, rows: int) -> None:
    """The first events of the file; what it lacks are those of further customers and terminals."""
    table = pq.read_table(source)
    parts = []
    for copy in range(-(-rows // len(table))):
        part = table
        for name, step in (("TRANSACTION_ID", 10_000_000), ("CUSTOMER_ID", 100_000), ("TERMINAL_ID", 100_000)):
            part = part.set_column(part.column_names.index(name), name, pc.add(part[name], copy * step))
        parts.append(part)
    order = [("TX_DATETIME", "ascending"), ("TRANSACTION_ID", "ascending")]
    pq.write_table(pa.concat_tables(parts).slice(0, rows).sort_by(order), target, row_group_size=131_072)


def one_run(**options: Any) -> dict[str, Any]:
    """The graph in a process of its own, into a sink of its own."""
    shutil.rmtree(options["output"], ignore_errors=True)
    done = subprocess.run([sys.executable, "-c", ONE, json.dumps(options)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"failed: {options}\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def batch(asked: argparse.Namespace, folder: pathlib.Path) -> None:
    """Rows by slots: seconds, of these start-up, and rows a second without it against the in-process engine."""
    model = folder / "model.ubj"
    train_model(asked.data / "transactions.parquet", asked.data / "expected_features.parquet", model)
    table = []
    here, there = {}, {}
    for rows in asked.rows:
        source = folder / f"{rows}.parquet"
        write_rows(asked.data / "transactions.parquet", source, rows)
        paths = {"source": str(source), "model_path": str(model)}
        here[rows] = min(one_run(**paths, output=str(folder / "here"))["total_s"] for _ in range(asked.times))
        table.append([rows, "in process", here[rows], "-", here[rows], rows / here[rows], 1.0])
        say(f"{rows:,} rows in process: {here[rows]:.2f} s")
    for slots in asked.slots:
        how = {"task_managers": 1, "slots": slots, "heap_mb": HEAP_MB}
        with cluster.running(folder / f"slots-{slots}", **how) as running:
            beam_args = [f"--flink_master={running.address}"]
            options = {"runner": "FlinkRunner", "shards": slots, "threads": max(1, 2 // slots), "beam_args": beam_args}
            for number, rows in enumerate([asked.rows[0], *asked.rows]):
                paths = {"source": str(folder / f"{rows}.parquet"), "model_path": str(model)}
                found = []
                for _ in range(asked.times if number else 1):
                    one_run(**paths, output=str(folder / "there"), **options)
                    found.append(duration(running))
                    say(f"{rows:,} rows, {slots} slots: {found[-1][0]:.2f} s, of them {found[-1][1]:.2f} s start-up")
                if number:
                    whole, start = min(found)
                    there[rows, slots] = whole
                    rate = rows / (whole - start)
                    ratio = rate / (rows / here[rows])
                    table.append([rows, f"{slots} slots", whole, start, whole - start, rate, ratio])
    table.sort(key=lambda row: row[0])
    print(markdown(["rows", "where", "seconds", "start-up", "without it", "rows/s without it", "of in process"], table))
    few, many = min(asked.rows), max(asked.rows)
    if few < many:
        for slots in asked.slots:
            ratio = (here[many] - here[few]) / (there[many, slots] - there[few, slots])
            print(f"\n{slots} slots: by the growth from {few:,} to {many:,} rows, {ratio:.2f} of the in-process rate.")


def duration(running: cluster.Cluster) -> tuple[float, float]:
    """Seconds of the cluster's last job, and from its start to the end of the step that names the files."""
    job = max(running.rest("/jobs/overview")["jobs"], key=lambda each: each["start-time"])
    detail = running.rest(f"/jobs/{job['jid']}")
    first = next(vertex for vertex in detail["vertices"] if "List" in vertex["name"])
    return job["duration"] / 1000, (first["end-time"] - detail["start-time"]) / 1000


def stream(asked: argparse.Namespace, folder: pathlib.Path) -> None:
    """Latency at a steady rate with a checkpoint every 2 s, from when an event is due to when its score is read."""
    say("training a model")
    train(folder, asked.data / "transactions.parquet")
    table = []
    with cluster.running(folder / "cluster", task_managers=1, slots=1, heap_mb=HEAP_MB) as running:
        for rate in asked.rates:
            arguments = ("--allowance", "100ms", "--runner", "FlinkRunner", "--flink_master", running.address)
            setting = Setting(asked.broker, asked.data / "transactions.parquet", folder, arguments)
            say(f"{rate:,} events/s for {asked.seconds:.0f} s")
            found = measure(setting, rate, asked.seconds, warm_up=asked.warm_up, tail=5, patience=60)
            job = next(each for each in running.rest("/jobs/overview")["jobs"] if each["state"] == "RUNNING")
            counts = running.rest(f"/jobs/{job['jid']}/checkpoints")["counts"]
            running.cancel_job(job["jid"])
            times = found.latency
            seen = [times.p50, times.p90, times.p99, times.max, times.missing, times.again]
            table.append([rate, found.scored, *seen, counts["completed"], counts["failed"]])
    header = ["events/s", "scored/s", "p50 s", "p90 s", "p99 s", "longest s", "missing", "again"]
    print(markdown([*header, "checkpoints", "failed"], table))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    def numbers(text: str) -> list[int]:
        return [int(each) for each in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for run in (batch, stream):
        made = commands.add_parser(run.__name__, help=run.__doc__)
        made.set_defaults(run=run)
        made.add_argument("--data", type=pathlib.Path, default=DATA, help="folder of the card transactions")
        if run is batch:
            made.add_argument("--slots", type=numbers, default=[1, 2, 4])
            made.add_argument("--rows", type=numbers, default=[200_000, 719_307, 3_000_000])
            made.add_argument("--times", type=int, default=2, help="runs of each, of which the fastest counts")
        else:
            made.add_argument("--broker", choices=("pubsub", "kafka"), default="pubsub", help="embedded, or a mock")
            made.add_argument("--rates", type=numbers, default=[1000, 5000])
            made.add_argument("--seconds", type=float, default=60)
            made.add_argument("--warm-up", type=float, default=20)
    asked = parser.parse_args()
    print(f"`flink.py {' '.join(sys.argv[1:])}`, {os.cpu_count()} cores, load before it {os.getloadavg()[0]:.1f}\n")
    with tempfile.TemporaryDirectory(prefix="headrace-flink-") as scratch:
        asked.run(asked, pathlib.Path(scratch))


if __name__ == "__main__":
    main()
