"""`headrace serve` as a process of its own, and a project that it serves."""

import contextlib
import subprocess
import time

import httpx

from models.project.project import load_project
from pipelines.prechecks import registry_of
from tests.kit.command import HEADRACE
from tests.kit.releases import register_bundles
from tests.kit.serving import SCHEMA, TEXT


def make_project(folder, more=""):
    """A project with two bundles in a folder."""
    (folder / "project.yaml").write_text(TEXT + more)
    (folder / "schema.pbtxt").write_text(SCHEMA)
    register_bundles(folder, load_project(folder), registry_of(folder, None), range(2))
    return folder


@contextlib.contextmanager
def serving(folder, *options, store=None):
    """A process that serves, and a client; it is killed at the end, if it has not ended."""
    patient = ("--port", "0", "--deadline", "10")  # on a busy machine a second may be too short
    command = [HEADRACE, "serve", folder, "--store", store or folder / "store.db", *patient, *options]
    with (folder / "serve.log").open("a") as log:
        process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        said = process.stdout.readline()
        assert said.startswith("serving shops on http://127.0.0.1:"), (folder / "serve.log").read_text()
        url = said.split()[-1]
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
            wait_for(lambda: client.get("/v2/health/ready").status_code == 200)
            yield process, client
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def wait_for(there):
    until = time.monotonic() + 60
    while True:
        with contextlib.suppress(httpx.TransportError):
            if there():
                return
        assert time.monotonic() < until
        time.sleep(0.05)


def score(client, event):
    return client.post("/v1/score", json=event, params={"features": "true"})
