"""Events that an endpoint absorbed, to a topic: by a thread of its own, which takes all that wait at once."""

from __future__ import annotations

import concurrent.futures
import logging
import queue
import threading
from collections.abc import Sequence
from typing import NamedTuple

from models.project.declarations import Project
from models.traces import TRACEPARENT
from pipelines.brokers import Broker, BrokerError
from pipelines.sources.payloads import event_times

_LOG = logging.getLogger("headrace")
_PATIENCE_SECONDS = 5.0  # at the end, while the broker does not answer
_MOST_AT_ONCE = 1_000  # requests

Done = concurrent.futures.Future[None]


class _Request(NamedTuple):
    payloads: Sequence[bytes]
    done: Done
    traceparent: str | None = None


class Publishing:
    """A connection to a topic."""

    def __init__(self, broker: Broker, project: Project) -> None:
        """BrokerError if there is no such topic."""
        self._project, self._name = project, broker.event_time_attribute
        self._publisher = broker.publisher()
        self._waiting: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._under_way: set[Done] = set()
        self._thread = threading.Thread(target=self._work, name="publishing", daemon=True)
        self._thread.start()

    @property
    def waits(self) -> bool:
        """Whether something is not at the broker yet."""
        return any(not done.done() for done in tuple(self._under_way))

    def publish(self, payloads: Sequence[bytes], traceparent: str | None = None) -> Done:
        """Publish events, JSON each: done when the broker has them, tried until it does; BrokerError if it refuses.

        With a `traceparent` their messages say so.
        """
        done: Done = concurrent.futures.Future()
        self._under_way.add(done)
        done.add_done_callback(self._under_way.discard)
        self._waiting.put(_Request(payloads, done, traceparent))
        return done

    def close(self) -> None:
        """End when all is at the broker, or it does not answer."""
        self._waiting.put(None)
        self._thread.join(_PATIENCE_SECONDS)
        if left := sum(not done.done() for done in tuple(self._under_way)):
            _LOG.error("the events of %d requests are absorbed, and not published: the broker does not answer", left)
        self._publisher.close()
        self._thread.join(_PATIENCE_SECONDS)

    def _work(self) -> None:
        is_last = False
        while not is_last:
            taken = [self._waiting.get()]
            while len(taken) < _MOST_AT_ONCE and not self._waiting.empty():
                taken.append(self._waiting.get())
            is_last = None in taken
            self._send([each for each in taken if each is not None])

    def _send(self, requests: Sequence[_Request]) -> None:
        payloads = [payload for each in requests for payload in each.payloads]
        if not payloads:
            return
        stamps = None
        if self._name:
            stamps = [{self._name: str(ms)} for ms in (event_times(payloads, self._project) // 1000).tolist()]
        traced = [each.traceparent for each in requests for _ in each.payloads]
        if any(traced):
            said = [{TRACEPARENT: text} if text else {} for text in traced]
            stamps = said if stamps is None else [own | more for own, more in zip(stamps, said, strict=True)]
        try:
            self._publisher.publish(payloads, stamps)
        except BrokerError as error:
            if len(requests) > 1:  # of which one may be what is refused
                for each in requests:
                    self._send([each])
                return
            requests[0].done.set_exception(error)
        else:
            for each in requests:
                each.done.set_result(None)
