"""Commands of documents, run as they are printed, in a folder that looks like a clone after `make setup`."""

import contextlib
import fcntl
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile

import pytest

from tests.kit.support import ROOT

BIN = pathlib.Path(sys.executable).parent
EXPORT = 'export PATH="$PWD/.venv/bin:$PATH"'


def make_clone(folder):
    """That folder."""
    for name in ("examples", "pipelines"):
        (folder / name).symlink_to(ROOT / name)
    (folder / ".venv").mkdir()
    (folder / ".venv" / "bin").symlink_to(BIN)
    return folder


def environment():
    """This process's, but for headrace on the PATH and what would choose another registry or server."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HEADRACE") and k != "PUBSUB_EMULATOR_HOST"}
    path = [part for part in kept["PATH"].split(os.pathsep) if pathlib.Path(part) != BIN]
    return {**kept, "PATH": os.pathsep.join(path), "COLUMNS": "100"}


def shell(text):
    """A call that runs commands as a reader would, headrace being on their PATH."""
    return ["bash", "-euc", f"{EXPORT}\n{text}" if EXPORT not in text else text]


@contextlib.contextmanager
def printed_ports(*ports):
    """Ports that a document names, for one test at a time; a test is skipped where another program has one."""
    with (pathlib.Path(tempfile.gettempdir()) / "headrace-printed-ports").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for port in ports:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    pytest.skip(f"port {port}, which the document names, is taken")
        yield


def start(text, clone, log):
    """Commands as a terminal that goes on, with what it says in a file."""
    return subprocess.Popen(shell(text), cwd=clone, env=environment(), stdout=log, stderr=log, start_new_session=True)


def end(process):
    """Kill a terminal and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
