"""What an endpoint does, one request after another, in a thread of its own; with deadlines, and without its store.

Requests wait for the thread, no longer than the deadline. When the store fails or is too slow, the service is broken:
requests get the project's fallback decision at once, or are told to come again, until a look at the store, once a
second, finds that it answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from models.batches import as_int64, column
from models.predictors.booster import ModelError
from models.project.declarations import Project
from models.serving.answers import Answering
from models.serving.freshness import NEVER_US, State, tell
from models.serving.requests import RequestError, is_valid
from models.store.kinds import Kind, Place
from models.store.tiles import TileError
from pipelines.brokers import BrokerError
from pipelines.serve.line import Line, ServiceDown
from pipelines.serve.models import Models
from pipelines.serve.publishing import Done, Publishing
from pipelines.serve.siblings import Lost
from pipelines.store import Store, StoreError

_LOG = logging.getLogger("headrace")
_LOOK_SECONDS = 1.0
MOST_WAITING = 256
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Reply:
    """Answers to a request's events, JSON each in their order, and how many were scored, refused and fell back.

    `unanswered` are those that are to be sent again, `ages_us` is how far each that has a state is past it, and `valid`
    are the events that windows of later ones see.
    """

    answers: list[bytes]
    scored: int = 0
    refused: int = 0
    fallback: int = 0
    unanswered: int = 0
    ages_us: Sequence[int] = ()
    valid: Sequence[bytes] = ()


class _Watched:
    """The store; what it fails with is told apart from what else may fail."""

    def __init__(self, store: Store, failed: Callable[[str], None]) -> None:
        self._store, self._failed = store, failed

    def read(self, places: Sequence[Place]) -> Mapping[Place, bytes]:
        """As the store."""
        with self.told():
            return self._store.read(places)

    def add(self, kind: Kind, tiles: Mapping[Place, bytes]) -> None:
        """As the store."""
        with self.told():
            self._store.add(kind, tiles)

    @contextlib.contextmanager
    def told(self) -> Any:
        """ServiceDown for a store that does not answer."""
        try:
            yield
        except StoreError as error:
            self._failed(str(error))
            raise ServiceDown("the store does not answer") from None
        except TileError as error:
            _LOG.error("the store holds a damaged tile: %s; `headrace store check` mends it", error)
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
    ) -> None:
        """`deadline_seconds` is the time that a request may wait and take; `lost` is shared by those that absorb.

        What is absorbed is published before it is answered, if there is somewhere to.
        """
        self.project, self.models, self.absorbs = project, models, absorb
        self.answering = Answering(project)
        self._store = store
        self._watched = _Watched(store, self._break)
        self._deadline = deadline_seconds
        self._line = Line("answers", MOST_WAITING, deadline_seconds)
        self._fallbacks = Line("fallbacks", MOST_WAITING, deadline_seconds)
        self._lost = lost or Lost()
        self._publishing = publishing
        self.broken: str | None = None

    async def score(self, payloads: Sequence[bytes], with_features: bool = False, reason_codes: int = 0) -> Reply:
        """Answers to events; ServiceDown if there are none, nor time for the fallback decision, if one is declared."""
        try:
            until = time.monotonic() + self._deadline
            reply = await self._do(lambda: self._score(payloads, with_features, reason_codes))
            if self._publishing is not None and reply.valid:
                await self._publish(self._publishing.publish(reply.valid), until)
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
            self._store.progress()
        if self.broken is not None:
            _LOG.warning("ready again")
        self.broken = None

    def _score(self, payloads: Sequence[bytes], with_features: bool, reason_codes: int) -> Reply:
        scoring = self.models.current()
        with self._watched.told():
            watermark_us = self._store.progress().watermark_us
        try:
            answers = self.answering.answer(payloads, scoring, self._watched, self.absorbs, reason_codes)
        except ModelError as error:
            if reason_codes:  # which models of a release can't give
                raise RequestError(str(error)) from None
            raise
        told = tell(self.answering, payloads, answers, self._state(watermark_us), with_features)
        scored = answers.rows.num_rows - told.fallback - told.unanswered
        valid = [p for place, p in enumerate(payloads) if is_valid(answers.refused.get(place))]
        return Reply(told.lines, scored, len(answers.refused), told.fallback, told.unanswered, told.ages_us, valid)

    def _fall_back(self, payloads: Sequence[bytes]) -> Reply:
        assert self.project.fallback is not None
        answers = self.answering.without_past(payloads, self.project.fallback.action)
        times = as_int64(column(answers.rows, self.project.event.time))
        if len(times):
            self._lost.add(int(times.min()))
        told = [b'"fallback":true,"complete":false'] * len(times)
        found = self.answering.render(answers, told, False)
        return Reply(found, refused=len(answers.refused), fallback=len(times))

    def _features(self, entity: str, key: str, at_us: int) -> bytes:
        with self._watched.told():
            watermark_us = self._store.progress().watermark_us
        features = self.answering.features_at(entity, key, at_us, self._watched)
        return b'{"features":' + features + b"," + self._state(watermark_us).told(at_us) + b"}"

    def _state(self, watermark_us: int | None) -> State:
        """How far the state goes: where all events are absorbed, up to the first that was answered without."""
        whole_us = NEVER_US if watermark_us is None else watermark_us
        if self.absorbs:
            whole_us = max(whole_us, self._lost.first_us)
        return State(watermark_us, whole_us)
