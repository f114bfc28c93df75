"""What an endpoint does, one request after another, in a thread of its own; with deadlines, and without its store.

Requests wait for the thread, no longer than the deadline. When the store fails or is too slow, the service is broken:
requests get the project's fallback decision at once, or are told to come again, until a look at the store, once a
second, finds that it answers.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import pyarrow as pa

from models.batches import as_int64, column
from models.predictors.booster import ModelError
from models.project.declarations import Project
from models.serving.answers import Answering
from models.serving.freshness import NEVER_US, State, tell
from models.serving.requests import RequestError, is_valid
from models.store.kinds import Kind, Place
from models.store.tiles import Rows, TileError
from pipelines.brokers import BrokerError
from pipelines.serve.line import Line, ServiceDown
from pipelines.serve.models import Models
from pipelines.serve.publishing import Done, Publishing
from pipelines.serve.siblings import Lost
from pipelines.store import Progress, Store, StoreError, go_on

_LOG = logging.getLogger("headrace")
_LOOK_SECONDS = 1.0
_LAST = 64  # events that were absorbed last, by which time goes on
LATENESS_US = 86_400_000_000  # as a run has it unless told otherwise
MOST_WAITING = 256
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Reply:
    """Answers to a request's events, JSON each in their order, and how many were scored, refused and fell back.

    `unanswered` are those that are to be sent again, `ages_us` is how far each that has a state is past it, and `valid`
    are the events that windows of later ones see. `ids` are those of events that were not refused, and `begun_ns` and
    `done_ns` when the thread had them, nanoseconds since 1970 UTC.
    """

    answers: list[bytes]
    scored: int = 0
    refused: int = 0
    fallback: int = 0
    unanswered: int = 0
    ages_us: Sequence[int] = ()
    valid: Sequence[bytes] = ()
    ids: pa.Array | None = None
    begun_ns: int = 0
    done_ns: int = 0


class _Watched:
    """The store; what it fails with is told apart from what else may fail."""

    def __init__(self, store: Store, failed: Callable[[str], None]) -> None:
        self._store, self._failed = store, failed
        self.watermark_us: int | None = None  # as of what was read last
        self.dropped: Mapping[str, int] = {}
        self.is_full = False  # its log, which is to be put into tiles

    def read(self, places: Sequence[Place]) -> tuple[Mapping[Place, bytes], Mapping[Place, bytes]]:
        """As the store."""
        with self.told():
            found = self._store.look(places)
        self.watermark_us, self.dropped = found.progress.watermark_us, found.dropped
        return found.tiles, found.more

    def append(self, kind: Kind, rows: Rows, keys: pa.Array) -> None:
        """As the store, without settling, for which a request does not wait."""
        with self.told():
            self.is_full |= self._store.enter(kind, rows, keys)

    @contextlib.contextmanager
    def told(self) -> Any:
        """ServiceDown for a store that does not answer."""
        try:
            yield
        except StoreError as error:
            self._failed(str(error))
            raise ServiceDown("the store does not answer") from None


@contextlib.contextmanager
def _whole_tiles() -> Any:
    """ServiceDown for a tile that is damaged: other entities are answered as ever."""
    try:
        yield
    except TileError as error:
        _LOG.error("the store holds a damaged tile: %s; `headrace store check --mend` puts it right", error)
        raise ServiceDown("the store holds a damaged tile of this entity") from None


class Service:
    """A project that is served."""

    def __init__(
        self,
        project: Project,
        models: Models,
        store: Store,
        absorb: bool,
        deadline_seconds: float,
        lost: Lost | None = None,
        publishing: Publishing | None = None,
        lateness_us: int = LATENESS_US,
    ) -> None:
        """`deadline_seconds` is the time that a request may wait and take; `lost` is shared by those that absorb.

        What is absorbed is published before it is answered, if there is somewhere to. Then what no event needs that is
        `lateness_us` before the last ones leaves the store.
        """
        self.project, self.models, self.absorbs = project, models, absorb
        self.answering = Answering(project)
        self._store = store
        self._watched = _Watched(store, self._break)
        self._deadline = deadline_seconds
        self._lateness_us = lateness_us
        self._last_us: collections.deque[int] = collections.deque(maxlen=_LAST)  # times of events that were absorbed
        self._passed: list[int] = []
        self._line = Line("answers", MOST_WAITING, deadline_seconds)
        self._fallbacks = Line("fallbacks", MOST_WAITING, deadline_seconds)
        self._lost = lost or Lost()
        self._publishing = publishing
        self.broken: str | None = None

    @property
    def waiting(self) -> int:
        """Requests that are not answered yet."""
        return self._line.waiting + self._fallbacks.waiting

    async def score(
        self,
        payloads: Sequence[bytes],
        with_features: bool = False,
        reason_codes: int = 0,
        traceparent: str | None = None,
    ) -> Reply:
        """Answers to events; ServiceDown if there are none, nor time for the fallback decision, if one is declared.

        Events are published with the `traceparent`, where they are.
        """
        try:
            until = time.monotonic() + self._deadline
            reply = await self._do(lambda: self._score(payloads, with_features, reason_codes))
            if self._publishing is not None and reply.valid:
                await self._publish(self._publishing.publish(reply.valid, traceparent), until)
            return reply
        except ServiceDown:
            if self.project.fallback is None:
                raise
        return await self._fallbacks.run(lambda: self._fall_back(payloads))

    async def features(self, entity: str, key: str, at_us: int) -> bytes:
        """The rolling features of an entity's key as of a time, microseconds since 1970 UTC, as a JSON object."""
        return await self._do(lambda: self._features(entity, key, at_us))

    async def do(self, work: Callable[[], T]) -> T:
        """What needs no store, in the thread; ServiceDown if it has no time for it."""
        return await self._do(work, needs_store=False)

    async def watch(self) -> None:
        """Look at the store while it fails, until this is cancelled."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            if self.broken is not None:
                with contextlib.suppress(ServiceDown):
                    await self._do(self._look, needs_store=False)

    def close(self) -> None:
        """End the thread, when it has answered."""
        self._line.close()
        self._fallbacks.close()
        if self._publishing is not None:
            self._publishing.close()
        self.models.close()
        self._store.close()

    async def _do(self, work: Callable[[], T], needs_store: bool = True) -> T:
        if needs_store and self.broken is not None:
            raise ServiceDown(self.broken)
        try:
            return await self._line.run(work)
        except ServiceDown:
            if self._line.is_stuck:
                self._break(f"no answer within {self._deadline:g} s")
            raise

    async def _publish(self, done: Done, until: float) -> None:
        """Wait until the broker has what was absorbed; ServiceDown if it has not by a time of the monotonic clock."""
        try:
            await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(done)), max(until - time.monotonic(), 0.001))
        except TimeoutError:
            why = "the broker does not answer"
        except BrokerError as error:
            why = f"the broker refuses events: {error}"
        else:
            return
        self._break(why)
        raise ServiceDown(why)

    def _break(self, why: str) -> None:
        if self.broken is None:
            _LOG.error("not ready: %s", why)
        self.broken = why

    def _look(self) -> None:
        if self._publishing is not None and self._publishing.waits:
            return
        with self._watched.told():
            if self.absorbs:
                self._store.probe()
            else:
                self._store.progress()
        if self.broken is not None:
            _LOG.warning("ready again")
        self.broken = None

    def _score(self, payloads: Sequence[bytes], with_features: bool, reason_codes: int) -> Reply:
        begun_ns = time.time_ns()
        scoring = self.models.current()
        try:
            with _whole_tiles():
                answers = self.answering.answer(payloads, scoring, self._watched, self.absorbs, reason_codes)
        except ModelError as error:
            if reason_codes:  # which models of a release can't give
                raise RequestError(str(error)) from None
            raise
        if self.absorbs and answers.rows.num_rows:
            self._last_us.extend(as_int64(column(answers.rows, self.project.event.time)).tolist())
        if self._watched.is_full:
            self._watched.is_full = False
            self._line.add(self._tidy)
        told = tell(self.answering, payloads, answers, self._state(), with_features)
        scored = answers.rows.num_rows - told.fallback - told.unanswered
        valid = [p for place, p in enumerate(payloads) if is_valid(answers.refused.get(place))]
        ids = column(answers.rows, self.project.event.id)
        counts = scored, len(answers.refused), told.fallback, told.unanswered
        return Reply(told.lines, *counts, told.ages_us, valid, ids, begun_ns, time.time_ns())

    def _tidy(self) -> None:
        """Put the log into tiles, and drop what no window needs any more.

        That is told by the earliest of the last events: one with a time far ahead drops nothing.
        """
        try:
            self._store.settle()
            kinds, newest_us = self.answering.kinds, min(self._last_us, default=0)
            passed = [kind.passed_us(newest_us, self._lateness_us) for kind in kinds]
            if len(self._last_us) == _LAST and passed != self._passed:
                go_on(self._store, kinds, Progress(None, newest_us), self._lateness_us)
                self._passed = passed
        except (StoreError, TileError) as error:
            _LOG.error("what was absorbed stays in the store's log for now: %s", error)

    def _fall_back(self, payloads: Sequence[bytes]) -> Reply:
        assert self.project.fallback is not None
        answers = self.answering.without_past(payloads, self.project.fallback.action)
        times = as_int64(column(answers.rows, self.project.event.time))
        if len(times):
            self._lost.add(int(times.min()))
        told = [b'"fallback":true,"complete":false'] * len(times)
        found = self.answering.render(answers, told, False)
        ids = column(answers.rows, self.project.event.id)
        return Reply(found, refused=len(answers.refused), fallback=len(times), ids=ids)

    def _features(self, entity: str, key: str, at_us: int) -> bytes:
        with _whole_tiles():
            features = self.answering.features_at(entity, key, at_us, self._watched)
        return b'{"features":' + features + b"," + self._state().told(at_us) + b"}"

    def _state(self) -> State:
        """How far what was read goes: where all events are absorbed, up to the first that was answered without."""
        watermark_us = self._watched.watermark_us
        whole_us = NEVER_US if watermark_us is None else watermark_us
        if self.absorbs:
            whole_us = max(whole_us, self._lost.first_us)
        dropped = self._watched.dropped
        known = [kind.known_from_us(dropped[kind.name]) for kind in self.answering.kinds if kind.name in dropped]
        return State(watermark_us, whole_us, max(known, default=NEVER_US))
