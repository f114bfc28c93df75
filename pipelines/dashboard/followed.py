"""What a stream says of the quality of its score rows, as it says it: statistics and verdicts from its topic."""

from __future__ import annotations

import collections
import contextlib
import json
import threading
from collections.abc import Iterable
from typing import Any

from models.errors import HeadraceError
from models.project.declarations import Project
from models.quality.records import Verdict, WindowStatistics
from models.routes import topic_of
from pipelines.dashboard.quality import Part, part_of, sum_up
from pipelines.dashboard.sink import cut, quality_facts

MOST_RECORDS = 5000  # the newest; two of a window
AGAIN_SECONDS = 5.0
_WAIT_SECONDS = 0.5


class Followed:
    """The quality records of a stream from now on, or of a topic that keeps them, all; the page shows it as a run."""

    def __init__(self, project: Project, sink: str) -> None:
        """`sink` is the topic of the stream's scores."""
        self.project, self.folder = project, sink
        self._topic = topic_of(sink, "quality")
        self._parts: collections.deque[Part] = collections.deque(maxlen=MOST_RECORDS)
        self._news: collections.deque[bytes] = collections.deque(maxlen=MOST_RECORDS)
        self._fault: str | None = None
        self._told: str | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="stream", daemon=True)
        self._facts: dict[str, Any] | None = None

    def start(self) -> None:
        """Follow it in a thread, until `stop`."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, which gives its subscription back."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(5)

    def take(self, payloads: Iterable[bytes]) -> None:
        """Messages have come."""
        self._news.extend(payloads)

    def refresh(self) -> bool:
        """Read what has come; whether anything did."""
        came = False
        while self._news:
            came = True
            part = self._read(self._news.popleft())
            if part is not None:
                self._parts.append(part)
        fault = self._fault
        if not (came or self._facts is None or fault != self._told):
            return False
        self._told = fault
        self._facts = self._make(fault)
        return True

    def facts(self) -> dict[str, Any]:
        """What the page shows, as of the last refresh; times in milliseconds since 1970 UTC."""
        return self._facts or self._make(self._fault)

    def _read(self, payload: bytes) -> Part | None:
        """What a message says; None, and a fault, if it is no quality record."""
        try:
            kind = Verdict if "verdict_id" in json.loads(payload) else WindowStatistics
            return part_of([kind.from_json(payload)])
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            self._fault = f"{self._topic}: has a message that is no quality record: {type(error).__name__}"
            return None

    def _make(self, fault: str | None) -> dict[str, Any]:
        return {
            "folder": self.folder,
            "followed": True,
            "faults": [] if fault is None else [cut(fault)],
            "more_faults": 0,
            "events": {},
            "step": 0,
            "starts": [],
            "decisions": [],
            **quality_facts(sum_up(self._parts, self.project)),
            "figures": [],
            "objectives": [],
        }

    def _follow(self) -> None:
        from pipelines.brokers import open_broker  # with the client of its kind

        while not self._over.is_set():
            try:
                broker = open_broker(self._topic)
                with contextlib.closing(broker.tail()) as subscription:
                    self._fault = None
                    while not self._over.is_set():
                        messages = subscription.receive(1000, _WAIT_SECONDS)
                        if messages is not None:
                            self.take(messages.payloads)
                            subscription.acknowledge(messages.receipt)
            except HeadraceError as error:
                self._fault = str(error)
                self._over.wait(AGAIN_SECONDS)
