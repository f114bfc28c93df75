"""What an endpoint does, one request after another, in a thread of its own; with deadlines, and without its store.

Requests wait for the thread, no longer than the deadline. When the store fails or is too slow, the service is broken:
requests get the project's fallback decision at once, or are told to come again, until a look at the store, once a
second, finds that it answers.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import functools
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TypeVar

from models.batches import as_int64, column
from models.objectives import FALLBACK, REFUSED
from models.predictors.booster import ModelError
from models.project.declarations import Project
from models.serving.answers import Answering
from models.serving.freshness import NEVER_US, State, tell
from models.serving.requests import Intake, RequestError
from models.store.tiles import TileError
from pipelines.brokers import BrokerError
from pipelines.serve.line import Line, ServiceDown, Together, Waiting
from pipelines.serve.models import Models
from pipelines.serve.publishing import Done, Publishing
from pipelines.serve.reply import Reply, replies_of
from pipelines.serve.siblings import Lost
from pipelines.serve.watched import Watched, whole_tiles
from pipelines.store import Progress, Store, StoreError, go_on

_LOG = logging.getLogger("headrace")
_LOOK_SECONDS = 1.0
_LAST = 64  # events that were absorbed last, by which time goes on
LATENESS_US = 86_400_000_000  # as a run has it unless told otherwise
MOST_WAITING = 256
MOST_TOGETHER = 256  # events of requests that wait at the same time, which are scored at once
T = TypeVar("T")


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
        self._watched = Watched(store, self._break)
        self._deadline = deadline_seconds
        self._lateness_us = lateness_us
        self._last_us: collections.deque[int] = collections.deque(maxlen=_LAST)  # times of events that were absorbed
        self._passed: list[int] = []
        self._line = Line("answers", MOST_WAITING, deadline_seconds, MOST_TOGETHER)
        self._scoring: dict[tuple[bool, int], Together] = {}
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
            do = self._scoring_of(with_features, reason_codes)
            reply: Reply = await self._do(lambda: self._line.run_together(do, payloads, len(payloads)))
            if self._publishing is not None and reply.valid:
                await self._publish(self._publishing.publish(reply.valid, traceparent), until)
            return reply
        except ServiceDown:
            if self.project.fallback is None:
                raise
        return await self._fallbacks.run(lambda: self._fall_back(payloads))

    async def features(self, entity: str, key: str, at_us: int) -> bytes:
        """The rolling features of an entity's key as of a time, microseconds since 1970 UTC, as a JSON object."""
        return await self._do(lambda: self._line.run(lambda: self._features(entity, key, at_us)))

    async def do(self, work: Callable[[], T]) -> T:
        """What needs no store, in the thread; ServiceDown if it has no time for it."""
        return await self._do(lambda: self._line.run(work), needs_store=False)

    async def watch(self) -> None:
        """Look at the store while it fails, until this is cancelled."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            if self.broken is not None:
                with contextlib.suppress(ServiceDown):
                    await self.do(self._look)

    def close(self) -> None:
        """End the thread, when it has answered."""
        self._line.close()
        self._fallbacks.close()
        if self._publishing is not None:
            self._publishing.close()
        self.models.close()
        self._store.close()

    async def _do(self, work: Callable[[], Awaitable[T]], needs_store: bool = True) -> T:
        if needs_store and self.broken is not None:
            raise ServiceDown(self.broken)
        try:
            return await work()
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

    def _scoring_of(self, with_features: bool, reason_codes: int) -> Together:
        """What scores requests with these options, the same for the same ones."""
        options = with_features, reason_codes
        return self._scoring.setdefault(options, functools.partial(self._score_together, *options))

    def _score_together(
        self, with_features: bool, reason_codes: int, some: Sequence[Waiting]
    ) -> Iterator[Sequence[Reply | Exception | None]]:
        """Replies to requests that wait together, each as if the ones before it had been answered."""
        done = 0
        try:
            for number, intake in self.answering.take_in([one.argument for one in some]):
                part = some[done : done + number]
                if self.broken is not None:
                    raise ServiceDown(self.broken)
                is_gone = all(one.is_gone for one in part)
                sizes = [one.size for one in part]
                yield [None] * number if is_gone else self._score(intake, sizes, with_features, reason_codes)
                done += number
        except Exception as error:  # noqa: BLE001  who waits is told
            if len(some) == 1:
                yield [error]
                return
            for one in some[done:]:  # of which one may be what fails
                yield from self._score_together(with_features, reason_codes, [one])

    def _score(self, intake: Intake, sizes: Sequence[int], with_features: bool, reason_codes: int) -> list[Reply]:
        """Replies to requests of so many events each."""
        begun_ns = time.time_ns()
        scoring = self.models.current()
        try:
            with whole_tiles():
                answers = self.answering.answer(intake, scoring, self._watched, self.absorbs, reason_codes)
        except ModelError as error:
            if reason_codes:  # which models of a release can't give
                raise RequestError(str(error)) from None
            raise
        if self.absorbs and answers.rows.num_rows:
            self._last_us.extend(as_int64(column(answers.rows, self.project.event.time)).tolist())
        if self._watched.is_full:
            self._watched.is_full = False
            self._line.add(self._tidy)
        told = tell(self.answering, intake.payloads, answers, self._state(), with_features)
        ids = column(answers.rows, self.project.event.id)
        return replies_of(intake.payloads, sizes, answers, told, ids, begun_ns)

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
        outcomes = [REFUSED if place in answers.refused else FALLBACK for place in range(len(found))]
        return Reply(found, outcomes, ids=column(answers.rows, self.project.event.id))

    def _features(self, entity: str, key: str, at_us: int) -> bytes:
        with whole_tiles():
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
