"""`headrace topics` and `tail`, on the embedded Pub/Sub and a real Kafka."""

import json
import shutil
import threading

import pytest
from typer.testing import CliRunner

from pipelines.brokers import open_broker
from pipelines.cli.main import app
from pipelines.jobs.tail import as_text, read_row
from pipelines.pubsub_emulator import PubsubEmulator
from tests.kit.kafka import real_kafka
from tests.kit.support import CARD_FRAUD

pytestmark = pytest.mark.serial


@pytest.fixture(params=["pubsub", "kafka"])
def place(request, monkeypatch):
    """What the URIs of topics begin with."""
    if request.param == "kafka":
        yield f"kafka://{real_kafka().servers}/"
        return
    with PubsubEmulator() as server:
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", server.address)
        yield "pubsub://demo/"


def headrace(*args, code=0):
    done = CliRunner().invoke(app, [str(arg) for arg in args])
    assert done.exit_code == code, done.output
    return done.output.splitlines()


def test_topics_of_a_sink_are_listed_and_made(place):
    sink = f"{place}listed-scores"
    names = [sink, f"{sink}-dead-letters", f"{sink}-quality"]
    found = headrace("topics", CARD_FRAUD, "--sink", sink, code=1)
    assert [line.split() for line in found] == [
        ["missing", kind, uri] for kind, uri in zip(["scores", "dead_letters", "quality"], names, strict=True)
    ]
    open_broker(names[1]).create()
    found = headrace("topics", CARD_FRAUD, "--sink", sink, "--create")
    assert [line.split()[0] for line in found] == ["made", "there", "made"]
    found = headrace("topics", CARD_FRAUD, "--sink", sink)
    assert [line.split()[0] for line in found] == ["there"] * 3
    for uri in names:
        publisher = open_broker(uri).publisher()
        publisher.publish([b"{}"])
        publisher.close()
        open_broker(uri).create()  # one that is there stays


def test_topics_of_decisions_are_listed_and_made_with_them(place, tmp_path):
    shutil.copytree(CARD_FRAUD, tmp_path / "project")
    with (tmp_path / "project" / "project.yaml").open("a") as file:
        file.write(f"\nsinks: {{block: people, review: '{place}reviewed'}}\n")
    headrace("topics", tmp_path / "project", "--sink", f"{place}routed-scores", "--create")
    found = headrace("topics", tmp_path / "project", "--sink", f"{place}routed-scores")
    assert [line.split() for line in found[-2:]] == [
        ["there", "for", "block", f"{place}people"],
        ["there", "for", "review", f"{place}reviewed"],
    ]


def test_topics_are_those_of_a_broker():
    assert "topics are of a broker" in headrace("topics", CARD_FRAUD, "--sink", "folder", code=1)[0]
    assert "TOPIC is of a broker" in headrace("tail", "folder", code=1)[0]


def test_rows_are_shown_as_they_come_by_decision(place):
    uri = f"{place}tailed"
    broker = open_broker(uri)
    broker.create()
    rows = [{"TRANSACTION_ID": n, "score": n / 8, "decision": ["approve", "block"][n % 2], "x": None} for n in range(4)]
    over = threading.Event()

    def publish():
        publisher = broker.publisher()
        while not over.is_set():  # it looks on from some moment on
            publisher.publish([b"not JSON \x1b[2J", *(json.dumps(row).encode() for row in rows)])
            over.wait(0.2)
        publisher.close()

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        lines = headrace("tail", uri, "--decision", "block", "--count", "2")
        as_json = headrace("tail", uri, "--json", "--decision", "approve", "--count", "2")
    finally:
        over.set()
        thread.join()
    assert lines == ["block  0.125  TRANSACTION_ID=1", "block  0.375  TRANSACTION_ID=3"]
    assert [json.loads(line) for line in as_json] == [rows[0], rows[2]]


def test_a_line_holds_nothing_that_a_terminal_obeys():
    payload = json.dumps({"decision": "block\x1b[2J", "name": "\x9b\u202e", "n": 1.5}).encode()
    assert as_text(payload, read_row(payload)) == '"block\\u001b[2J"  name=\\u009b\\u202e  n=1.5'
    assert as_text(b"\xff\x1b[2J", None) == "\\\\xff\\x1b[2J"
    assert read_row(b"[1]") is None
