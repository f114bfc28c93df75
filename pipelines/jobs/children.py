"""Commands of headrace as processes beside this one, each with a log, ended together."""

from __future__ import annotations

import contextlib
import pathlib
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator

from models.errors import HeadraceError
from pipelines.sources.children import end_child, start_child

_END_SECONDS = 30.0
_TICK_SECONDS = 0.1
_LINES = 5  # of a log, that an error shows


class ChildError(HeadraceError):
    """A command beside this one that ended by itself, or does not get ready."""


class Children:
    """Processes by their names; `headrace pubsub`, say, is `start("broker", "pubsub", …)`."""

    def __init__(self, logs: pathlib.Path, stopped: threading.Event) -> None:
        """Logs go to a folder; once it is `stopped`, nothing is waited for."""
        self._logs, self._stopped = logs, stopped
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *argv: str) -> None:
        """Start a command of headrace; what it says goes to its log."""
        with self._log(name).open("wb") as log:
            self._processes[name] = start_child(
                "pipelines.cli.entry",
                *argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the parent, which ends them in their order
            )

    def check(self) -> None:
        """ChildError if one has ended."""
        for name, process in self._processes.items():
            if (code := process.poll()) is not None:
                said = self._log(name).read_text(errors="replace").splitlines()[-_LINES:]
                raise ChildError(f"the {name} has ended with {code}, see {self._log(name)}: {' / '.join(said)}")

    def wait_for(self, name: str, is_ready: Callable[[], bool], seconds: float = 120.0) -> None:
        """Wait until a child is ready; ChildError if one ends, or it takes too long."""
        until = time.monotonic() + seconds
        while not (self._stopped.is_set() or is_ready()):
            self.check()
            if time.monotonic() > until:
                raise ChildError(f"the {name} is not ready after {seconds:g} s, see {self._log(name)}")
            self._stopped.wait(_TICK_SECONDS)

    def said(self, name: str) -> str:
        """The log of a child so far."""
        return self._log(name).read_text(errors="replace")

    def end(self) -> None:
        """End all, the last one first; one that does not end within half a minute is killed."""
        for process in reversed(self._processes.values()):
            if process.poll() is None:
                process.terminate()
            end_child(process, _END_SECONDS)

    def _log(self, name: str) -> pathlib.Path:
        return self._logs / f"{name}.log"


@contextlib.contextmanager
def ended(children: Children) -> Iterator[Children]:
    """The children, for as long as the block runs."""
    try:
        yield children
    finally:
        children.end()


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        return int(tried.getsockname()[1])
