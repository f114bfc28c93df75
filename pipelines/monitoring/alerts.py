"""Alerts to where people see them: the log, a file, a webhook, a topic. None of these can hold scoring up.

Each sink has a thread and a bounded queue of its own. One that fails, hangs or is slow is told of in the log and
costs its own alerts, nothing else. Alerts are delivered at least once: their `alert_id` tells repeated ones.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import pathlib
import queue
import re
import threading
import time
import urllib.parse
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, Self

from models.errors import HeadraceError
from models.quality.incidents import Alert
from pipelines.brokers import BrokerError, is_broker, open_broker

if TYPE_CHECKING:
    import httpx

WEBHOOK_VARIABLE = "HEADRACE_ALERT_WEBHOOK"
QUEUED = 1000  # alerts that wait for a slow sink; more are dropped
CLOSE_SECONDS = 10.0

_log = logging.getLogger("headrace.alerts")


class AlertError(HeadraceError):
    """An alert that could not be delivered, or a sink that can't be used; the message holds no secret."""


class AlertSink(Protocol):
    """Where alerts go. It is configuration until the first alert; `send` may wait, and is called by one thread."""

    @property
    def name(self) -> str:
        """What it is called in the log, without secrets."""

    def send(self, alert: Alert) -> None:
        """Deliver one alert; AlertError, BrokerError or OSError if that fails."""

    def close(self) -> None:
        """Disconnect."""


def open_sink(uri: str) -> AlertSink:
    """The sink that a text names; AlertError if it names none.

    `log`; `file:PATH`, JSON lines; `webhook`, whose URL is in the environment variable HEADRACE_ALERT_WEBHOOK, or
    `webhook:VARIABLE`; `https://…`; `pubsub://…` or `kafka://…`.
    """
    kind, _, rest = uri.partition(":")
    if uri == "log":
        return LogSink()
    if kind == "file" and rest:
        return FileSink(pathlib.Path(rest.removeprefix("//")))
    if kind == "webhook":
        variable = rest or WEBHOOK_VARIABLE
        url = os.environ.get(variable)
        if not url:
            raise AlertError(f"webhook: the environment variable {variable} is to hold its URL, and is not set")
        return WebhookSink(url)
    if kind in ("http", "https"):
        return WebhookSink(uri)
    if is_broker(uri):
        return TopicSink(uri)
    raise AlertError(f"{kind!r} is no sink of alerts: log, file:PATH, webhook, https://…, pubsub://… or kafka://…")


@dataclasses.dataclass
class LogSink:
    """A line of the log: a warning for what is open, an info for what is over."""

    name: str = "log"

    def send(self, alert: Alert) -> None:
        level = logging.INFO if alert.event == "clear" else logging.WARNING
        _log.log(level, "%s", line_of(alert))

    def close(self) -> None:
        pass


@dataclasses.dataclass
class FileSink:
    """JSON lines, appended; each is one write, so that several processes may share a file."""

    path: pathlib.Path

    @property
    def name(self) -> str:
        return f"file:{self.path}"

    def send(self, alert: Alert) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab", buffering=0) as file:
            file.write(alert.to_json() + b"\n")

    def close(self) -> None:
        pass


@dataclasses.dataclass
class WebhookSink:
    """A POST of JSON, tried again after connection errors, timeouts and the answers 429 and 5xx.

    The JSON is the alert's, and `text` a line of it all, which chat systems show. Redirects are not followed. Of the
    URL, the log shows host and port alone: path, query and user may be secret.
    """

    url: str = dataclasses.field(repr=False)
    timeout_seconds: float = 5.0
    tries: int = 3
    backoff_seconds: float = 0.5  # before the second try; doubled before each further one

    def __post_init__(self) -> None:
        try:
            parts = urllib.parse.urlsplit(self.url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # it says what it could not parse, which may be a secret
            usable = False
        # What httpx would make of blanks, control characters and others is not what was meant.
        if not usable or re.search(r"[^\x21-\x7e]", self.url):
            raise AlertError("webhook: its URL is not http(s)://HOST/… of printable ASCII characters")
        self._closing = threading.Event()

    @property
    def name(self) -> str:
        parts = urllib.parse.urlsplit(self.url)
        return f"webhook {parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")

    def send(self, alert: Alert) -> None:
        import httpx
        import tenacity

        # They log URLs.
        for name in ("httpx", "httpcore"):
            logging.getLogger(name).setLevel(logging.WARNING)
        body = json.dumps({**dataclasses.asdict(alert), "text": line_of(alert)}, ensure_ascii=False).encode()
        headers = {"Content-Type": "application/json", "Idempotency-Key": alert.alert_id}
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_result(lambda answer: answer[1]),
            stop=tenacity.stop_after_attempt(self.tries) | tenacity.stop_when_event_set(self._closing),
            wait=tenacity.wait_exponential(self.backoff_seconds),
            sleep=tenacity.sleep_using_event(self._closing),
            retry_error_callback=lambda state: state.outcome and state.outcome.result(),
        )
        with httpx.Client(timeout=self.timeout_seconds) as client:
            fault, _ = retrying(self._post, client, body, headers)
        if fault is not None:
            raise AlertError(f"{fault} at try {retrying.statistics['attempt_number']}")

    def _post(self, client: httpx.Client, body: bytes, headers: dict[str, str]) -> tuple[str | None, bool]:
        """What went wrong, if anything did, and whether to try again."""
        import httpx

        try:
            # A stream, as the answer's text is of no use. Redirects are not followed: a POST would become a GET, or
            # take the alert to a host that nobody named.
            with client.stream("POST", self.url, content=body, headers=headers) as answer:
                code = answer.status_code
        except httpx.TransportError as error:
            first: BaseException = error
            while inner := first.__cause__ or first.__context__:  # down to what the system said, such as a refusal
                first = inner
            return type(first).__name__, True
        except httpx.InvalidURL as error:  # its text shows the URL
            return type(error).__name__, False
        return (None if 200 <= code < 300 else f"answered {code}"), code == 429 or code >= 500

    def close(self) -> None:
        self._closing.set()


@dataclasses.dataclass
class TopicSink:
    """A message of JSON for each alert to a Pub/Sub or Kafka topic."""

    uri: str

    def __post_init__(self) -> None:
        self._broker = open_broker(self.uri)
        self._publisher: Any = None

    @property
    def name(self) -> str:
        return self._broker.uri

    def send(self, alert: Alert) -> None:
        if self._publisher is None:
            self._publisher = self._broker.publisher()
        self._publisher.publish([alert.to_json()])

    def close(self) -> None:
        if self._publisher is not None:
            self._publisher.close()


class Alerting:
    """All sinks of a run, each behind a thread; `send` returns at once, `close` waits a bounded time."""

    def __init__(self, sinks: Sequence[AlertSink], *, queued: int = QUEUED, close_seconds: float = CLOSE_SECONDS):
        self._sinks = [_Delivery(sink, queued) for sink in sinks]
        self._close_seconds = close_seconds

    def send(self, alerts: Iterable[Alert]) -> None:
        """Give alerts to every sink; those that a full queue has no place for are dropped and told of."""
        for alert in alerts:
            for sink in self._sinks:
                sink.put(alert)

    def close(self) -> None:
        """Deliver what waits, for a bounded time in all, and disconnect."""
        deadline = time.monotonic() + self._close_seconds
        for sink in self._sinks:
            sink.finish()
        for sink in self._sinks:
            sink.wait(deadline)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _Delivery:
    """A sink, its queue, and the thread that leads from one to the other."""

    def __init__(self, sink: AlertSink, queued: int) -> None:
        self._sink = sink
        self._queue: queue.Queue[Alert] = queue.Queue(queued)
        self._over = threading.Event()
        # A daemon: a sink that hangs does not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name=f"alerts to {sink.name}", daemon=True)
        self._thread.start()

    def put(self, alert: Alert) -> None:
        try:
            self._queue.put_nowait(alert)
        except queue.Full:
            _log.error("%s is behind: dropped: %s", self._sink.name, line_of(alert))

    def finish(self) -> None:
        self._over.set()

    def wait(self, deadline: float) -> None:
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._sink.close()
            _log.error("%s: gave up with %d alerts waiting", self._sink.name, self._queue.qsize() + 1)

    def _run(self) -> None:
        while not (self._over.is_set() and self._queue.empty()):
            try:
                alert = self._queue.get(timeout=0.1)
            except queue.Empty:
                continue
            try:
                self._sink.send(alert)
            except (AlertError, BrokerError, OSError) as error:
                _log.error("%s failed: %s; not delivered: %s", self._sink.name, error, line_of(alert))
        self._sink.close()


def line_of(alert: Alert) -> str:
    """An alert in one line, whatever its texts hold."""
    head = {"open": "ALARM", "reminder": "STILL", "clear": "CLEAR"}[alert.event]
    line = f"{head} {alert.project}: {alert.feature}, {alert.kind}, window up to {alert.window_end}: {alert.text}"
    return "".join(c if c.isprintable() else " " for c in line)[:2000]
