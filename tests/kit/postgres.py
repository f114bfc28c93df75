"""A PostgreSQL of its own for tests, where the server's programs are there."""

import contextlib
import glob
import importlib.util
import os
import pathlib
import shutil
import subprocess
import tempfile

import pytest
import sqlalchemy as sa

from deploy.kafka.broker import free_ports
from pipelines.databases import transaction

_FOUND = next(iter(sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"), reverse=True)), shutil.which("initdb"))
needs_postgres = pytest.mark.skipif(
    _FOUND is None or importlib.util.find_spec("psycopg") is None,
    reason="no PostgreSQL: apt-get install postgresql; or no psycopg: pip install 'psycopg[binary]'",
)
PASSWORD = "pw-4711-of-tests"
DATABASES = ["sqlite", pytest.param("postgres", marks=[pytest.mark.serial, needs_postgres])]


def emptied(url, monkeypatch):
    """The URL of a running server, whose password is set and whose tables are gone."""
    monkeypatch.setenv("HR_PW", PASSWORD)
    with transaction(url) as connection:
        for name in sa.inspect(connection).get_table_names():
            connection.exec_driver_sql(f'DROP TABLE "{name}" CASCADE')
    return url


@contextlib.contextmanager
def running():
    """The URL of a server for as long as the block runs; the password of its user is that of the variable HR_PW."""
    # A server refuses to run as root.
    user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"] if os.geteuid() == 0 else []
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / "password").write_text(PASSWORD)
        for path in (folder, f"{folder}/password") if user else ():
            shutil.chown(path, "nobody", "nogroup")

        def call(program, *args):
            path = str(pathlib.Path(_FOUND).with_name(program))
            subprocess.run([*user, path, *args], cwd=folder, check=True, stdout=subprocess.DEVNULL, timeout=120)

        call("initdb", "-D", "data", "-U", "headrace", "--pwfile=password", "-A", "scram-sha-256", "-E", "UTF8")
        options = f"-p {port} -k '' -h 127.0.0.1 -c fsync=off"
        call("pg_ctl", "-D", "data", "-w", "-l", "log", "-o", options, "start")
        try:
            yield f"postgresql://headrace:$HR_PW@127.0.0.1:{port}/postgres"
        finally:
            call("pg_ctl", "-D", "data", "-m", "immediate", "stop")
