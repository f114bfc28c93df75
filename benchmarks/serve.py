"""What an endpoint takes a request, beside Feast's feature server and KServe's model server.

    make feast kserve && deploy/load/build.sh && PYTHONPATH=. .venv/bin/python benchmarks/serve.py [--requests 1500]

Trains the example on sample transactions, fills an embedded store with May, and one in Redis where there is a server's
program, and starts each server with so many workers. Each is asked over one connection, one request after another, and
then at rates that do not wait for it, up to the highest with p99 below 50 ms; all of it on this machine's cores.
Peers get what they were made for, and no more work than that: Feast's server gives each event's rolling features as of
its entities' last events, which are scored by the asking process, without a request more; KServe's scores rows of
features with the same model. Peers whose environments are not there are left out, and so are rates without vegeta.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from serving import peers
from serving.client import Request, highest_rate, measure

from models.predictors.booster import Scorer
from models.project.project import load_project
from pipelines.jobs.children import free_port
from pipelines.jobs.fitting import load_bundle

HEADRACE = pathlib.Path(sys.executable).with_name("headrace")
VEGETA = pathlib.Path(__file__).parents[1] / "build" / "load" / "vegeta"
LIST = 100
RATES = [50, 100, 150, 200, 300, 400, 500, 600, 800, 1000, 1200, 1500, 2000, 2500, 3000]
LISTS = [10, 20, 30, 40, 60, 80, 100, 120, 150, 180]


class Report:
    """A table, printed row by row."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self._asked = asked
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {asked.workers} workers\n")
        print("| request | p50, ms | p99, ms | processor, ms | highest rate, events/s |\n|---|---|---|---|---|")

    def add(
        self,
        name: str,
        server: peers.Server,
        requests: Sequence[Request],
        events: int = 1,
        rates: Sequence[int] = (),
        more: Callable[[bytes], object] = len,
    ) -> None:
        """Measure one kind of request, each of so many events."""
        found = measure(server.port, server.pid, requests, events, more)
        highest = "" if not rates or not self._asked.vegeta.exists() else self._highest(server, requests, events, rates)
        print(f"| {name} | {found.p50:.2f} | {found.p99:.2f} | {found.processor:.2f} | {highest} |", flush=True)

    def _highest(self, server: peers.Server, requests: Sequence[Request], events: int, rates: Sequence[int]) -> str:
        best = highest_rate(self._asked.vegeta, server.port, requests, rates, self._asked.seconds)
        return f"{events * best:,}" if best else f"< {events * rates[0]:,}"


def run(folder: pathlib.Path, *argv: str) -> None:
    subprocess.run([HEADRACE, *argv], cwd=folder, check=True, capture_output=True)


@contextlib.contextmanager
def endpoint(folder: pathlib.Path, store: str, workers: int) -> Iterator[peers.Server]:
    """`headrace serve` of the project in a folder."""
    serve = [HEADRACE, "serve", "served", "--store", store, "--port", "0", "--workers", str(workers)]
    with subprocess.Popen(serve, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield peers.Server(int(process.stdout.readline().rstrip().rpartition(":")[2]), process.pid)
        finally:
            process.terminate()
            process.communicate()


@contextlib.contextmanager
def redis_server(folder: pathlib.Path) -> Iterator[str | None]:
    """HOST:PORT of a server of its own; None if its program is not there."""
    program = shutil.which("redis-server")
    if program is None:
        yield None
        return
    port = free_port()
    argv = [program, "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder), "--save", ""]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL) as process:
        time.sleep(1)
        try:
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=int, default=5, help="that each rate is held for")
    parser.add_argument("--vegeta", type=pathlib.Path, default=VEGETA)
    parser.add_argument("--feast", type=pathlib.Path, default=peers.FEAST)
    parser.add_argument("--kserve", type=pathlib.Path, default=peers.KSERVE)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="headrace-serve-") as scratch, redis_server(pathlib.Path(scratch)) as redis:
        folder = pathlib.Path(scratch)
        may = "served/data/*-2018-05-*.parquet"
        run(folder, "init", "served")
        run(folder, "sample", "served/data", "--rows", "100000")
        run(folder, "train", "served", "--source", "served/data/*.parquet")
        stores = {"embedded store": "served/store.db", **({"Redis": f"redis://{redis}"} if redis else {})}
        for store in stores.values():
            run(folder, "store", "fill", "served", "--source", may, "--store", store)
        days = sorted(folder.glob("served/data/*-2018-06-0*.parquet"))
        rows = pa.concat_tables([pq.read_table(day) for day in days]).slice(0, max(asked.requests, 3000)).to_pylist()
        rows = [{**row, "TX_DATETIME": str(row["TX_DATETIME"])} for row in rows]
        events = [json.dumps(row).encode() for row in rows]
        lists = [b"[" + b",".join(events[at : at + LIST]) + b"]" for at in range(0, len(events), LIST)]
        single = [("POST", "/v1/score", event) for event in events[: asked.requests]]
        project = load_project(folder / "served")
        bundle = load_bundle(project, folder / "served", "champion", f"sqlite:///{folder}/served/.headrace/registry.db")
        scorer, width = Scorer.from_bundle(bundle), len(bundle.feature_names)
        tensor = {"name": "features", "shape": [1, width], "datatype": "FP32", "data": [1.5] * width}
        infer = json.dumps({"inputs": [tensor]}).encode()
        report = Report(asked)
        path = f"/v2/models/{project.name}/infer"
        for name, store in stores.items():
            with endpoint(folder, store, asked.workers) as server:
                if store == "served/store.db":
                    report.add("`GET /v2/health/live`", server, [("GET", "/v2/health/live", b"")] * asked.requests)
                    report.add("infer, no features", server, [("POST", path, infer)] * asked.requests, rates=RATES)
                report.add(f"an event, {name}", server, single, rates=RATES)
                several = [("POST", "/v1/score", each) for each in lists]
                report.add(f"a list of {LIST}, {name}", server, several, LIST, LISTS)
        if (asked.kserve / "inputs").exists():
            (folder / "model.ubj").write_bytes(bundle.model)
            port = free_port()
            with peers.kserve_server(asked.kserve, folder / "model.ubj", port, asked.workers) as server:
                requests = [("POST", "/v2/models/model/infer", infer)] * asked.requests
                report.add("KServe, the model alone", server, requests, rates=RATES)
        if (asked.feast / "inputs").exists():
            run(folder, "run", "served", "--source", may, "--sink", "served/run")
            for name, place in (("SQLite", None), *([("Redis", redis)] if redis else [])):
                repository = folder / f"feast-{name}"
                run(folder, "features", "export", "served", "--sink", "served/run", "--feast", str(repository))
                peers.make_feast(asked.feast, repository, place)
                requests = peers.feast_requests(folder / "served", rows[: asked.requests])

                def score(answer: bytes) -> object:
                    return scorer.score(np.array([peers.features_of(answer, project)], np.float32))

                port = free_port()
                with peers.feast_server(asked.feast, repository, port, asked.workers) as server:
                    report.add(f"Feast, {name}, and the model", server, requests, rates=RATES, more=score)
        names = ("xgboost", "pyarrow", "numpy", "starlette", "uvicorn", "httptools")
        print(f"\nPython {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in names))


if __name__ == "__main__":
    main()
