"""One event's way through a stream or an endpoint as spans; models.traces says which events, and by which ids.

A span of a stream's event begins where the one before it in this process ended, or else when the event was ingested.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import os
import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.batches import as_int64, column, marks_of, take_rows, without
from models.faults import rules_of
from models.project.declarations import Project
from models.record import (
    BUNDLE_ID,
    CORRECTION,
    DECISION,
    INGESTED,
    IS_HISTORY,
    IS_PROVISIONAL,
    MARKS,
    PUBLISHED,
    PUBLISHED_AT,
    SCORED_AT,
)
from models.traces import (
    CONSUMER,
    TRACEPARENT,
    Context,
    Hashes,
    Rows,
    Span,
    hashes_of,
    is_traced,
    own_traces,
    parse_traceparent,
    span_ids,
)
from pipelines.monitoring.spans import SpanSender, collector_url, pairs_of

FLUSH_SECONDS = 5.0
_REMEMBERED = 10_000  # events on their way
_WHOLE = "event"  # the span of all of it
_AT_ARRIVAL = " at arrival"  # behind the name of a step that is passed once more when the watermark is there
_TIMES = (PUBLISHED_AT, SCORED_AT)


class Picked(NamedTuple):
    """Those of a batch that are traced: their rows, the hashes of their ids, their traces, and what called them."""

    rows: Rows
    hashes: Hashes
    traces: list[str]
    callers: list[str]

    def contexts(self, name: str) -> list[Context]:
        """Those of the spans of a name."""
        return list(map(Context, self.traces, span_ids(self.hashes, name)))


class Leaving(NamedTuple):
    """Rows that are to be published and are traced, and the name of their id."""

    picked: Picked
    rows: pa.RecordBatch
    name: str


@dataclasses.dataclass(frozen=True)
class Traces:
    """Which share of a project's events is traced, and to where; it pickles, and holds no secret."""

    url: str
    share: float
    project: str
    event_id: str
    has_numbers: bool  # as ids
    resource: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of_environment(cls, share: float, project: Project) -> Traces:
        """To where OpenTelemetry's variables say; TraceError if they don't."""
        resource = {**pairs_of("OTEL_RESOURCE_ATTRIBUTES"), "headrace.project": project.name}
        resource["service.name"] = os.environ.get("OTEL_SERVICE_NAME") or resource.get("service.name") or "headrace"
        kind = project.contract.fields[project.event.id].kind
        return cls(collector_url(), share, project.name, project.event.id, kind == "int", tuple(resource.items()))

    def tracer(self) -> Tracer:
        """That of this process."""
        with _MAKING:
            return _tracer(self)


_MAKING = threading.Lock()


@functools.lru_cache(8)
def _tracer(traces: Traces) -> Tracer:
    return Tracer(traces)


class Tracer:
    """What this process knows of events on their way, and what it tells of them. Threads may share it."""

    def __init__(self, traces: Traces) -> None:
        self._traces = traces
        self._sender = SpanSender(traces.url, dict(traces.resource))
        self._lock = threading.Lock()
        self._called: collections.OrderedDict[int, Context] = collections.OrderedDict()
        self._called_hashes = np.zeros(0, np.uint64)
        self._ends: collections.OrderedDict[tuple[int, str], int] = collections.OrderedDict()

    def send(self, spans: Sequence[Span]) -> None:
        """Take spans to the collector, without waiting."""
        self._sender.send(spans)

    def flush(self) -> None:
        """Send what waits, for a bounded time."""
        self._sender.flush(FLUSH_SECONDS)

    def remember(self, ids: pa.Array, texts: Sequence[str | None]) -> None:
        """Events come with the `traceparent` of who sent them."""
        found = {place: context for place, text in enumerate(texts) if (context := parse_traceparent(text))}
        if not found:
            return
        hashes = hashes_of(ids.take(pa.array(list(found), pa.int64()))).tolist()
        with self._lock:
            self._called.update(zip(hashes, found.values(), strict=True))
            while len(self._called) > _REMEMBERED:
                self._called.popitem(last=False)
            self._called_hashes = np.fromiter(self._called, np.uint64, len(self._called))

    def pick(self, ids: pa.Array) -> Picked | None:
        """Those of a batch's events, by their ids, that are traced; None if none is."""
        hashes = hashes_of(ids)
        chosen = is_traced(hashes, self._traces.share)
        if len(self._called_hashes):
            chosen |= np.isin(hashes, self._called_hashes)
        if ids.null_count:
            chosen &= np.asarray(ids.is_valid())
        rows = np.flatnonzero(chosen)
        if not len(rows):
            return None
        hashes = hashes[rows]
        came = [self._called.get(each) for each in hashes.tolist()]
        own = own_traces(hashes)
        traces = [trace if context is None else context.trace for trace, context in zip(own, came, strict=True)]
        return Picked(rows, hashes, traces, ["" if context is None else context.span for context in came])

    def passed(self, step: str, batch: pa.RecordBatch, now_ns: int) -> None:
        """A batch has passed a step; what is history is not told of."""
        picked = self.pick(column(batch, self._traces.event_id))
        if picked is None or INGESTED not in batch.schema.names:
            return
        rows = take_rows(batch.select([PUBLISHED, INGESTED, *({MARKS} & {*batch.schema.names})]), picked.rows)
        marks = marks_of(rows) if MARKS in rows.schema.names else np.zeros(len(rows), np.int8)
        ingested = column(rows, INGESTED)
        published_us, ingested_us = (as_int64(each.fill_null(0)) for each in (column(rows, PUBLISHED), ingested))
        news = np.flatnonzero(((marks & IS_HISTORY) == 0) & np.asarray(ingested.is_valid()))
        suffixes = [_AT_ARRIVAL if mark & IS_PROVISIONAL else "" for mark in marks.tolist()]
        roots = picked.contexts(_WHOLE)
        spans = []
        for place in news.tolist():
            key = int(picked.hashes[place]), suffixes[place]
            start_ns = self._end_of(key, now_ns)
            if start_ns is None:
                start_ns = int(ingested_us[place]) * 1000
                received = f"Receive{suffixes[place]}"
                spans.append(_child(picked, place, roots, received, int(published_us[place]) * 1000, start_ns))
            spans.append(_child(picked, place, roots, step + suffixes[place], start_ns, now_ns))
        self.send(spans)

    def leave(self, batch: pa.RecordBatch, attributes: list[dict[str, str]], is_dead: bool = False) -> Leaving | None:
        """Of rows that are to be published, those that are traced; `attributes`, a dict a row, then say so."""
        names = batch.schema.names
        name = "event_id" if is_dead else self._traces.event_id
        if PUBLISHED_AT not in names or name not in names:
            return None
        ids = column(batch, name)
        if is_dead and self._traces.has_numbers:
            ids = pc.if_else(pc.match_substring_regex(ids, r"^-?[0-9]{1,18}$"), ids, None).cast(pa.int64())
        picked = self.pick(ids)
        if picked is None:
            return None
        wanted = [
            name,
            PUBLISHED_AT,
            SCORED_AT,
            DECISION,
            BUNDLE_ID,
            CORRECTION,
            *(["step", "reasons"] if is_dead else []),
        ]
        rows = take_rows(batch.select([each for each in wanted if each in names]), picked.rows)
        for place, context in zip(picked.rows.tolist(), picked.contexts(_WHOLE), strict=True):
            attributes[place] = {**attributes[place], TRACEPARENT: context.traceparent}
        return Leaving(picked, rows, name)

    def left(self, leaving: Sequence[Leaving], what: str, now_ns: int) -> None:
        """They are at the broker, as `what`."""
        for each in leaving:
            self._left(each, what, now_ns)

    def _left(self, leaving: Leaving, what: str, now_ns: int) -> None:
        picked, rows, name = leaving
        roots, spans = picked.contexts(_WHOLE), []
        times = {each: column(rows, each).cast(pa.int64()).to_pylist() for each in _TIMES if each in rows.schema.names}
        told = without(rows, *times).to_pylist()
        for place, row in enumerate(told):
            published_us, scored_us = (times.get(each, [None] * len(told))[place] for each in _TIMES)
            again = row.get(CORRECTION)  # None where no row is published before its order is known
            key = int(picked.hashes[place]), _AT_ARRIVAL if again is False else ""
            start_ns = self._end_of(key, now_ns) or (scored_us or published_us or now_ns // 1000) * 1000
            if scored_us is not None:
                ends = min(start_ns, scored_us * 1000), scored_us * 1000
                spans.append(_child(picked, place, roots, f"Score{key[1]}", *ends))
                start_ns = scored_us * 1000
            spans.append(_child(picked, place, roots, "Write again" if again else "Write", start_ns, now_ns))
            step = row.get("step")
            if published_us is None or again or step == "Deduplicate":  # the span of all of it is another row's
                continue
            said = {"event_id": row[name], "outcome": what, "step": step}
            said |= {each: row.get(each) for each in (DECISION, BUNDLE_ID)}
            attributes = {f"headrace.{key}": str(value) for key, value in said.items() if value is not None}
            broken = (
                [f"{field}: {rule}" for rules in rules_of([row["reasons"]]) for field, rule in rules] if step else []
            )
            at = published_us * 1000, now_ns
            spans.append(
                Span(roots[place], picked.callers[place], _WHOLE, *at, CONSUMER, attributes, "; ".join(broken))
            )
        self.send(spans)

    def _end_of(self, key: tuple[int, str], now_ns: int) -> int | None:
        """When an event's last span ended; the next begins now."""
        with self._lock:
            before = self._ends.pop(key, None)
            self._ends[key] = now_ns
            while len(self._ends) > _REMEMBERED:
                self._ends.popitem(last=False)
        return before


def _child(picked: Picked, place: int, roots: Sequence[Context], name: str, start_ns: int, end_ns: int) -> Span:
    own = Context(picked.traces[place], span_ids(picked.hashes[place : place + 1], name)[0])
    return Span(own, roots[place].span, name, start_ns, end_ns)
