"""Peers of the endpoint, each in an environment of its own: Feast's feature server, and KServe's model server."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from models.project.declarations import Project
from models.project.project import load_project

ROOT = pathlib.Path(__file__).parents[2]
FEAST, KSERVE = ROOT / "build" / "feast", ROOT / "build" / "kserve"
_KSERVE_MODEL = ROOT / "benchmarks" / "peers" / "kserve_model.py"
_START_SECONDS = 120


class Server(NamedTuple):
    """A server that answers."""

    port: int
    pid: int


def make_feast(environment: pathlib.Path, repository: pathlib.Path, redis: str | None) -> None:
    """Have Feast take over what `headrace features export` wrote, and the values of each key's last event.

    They go into SQLite, or into Redis at HOST:PORT.
    """
    if redis is not None:
        settings = repository / "feature_store.yaml"
        store = f'online_store: {{type: redis, connection_string: "{redis}"}}'
        settings.write_text(re.sub(r"online_store:.*", store, settings.read_text()))
    for argv in (["apply"], ["materialize", "2018-04-01", "2018-06-02"]):
        subprocess.run(
            [environment / "bin" / "feast", *argv], cwd=repository, env=_quiet(), check=True, capture_output=True
        )


@contextlib.contextmanager
def feast_server(environment: pathlib.Path, repository: pathlib.Path, port: int, workers: int) -> Iterator[Server]:
    """Feast's server, which neither logs requests nor looks at its registry again."""
    serve = [
        "serve",
        "-p",
        str(port),
        "-w",
        str(workers),
        "--no-access-log",
        "--max-requests",
        "100000000",
        "-r",
        "3600",
    ]
    with _running([environment / "bin" / "feast", *serve], repository, port, "/health") as server:
        yield server


@contextlib.contextmanager
def kserve_server(environment: pathlib.Path, model: pathlib.Path, port: int, workers: int) -> Iterator[Server]:
    """KServe's server with a file of a model of XGBoost's."""
    argv = [environment / "bin" / "python", _KSERVE_MODEL, model, str(port), str(workers)]
    with _running(argv, model.parent, port, "/v2/health/live") as server:
        yield server


def feast_requests(folder: pathlib.Path, events: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, bytes]]:
    """For each event a request for the rolling features of its entities."""
    project = load_project(folder)
    names = [f"{f.entity}_features:{f.name}" for f in project.rolling_features]
    keys = list(project.entities.values())
    bodies = ({"features": names, "entities": {key: [event[key]] for key in keys}} for event in events)
    return [("POST", "/get-online-features", json.dumps(body).encode()) for body in bodies]


def features_of(answer: bytes, project: Project) -> list[float]:
    """The model's inputs of Feast's answer, those that are no rolling features left out."""
    told = json.loads(answer)
    found = dict(zip(told["metadata"]["feature_names"], told["results"], strict=True))
    values = (found[name]["values"][0] if name in found else None for name in project.model.inputs)
    return [float("nan") if value is None else float(value) for value in values]


@contextlib.contextmanager
def _running(argv: Sequence[Any], folder: pathlib.Path, port: int, path: str) -> Iterator[Server]:
    """A server, from its first answer on."""
    log = folder / f"server-{port}.log"
    with (
        open(log, "wb") as said,
        subprocess.Popen(argv, cwd=folder, env=_quiet(), stdout=said, stderr=said, start_new_session=True) as process,
    ):
        try:
            until = time.monotonic() + _START_SECONDS
            while True:
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5):
                        break
                except (urllib.error.URLError, OSError):
                    if process.poll() is not None or time.monotonic() > until:
                        raise SystemExit(f"{argv[0]} does not answer:\n{log.read_text()[-3000:]}") from None
                    time.sleep(0.2)
            yield Server(port, process.pid)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 15)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)


def _quiet() -> dict[str, str]:
    return {**os.environ, "FEAST_USAGE": "False", "DO_NOT_TRACK": "1"}
