"""Which records crash what reads them, found in a child process."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import pyarrow as pa

from pipelines.sources.children import end_child, start_child

START_SECONDS = 300.0  # for the child's imports
LOOK_SECONDS = 60.0  # a record that takes longer is as bad as one that crashes

Look = Callable[[pa.RecordBatch], object]


class Probe:
    """Calls `look` on batches in a child process, which is started anew when one has ended it.

    `look` and its arguments are pickled: it is a function of a module, or a partial one.
    """

    def __init__(self, look: Look) -> None:
        self._look = look
        self._running: tuple[Any, Any] | None = None

    def find_crashing(self, batch: pa.RecordBatch) -> list[int]:
        """The rows at which `look` ends the child with an error, by a signal or not in time, found by halving."""
        if not batch.num_rows or self._survives(batch):
            return []
        if batch.num_rows == 1:
            return [0]
        half = batch.num_rows // 2
        rest = self.find_crashing(batch.slice(half))
        return [*self.find_crashing(batch.slice(0, half)), *(half + row for row in rest)]

    def close(self) -> None:
        """End the child."""
        if self._running is not None:
            process, connection = self._running
            self._running = None
            end_child(process)
            connection.close()

    def _survives(self, batch: pa.RecordBatch) -> bool:
        connection = self._running[1] if self._running else self._start()
        try:
            connection.send(batch)
            if connection.poll(LOOK_SECONDS):
                connection.recv()
                return True
        except (EOFError, ConnectionError):
            pass
        self.close()
        return False

    def _start(self) -> Any:
        here, there = socket.socketpair()
        with there:
            process = start_child(__name__, str(there.fileno()), pass_fds=[there.fileno()])
        connection = Connection(here.detach())
        connection.send(self._look)
        self._running = (process, connection)
        if not connection.poll(START_SECONDS):
            self.close()
            raise RuntimeError(f"a process that probes records did not start within {START_SECONDS:.0f} s")
        connection.recv()
        return connection


def _serve(connection: Any) -> None:
    """Look at one batch after another; an error ends the process."""
    look = connection.recv()
    connection.send(None)
    while True:
        try:
            batch = connection.recv()
        except EOFError:
            return
        look(batch)
        connection.send(None)


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))
