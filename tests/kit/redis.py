"""A Redis of its own for tests, where the server's program is there; with TLS and a user of its ACL, too."""

import contextlib
import importlib.util
import pathlib
import shutil
import socket
import subprocess
import tempfile
import time

import pytest

from deploy.kafka.broker import free_ports

_FOUND = shutil.which("redis-server")
needs_redis = pytest.mark.skipif(
    _FOUND is None or importlib.util.find_spec("redis") is None,
    reason="no Redis: apt-get install redis-server; or no client: pip install redis",
)
PASSWORD = "pw-4711-of-tests"
STORES = ["sqlite", pytest.param("redis", marks=[pytest.mark.serial, needs_redis])]


class Server:
    """A server in a folder, which can be stopped and started again."""

    def __init__(self, folder, *options):
        self.folder = pathlib.Path(folder)
        (self.port,) = free_ports(1)
        self._options = ["--port", str(self.port), *options]
        self.start()

    def start(self):
        program = [_FOUND, "--bind", "127.0.0.1", "--dir", str(self.folder), "--appendonly", "yes", *self._options]
        self._process = subprocess.Popen(program, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop(kill=True)
                raise AssertionError("no Redis after 30 s, or it has ended")
            time.sleep(0.02)

    def stop(self, kill=False):
        (self._process.kill if kill else self._process.terminate)()
        self._process.wait()

    def _answers(self):
        """Whether it does, and has all that it had."""
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as tried:
            tried.sendall(b"PING\r\n")
            return not tried.recv(100).startswith(b"-LOADING")
        return False


@contextlib.contextmanager
def running(*options):
    """A server for as long as the block runs."""
    with tempfile.TemporaryDirectory() as folder:
        server = Server(folder, *options)
        try:
            yield server
        finally:
            server.stop(kill=True)


def emptied(server):
    """The URI of a running server, which then has nothing."""
    import redis

    with contextlib.closing(redis.Redis(port=server.port)) as client:
        client.flushall()
    return f"redis://127.0.0.1:{server.port}"
