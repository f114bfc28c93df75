"""Several processes of one endpoint: each runs the same command, on one socket, and is started again when it dies.

New connections go to whichever process takes them first. Their parent holds the port, and does nothing but watch: when
it is told to end it has each of them end politely, and when it is killed they see their standard input end, and do so.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import select
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence

from pipelines.process import told_to_stop
from pipelines.serve.server import DRAIN_SECONDS
from pipelines.sources.children import end_child, start_child

_LOG = logging.getLogger("headrace")
_SEAT = "HEADRACE_SERVE_SEAT"  # by which a worker knows that it is one
_ENDS = (signal.SIGTERM, signal.SIGINT)
_LOOK_SECONDS = 0.1
_LONG_SECONDS = 10.0  # who lived as long is started again at once
_MOST_WAIT_SECONDS = 30.0


@dataclasses.dataclass(frozen=True)
class Seat:
    """What a worker is given: its number, the socket to listen on, where to say that it is ready, and a folder."""

    number: int
    listener: int
    ready: int
    folder: str

    @classmethod
    def of_environment(cls) -> Seat | None:
        """That of this process; None if it is no worker."""
        text = os.environ.pop(_SEAT, None)
        return None if text is None else cls(**json.loads(text))

    def take(self) -> socket.socket:
        """The socket; from now on the process ends politely when its parent has ended."""
        threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
        return socket.socket(fileno=self.listener)

    def tell_ready(self) -> None:
        """Tell the parent that events can come."""
        with contextlib.suppress(OSError):
            os.write(self.ready, b"1")
            os.close(self.ready)


def _end_with_parent() -> None:
    with contextlib.suppress(OSError):
        os.read(0, 1)  # nothing is ever written there
    os.kill(os.getpid(), signal.SIGTERM)


class _Worker:
    """A seat's process, and when it may be started again."""

    def __init__(self, number: int, arguments: Sequence[str], bound: socket.socket, folder: str) -> None:
        self._number, self._arguments, self._bound, self._folder = number, arguments, bound, folder
        self._deaths = 0
        self._again = 0.0
        self._start()

    def wait_ready(self, stopped: threading.Event) -> bool:
        """Whether it is ready; False if it ends before, or all is stopped."""
        while not stopped.is_set():
            if select.select([self._ready], [], [], _LOOK_SECONDS)[0]:
                return os.read(self._ready, 1) == b"1"
        return False

    def look(self) -> None:
        """Start it again if it has ended, later and later if it does so soon."""
        now = time.monotonic()
        if self.process is not None and self.process.poll() is not None:
            self._deaths = 0 if now - self._started > _LONG_SECONDS else self._deaths + 1
            wait = min(2.0 ** (self._deaths - 1), _MOST_WAIT_SECONDS) if self._deaths else 0.0
            self._again = now + wait
            _LOG.error("worker %d has ended by %s; it starts again", self._number, _ended(self.process.returncode))
            self._close()
        if self.process is None and now >= self._again:
            self._start()

    def tell(self, number: signal.Signals) -> None:
        """Send it a signal."""
        if self.process is not None:
            self.process.send_signal(number)

    def end(self, until: float) -> None:
        """Wait for its end, and kill it at a time of the monotonic clock."""
        if self.process is not None:
            end_child(self.process, max(until - time.monotonic(), 0.0))
            self._close()

    def _start(self) -> None:
        self._started = time.monotonic()
        self._ready, ready = os.pipe()
        seat = Seat(self._number, self._bound.fileno(), ready, self._folder)
        os.environ[_SEAT] = json.dumps(dataclasses.asdict(seat))
        try:
            self.process: subprocess.Popen[bytes] | None = start_child(
                "pipelines.cli.entry",
                *self._arguments,
                stdin=subprocess.PIPE,
                pass_fds=(seat.listener, ready),
                start_new_session=True,  # Ctrl-C is for the parent, which tells its workers
            )
        finally:
            del os.environ[_SEAT]
            os.close(ready)

    def _close(self) -> None:
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.close()
        os.close(self._ready)
        self.process = None


def serve_by_workers(arguments: Sequence[str], number: int, bound: socket.socket, told: Callable[[], None]) -> bool:
    """Serve by so many processes of a command until SIGTERM or Ctrl-C; False if one of them can't start.

    What it says of that it has said itself.
    """
    with tempfile.TemporaryDirectory(prefix="headrace-serve-") as folder, told_to_stop(_ENDS) as stopped:
        workers = [_Worker(0, arguments, bound, folder)]
        try:
            if not workers[0].wait_ready(stopped):  # what is wrong is said once
                return stopped.is_set()
            workers += [_Worker(each, arguments, bound, folder) for each in range(1, number)]
            if not all(worker.wait_ready(stopped) for worker in workers[1:]):
                return stopped.is_set()
            told()
            while not stopped.wait(_LOOK_SECONDS):
                for worker in workers:
                    worker.look()
            return True
        finally:
            bound.close()  # so that no connection waits for workers that take no more
            for worker in workers:
                worker.tell(signal.SIGTERM)
            until = time.monotonic() + DRAIN_SECONDS + 5
            for worker in workers:
                worker.end(until)


def _ended(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
