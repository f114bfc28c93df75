"""Requests as spans: in the trace of who asks, or of each of their events that is traced; answers are the same bytes."""

import contextlib

import pytest

from pipelines.brokers import open_broker
from pipelines.monitoring.traces import Traces
from pipelines.pubsub_emulator import PubsubEmulator
from pipelines.serve.publishing import Publishing
from tests.kit.declared import declared
from tests.kit.endpoints import open_faulty, serving
from tests.kit.otlp import Collector, attributes
from tests.kit.serving import SCHEMA, START, TEXT

pytestmark = pytest.mark.slow

PROJECT = declared(TEXT, SCHEMA)
EVENTS = [{"id": n, "at": START + 60 + n, "card": "anna", "shop": 1, "amount": 12.5} for n in range(20)]
CALLER, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADER = {"traceparent": f"00-{CALLER}-{SPAN}-01"}


@pytest.fixture
def collector(monkeypatch):
    with Collector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        yield collector


def ask(folder, share, requests, **options):
    """What is answered to (events, headers), with a share of traces or none."""
    folder.mkdir()
    traces = None if share is None else Traces.of_environment(share, PROJECT)
    with serving(PROJECT, open_faulty(folder, PROJECT), traces=traces, **options) as client:
        return [client.post("/v1/score", json=events, headers=headers).content for events, headers in requests]


def test_a_requests_spans_are_its_callers_and_answers_are_the_same(tmp_path, collector):
    requests = [(EVENTS[:3], HEADER), (EVENTS[3], {}), (EVENTS[4], {"traceparent": "garbage"})]
    told = ask(tmp_path / "told", 1e-9, requests)
    assert told == ask(tmp_path / "plain", None, requests)
    spans = {span.name: span for span in collector.wait_for(lambda spans: len(spans) == 4)}
    assert {span.trace_id.hex() for span in spans.values()} == {CALLER}
    own = spans.pop("POST /v1/score")
    assert own.parent_span_id.hex() == SPAN
    assert attributes(own)["headrace.events"] == 3
    assert {name: span.parent_span_id for name, span in spans.items()} == dict.fromkeys(
        ("Wait", "Score", "Answer"), own.span_id
    )


def test_events_of_a_share_are_traced_by_their_ids(tmp_path, collector):
    ask(tmp_path / "told", 0.3, [(EVENTS, {}), *((event, {}) for event in EVENTS)])
    asked = [span for span in collector.wait_for(lambda spans: len(spans) >= 8) if span.name == "POST /v1/score"]
    by_event = {}
    for span in asked:
        by_event.setdefault(attributes(span)["headrace.event_id"], []).append(span)
    assert 0 < len(by_event) < 20
    for spans in by_event.values():
        assert len(spans) == 2
        assert len({span.trace_id for span in spans}) == 1
        assert len({span.span_id for span in spans}) == 2


def test_what_fails_is_told_to_who_asks(tmp_path, collector):
    ask(tmp_path / "told", 1.0, [({"no": "event"}, HEADER), ([], HEADER)])
    spans = collector.wait_for(lambda spans: len(spans) >= 1)
    assert {span.trace_id.hex() for span in spans} == {CALLER}


def test_events_are_published_in_the_trace_of_who_asks(tmp_path, collector, monkeypatch):
    with PubsubEmulator() as server:
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", server.address)
        server.create("demo", "events", "reader")
        sent = Publishing(open_broker("pubsub://demo/events?event_time=at"), PROJECT)
        ask(tmp_path / "told", 1e-9, [(EVENTS[:2], HEADER), (EVENTS[2], {})], publishing=sent)
        reader, found = open_broker("pubsub://demo/reader", traced=True), {}
        with contextlib.closing(reader.subscribe()) as subscription:
            while len(found) < 3:
                if messages := subscription.receive(10, 0.2):
                    found |= dict(zip(messages.payloads, messages.traceparents, strict=True))
    own = next(span for span in collector.wait_for(lambda spans: len(spans) == 4) if span.name == "POST /v1/score")
    wanted = f"00-{CALLER}-{own.span_id.hex()}-01"
    assert sorted(found.values(), key=str) == [wanted, wanted, None]
