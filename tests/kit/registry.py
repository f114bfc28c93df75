"""A real schema registry for tests, Apicurio's with Confluent's interface, where Java and its jars are there."""

import contextlib
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from deploy.kafka.broker import free_ports

LIB = Path(__file__).parents[2] / "build" / "registry" / "lib"
START_SECONDS = 120

needs_registry = pytest.mark.skipif(
    shutil.which("java") is None or not (LIB.parent / "inputs").exists(),
    reason=f"no java, or no registry in {LIB.parent}: run deploy/registry/build.sh",
)


class RealRegistry:
    """The URL of a registry that runs, and what a producer does there."""

    def __init__(self, port):
        self.url = f"http://127.0.0.1:{port}/apis/ccompat/v7"

    def register(self, subject, schema, kind="AVRO"):
        """The id of a schema as the subject's next version."""
        return self.ask("POST", f"/subjects/{subject}/versions", {"schema": json.dumps(schema), "schemaType": kind})[
            "id"
        ]

    def ask(self, method, path, body=None):
        """What the registry answers."""
        header = {"Content-Type": "application/vnd.schemaregistry.v1+json"}
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(self.url + path, data, header, method=method)
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return json.loads(answer.read())


@contextlib.contextmanager
def running(folder):
    """A registry that keeps all in memory, for as long as the block runs."""
    (port,) = free_ports(1)
    (jar,) = LIB.glob("*-runner.jar")
    options = ["-Xmx384m", "-XX:TieredStopAtLevel=1", "-Dquarkus.http.host=127.0.0.1", f"-Dquarkus.http.port={port}"]
    registry = RealRegistry(port)
    with (folder / "registry.log").open("wb") as log:
        process = subprocess.Popen(["java", *options, "-jar", str(jar)], stdout=log, stderr=log, cwd=folder)
    try:
        deadline = time.monotonic() + START_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError, urllib.error.URLError):
                registry.ask("GET", "/subjects")
                break
            time.sleep(0.2)
        yield registry
    finally:
        process.kill()
        process.wait()
