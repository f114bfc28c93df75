"""What an endpoint absorbs it publishes, before it answers: so a stream of that topic says the same."""

import contextlib
import itertools
import json
import time

import pytest

from pipelines.brokers import open_broker
from pipelines.pubsub_emulator import PubsubEmulator
from pipelines.serve.publishing import Publishing
from tests.kit import services
from tests.kit.declared import declared
from tests.kit.endpoints import open_faulty, serving
from tests.kit.published import assert_a_stream_says_the_same
from tests.kit.serving import SCHEMA, START, TEXT

pytestmark = pytest.mark.slow

PROJECT = declared(TEXT, SCHEMA)
EVENT = {"id": 1, "at": START + 60, "card": "anna", "shop": 1, "amount": 12.5}
_numbers = itertools.count()


@pytest.fixture
def server(monkeypatch):
    with PubsubEmulator() as server:
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", server.address)
        yield server


@contextlib.contextmanager
def publishing(server, tmp_path, **options):
    """A client of an endpoint that publishes, and a look at what comes to its topic."""
    name = f"events-{next(_numbers)}"
    server.create("demo", name, f"{name}-reader")
    sent = Publishing(open_broker(f"pubsub://demo/{name}?event_time=at"), PROJECT)
    with serving(PROJECT, open_faulty(tmp_path, PROJECT), publishing=sent, **options) as client:
        yield client, open_broker(f"pubsub://demo/{name}-reader?event_time=at")


def score(client, event):
    return client.post("/v1/score", json=event, params={"features": "true"})


def received(broker, number):
    """So many messages' payloads and event times, and that there are no more."""
    found, until = [], time.monotonic() + 30
    with contextlib.closing(broker.subscribe()) as subscription:
        while time.monotonic() < until and len(found) < number:
            if messages := subscription.receive(1000, 0.2):
                found += itertools.zip_longest(messages.payloads, messages.event_times or ())
                subscription.acknowledge(messages.receipt)
        assert subscription.receive(1000, 0.3) is None
    return found


def test_valid_events_are_published_as_they_came_and_others_not(server, tmp_path):
    outlier = {**EVENT, "id": 3, "at": EVENT["at"] + 2}
    with publishing(server, tmp_path) as (client, broker):
        score(client, EVENT)
        score(client, {**EVENT, "id": 2, "card": None})
        score(client, [outlier, 7, {**EVENT, "id": 4}, {**EVENT, "id": 4}])
        found = received(broker, 3)
    assert sorted(json.loads(payload)["id"] for payload, _ in found) == [1, 3, 4]
    assert {json.loads(payload)["id"]: at for payload, at in found}[3] == str(outlier["at"] * 1000)


def test_kafka_takes_them_as_well(tmp_path, request):
    kafka = services.Kafka(request)
    try:
        reader, writer = kafka.place()
        with serving(PROJECT, open_faulty(tmp_path, PROJECT), publishing=Publishing(writer, PROJECT)) as client:
            score(client, [{**EVENT, "id": n} for n in range(20)])
            found = received(reader, 20)
    finally:
        kafka.close()
    assert sorted(json.loads(payload)["id"] for payload, _ in found) == list(range(20))


@pytest.mark.serial
def test_a_stream_of_the_topic_has_the_same_scores_though_its_broker_was_down(tmp_path, request):
    with contextlib.closing(services.Pubsub(request)) as service:
        assert_a_stream_says_the_same(service, tmp_path)


def test_a_broker_that_is_down_gives_the_fallback_decision_and_nothing_is_lost(server, tmp_path):
    with publishing(server, tmp_path, deadline=3.0) as (client, broker):
        assert "score" in score(client, EVENT).json()
        server.stop()
        reply = score(client, {**EVENT, "id": 2}).json()
        assert (reply["decision"], reply["fallback"]) == ("review", True)
        ready = client.get("/v2/health/ready")
        assert (ready.status_code, ready.json()["why"]) == (503, "the broker does not answer")
        third = score(client, {**EVENT, "id": 3}).json()  # which is neither absorbed nor published
        assert third["fallback"] is True
        server.start()
        until = time.monotonic() + 60
        while client.get("/v2/health/ready").status_code != 200:
            assert time.monotonic() < until
            time.sleep(0.1)
        assert "score" in score(client, {**EVENT, "id": 2}).json()
        found = received(broker, 3)
    assert sorted(json.loads(payload)["id"] for payload, _ in found) == [1, 2, 2]  # a stream takes the second as such


def test_a_topic_that_is_gone_is_told_and_what_was_absorbed_is_named(server, tmp_path, caplog):
    project = declared(TEXT.replace("fallback: {action: review}\n", ""), SCHEMA)
    server.create("demo", "gone", "gone-reader")
    sent = Publishing(open_broker("pubsub://demo/gone"), project)
    with serving(project, open_faulty(tmp_path, project), publishing=sent, deadline=2.0) as client:
        assert score(client, EVENT).status_code == 200
        server.stop()
        assert score(client, {**EVENT, "id": 2}).status_code == 503
        sent.close()
    assert "the events of 1 requests are absorbed, and not published" in caplog.text
