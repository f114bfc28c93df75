"""`headrace run` of the example with sinks and a fallback: its messages are those of the folders of batch."""

import collections
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

from pipelines.brokers import open_broker
from pipelines.pubsub_emulator import PubsubEmulator
from tests.kit.command import HEADRACE
from tests.kit.support import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.serial, pytest.mark.timeout(600)]

EXAMPLE = ROOT / "examples" / "support_routing"
TOPICS = ("routed", "bot_tickets", "human_tickets", "routed-dead-letters", "routed-quality")


def test_each_ticket_comes_to_whom_it_was_decided_for(tmp_path, monkeypatch):
    """Kills are of test_transactional.py, whose streams have a topic of decisions, too."""
    shutil.copytree(EXAMPLE, tmp_path / "project", ignore=shutil.ignore_patterns(".headrace", "schemas"))
    registry = f"sqlite:///{tmp_path}/registry.db"
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "HEADRACE_REGISTRY": registry}
    tickets = str(tmp_path / "tickets.jsonl")
    subprocess.run([sys.executable, EXAMPLE / "sample.py", tickets, "--rows", "4000"], check=True)

    def headrace(*args):
        return subprocess.run(
            [HEADRACE, *map(str, args)], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )

    headrace("train", "project", "--source", tickets)
    headrace("run", "project", "--source", tickets, "--sink", "batch", "--sink-format", "jsonl")
    with PubsubEmulator() as server:
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", server.address)
        environment["PUBSUB_EMULATOR_HOST"] = server.address
        server.create("demo", "tickets", "tickets")
        for name in TOPICS:
            server.create("demo", name, name)
        run = [HEADRACE, "run", "project", "--source", "pubsub://demo/tickets", "--sink", "pubsub://demo/routed"]
        stream = subprocess.Popen(
            [*run, "--journal", "journal", "--allowance", "1h"],
            cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        headrace("publish", "project", "--source", tickets, "--to", "pubsub://demo/tickets")
        wanted, found = read_batch(tmp_path / "batch"), {name: {} for name in TOPICS[:3]}
        deadline = time.monotonic() + 120
        while count(found) < count(wanted) and time.monotonic() < deadline:
            for name, rows in found.items():
                collect(name, rows)
        stream.send_signal(signal.SIGTERM)
        _, log = stream.communicate(timeout=60)
    assert stream.returncode == 0, log
    assert "8 fallback" in log
    assert found["routed"] == {}
    for name in ("bot_tickets", "human_tickets"):
        assert found[name] == wanted[name]


def read_batch(folder):
    """Decision, score and outcome by id, of each folder of decisions."""
    found = collections.defaultdict(dict)
    for name in ("bot_tickets", "human_tickets"):
        for path in sorted(pathlib.Path(folder, name).rglob("*.jsonl")):
            for row in map(json.loads, path.read_text().splitlines()):
                found[name][row["ticket_id"]] = said(row)
    return found


def said(row):
    return row["decision"], row.get("score"), row.get("outcome")


def count(found):
    return sum(map(len, found.values()))


def collect(name, rows):
    """Add what a topic has; what comes again is the same."""
    subscription = open_broker(f"pubsub://demo/{name}").subscribe()
    while (messages := subscription.receive(1000, 0.2)) is not None:
        for row in map(json.loads, messages.payloads):
            assert rows.setdefault(row["ticket_id"], said(row)) == said(row)
        subscription.acknowledge(messages.receipt)
    subscription.close()
