"""The table of metrics: names there and back, and through Beam."""

import apache_beam as beam
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import metrics
from pipelines.runners import make_pipeline
from tests.kit.support import ROOT
from transforms.metrics import count, gauge, observe, read


@given(st.text(), st.text())
def test_labels_come_back_whatever_they_are(decision, label):
    name = metrics.FEEDBACK.beam_name({"decision": decision, "label": label})
    assert metrics.parse(name) == (metrics.FEEDBACK.name, (("decision", decision), ("label", label)))
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")


def test_a_label_that_lacks_or_is_unknown_is_refused():
    with pytest.raises(ValueError, match="has the labels"):
        count(metrics.EVENTS, 1)
    with pytest.raises(ValueError, match="has the labels"):
        count(metrics.LATE, 1, outcome="scored")


def test_names_are_prometheus_own():
    for metric in metrics.METRICS:
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric
        assert metric.help.endswith("."), metric
    assert metrics.parse("other_total.a.b") is None


def _tell(number):
    count(metrics.EVENTS, number, outcome="scored")
    count(metrics.EVENTS, 1, outcome="dead_lettered")
    gauge(metrics.WATERMARK_LAG, 2.5)
    gauge(metrics.BACKLOG, None)
    observe(metrics.LATENCY, np.array([0.02, 0.03, 0.2, 1e6]), stage="scored")


def test_all_kinds_come_through_beam(engine):
    pipeline = make_pipeline(engine, [])
    pipeline | beam.Create([3, 4]) | "One" >> beam.Map(_tell) | beam.Map(lambda _: 5) | "Two" >> beam.Map(_tell)
    result = pipeline.run()
    result.wait_until_finish()
    found = read(result.metrics())
    assert metrics.by_label(found, metrics.EVENTS) == {"scored": 3 + 4 + 5 + 5, "dead_lettered": 4}
    assert metrics.value_of(found, metrics.WATERMARK_LAG) == 2.5
    assert metrics.value_of(found, metrics.BACKLOG) is None
    assert metrics.value_of(found, metrics.WAITING) is None
    assert metrics.quantiles(found, {}, metrics.LATENCY, (("stage", "scored"),), [0.25, 0.5, 0.75]) == [
        0.025,
        0.04,
        0.25,
    ]
    assert metrics.quantiles(found, found, metrics.LATENCY, (("stage", "scored"),), [0.5]) is None


def test_the_documents_table_is_the_table():
    page = (ROOT / "docs" / "metrics.md").read_text()
    assert "\n".join(metrics.table()) in page
    assert "\n".join(metrics.served_table()) in page
