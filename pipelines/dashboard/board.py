"""All that the page shows, kept up to date by two threads: one reads tables, one asks for metrics."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from models.errors import HeadraceError
from models.objectives import of_metrics, promises_of_serving
from models.project.declarations import Project
from models.project.objectives import Objectives, Serving
from models.quality.expectations import BLIND_SPOT
from pipelines.dashboard.followed import Followed
from pipelines.dashboard.live import Live, Served
from pipelines.dashboard.sink import Sink, cut, objective
from pipelines.release_store import read_log
from pipelines.s3 import store_errors

SECONDS = 5.0  # between two looks
MOST_RELEASES = 50


class Document:
    """JSON, and the ETag by which one who has it is told so."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self.body = json.dumps(facts, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
        self.etag = f'"{hashlib.sha256(self.body).hexdigest()[:32]}"'


class Board:
    """The documents of the page: `state`, of tables and releases, and `live`, of a run that goes on."""

    def __init__(
        self,
        project: Project,
        sinks: Sequence[str],
        metrics: str | None,
        releases: str | None,
        stream: Followed | None = None,
        endpoint: str | None = None,
    ) -> None:
        self.project = project
        self._stream = stream
        self._shown: list[Sink | Followed] = [*([stream] if stream else []), *(Sink(project, each) for each in sinks)]
        self._metrics, self._releases = metrics, releases
        self._live = Live()
        self._endpoint, self._served = endpoint, Served()
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self._told: tuple[list[dict[str, Any]], list[str]] | None = None  # releases and faults of the state
        self.state = Document(self._facts([], [], reading=True))
        self.live = Document({})
        self.broken = False  # a thread has failed, and nothing is up to date any more

    def refresh(self) -> None:
        """Read what is new of tables and releases."""
        faults: list[str] = []
        changed = False
        for each in self._shown:
            try:
                changed |= each.refresh()
            except store_errors(HeadraceError) as error:
                faults.append(cut(str(error)))
        try:
            releases = self._read_releases()
        except (HeadraceError, OSError) as error:
            releases = []
            faults.append(cut(str(error)))
        if changed or self._told != (releases, faults):
            self._told = (releases, faults)
            self.state = Document(self._facts(releases, faults, reading=False))

    def ask(self) -> None:
        """Ask a run that goes on, and an endpoint, for their metrics."""
        if self._metrics is None and self._endpoint is None:
            return
        slo, serving = self.project.slo or Objectives(), self.project.serving or Serving()
        self._scrape(self._metrics, self._live)
        self._scrape(self._endpoint, self._served)
        told = [objective(each) for each in of_metrics(slo, self._live.found)] if self._live.found else []
        facts = {**self._live.facts(), "objectives": told}
        if self._endpoint is not None:
            kept = [each.kept(self._served.found) for each in promises_of_serving(serving)]
            facts["endpoint"] = {**self._served.facts(), "objectives": [objective(each) for each in kept]}
        self.live = Document(facts)

    @staticmethod
    def _scrape(url: str | None, into: Live | Served) -> None:
        if url is None:
            return
        from pipelines.monitoring.scrape import scrape  # it imports what asks by HTTP, 9 MB

        try:
            into.add(time.time(), scrape(url))
        except HeadraceError as error:
            into.fail(cut(str(error)))

    def start(self) -> None:
        """Keep up to date, in threads, until `stop`."""
        if self._stream is not None:
            self._stream.start()
        for name, look in (("tables", self.refresh), ("metrics", self.ask)):
            thread = threading.Thread(target=self._keep, args=(look,), name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """End the threads; one that reads is not waited for long."""
        self._over.set()
        if self._stream is not None:
            self._stream.stop()
        for thread in self._threads:
            thread.join(1)

    def _keep(self, look: Callable[[], None]) -> None:
        try:
            while not self._over.is_set():
                look()
                self._over.wait(SECONDS)
        finally:
            self.broken = not self._over.is_set()

    def _facts(self, releases: list[dict[str, Any]], faults: list[str], reading: bool) -> dict[str, Any]:
        return {
            "project": self.project.name,
            "reading": reading,
            "has_metrics": self._metrics is not None or self._endpoint is not None,
            "faults": faults,
            "runs": [] if reading else [each.facts() for each in self._shown],
            "releases": releases,
            "blind_spot": BLIND_SPOT,
        }

    def _read_releases(self) -> list[dict[str, Any]]:
        log = None if self._releases is None else read_log(self._releases, self.project)
        newest = [] if log is None else log.records[-MOST_RELEASES:]
        return [
            {
                "seq": r.seq,
                "from": None if r.effective_from_us is None else r.effective_from_us // 1000,
                "champion": r.champion,
                "canary": None if r.canary is None else f"{r.challenger} for {r.canary.per_10000 / 100:g} %",
                "shadows": list(r.shadows),
                "why": cut(r.why),
                "author": cut(r.author),
            }
            for r in newest
        ]
