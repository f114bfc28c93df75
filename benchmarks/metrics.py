"""What metrics cost: `headrace run` with all of them counted, shown and scraped, against one that counts none.

    .venv/bin/python benchmarks/metrics.py [--pairs 8] [--rows 300000] [--streamed 300000] [--only stream]

Both sides are the command as shipped, over the same files and over the same messages, in a process each, by turns;
shown is the processor time (user and system, with child processes). The side without has counting taken out. What both
leave is compared: no result depends on a metric. The first pair, which fills caches, is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator

import numpy as np

from models.project.project import load_project
from pipelines.jobs.children import free_port
from pipelines.pubsub_emulator import PubsubEmulator
from pipelines.sources.payloads import read_payloads

HERE = pathlib.Path(__file__).resolve().parents[1]
ON = "from pipelines.cli.main import main; main()"
OFF = (  # libraries come as the command brings them, which leaves out what a run does not need
    "from pipelines.lean import import_libraries; import_libraries(local={local}); "
    "import transforms.metrics as m; m.count = m.gauge = m.observe = lambda *_, **__: None; "
    "from pipelines.cli.main import main; main()"
)
SCRAPE_SECONDS = 5.0
IDS = "projects/demo/subscriptions/scores"


@contextlib.contextmanager
def scraped(port: int) -> Iterator[list[int]]:
    """Ask for metrics as Prometheus would; the sizes of the answers."""
    over, sizes = threading.Event(), list[int]()

    def ask() -> None:
        while not over.wait(SCRAPE_SECONDS if sizes else 0.2):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
                sizes.append(len(answer.read()))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    try:
        yield sizes
    finally:
        over.set()
        thread.join()


def spent(process: subprocess.Popen[bytes], log: pathlib.Path) -> float:
    """Wait for the end; the processor seconds that were used."""
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(log.read_text())
    return used.ru_utime + used.ru_stime


@contextlib.contextmanager
def running(
    counts: bool, argv: list[str], folder: pathlib.Path
) -> Iterator[tuple[subprocess.Popen[bytes], pathlib.Path]]:
    """`headrace run` of a side, scraped where it counts."""
    log = folder / "log"
    port = free_port()
    more = ["--metrics-port", str(port)] if counts else []
    env = {**os.environ, "PYTHONPATH": str(HERE), "PYTHONWARNINGS": "ignore"}
    with log.open("wb") as out, contextlib.ExitStack() as stack:
        sizes = stack.enter_context(scraped(port)) if counts else [1]
        code = ON if counts else OFF.format(local=not any("://" in each for each in argv))
        command = [sys.executable, "-c", code, "run", "project", *argv, *more]
        yield subprocess.Popen(command, cwd=folder, env=env, stdout=out, stderr=out), log
    if not sizes:
        raise SystemExit("nobody could read the metrics")


def batch(counts: bool, folder: pathlib.Path) -> tuple[float, str]:
    """Processor seconds over files, and a digest of the scores."""
    with running(counts, ["--source", "data/*.parquet", "--sink", "out", "--replace"], folder) as (process, log):
        seconds = spent(process, log)
    files = sorted((folder / "out" / "scores").rglob("*.parquet"))
    return seconds, hashlib.sha256(b"".join(map(pathlib.Path.read_bytes, files))).hexdigest()


def stream(counts: bool, folder: pathlib.Path, payloads: list[bytes]) -> tuple[float, str]:
    """Processor seconds over messages, and how many rows came out."""
    from pipelines.brokers import open_broker

    with PubsubEmulator() as emulator:
        os.environ["PUBSUB_EMULATOR_HOST"] = emulator.address
        for topic, subscription in (("events", "events"), ("scores", "scores"), ("scores-dead-letters", None)):
            emulator.create("demo", topic, subscription)
        emulator.create("demo", "scores-quality")
        argv = ["--source", "pubsub://demo/events", "--sink", "pubsub://demo/scores", "--allowance", "100ms"]
        with running(counts, argv, folder) as (process, log):
            publisher = open_broker("pubsub://demo/events").publisher()
            for start in range(0, len(payloads), 500):
                publisher.publish(payloads[start : start + 500])
            publisher.close()
            until = time.monotonic() + 300
            while (rows := emulator.backlog(IDS).undelivered) < len(payloads):
                if time.monotonic() > until or process.poll() is not None:
                    raise SystemExit(f"{rows} of {len(payloads)} came out: {log.read_text()}")
                time.sleep(0.1)
            process.send_signal(signal.SIGTERM)
            return spent(process, log), str(rows)


def prepare(folder: pathlib.Path, rows: int) -> None:
    """A project with a registered bundle, and its events."""
    for argv in (
        ["init", "project"],
        ["sample", "data", "--rows", str(rows)],
        ["train", "project", "--source", "data/*.parquet"],
    ):
        subprocess.run([sys.executable, "-c", ON, *argv], cwd=folder, check=True, capture_output=True,
                       env={**os.environ, "PYTHONPATH": str(HERE)})  # fmt: skip


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--streamed", type=int, default=300_000)
    parser.add_argument("--only", choices=["batch", "stream"])
    args = parser.parse_args()
    print(
        f"load {os.getloadavg()[0]:.1f} before it\n\n| | rows a processor second, against none counted | least | most |"
    )
    print("|---|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        prepare(folder, args.rows)
        project = load_project(folder / "project")
        newest = sorted((folder / "data").glob("*.parquet"))
        payloads = read_payloads([str(path) for path in newest], project.event_type)[-args.streamed :]
        for what, measure in (
            ("batch", lambda counts: batch(counts, folder)),
            ("stream", lambda counts: stream(counts, folder, payloads)),
        ):
            if args.only not in (None, what):
                continue
            ratios = []
            for pair in range(args.pairs + 1):
                found = {counts: measure(counts) for counts in ((True, False) if pair % 2 else (False, True))}
                if found[True][1] != found[False][1]:
                    raise SystemExit(f"{what}: what came out differs")
                if pair:
                    ratios.append(found[False][0] / found[True][0])
                    print(f"{what}: {found[True][0]:.2f} s with, {found[False][0]:.2f} s without", file=sys.stderr)
            low, high = np.quantile(ratios, [0.0, 1.0])
            print(
                f"| {what}, {args.pairs} pairs | {statistics.median(ratios):.3f} | {low:.3f} | {high:.3f} |", flush=True
            )


if __name__ == "__main__":
    main()
