"""One event's way as spans, to a collector that reads them by OpenTelemetry's own schema."""

import contextlib
import dataclasses
import itertools
import json
import pickle
import socket

import pytest

from models.traces import Context, Span
from pipelines.graph import GraphConfig, build
from pipelines.monitoring import spans as sending
from pipelines.monitoring.spans import SpanSender, TraceError, collector_url, pairs_of
from pipelines.monitoring.traces import Traces
from pipelines.runners import make_pipeline
from pipelines.sinks.topics import PublishRows
from tests.kit.given import Given
from tests.kit.otlp import Collector, attributes, by_trace
from tests.kit.support import card_fraud, read_stream, tiny_scorer, transaction
from transforms.score import Score

PROJECT = card_fraud()
CALLER, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
BAD = [transaction(5, TRANSACTION_ID=900, TX_AMOUNT=-5), transaction(6, TRANSACTION_ID=901, CUSTOMER_ID=None), b"{oops"]
ROWS = [transaction(n) for n in range(40)]
TAKEN = {}  # what was published, by topic: (payload, attributes)


@dataclasses.dataclass(frozen=True)
class Kept:
    """A topic of this process."""

    uri: str
    max_message_bytes: int = 1 << 20

    def publisher(self):
        return self

    def describe(self, fields):
        pass

    def publish(self, payloads, attributes=None, keys=None):
        TAKEN.setdefault(self.uri, []).extend(zip(payloads, attributes, strict=True))

    def close(self):
        pass


def stream(events, traces, **options):
    """What a stream of events leaves: without times by the clock, and the attributes of each."""
    TAKEN.clear()
    payloads = [each if isinstance(each, bytes) else json.dumps(each).encode() for each in events]
    given = Given(payloads, 1, traceparents=options.pop("traceparents", None))
    source = read_stream(
        PROJECT, given, 86_400_000_000, idle_us=200_000, until_idle=True, horizon_us=40 * 86_400_000_000, traces=traces,
        **options,
    )  # fmt: skip
    at_arrival = source.at_arrival
    score = Score(PROJECT, tiny_scorer(PROJECT.model.inputs), "bundle", keep_marks=at_arrival)
    sink = PublishRows(Kept("scores"), Kept("dead"), project="card_fraud", traces=traces)
    pipeline = make_pipeline("DirectRunner", [])
    build(pipeline, GraphConfig(PROJECT, source, score, sink, at_arrival=at_arrival, traces=traces))
    pipeline.run().wait_until_finish()
    made = {}
    for topic, messages in TAKEN.items():
        said = [(json.loads(payload), told) for payload, told in messages]
        for row, _ in said:
            for name in ("published", "ingested", "scored"):
                row.pop(name, None)
        made[topic] = sorted(said, key=lambda each: json.dumps(each[0], sort_keys=True))
    return made


@pytest.fixture
def collector(monkeypatch):
    with Collector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        yield collector


def traces_of(collector, number):
    """By their ids, those of so many events, once they are whole."""
    return by_trace(collector.wait_for(lambda spans: sum(span.name == "event" for span in spans) >= number))


def names_of(trace):
    return set(trace) - {"event"}


WAY = {"Receive", "Wait", "Validate", "Deduplicate", "Features", "Score", "Write"}


def test_the_way_of_each_event_is_told_and_no_row_changes(collector):
    events = [*ROWS, *BAD, ROWS[3]]
    plain = stream(events, None)
    told = stream(events, Traces.of_environment(1.0, PROJECT))
    for topic in ("scores", "dead"):
        assert [row for row, _ in told[topic]] == [row for row, _ in plain[topic]]
    traces = traces_of(collector, 42)
    scored = {t: spans for t, spans in traces.items() if attributes(spans["event"])["headrace.outcome"] == "written"}
    assert len(scored) == 40
    for trace, spans in scored.items():
        assert names_of(spans) >= WAY, names_of(spans)
        root = spans["event"]
        assert not root.parent_span_id
        assert {span.parent_span_id for name, span in spans.items() if name != "event"} == {root.span_id}
        assert root.start_time_unix_nano == 2_000_000_000 * 10**9
        ends = [spans[name] for name in ("Wait", "Validate", "Deduplicate", "Features", "Score", "Write")]
        if attributes(root)["headrace.event_id"] != str(ROWS[3]["TRANSACTION_ID"]):  # which came twice
            for one, following in itertools.pairwise(ends):
                assert one.end_time_unix_nano == following.start_time_unix_nano
        assert trace in {attributes_of["traceparent"].split("-")[1] for _, attributes_of in told["scores"]}
    dead = [spans["event"] for spans in traces.values() if spans["event"].status.code == 2]
    found = {
        attributes(span)["headrace.event_id"]: (attributes(span)["headrace.step"], span.status.message) for span in dead
    }
    assert found["900"][0] == found["901"][0] == "Validate"
    assert found["901"][1] == "CUSTOMER_ID: missing"
    assert set(found) == {"900", "901"}  # what can't be read has no id
    assert collector.resources[0] == {"headrace.project": "card_fraud", "service.name": "headrace"}
    assert set(collector.paths) == {"/v1/traces"}


def test_a_share_is_the_same_events_in_each_run(collector):
    runs = []
    for events in (ROWS, ROWS[::-1]):
        collector.spans.clear()
        made = stream(events, Traces.of_environment(0.2, PROJECT))
        told = {row["TRANSACTION_ID"] for row, said in made["scores"] if "traceparent" in said}
        traces = traces_of(collector, len(told))
        assert {attributes(each["event"])["headrace.event_id"] for each in traces.values()} == set(map(str, told))
        runs.append(told)
    assert runs[0] == runs[1]
    assert 0 < len(runs[0]) < 25


def test_the_trace_of_who_sent_an_event_goes_on(collector):
    header = f"00-{CALLER}-{SPAN}-01"
    texts = [header if n == 7 else f"00-{CALLER}-{SPAN}-00" if n == 8 else "garbage" for n in range(40)]
    made = stream(ROWS, Traces.of_environment(1e-9, PROJECT), traceparents=texts)
    told = {row["TRANSACTION_ID"]: said["traceparent"] for row, said in made["scores"] if "traceparent" in said}
    (trace,) = traces_of(collector, 1).values()
    assert names_of(trace) == WAY
    assert trace["event"].parent_span_id.hex() == SPAN
    assert told == {ROWS[7]["TRANSACTION_ID"]: f"00-{CALLER}-{trace['event'].span_id.hex()}-01"}


def test_events_that_are_scored_when_they_come_are_told_of_so(collector):
    made = stream(ROWS[:10], Traces.of_environment(1.0, PROJECT), at_arrival=True)
    assert all("traceparent" in said for _, said in made["scores"])
    traces = traces_of(collector, 10)
    for spans in traces.values():
        assert {"Features at arrival", "Score at arrival", "Write", "Wait"} <= set(spans)


def span(name="one"):
    return Span(Context("1" * 32, "2" * 16), "", name, 1, 2)


def test_what_a_collector_refuses_for_now_is_sent_again(monkeypatch):
    monkeypatch.setattr(sending, "_WAITS", (0.01, 0.01, 0.01))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-key=a%20b, other=2,nothing")
    with Collector(503, 429) as collector:
        sender = SpanSender(f"{collector.url}/v1/traces", {})
        sender.send([span()])
        collector.wait_for(lambda spans: len(spans) == 1)
        assert len(collector.paths) == 3
        assert {k.lower(): v for k, v in collector.headers[0].items()}["x-key"] == "a b"


@pytest.mark.parametrize("status", [400, 404])
def test_what_a_collector_refuses_for_good_is_lost_and_told(status, caplog):
    with Collector(status) as collector:
        sender = SpanSender(collector.url, {})
        sender.send([span()])
        sender.flush(30)
        sender.send([span("two")])
        sender.flush(30)
        assert [each.name for each in collector.spans] == ["two"]
    assert f"1 spans are lost: {collector.url} answered {status}" in caplog.text


def test_without_a_collector_nothing_waits_and_what_is_lost_is_told(caplog, monkeypatch):
    monkeypatch.setattr(sending, "MOST_WAITING", 100)
    with Collector() as gone:
        pass
    sender = SpanSender(gone.url, {})
    sender.send([span()] * 5000)
    sender.flush(60)
    assert "spans are lost" in caplog.text
    assert sum(int(each.getMessage().split()[0]) for each in caplog.records if "lost" in each.getMessage()) == 5000


def test_a_collector_that_hangs_holds_an_end_up_once(monkeypatch):
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as silent:
        sender = SpanSender(f"http://127.0.0.1:{silent.getsockname()[1]}", {})
        sender.send([span()])
        wait_for = sender._changed.wait_for
        monkeypatch.setattr(sender._changed, "wait_for", lambda *told: asked.append(told) or wait_for(*told))
        for _ in range(5):  # the ends of a graph's steps, one after another
            sender.flush(0.2)
    assert [told[1] for told in asked].count(0.2) == 1


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318/"}, "http://127.0.0.1:4318/v1/traces"),
        (
            {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://h/x", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://no"},
            "https://h/x",
        ),
        ({}, "nothing says where traces go"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4317"}, "is not http://HOST:PORT"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://u:p@h:1"}, "names a user"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:99999"}, "is not http://HOST:PORT"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "is grpc"),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h", "OTEL_EXPORTER_OTLP_HEADERS": "a=b%0Ac"},
            "a header that can't be",
        ),
    ],
)
def test_where_traces_go_is_said_by_opentelemetrys_variables(monkeypatch, variables, wanted):
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if wanted.endswith(("x", "traces")):
        assert collector_url() == wanted
        return
    with pytest.raises(TraceError, match=wanted):
        collector_url()
    with contextlib.suppress(TraceError):
        assert ":p@" not in str(collector_url())


def test_what_travels_holds_no_secret(monkeypatch, collector):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20hush-hush-hush")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test,service.name=mine")
    traces = Traces.of_environment(0.5, PROJECT)
    assert b"hush" not in pickle.dumps(traces)
    assert dict(traces.resource)["service.name"] == "mine"
    assert pairs_of("OTEL_RESOURCE_ATTRIBUTES")["deployment.environment"] == "test"
    assert pickle.loads(pickle.dumps(traces)).tracer() is traces.tracer()
