"""Requests for scores as spans: in the trace of who asks, or else in that of each of their events that is traced."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator

from starlette.requests import Request

from models.traces import SERVER, TRACEPARENT, Context, Span, parse_traceparent
from pipelines.monitoring.traces import Tracer
from pipelines.serve.service import Reply

_NAME = "POST /v1/score"


class Asked:
    """A request under way."""

    def __init__(self, tracer: Tracer, request: Request) -> None:
        self._tracer = tracer
        self._started_ns = time.time_ns()
        self._caller = parse_traceparent(request.headers.get(TRACEPARENT))
        self._own = Context(self._caller.trace, _span_id()) if self._caller else None

    @property
    def traceparent(self) -> str | None:
        """What its events are published with, where whoever asks says that it is recorded."""
        return self._own.traceparent if self._own else None

    def answered(self, reply: Reply, events: int) -> None:
        """It is answered."""
        now_ns = time.time_ns()
        told = {"headrace.events": events, "headrace.refused": reply.refused, "headrace.fallback": reply.fallback}
        for own, parent, attributes in self._places(reply):
            ends = (self._started_ns, now_ns)
            spans = [Span(own, parent, _NAME, *ends, SERVER, {**told, **attributes})]
            if reply.begun_ns:
                begun_ns, done_ns = reply.begun_ns, reply.done_ns
                parts = [
                    ("Wait", self._started_ns, begun_ns),
                    ("Score", begun_ns, done_ns),
                    ("Answer", done_ns, now_ns),
                ]
                spans += [Span(Context(own.trace, _span_id()), own.span, *part) for part in parts]
            self._tracer.send(spans)

    def failed(self, error: Exception) -> None:
        """It is answered by an error."""
        if self._own and self._caller:
            own, parent = self._own, self._caller.span
            self._tracer.send(
                [Span(own, parent, _NAME, self._started_ns, time.time_ns(), SERVER, {}, type(error).__name__)]
            )

    def _places(self, reply: Reply) -> Iterator[tuple[Context, str, dict[str, str]]]:
        """The span of the request, its parent, and of which event it is, where it is of one."""
        if self._own and self._caller:
            yield self._own, self._caller.span, {}
        elif reply.ids is not None and (picked := self._tracer.pick(reply.ids)) is not None:
            for row, trace in zip(picked.rows.tolist(), picked.traces, strict=True):
                yield Context(trace, _span_id()), "", {"headrace.event_id": str(reply.ids[row].as_py())}


def _span_id() -> str:
    return f"{secrets.randbits(64) or 1:016x}"  # one event may be asked for again
