"""Alerts: one for each incident, the same in whatever order, and sinks that fail without harm."""

import contextlib
import dataclasses
import functools
import http.server
import itertools
import json
import logging
import random
import re
import threading
import time
import warnings

import apache_beam as beam
import pytest
from apache_beam.utils.timestamp import Timestamp

from models.quality.incidents import Alert, Incidents, Policy, advance, raise_alerts
from models.quality.records import Finding, Verdict
from pipelines.monitoring.alerts import (
    AlertError,
    Alerting,
    FileSink,
    LogSink,
    TopicSink,
    WebhookSink,
    line_of,
    open_sink,
)
from pipelines.monitoring.send import SendAlerts
from pipelines.runners import make_pipeline
from transforms.incidents import RaiseAlerts

HOUR = 3_600_000_000
POLICY = Policy(cool_down_us=3 * HOUR)


def finding(feature="amount", kind="drift", severity="alarm", value=0.5, text="amount drifts"):
    return Finding(feature, kind, severity, value, 0.1, text)


def verdict(hour, *findings, judged=True):
    """The verdict on the window that ends at an hour."""
    return Verdict.make(
        window_start_us=(hour - 1) * HOUR,
        window_end_us=hour * HOUR,
        rows=100,
        status="alarm" if findings else "ok",
        judged=judged,
        circuit_open=False,
        bundle_id="b1",
        findings=findings,
        measures=(),
        counters={},
    )


def told(verdicts, policy=POLICY):
    _, alerts = raise_alerts(verdicts, policy, "cards")
    return [(int(a.window_end[11:13]), a.event, a.feature, a.kind) for a in alerts]


def test_an_incident_opens_is_told_again_after_the_cool_down_and_clears():
    alarms = [verdict(hour, finding()) for hour in range(1, 9)]
    assert told([*alarms, verdict(9), verdict(10)]) == [
        (1, "open", "amount", "drift"),
        (4, "reminder", "amount", "drift"),
        (7, "reminder", "amount", "drift"),
        (9, "clear", "amount", "drift"),
    ]


def test_an_incident_that_comes_back_is_a_new_one():
    seen = told([verdict(1, finding()), verdict(2), verdict(3, finding())])
    assert [event for _, event, *_ in seen] == ["open", "clear", "open"]


def test_an_incident_is_over_after_as_many_quiet_windows_as_declared():
    flapping = [verdict(1, finding()), verdict(2), verdict(3, finding()), verdict(4), verdict(5)]
    assert told(flapping, Policy(10 * HOUR, clear_after=2)) == [
        (1, "open", "amount", "drift"),
        (5, "clear", "amount", "drift"),
    ]


def test_features_and_kinds_are_incidents_of_their_own_in_a_fixed_order():
    first = verdict(1, finding("b"), finding("a", "skew"), finding("a", "drift"))
    assert told([first, verdict(2, finding("b"))]) == [
        (1, "open", "a", "drift"),
        (1, "open", "a", "skew"),
        (1, "open", "b", "drift"),
        (2, "clear", "a", "drift"),
        (2, "clear", "a", "skew"),
    ]


def test_warnings_are_no_alarms_and_the_worst_of_several_is_told():
    assert told([verdict(1, finding(severity="warn"))]) == []
    several = (finding(value=0.2), finding(value=0.9, text="worst"), finding(value=0.3))
    for order in itertools.permutations(several):
        _, alerts = raise_alerts([verdict(1, *order)], POLICY, "cards")
        assert [(a.value, a.text) for a in alerts] == [(0.9, "worst")]


def test_a_window_that_was_not_judged_neither_opens_nor_ends():
    assert told([verdict(1, finding(), judged=False)]) == []
    assert [event for _, event, *_ in told([verdict(1, finding()), verdict(2, judged=False), verdict(3)])] == [
        "open",
        "clear",
    ]
    assert told([verdict(1, finding()), verdict(2, judged=False), verdict(3)])[1][0] == 3


def random_verdicts(seed):
    rng = random.Random(seed)
    return [
        verdict(
            hour,
            *(finding(f, k) for f in "ab" for k in ("drift", "skew") if rng.random() < 0.7),
            judged=rng.random() < 0.9,
        )
        for hour in range(1, 24)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_order_repetition_and_restarts_change_nothing(seed):
    verdicts = random_verdicts(seed)
    _, expected = raise_alerts(verdicts, POLICY, "cards")
    assert {alert.event for alert in expected} == {"open", "reminder", "clear"}
    shuffled = verdicts * 2
    random.Random(seed).shuffle(shuffled)
    assert raise_alerts(shuffled, POLICY, "cards")[1] == expected
    state, alerts = Incidents(), []
    for one in verdicts:
        state, some = advance(Incidents.from_json(state.to_json()), one, POLICY, "cards")
        alerts += some
        assert advance(state, one, POLICY, "cards") == (state, ())
    assert tuple(alerts) == expected
    assert len({alert.alert_id for alert in alerts}) == len(alerts)


def test_every_incident_is_told_once_and_cleared_once():
    for seed in range(20):
        _, alerts = raise_alerts([*random_verdicts(seed), verdict(24)], POLICY, "cards")
        for _, incident in itertools.groupby(
            sorted(alerts, key=lambda a: (a.feature, a.kind, a.window_end)), lambda a: (a.feature, a.kind, a.opened)
        ):
            events = [alert.event for alert in incident]
            assert re.fullmatch("open (reminder )*clear", " ".join(events))


def test_the_graph_raises_the_same_alerts(engine, tmp_path):
    verdicts = random_verdicts(3)
    _, expected = raise_alerts(verdicts, POLICY, "cards")
    random.Random(0).shuffle(verdicts)
    path = tmp_path / "alerts.jsonl"
    with make_pipeline(engine, []) as pipeline:
        raised = pipeline | beam.Create(verdicts) | "Times" >> beam.Map(at_end_of_window) | RaiseAlerts("cards", POLICY)
        raised | SendAlerts((f"file:{path}",))
    assert path.read_bytes().splitlines() == [alert.to_json() for alert in expected]


def at_end_of_window(one):
    return beam.window.TimestampedValue(one, Timestamp(micros=one.window_end_us - 1))


def an_alert(number=1, text="amount drifts"):
    return raise_alerts([verdict(number, finding(text=text))], POLICY, "cards")[1][0]


class Endpoint(http.server.BaseHTTPRequestHandler):
    """Answers with the codes of `answers`, one a request and the last for ever; None hangs until `released`."""

    def __init__(self, answers, received, released, *args):
        self.answers, self.received, self.released = answers, received, released
        super().__init__(*args)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.received.append((self.path, dict(self.headers), json.loads(body)))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer is None:
            self.released.wait(20)
            return
        self.send_response(answer)
        if 300 <= answer < 400:
            self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self):
        self.received.append(("GET", {}, {}))

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def endpoint(*answers):
    """A web server on localhost: its URL and the requests that it has got."""
    received, released = [], threading.Event()
    handler = functools.partial(Endpoint, list(answers), received, released)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/hooks/s3cret?token=s3cret", received
        finally:
            released.set()
            server.shutdown()
            thread.join()


def test_a_webhook_gets_the_alert_as_json():
    with endpoint(200) as (url, received):
        alert = an_alert()
        WebhookSink(url).send(alert)
    ((path, headers, body),) = received
    assert path == "/hooks/s3cret?token=s3cret"
    assert (headers["Content-Type"], headers["Idempotency-Key"]) == ("application/json", alert.alert_id)
    assert body == {**dataclasses.asdict(alert), "text": line_of(alert)}


@pytest.mark.parametrize(
    ("answers", "requests", "fault"),
    [
        ((500, 503, 200), 3, None),
        ((429, 200), 2, None),
        ((500,), 3, "answered 500 at try 3"),
        ((404,), 1, "answered 404 at try 1"),
        ((302,), 1, "answered 302 at try 1"),
        ((307,), 1, "answered 307 at try 1"),
    ],
)
def test_a_webhook_is_tried_again_where_that_may_help(answers, requests, fault):
    with endpoint(*answers) as (url, received):
        expectation = pytest.raises(AlertError, match=fault) if fault else contextlib.nullcontext()
        with expectation:
            WebhookSink(url, backoff_seconds=0.01).send(an_alert())
    assert len(received) == requests


def test_a_webhook_that_hangs_or_is_not_there_times_out():
    with endpoint(None) as (url, received):
        started = time.monotonic()
        with pytest.raises(AlertError, match="timeout|TimeoutError"):
            WebhookSink(url, timeout_seconds=0.2, tries=2, backoff_seconds=0.01).send(an_alert())
        assert time.monotonic() - started >= 0.4
        assert len(received) == 2
    with pytest.raises(AlertError, match="ConnectionRefusedError at try 2"):
        WebhookSink(url, tries=2, backoff_seconds=0.01).send(an_alert())


@pytest.mark.parametrize("answer", [None, 500])
def test_a_failing_webhook_costs_nothing_but_its_own_alerts_and_shows_no_secret(answer, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    path = tmp_path / "new" / "alerts.jsonl"
    alerts = [an_alert(number) for number in range(1, 6)]
    with endpoint(answer) as (url, _):
        # Were they to wait for it, the test would take longer than it may.
        webhook = WebhookSink(url, timeout_seconds=1000, tries=2, backoff_seconds=0.01)
        alerting = Alerting([webhook, FileSink(path), LogSink()], queued=5, close_seconds=0.5)
        for alert in alerts:
            alerting.send([alert])
            time.sleep(0.02)
        alerting.close()
    assert path.read_bytes().splitlines() == [alert.to_json() for alert in alerts]
    assert sum("ALARM cards: amount, drift" in r.message for r in caplog.records if r.levelno == logging.WARNING) == 5
    errors = [r.message for r in caplog.records if r.levelno == logging.ERROR]
    assert errors
    assert all(re.match(r"webhook http://127.0.0.1:\d+(:| is behind| failed)", message) for message in errors)
    assert "s3cret" not in caplog.text


def test_an_error_leads_to_no_secret():
    with endpoint(404) as (url, _), pytest.raises(AlertError) as caught:
        WebhookSink(url).send(an_alert())
    assert caught.value.__cause__ is caught.value.__context__ is None


def test_a_sink_that_closes_does_not_wait_for_its_next_try():
    with endpoint(500) as (url, received):
        webhook = WebhookSink(url, tries=9, backoff_seconds=1000)
        thread = threading.Thread(target=send_in_vain, args=(webhook,))
        thread.start()
        while not received:
            time.sleep(0.01)
        webhook.close()
        thread.join(20)
        assert not thread.is_alive()
    assert len(received) <= 2


def send_in_vain(webhook):
    with pytest.raises(AlertError, match="answered 500"):
        webhook.send(an_alert())


class StuckSink:
    """A sink whose first alert is never delivered."""

    name = "stuck"

    def __init__(self):
        self.started, self.released = threading.Event(), threading.Event()

    def send(self, alert):
        self.started.set()
        self.released.wait(20)

    def close(self):
        self.released.set()


def test_what_a_full_queue_has_no_place_for_is_told_of(caplog):
    sink = StuckSink()
    alerting = Alerting([sink], queued=2, close_seconds=0.05)
    alerting.send([an_alert(1)])
    assert sink.started.wait(10)
    alerting.send([an_alert(number) for number in (2, 3, 4)])
    alerting.close()
    dropped = [r.message for r in caplog.records if "dropped" in r.message]
    assert len(dropped) == 1
    assert "window up to 1970-01-01T04:00:00Z" in dropped[0]
    assert "stuck: gave up with 3 alerts waiting" in caplog.text


def test_sinks_by_their_names(monkeypatch):
    monkeypatch.setenv("HEADRACE_ALERT_WEBHOOK", "https://user:s3cret@chat.example:8443/T0/s3cret")
    monkeypatch.setenv("PAGER", "http://pager.example/s3cret")
    assert open_sink("log").name == "log"
    assert open_sink("file:run/alerts.jsonl").name == "file:run/alerts.jsonl"
    assert open_sink("webhook").name == "webhook https://chat.example:8443"
    assert open_sink("webhook:PAGER").name == "webhook http://pager.example"
    assert "s3cret" not in repr(open_sink("webhook"))
    assert open_sink("kafka://broker:9092/alerts").name == "kafka://broker:9092/alerts"


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "logs",
        "file:",
        "webhook:NOT_SET",
        "ftp://x/s3cret",
        "http:///s3cret",
        "http://x:s3cret/",
        "http://x/s3cret\n",
    ],
)
def test_a_sink_that_can_not_be_is_refused_without_its_secret(uri):
    with pytest.raises(AlertError) as caught:
        open_sink(uri)
    assert "s3cret" not in str(caught.value)


def test_a_topic_gets_a_message_for_each_alert():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You are using a Python version", FutureWarning)
        from pipelines.brokers import open_broker
        from pipelines.pubsub_emulator import PubsubEmulator

    with PubsubEmulator() as emulator, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PUBSUB_EMULATOR_HOST", emulator.address)
        emulator.create("demo", "alerts", "seen")
        alerts = [an_alert(number) for number in (1, 2)]
        with Alerting([open_sink("pubsub://demo/alerts")]) as alerting:
            alerting.send(alerts)
        with contextlib.closing(open_broker("pubsub://demo/seen").subscribe()) as reader:
            payloads = []
            while len(payloads) < 2:
                payloads += reader.receive(10, 5).payloads
        assert payloads == [alert.to_json() for alert in alerts]


def test_a_topic_that_is_not_there_is_told_of(caplog):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You are using a Python version", FutureWarning)
        from pipelines.pubsub_emulator import PubsubEmulator

    with PubsubEmulator() as emulator, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PUBSUB_EMULATOR_HOST", emulator.address)
        with Alerting([TopicSink("pubsub://demo/nowhere")]) as alerting:
            alerting.send([an_alert()])
    assert "pubsub://demo/nowhere failed: Pub/Sub has no topic" in caplog.text


def test_a_line_shows_no_control_characters():
    assert line_of(an_alert(text="x\ny\x1b[31m")).isprintable()


def test_alerts_round_trip_as_json():
    alert = an_alert()
    assert Alert(**json.loads(alert.to_json())) == alert
