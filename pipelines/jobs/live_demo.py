"""`headrace demo --live`: a broker, a stream, an endpoint and a dashboard, with events that go through and an incident.

Events that have happened are published again, a day of them in some seconds. Over the days of the incident one number
of each event is wrong, as if a feed had changed its currency: windows of quality raise alarms, these become alerts, and
they are over some days after the numbers are right again.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
import pathlib
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import numpy as np

from models import metrics
from models.features.row import horizon_us
from models.predictors.training import DAY_US
from models.project.declarations import Project
from models.project.sections import parse_duration
from models.quality.incidents import Alert, to_iso
from pipelines.brokers import open_broker
from pipelines.jobs.children import Children, ended, free_port
from pipelines.jobs.publish import paced
from pipelines.monitoring.alerts import line_of
from pipelines.sources.payloads import event_times, read_payloads

DAY_SECONDS = 5.0  # by the clock, in which a day of events is published
QUIET_DAYS, WRONG_DAYS = 3, 2  # before the incident, and of it
FACTOR = 3.0
ASKED_AT_ONCE = 10
ASK_SECONDS = 0.25
STATUS_SECONDS = 15.0
_TICK_SECONDS = 0.2
_EVENTS, _SCORES = "pubsub://demo/events", "pubsub://demo/scores"


@dataclasses.dataclass(frozen=True)
class Shown:
    """What is published: records in the order of their times, and the field that is wrong in [from, until)."""

    payloads: list[bytes]
    times_us: np.ndarray[Any, np.dtype[np.int64]]
    field: str
    wrong_us: tuple[int, int]

    def message(self, place: int) -> bytes:
        """A record as it is published."""
        start_us, stop_us = self.wrong_us
        if not start_us <= self.times_us[place] < stop_us:
            return self.payloads[place]
        row = json.loads(self.payloads[place])
        number = row.get(self.field)
        return self.payloads[place] if number is None else json.dumps({**row, self.field: _wrong(number)}).encode()


def _wrong(number: float) -> float:
    return round(number * FACTOR, 6)


def prepare(project: Project, source: str, from_us: int, field: str, history: pathlib.Path) -> Shown:
    """The events from a time on, to be published; those that windows need of before go to a file of JSON lines."""
    payloads = read_payloads([source], project.event_type)
    times = event_times(payloads, project)
    order = np.argsort(times, kind="stable")
    since_us = from_us - horizon_us(project, parse_duration("1d"))
    before = [payloads[place] for place in order[(times[order] >= since_us) & (times[order] < from_us)].tolist()]
    history.write_bytes(b"".join(payload + b"\n" for payload in before))
    after = order[times[order] >= from_us]
    wrong_us = from_us + QUIET_DAYS * DAY_US
    return Shown([payloads[p] for p in after.tolist()], times[after], field, (wrong_us, wrong_us + WRONG_DAYS * DAY_US))


class LiveDemo:
    """The processes, what is published to them, and what they say."""

    def __init__(
        self, project: Project, folder: pathlib.Path, output: pathlib.Path, registry: str, shown: Shown, port: int
    ) -> None:
        """`folder` is the project's, `output` what all goes to, `port` the dashboard's, 0 for a free one."""
        self._project, self._folder, self._registry, self._shown = project, str(folder), registry, shown
        self._output = output
        self._alerts = output / "alerts.jsonl"
        self._ports = {name: free_port() for name in ("broker", "stream", "endpoint")} | {
            "dashboard": port or free_port()
        }
        self._over = threading.Event()
        self._sent = 0
        self._answers: list[float] = []  # seconds of each request
        self._answered = 0
        self._told: list[Alert] = []

    def run(self, say: Callable[[str], None], seconds: float | None, stopped: threading.Event) -> Sequence[Alert]:
        """Run until it is stopped, or for so many seconds of events; returns the alerts that were told.

        Raises:
            ChildError: if one of the processes ends, or does not get ready.
        """
        os.environ["PUBSUB_EMULATOR_HOST"] = f"127.0.0.1:{self._ports['broker']}"
        for left in (*self._output.glob("store.db*"), self._alerts):  # of a demo before
            left.unlink(missing_ok=True)
        with ended(Children(self._output, stopped)) as children:
            self._start(children)
            if stopped.is_set():
                return self._told
            for name, path in (("dashboard", ""), ("endpoint", "/docs"), ("stream", "/metrics")):
                say(f"{name + ':':<11}{self._url(name)}{path}")
            since, until = map(to_iso, self._shown.wrong_us)
            say(f"from {since} to {until} every {self._shown.field} is {FACTOR:g} times what it should be")
            threads = [threading.Thread(target=work, daemon=True) for work in (self._publish, self._ask)]
            for thread in threads:
                thread.start()
            self._watch(children, say, seconds, stopped)
            self._over.set()
            for thread in threads:
                thread.join(10)
        return self._told

    def _url(self, name: str) -> str:
        return f"http://127.0.0.1:{self._ports[name]}"

    def _start(self, children: Children) -> None:
        kinds = ["-dead-letters:dead", "-quality"] if self._project.quality else ["-dead-letters:dead"]
        topics = ["events:events", "scores:scores", *(f"scores{kind}" for kind in kinds)]
        named = [part for topic in topics for part in ("--topic", f"demo/{topic}")]
        store = str(self._output / "store.db")
        models = ("--registry", self._registry, "--model", "champion")
        children.start("broker", "pubsub", "--port", str(self._ports["broker"]), *named)
        children.wait_for("broker", lambda: "PUBSUB_EMULATOR_HOST" in children.said("broker"))
        children.start(
            "stream", "run", self._folder, *models, "--source", _EVENTS, "--sink", _SCORES, "--store", store,
            "--history", str(self._output / "history.jsonl"), "--alert-to", f"file:{self._alerts}",
            "--metrics-port", str(self._ports["stream"]),
        )  # fmt: skip
        asked = [f"--{name}={self._url(of)}/metrics" for name, of in (("metrics", "stream"), ("endpoint", "endpoint"))]
        shown = (*asked, "--stream", _SCORES, "--registry", self._registry)
        children.start("dashboard", "dashboard", self._folder, *shown, "--port", str(self._ports["dashboard"]))
        children.wait_for("stream", lambda: metrics.ROUNDS.name in (_get(f"{self._url('stream')}/metrics") or ""))
        children.start(
            "endpoint", "serve", self._folder, *models, "--store", store, "--port", str(self._ports["endpoint"])
        )
        for name, path in (("endpoint", "/v2/health/ready"), ("dashboard", "/v1/state")):
            children.wait_for(name, functools.partial(_is_up, self._url(name) + path))

    def _publish(self) -> None:
        publisher = open_broker(_EVENTS).publisher()
        for start, stop in paced(self._shown.times_us, DAY_US / 1e6 / DAY_SECONDS, self._over):
            publisher.publish([self._shown.message(place) for place in range(start, stop)])
            self._sent = stop
        publisher.close()

    def _ask(self) -> None:
        """Ask the endpoint for scores of the newest events, again and again."""
        asked = 0
        with httpx.Client(base_url=self._url("endpoint"), timeout=10, trust_env=False) as client:
            while not self._over.wait(ASK_SECONDS):
                asked = max(asked, self._sent - ASKED_AT_ONCE)
                if asked == self._sent:
                    continue
                events = [self._shown.message(place) for place in range(asked, self._sent)]
                asked = self._sent
                started = time.monotonic()
                try:
                    answer = client.post("/v1/score", content=b"[" + b",".join(events) + b"]")
                except httpx.HTTPError as error:
                    logging.getLogger("headrace").warning("the endpoint does not answer: %s", error)
                    continue
                self._answers.append(time.monotonic() - started)
                self._answered += len(events) if answer.is_success else 0

    def _watch(
        self, children: Children, say: Callable[[str], None], seconds: float | None, stopped: threading.Event
    ) -> None:
        """Say what happens, until it is over."""
        started = said = time.monotonic()
        is_told = False
        while not stopped.wait(_TICK_SECONDS):
            now = time.monotonic()
            children.check()
            for alert in self._new_alerts():
                say(line_of(alert))
            if now - said >= STATUS_SECONDS and self._sent:
                said = now
                say(self._status())
            if not is_told and self._sent == len(self._shown.payloads):
                is_told = True
                say("all events are published; Ctrl-C ends this")
            if seconds is not None and now - started >= seconds:
                break
        for alert in self._new_alerts():
            say(line_of(alert))

    def _status(self) -> str:
        reached = to_iso(int(self._shown.times_us[self._sent - 1]))
        median = f", {1000 * statistics.median(self._answers[-100:]):.0f} ms a request" if self._answers else ""
        return f"{reached}: {self._sent:,} events published, {self._answered:,} answered by the endpoint{median}"

    def _new_alerts(self) -> list[Alert]:
        """Alerts that the stream has told since the last time."""
        if not self._alerts.exists():
            return []
        *lines, _ = self._alerts.read_text().split("\n")  # the last has no end yet, or nothing
        news = [Alert(**json.loads(line)) for line in lines[len(self._told) :]]
        self._told += news
        return news


def _get(url: str) -> str | None:
    """What an address of this machine says; None if that is nothing, or an error."""
    try:
        answer = httpx.get(url, timeout=5, trust_env=False)
        return answer.text if answer.is_success else None
    except httpx.HTTPError:
        return None


def _is_up(url: str) -> bool:
    return _get(url) is not None
