"""A thread pool that does not keep the interpreter from exiting."""

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from typing import Any

Task = tuple[Future[Any], Callable[[], Any]]


class DaemonPool(Executor):
    """Runs each call in a daemon thread, a new one only where none is idle.

    The standard pool's threads are joined at exit: with a stream open, a process that does not stop its
    emulator would never end. Nor has this one a size, so that streams cannot keep acks from being handled.
    """

    def __init__(self) -> None:
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        self._idle = threading.Semaphore(0)

    def submit(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._tasks.put((future, lambda: call(*args, **kwargs)))
        if not self._idle.acquire(blocking=False):
            threading.Thread(target=self._work, name="pubsub-call", daemon=True).start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the idle threads, and the others when they are idle; waits for none."""
        self._tasks.put(None)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            future, call = task
            try:
                future.set_result(call())
            except BaseException as error:  # noqa: BLE001 - it is for whoever asks for the result
                future.set_exception(error)
            del task, future, call  # an idle thread keeps no call's messages alive
            self._idle.release()
        self._tasks.put(None)  # for the next thread
