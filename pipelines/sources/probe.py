"""Which records crash what reads them, found in a child process."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

import pyarrow as pa

START_SECONDS = 300.0  # for the child's imports
LOOK_SECONDS = 60.0  # a record that takes longer is as bad as one that crashes

Look = Callable[[pa.RecordBatch], object]


class Probe:
    """Calls `look` on batches in a child process, which is started anew when one has ended it.

    `look` and its arguments are pickled: it is a function of a module, or a partial one. The child is spawned and not
    forked, as other threads of this process may hold locks.
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
            process.kill()
            process.join()
            process.close()
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
        context = multiprocessing.get_context("spawn")
        connection, other = context.Pipe()
        process = context.Process(target=_serve, args=(self._look, other), daemon=True)
        process.start()
        other.close()
        self._running = (process, connection)
        if not connection.poll(START_SECONDS):
            self.close()
            raise RuntimeError(f"a process that probes records did not start within {START_SECONDS:.0f} s")
        connection.recv()
        return connection


def _serve(look: Look, connection: Any) -> None:
    """Look at one batch after another; an error ends the process."""
    connection.send(None)
    while True:
        try:
            batch = connection.recv()
        except EOFError:
            return
        look(batch)
        connection.send(None)
