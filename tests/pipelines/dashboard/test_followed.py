"""What a stream says of its quality, as the page shows it."""

import json

from pipelines.dashboard.board import Board
from pipelines.dashboard.followed import Followed
from tests.kit.dashboards import EVIL, PROJECT, statistics, verdict

TOPIC = "pubsub://p/scores"


def messages(*records):
    return [record.to_json().encode() for record in records]


def test_incidents_drift_and_scores_are_those_of_the_messages_in_any_order_and_twice():
    days = [verdict(n, *([EVIL] if 1 < n < 4 else []), value=0.3 if 1 < n < 4 else 0.02) for n in range(6)]
    said = messages(*days, *(statistics(n, (10, 20, 70)) for n in range(6)))
    followed = Followed(PROJECT, TOPIC)
    assert followed.refresh()  # there is nothing yet
    assert followed.facts()["windows"] == []
    followed.take(said[::-1])
    followed.take(said[:3])
    assert followed.refresh()
    facts = followed.facts()
    assert [each["status"] for each in facts["windows"]] == ["ok", "ok", "alarm", "alarm", "ok", "ok"]
    assert [each["event"] for each in facts["alerts"]] == ["clear", "reminder", "open"]
    assert facts["open"] == []
    assert len(facts["drift"][0]["ends"]) == 6
    assert facts["score"]["baseline"] is None
    assert facts["score"]["recent"] == [0.1, 0.2, 0.7]
    assert not followed.refresh()


def test_what_is_no_record_is_a_fault_and_harms_nothing():
    followed = Followed(PROJECT, TOPIC)
    followed.take([b"oops", b"[]", b'{"verdict_id": 1}', b"[" * 100_000, *messages(verdict(0))])
    assert followed.refresh()
    assert len(followed.facts()["windows"]) == 1
    (fault,) = followed.facts()["faults"]
    assert "pubsub://p/scores-quality" in fault


def test_the_page_has_it_beside_folders(tmp_path):
    followed = Followed(PROJECT, TOPIC)
    followed.take(messages(verdict(0, "amount")))
    board = Board(PROJECT, [str(tmp_path)], None, None, followed)
    board.refresh()
    runs = json.loads(board.state.body)["runs"]
    assert [run["folder"] for run in runs] == [TOPIC, str(tmp_path)]
    assert [each["feature"] for each in runs[0]["open"]] == ["amount"]
    before = board.state.etag
    board.refresh()
    assert board.state.etag == before
