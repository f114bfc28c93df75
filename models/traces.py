"""Traces of events: which are traced, by which ids, and how OpenTelemetry's OTLP writes what is told of them as JSON.

Whether an event is traced is told by a hash of its id, so that it is the same events in each run, in a stream and at
an endpoint. The hash is the lower half of the trace's id, and an event is traced if it is below the share of 2**64: as
OpenTelemetry's own samplers by share (`traceidratio`) would choose of these ids. What came with a W3C `traceparent`
that says that it is recorded goes on in that trace instead. The id of a span is a hash of the event's and of the
span's name: what is told twice, as after a kill, is one span.

https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding, https://www.w3.org/TR/trace-context/
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from models.batches import hash_keys

INTERNAL, SERVER, CONSUMER = 1, 2, 5  # kinds of spans, as OTLP numbers them
TRACEPARENT = "traceparent"  # the header, or attribute of a message
_TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_RECORDED = 1  # of its flags
_LOWER, _UPPER = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9  # make a trace's id of a hash, which for the number 0 is 0
_ERROR = 2  # of a span's status
_MOST_TEXT = 1000  # characters

Hashes = np.ndarray[Any, np.dtype[np.uint64]]
Rows = np.ndarray[Any, np.dtype[np.int64]]


class Context(NamedTuple):
    """Where spans belong: the trace in 32 hexadecimal digits, and in it the span that they are of, "" or 16 of them."""

    trace: str
    span: str = ""

    @property
    def traceparent(self) -> str:
        """As a header, or attribute, says it."""
        return f"00-{self.trace}-{self.span}-01"


@dataclasses.dataclass(frozen=True)
class Span:
    """What took from a time to another, in nanoseconds since 1970 UTC; `error` is what was wrong."""

    context: Context
    parent: str
    name: str
    start_ns: int
    end_ns: int
    kind: int = INTERNAL
    attributes: Mapping[str, str | int | bool] = dataclasses.field(default_factory=dict)
    error: str = ""


def parse_traceparent(text: str | None) -> Context | None:
    """The span that a caller's header names; None unless it is one, and recorded."""
    found = _TRACEPARENT.fullmatch(text) if text else None
    if found is None or (found[1] == "00" and found[5]):  # later versions may say more
        return None
    return Context(found[2], found[3]) if int(found[4], 16) & _RECORDED else None


def hashes_of(ids: pa.Array) -> Hashes:
    """The hash uint64[n] of each event's id, an integer or text, that decides whether it is traced."""
    return hash_keys(ids) ^ np.uint64(_LOWER)


def is_traced(hashes: Hashes, share: float) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Whether events, by the hashes of their ids, are of a share, 0 to 1, that is traced."""
    if share >= 1:
        return np.ones(len(hashes), bool)
    return np.asarray(hashes < np.uint64(int(share * 2.0**64)))


def own_traces(hashes: Hashes) -> list[str]:
    """The ids of traces of events that came with none."""
    upper = _mixed(hashes, _UPPER)
    return [f"{high | (not high and not low):016x}{low:016x}" for high, low in zip(upper, hashes.tolist(), strict=True)]


def span_ids(hashes: Hashes, name: str) -> list[str]:
    """The ids of the spans of a name, one for each event."""
    return [f"{each or 1:016x}" for each in _mixed(hashes, _salt(name))]


def _mixed(hashes: Hashes, salt: int) -> list[int]:
    return [int(each) for each in hash_keys(pa.array((hashes ^ np.uint64(salt)).view(np.int64)))]


@functools.lru_cache(1024)
def _salt(name: str) -> int:
    return int(hash_keys(pa.array([name]))[0])


def encode_spans(spans: Sequence[Span], resource: Mapping[str, str]) -> bytes:
    """Spans of one resource, such as a service with its name, as a request of OTLP over HTTP in JSON."""
    told = {
        "resourceSpans": [
            {
                "resource": {"attributes": _attributes(resource)},
                "scopeSpans": [{"scope": {"name": "headrace"}, "spans": list(map(_span, spans))}],
            }
        ]
    }
    return json.dumps(told, separators=(",", ":")).encode()


def _span(span: Span) -> dict[str, Any]:
    return {
        "traceId": span.context.trace,
        "spanId": span.context.span,
        **({"parentSpanId": span.parent} if span.parent else {}),
        "name": span.name,
        "kind": span.kind,
        "startTimeUnixNano": str(span.start_ns),
        "endTimeUnixNano": str(max(span.start_ns, span.end_ns)),  # clocks of machines may differ
        "attributes": _attributes(span.attributes),
        **({"status": {"code": _ERROR, "message": _text(span.error)}} if span.error else {}),
    }


def _attributes(values: Mapping[str, str | int | bool]) -> list[dict[str, Any]]:
    return [{"key": name, "value": _value(value)} for name, value in values.items()]


def _value(value: str | int | bool) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    return {"intValue": str(value)} if isinstance(value, int) else {"stringValue": _text(value)}


def _text(text: str) -> str:
    """Text as protobuf takes it, and not too long."""
    return text[:_MOST_TEXT].encode("utf-8", "replace").decode()
