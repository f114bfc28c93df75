"""Dead letters sent again: from files and topics, repaired or as they were."""

import json

import pyarrow as pa
import pytest

from pipelines.brokers import open_broker
from pipelines.jobs.dead_letters import Repair, ReplayError, replay
from pipelines.pubsub_emulator import PubsubEmulator
from pipelines.sources.listing import SourceError, match_files
from tests.kit.support import run_graph, transaction, write_rows

pytestmark = [pytest.mark.both_sets, pytest.mark.slow]


@pytest.fixture
def refused(tmp_path):
    """A run with events that are good, have a bad amount, lack a customer, or are no JSON."""
    rows = [
        transaction(0),
        transaction(1, TX_AMOUNT=-5),
        transaction(2, CUSTOMER_ID=None),
        transaction(3, TX_AMOUNT=-5, CUSTOMER_ID=None),
        b"{oops",
    ]
    run_graph(tmp_path / "out", [write_rows(tmp_path / "events.jsonl", rows)])
    return f"{tmp_path}/out/dead_letters/*/*.parquet"


def test_repaired_events_are_scored_as_if_they_had_been_right(refused, tmp_path):
    again = tmp_path / "again.jsonl"
    counts = replay([refused], str(again), Repair(field="TX_AMOUNT", values={"TX_AMOUNT": 7.5, "CUSTOMER_ID": 1}))
    assert counts == {"sent": 2, "left": 2, "not sent": 0}
    scores = run_graph(tmp_path / "repaired", [str(again)]).scores
    right = [transaction(n, TX_AMOUNT=7.5, CUSTOMER_ID=1) for n in (1, 3)]
    assert scores.equals(run_graph(tmp_path / "right", [write_rows(tmp_path / "right.jsonl", right)]).scores)


def test_what_is_sent_as_it_was_is_refused_for_the_same_reasons(refused, tmp_path):
    again = tmp_path / "again.jsonl"
    assert replay([refused], str(again), Repair())["sent"] == 4
    first, second = (run_graph(tmp_path / name, [path]) for name, path in (("a", str(again)), ("b", str(again))))
    assert sorted(first.reasons) == sorted(
        [("TX_AMOUNT", "below 0"), ("CUSTOMER_ID", "missing"), ("CUSTOMER_ID", "missing"), ("(record)", "not JSON")]
    )
    assert first.digest == second.digest
    with pytest.raises(ReplayError, match="is there already"):
        replay([refused], str(again), Repair())


@pytest.mark.parametrize(
    ("repair", "sent", "not_sent"),
    [
        (Repair(step="Decode"), 1, 0),
        (Repair(step="Decode", values={"a": 1}), 0, 1),
        (Repair(rule="missing"), 2, 0),
        (Repair(rule="missing", field="TX_AMOUNT"), 0, 0),
    ],
)
def test_only_what_is_asked_for(refused, tmp_path, repair, sent, not_sent):
    counts = replay([refused], str(tmp_path / "again.jsonl"), repair)
    assert counts == {"sent": sent, "left": 4 - sent - not_sent, "not sent": not_sent}


def test_what_is_no_dead_letter_is_named(tmp_path):
    path = write_rows(tmp_path / "events.jsonl", [transaction(1)])
    with pytest.raises(SourceError, match="no dead letter"):
        replay([path], str(tmp_path / "x"), Repair())
    path = write_rows(tmp_path / "text.jsonl", [b"hello"])
    with pytest.raises(SourceError, match="no dead letter: b'hello"):
        replay([path], str(tmp_path / "y"), Repair())


def test_from_topic_to_topic(refused, tmp_path, monkeypatch):
    letters = [row for path in match_files(refused) for row in pa.parquet.ParquetFile(path).read().to_pylist()]
    monkeypatch.setattr("pipelines.jobs.dead_letters.IDLE_SECONDS", 0.5)
    with PubsubEmulator() as server:
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", server.address)
        _, dead = server.create("p", "dead", "dead")
        server.create("p", "events", "events")
        publisher = open_broker("pubsub://p/dead").publisher()
        publisher.publish(
            [
                json.dumps(letter, default=lambda v: v.decode() if isinstance(v, bytes) else str(v)).encode()
                for letter in letters
            ]
        )
        publisher.close()
        assert replay(["pubsub://p/dead"], "pubsub://p/events", Repair())["sent"] == 4
        left = server.backlog(dead)
        assert left.undelivered + left.outstanding == 0
        events = open_broker("pubsub://p/events").subscribe()
        messages = events.receive(10, 5)
        events.close()
    assert sorted(messages.payloads) == sorted(letter["payload"] for letter in letters)
