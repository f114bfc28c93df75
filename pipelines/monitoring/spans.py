"""Spans to a collector, by OTLP over HTTP in JSON, from a thread that nothing waits for; what is too much is dropped.

It is told by OpenTelemetry's own environment variables:
https://opentelemetry.io/docs/specs/otel/protocol/exporter/
"""

from __future__ import annotations

import collections
import logging
import os
import re
import threading
import time
import urllib.parse
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from models.errors import HeadraceError
from models.redact import redact
from models.traces import Span, encode_spans

if TYPE_CHECKING:
    import httpx

ENDPOINT, TRACES_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
_HEADERS = ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
MOST_WAITING = 8192  # spans; more are dropped
_AT_ONCE = 512
_EVERY_SECONDS = 1.0
_HEADER = re.compile(r"[!-9;-~]+: ?[\t -~]*")
_TIMEOUT_SECONDS = 10.0
_WAITS = (1.0, 2.0, 4.0)  # before each other try
_AGAIN = (429, 502, 503, 504)

_LOG = logging.getLogger("headrace")


class TraceError(HeadraceError, ValueError):
    """A collector of traces that is not named, or can't be sent to."""


def collector_url() -> str:
    """Where the environment says that spans go; TraceError if it does not, or to where they can't."""
    if not all(_HEADER.fullmatch(f"{name}:{value}") for name, value in pairs_of(*_HEADERS).items()):
        raise TraceError(f"{_HEADERS[0]} names a header that can't be: NAME=VALUE,… of printable ASCII characters")
    protocol = next((text for name in _PROTOCOLS if (text := os.environ.get(name))), "http/json")
    if protocol not in ("http/json", "http/protobuf"):
        raise TraceError(f"{_PROTOCOLS[1]} is {protocol}: spans go by http/json, mostly to port 4318; leave it out")
    base = os.environ.get(ENDPOINT)
    url = os.environ.get(TRACES_ENDPOINT) or (f"{base.rstrip('/')}/v1/traces" if base else "")
    if not url:
        raise TraceError(f"nothing says where traces go: set {ENDPOINT}, such as http://127.0.0.1:4318")
    try:
        parts = urllib.parse.urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        if parts.username is not None:  # it would travel to an engine's workers
            raise TraceError(f"{ENDPOINT}: {redact(url)} names a user: put that into {_HEADERS[0]}")
    except TraceError:
        raise
    except ValueError:
        usable = False
    if not usable or not url.isascii() or not url.isprintable() or " " in url:
        raise TraceError(f"{ENDPOINT}: {redact(url)} is not http://HOST:PORT or https://HOST:PORT")
    return url


def pairs_of(*names: str) -> dict[str, str]:
    """What variables list as `name=value,…`, percent-encoded; a later one counts. What is no pair is left out."""
    found: dict[str, str] = {}
    for name in names:
        for part in os.environ.get(name, "").split(","):
            key, equals, value = part.partition("=")
            if equals and key.strip():
                found[key.strip()] = urllib.parse.unquote(value.strip())
    return found


class SpanSender:
    """Spans on their way to a URL."""

    def __init__(self, url: str, resource: Mapping[str, str]) -> None:
        self._url, self._resource = url, dict(resource)
        self._changed = threading.Condition()  # of the next five, which it guards
        self._waiting: collections.deque[Span] = collections.deque()
        self._dropped = 0
        self._busy = self._gave_up = False
        self._thread: threading.Thread | None = None
        self._flushing = threading.Event()  # someone waits: no more tries

    def send(self, spans: Iterable[Span]) -> None:
        """Take spans, and return at once."""
        with self._changed:
            for span in spans:
                if len(self._waiting) < MOST_WAITING:
                    self._waiting.append(span)
                else:
                    self._dropped += 1
            if self._thread is None and self._waiting:
                self._thread = threading.Thread(target=self._run, name="spans", daemon=True)
                self._thread.start()
            if len(self._waiting) >= _AT_ONCE:
                self._changed.notify_all()

    def flush(self, seconds: float) -> None:
        """Send what waits, for so long at most; where that was not enough once, others do not wait again."""
        with self._changed:
            if self._gave_up:
                return
            self._flushing.set()
            self._changed.notify_all()
            self._gave_up = not self._changed.wait_for(lambda: not (self._waiting or self._busy), seconds)
        self._flushing.clear()

    def _run(self) -> None:
        import httpx

        for name in ("httpx", "httpcore"):  # they log URLs
            logging.getLogger(name).setLevel(logging.WARNING)
        with httpx.Client(timeout=_TIMEOUT_SECONDS, headers=pairs_of(*_HEADERS)) as client:
            while True:
                with self._changed:
                    self._changed.wait_for(
                        lambda: len(self._waiting) >= _AT_ONCE or self._flushing.is_set(), _EVERY_SECONDS
                    )
                    spans = [self._waiting.popleft() for _ in range(min(len(self._waiting), _AT_ONCE))]
                    self._busy = bool(spans)
                if spans:
                    why = self._deliver(client, encode_spans(spans, self._resource))
                    with self._changed:
                        lost, self._dropped = self._dropped + (len(spans) if why else 0), 0
                    if lost:
                        _LOG.warning("%d spans are lost: %s", lost, why or "more came than could be sent")
                    with self._changed:
                        self._busy = False
                        self._gave_up &= bool(why)
                        self._changed.notify_all()
                elif self._flushing.is_set():
                    time.sleep(0.01)  # whoever flushes has not seen yet that nothing waits

    def _deliver(self, client: httpx.Client, body: bytes) -> str:
        """What went wrong, in words without a secret; "" if nothing did."""
        why = self._post(client, body)
        for seconds in _WAITS:
            if not why or not why[1] or self._flushing.wait(seconds):
                break
            why = self._post(client, body)
        return why[0] if why else ""

    def _post(self, client: httpx.Client, body: bytes) -> tuple[str, bool] | None:
        """What went wrong, and whether another try may go better."""
        import httpx

        try:
            with client.stream("POST", self._url, content=body, headers={"Content-Type": "application/json"}) as answer:
                code = answer.status_code
        except httpx.TransportError as error:
            return f"{redact(self._url)} does not answer: {type(error).__name__}", True
        return None if 200 <= code < 300 else (f"{redact(self._url)} answered {code}", code in _AGAIN)
