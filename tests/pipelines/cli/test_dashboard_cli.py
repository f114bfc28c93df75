"""`headrace dashboard`, as a user has it."""

import importlib.util
import re
import signal
import subprocess
import time

import httpx
import pytest

from tests.kit.command import HEADRACE
from tests.kit.dashboards import write_day
from tests.kit.support import CARD_FRAUD

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("plotly") is None, reason="plotly is not installed"),
]


def headrace(*argv):
    done = subprocess.run([HEADRACE, "dashboard", *map(str, argv)], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_it_shows_a_folder_that_grows_until_it_is_stopped(tmp_path):
    write_day(tmp_path / "run", 0, 50)
    argv = [
        HEADRACE,
        "dashboard",
        CARD_FRAUD,
        "--run",
        tmp_path / "run",
        "--port",
        "0",
        "--registry",
        f"sqlite:///{tmp_path}/r.db",
    ]
    with subprocess.Popen([*map(str, argv)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            url = re.search("dashboard of card_fraud on (http://127.0.0.1:[0-9]+)", process.stdout.readline())[1]
            assert rows(url, 50) == 50
            write_day(tmp_path / "run", 1, 30)
            assert rows(url, 80) == 80
            assert "plotly.js v" in httpx.get(f"{url}/plotly.js", trust_env=False).text[:200]
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert process.stdout.read() == ""


def rows(url, wanted):
    """The rows that are shown, once it is as many as wanted; after a minute as many as there are."""
    until = time.monotonic() + 60
    while True:
        runs = httpx.get(f"{url}/v1/state", trust_env=False).json()["runs"]
        found = sum(sum(each["rows"]) for run in runs for each in run["decisions"])
        if found == wanted or time.monotonic() > until:
            return found
        time.sleep(0.2)


def test_what_can_not_be_shown_is_said(tmp_path):
    for argv, said in (
        ([], "name what to show"),
        (["--run", tmp_path / "no"], "no such folder"),
        (["--run", "ftp://host/run"], "no file system ftp is known"),
        (["--run", "pubsub://demo/scores"], "--run is a folder"),
        (["--run", tmp_path, "--releases", tmp_path / "no.jsonl"], "no.jsonl"),
    ):
        code, told = headrace(CARD_FRAUD, *argv)
        assert (code, told.count("\n")) == (1, 1), told
        assert told.startswith("headrace: ")
        assert said in told
