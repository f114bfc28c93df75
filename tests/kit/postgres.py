"""A PostgreSQL of its own for tests, where the server's programs are there."""

import contextlib
import glob
import importlib.util
import os
import pathlib
import shutil
import subprocess

import pytest

_FOUND = shutil.which("initdb") or next(iter(sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))), None)
BIN = pathlib.Path(_FOUND).resolve().parent if _FOUND else None

needs_postgres = pytest.mark.skipif(
    BIN is None or importlib.util.find_spec("psycopg") is None,
    reason="no PostgreSQL: apt-get install postgresql; or no psycopg: pip install 'psycopg[binary]'",
)
PASSWORD = "pw-4711-of-tests"


@contextlib.contextmanager
def running(folder):
    """The URL of a server with a database `shop` of the user `headrace`, whose password is that of the variable HR_PW."""
    user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"] if os.geteuid() == 0 else []
    folder.mkdir()
    for path in [folder, *folder.parents][:4] if user else []:
        path.chmod(path.stat().st_mode | 0o711)
    if user:
        shutil.chown(folder, "nobody", "nogroup")
    (folder / "pw").write_text(PASSWORD)
    if user:
        shutil.chown(folder / "pw", "nobody", "nogroup")

    def call(program, *args):
        subprocess.run([*user, str(BIN / program), *args], cwd=folder, check=True, capture_output=True, timeout=120)

    call("initdb", "-D", "data", "-U", "headrace", "--pwfile=pw", "-A", "scram-sha-256", "-E", "UTF8", "--locale=C")
    port = 21_432
    options = f"-p {port} -k '' -h 127.0.0.1 -c fsync=off"
    call("pg_ctl", "-D", "data", "-w", "-l", "log", "-o", options, "start")
    try:
        yield f"postgresql://headrace:$HR_PW@127.0.0.1:{port}/postgres"
    finally:
        call("pg_ctl", "-D", "data", "-m", "immediate", "stop")
