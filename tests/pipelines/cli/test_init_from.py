"""`headrace init --from`: a project for one's own data, which passes `check`, trains, and says what it guessed."""

import importlib.util
import random
import subprocess

import pyarrow.parquet as pq
import pytest
import yaml

from models.project.project import check_project
from models.sample import write_sample
from tests.kit.command import HEADRACE
from tests.kit.support import write_rows

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("tensorflow_data_validation") is None, reason="TFDV is not installed"),
]


def headrace(*args):
    """In a process of its own: TFDV changes the one that it is imported in."""
    return subprocess.run(
        [HEADRACE, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )


def declared(folder):
    project, faults = check_project(folder)
    assert project is not None
    assert faults == []
    return yaml.safe_load((folder / "project.yaml").read_text())


@pytest.fixture(scope="module")
def transactions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_sample(folder, 4000, days=20)
    return f"{folder}/*.parquet"


def tickets(rows=1200):
    """Records without an id or a time called so, with texts, a target of three classes and a field that tells it."""
    drawn = random.Random(3)
    for n in range(rows):
        channel = drawn.choice(["chat", "mail", "call"])
        topic = drawn.choice(["bill", "outage", "other"])
        route = "urgent" if topic == "outage" and channel != "mail" else drawn.choice(["bot", "human"])
        yield {
            "opened": 1_600_000_000 + n * 900,
            "channel": channel,
            "topic": topic,
            "words": drawn.randrange(3, 400),
            "text": f"ticket {n} {drawn.random()}",
            "closed_as": {"urgent": 1, "bot": 2, "human": 3}[route],
            "route": route,
        }


def test_a_project_is_guessed_and_trains(tmp_path, transactions):
    folder = tmp_path / "mine"
    done = headrace("init", folder, "--from", transactions)
    assert done.returncode == 0, done.stdout
    found = declared(folder)
    assert found["event"] == {"id": "TRANSACTION_ID", "time": "TX_DATETIME"}
    assert found["entities"] == {"customer": "CUSTOMER_ID", "terminal": "TERMINAL_ID"}
    assert found["label"]["field"] == "TX_FRAUD"
    assert found["fixed_point"] == {"TX_AMOUNT": 2}
    assert found["available"] == {"TX_FRAUD_SCENARIO": "after 4d"}
    inputs = " ".join(found["model"]["inputs"])
    assert "TX_AMOUNT" in inputs
    assert "SCENARIO" not in inputs
    assert "TX_TIME" not in inputs
    for said in (
        "event.time: TX_DATETIME",
        "label.delay: 4d, a guess",
        "TX_TIME_DAYS is no input: it grows with the time",
    ):
        assert said in done.stdout
        assert said in (folder / "project.yaml").read_text()
    trained = headrace("train", folder, "--source", transactions)
    assert trained.returncode == 0, trained.stdout
    assert "alone tells" not in trained.stdout


def test_what_is_told_is_taken(tmp_path):
    data = write_rows(tmp_path / "tickets.jsonl", list(tickets()))
    folder = tmp_path / "support"
    told = ("--time", "opened", "--label", "route", "--entity", "topic")
    done = headrace("init", folder, "--from", data, *told)
    assert done.returncode == 0, done.stdout
    found = declared(folder)
    assert found["derive"] == {"event_id": "hash()"}
    assert found["target"] == "multiclass"
    assert found["entities"] == {"topic": "topic"}
    assert found["available"] == {"closed_as": "after 2d"}
    assert {"channel", "words"} <= set(found["model"]["inputs"])
    assert "text is no input: it is a text of 1,200 values" in done.stdout
    trained = headrace("train", folder, "--source", data)
    assert trained.returncode == 0, trained.stdout


def test_without_a_label_features_are_written(tmp_path):
    data = write_rows(tmp_path / "tickets.jsonl", list(tickets()))
    folder = tmp_path / "enriched"
    done = headrace("init", folder, "--from", data, "--time", "opened", "--entity", "channel")
    assert done.returncode == 0, done.stdout
    assert "model" not in declared(folder)
    ran = headrace("run", folder, "--source", data, "--sink", folder / "features")
    assert ran.returncode == 0, ran.stdout
    rows = pq.read_table(folder / "features" / "scores")
    assert len(rows) == 1200
    assert "channel_count_1D" in rows.column_names


def test_what_cannot_be_is_said_and_nothing_is_made(tmp_path):
    data = write_rows(tmp_path / "tickets.jsonl", list(tickets(200)))
    done = headrace("init", tmp_path / "mine", "--from", data, "--time", "when")
    assert done.returncode == 1
    assert done.stdout.startswith("headrace: there is no field 'when' in the data; it has opened, channel")
    assert not (tmp_path / "mine").exists()


def test_options_of_from_need_it(tmp_path):
    done = headrace("init", tmp_path / "mine", "--label", "x")
    assert done.returncode == 1
    assert "go with --from" in done.stdout
