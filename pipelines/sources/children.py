"""Child processes that do what may end them.

They are no forks, as other threads of this process may hold locks, and none of multiprocessing's, as a daemon may have
none.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any


def start_child(module: str, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    """Python with a module as its main program, which finds the modules that this process finds; as Popen otherwise."""
    path = os.pathsep.join(path or os.getcwd() for path in sys.path)
    command = [sys.executable, "-W", "ignore", "-P", "-m", module, *arguments]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, **options)


def end_child(process: subprocess.Popen[bytes], patience_seconds: float = 0.0) -> None:
    """Wait for a child's end, and kill it if it takes longer."""
    try:
        process.wait(patience_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
