"""Which events are traced, by which ids, and how that is written."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.traces import (
    CONSUMER,
    Context,
    Span,
    encode_spans,
    hashes_of,
    is_traced,
    own_traces,
    parse_traceparent,
    span_ids,
)
from tests.kit.otlp import attributes, read

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def test_a_share_is_kept_and_a_larger_one_keeps_those_of_a_smaller():
    for ids in (pa.array(range(100_000)), pa.array([f"T-{n}" for n in range(100_000)])):
        hashes = hashes_of(ids)
        small, large = is_traced(hashes, 0.01), is_traced(hashes, 0.05)
        assert abs(small.sum() - 1000) < 200
        assert abs(large.sum() - 5000) < 450
        assert not (small & ~large).any()
        assert is_traced(hashes, 1.0).all()


def test_it_does_not_depend_on_batches_or_order():
    ids = pa.array([f"T-{n}" for n in range(1000)])
    hashes, order = hashes_of(ids), np.random.default_rng(0).permutation(1000)
    assert (hashes_of(ids.take(pa.array(order))) == hashes[order]).all()
    assert (hashes_of(ids.slice(300, 5)) == hashes[300:305]).all()
    assert own_traces(hashes[300:305]) == own_traces(hashes)[300:305]
    assert span_ids(hashes[7:8], "Score") == span_ids(hashes, "Score")[7:8]


def test_opentelemetrys_sampler_by_share_chooses_the_same_of_our_traces():
    sampling = pytest.importorskip("opentelemetry.sdk.trace.sampling")
    hashes = hashes_of(pa.array(range(5000)))
    sampler = sampling.TraceIdRatioBased(0.1)
    chosen = [bool(sampler.should_sample(None, int(t, 16), "n").decision.is_sampled()) for t in own_traces(hashes)]
    assert chosen == is_traced(hashes, 0.1).tolist()


def test_ids_are_apart_and_none_is_all_zeros():
    hashes = np.append(hashes_of(pa.array(range(20_000))), np.uint64(0))
    traces = own_traces(hashes)
    assert len(set(traces)) == len({trace[:16] for trace in traces}) == 20_001 - (traces.count(traces[-1]) - 1)
    assert all(int(trace, 16) for trace in traces)
    spans = [span for name in ("event", "Score", "Write") for span in span_ids(hashes, name)]
    assert all(len(span) == 16 and int(span, 16) for span in spans)
    assert len(set(spans)) >= 60_000


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (f"00-{TRACE}-{SPAN}-01", Context(TRACE, SPAN)),
        (f"00-{TRACE}-{SPAN}-03", Context(TRACE, SPAN)),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-brings", Context(TRACE, SPAN)),
        (f"00-{TRACE}-{SPAN}-00", None),  # not recorded
        (f"00-{TRACE}-{SPAN}-01-more", None),
        (f"ff-{TRACE}-{SPAN}-01", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE.upper()}-{SPAN}-01", None),
        (f"00-{TRACE}-{SPAN}-01\n", None),
        ("", None),
        (None, None),
    ],
)
def test_a_header_is_taken_as_w3c_says(text, wanted):
    assert parse_traceparent(text) == wanted
    if wanted:
        assert parse_traceparent(wanted.traceparent) == wanted


@given(st.text(max_size=80))
def test_any_header_is_none_or_right(text):
    assert parse_traceparent(text) is None or text.count("-") >= 3


def test_spans_are_of_opentelemetrys_schema():
    told = {"text": "ü\ud800", "number": 1 << 40, "yes": True}
    span = Span(Context(TRACE, SPAN), "00f067aa0ba902b7", "Score", 5, 3, CONSUMER, told, "wrong")
    (found,), resource = read(encode_spans([span], {"service.name": "headrace"}))
    assert (found.trace_id.hex(), found.span_id.hex()) == (TRACE, SPAN)
    assert found.parent_span_id.hex() == "00f067aa0ba902b7"
    assert (found.start_time_unix_nano, found.end_time_unix_nano) == (5, 5)  # of two clocks
    assert (found.status.code, found.status.message) == (2, "wrong")
    assert attributes(found)["number"] == 1 << 40
    assert resource == {"service.name": "headrace"}
