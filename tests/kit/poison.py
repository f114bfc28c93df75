"""A look at records that one of them ends; a module of its own, as a child process imports it."""

import os
import signal


def die_of_poison(batch):
    if any(b"poison" in payload for payload in batch.column("__payload").to_pylist()):
        os.kill(os.getpid(), signal.SIGKILL)
