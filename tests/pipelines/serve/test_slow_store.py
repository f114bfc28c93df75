"""An endpoint whose Redis is slow, or has what headrace did not write."""

import contextlib
import random
import time

import pytest

from models.store.kinds import kinds_of
from pipelines.store import Progress, StoreError, open_store
from tests.kit import redis
from tests.kit.declared import declared
from tests.kit.endpoints import serving
from tests.kit.serving import SCHEMA, TEXT, as_lines, in_order, make_events
from tests.kit.slow_network import SlowWay
from tests.kit.streams import SECOND

pytestmark = [pytest.mark.serial, pytest.mark.slow, redis.needs_redis]

PROJECT = declared(TEXT, SCHEMA)
EVENTS = [event for event in in_order(make_events(120)) if event["amount"] != 1e9]


@pytest.fixture(scope="module")
def server():
    with redis.running() as running:
        yield running


def score(client, event):
    return client.post("/v1/score", json=event, params={"features": "true"}).json()


def wait_for_ready(client):
    until = time.monotonic() + 60
    while client.get("/v2/health/ready").status_code != 200:
        assert time.monotonic() < until
        time.sleep(0.05)


def test_what_comes_too_late_is_no_answer_to_what_is_asked_next(server):
    """Of waits about as long as the deadline: each answer is the right one or the fallback decision."""
    with serving(PROJECT, open_store(redis.emptied(server), PROJECT.feature_set, create=True)) as client:
        body = b"[" + b",".join(as_lines(EVENTS)) + b"]"
        answers = client.post("/v1/score", content=body, params={"features": "true"}).json()
    expected = {answer["event"]["id"]: answer["features"] for answer in answers if "features" in answer}
    assert len(expected) > 100
    way, chosen, seconds = SlowWay(server.port), random.Random(2), 0.4
    store = open_store(f"redis://127.0.0.1:{way.port}", PROJECT.feature_set, wait_seconds=seconds)
    outcomes = []
    with contextlib.closing(way), serving(PROJECT, store, absorb=False, deadline=seconds) as client:
        for event in chosen.sample([event for event in EVENTS if event["id"] in expected], 10):
            way.seconds = chosen.choice([0.0, 0.8, chosen.uniform(0.2, 0.6)])
            answer = score(client, event)
            outcomes.append("features" in answer)
            assert answer["features"] == expected[event["id"]] if outcomes[-1] else answer["fallback"]
            way.seconds = 0.0
            wait_for_ready(client)
            assert score(client, event)["features"] == expected[event["id"]]
    assert set(outcomes) == {True, False}


def test_a_redis_that_comes_back_with_less_is_not_added_to(server):
    """As one that keeps nothing on disk does: who absorbs is not ready, who reads says that it knows less."""
    uri, feature_set = redis.emptied(server), PROJECT.feature_set
    later = Progress((EVENTS[-1]["at"] + 1) * SECOND)
    with contextlib.closing(open_store(uri, feature_set, create=True)) as stream:
        with (
            serving(PROJECT, open_store(uri, feature_set, create=True)) as absorbing,
            serving(PROJECT, open_store(uri, feature_set), absorb=False) as reading,
        ):
            stream.advance(later)
            assert score(absorbing, EVENTS[0])["complete"] is True
            stream.settle()
            assert score(absorbing, EVENTS[1])["complete"] is True
            next_one = {**EVENTS[1], "id": 10_000, "at": EVENTS[1]["at"] + 1}
            known = score(reading, next_one)
            assert known["complete"] is True
            redis.emptied(server)
            assert score(absorbing, EVENTS[2])["fallback"] is True
            ready = absorbing.get("/v2/health/ready")
            assert (ready.status_code, "has less than it had" in ready.json()["why"]) == (503, True)
            unknown = score(reading, next_one)
            assert (unknown["complete"], unknown["as_of"]) == (False, None)
            assert unknown["features"]["number_M"] == 1 < known["features"]["number_M"]
        with pytest.raises(StoreError, match="has less than it had"):
            stream.advance(later)
    with serving(PROJECT, open_store(uri, feature_set, create=True)) as client:  # one that is started again
        assert "score" in score(client, EVENTS[1])


FOREIGN = {  # what is put under a name, by a client, for the key of an entity
    "a list of marks": ("marks", lambda client, name, key: client.rpush(name, "x")),
    "a mark that is no number": ("marks", lambda client, name, key: client.hset(name, "changes", "many")),
    "a mark of other bytes": ("marks", lambda client, name, key: client.hset(name, b"\xff", 1)),
    "a log that is a text": ("log", lambda client, name, key: client.set(name, "x")),
    "an entry of other fields": ("log", lambda client, name, key: client.xadd(name, {"other": "x"})),
    "an entry of other bytes": ("log", lambda client, name, key: client.xadd(name, {"rows": b"\xff" * 40})),
    "a place that is none": ("settled", lambda client, name, key: client.set(name, "here")),
    "tiles that are a text": ("tiles:{kind}:{start}", lambda client, name, key: client.set(name, "x")),
    "a tile that is none": ("tiles:{kind}:{start}", lambda client, name, key: client.hset(name, key, "x")),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_what_headrace_did_not_write_is_told_and_never_answered_by(server, what):
    import redis as redis_client

    uri, event, (name, put) = redis.emptied(server), EVENTS[0], FOREIGN[what]
    kind = kinds_of(PROJECT)["card"]
    name = name.format(kind=kind.name, start=kind.starts_us(event["at"] * SECOND)[-1])
    with (
        serving(PROJECT, open_store(uri, PROJECT.feature_set), absorb=False) as client,
        contextlib.closing(redis_client.Redis(port=server.port)) as raw,
    ):
        assert "score" in score(client, event)
        put(raw, f"headrace:{PROJECT.feature_set}:{name}", event["card"])
        assert score(client, event)["fallback"] is True
        raw.flushall()
        wait_for_ready(client)
        assert "score" in score(client, event)
