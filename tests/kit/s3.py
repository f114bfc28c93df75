"""An object store of its own for tests, moto's, which speaks S3."""

import contextlib
import importlib.util
import pathlib
import subprocess
import time
import urllib.error
import urllib.request

import pytest

from deploy.kafka.broker import free_ports

SERVER = pathlib.Path(__file__).parents[2] / "build" / "s3" / "bin" / "moto_server"
START_SECONDS = 60

needs_s3 = pytest.mark.skipif(
    not SERVER.exists() or importlib.util.find_spec("boto3") is None,
    reason=f"no {SERVER}: run make s3; or no boto3: pip install boto3",
)


@contextlib.contextmanager
def running(folder):
    """What points clients to a store that keeps all in memory, as environment variables, for as long as the block runs."""
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    with (folder / "s3.log").open("wb") as log:
        process = subprocess.Popen([SERVER, "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + START_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(urllib.error.URLError):
                urllib.request.urlopen(url, timeout=5).close()
                break
            time.sleep(0.1)
        yield {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "tests",
            "AWS_SECRET_ACCESS_KEY": "tests-secret-key",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
        }
    finally:
        process.kill()
        process.wait()
