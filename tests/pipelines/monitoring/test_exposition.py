"""What a run counts, as Prometheus reads it."""

import urllib.error
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from models import metrics
from pipelines.jobs.children import free_port
from pipelines.monitoring.exposition import ExpositionError, exposed


def scrape(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return {family.name: family for family in text_string_to_metric_families(answer.read().decode())}


def test_each_kind_is_shown_with_its_labels_and_in_its_unit():
    bucket, total = metrics.LATENCY.bucket_name, metrics.LATENCY.beam_name({"stage": "written"}, "_sum")
    told = {
        metrics.SCORES.beam_name({"decision": 'a "b"\n', "bundle": "1f"}): 7,
        metrics.WATERMARK_LAG.beam_name({}): 2_500_000,
        metrics.BACKLOG.beam_name({}): metrics.UNKNOWN,
        bucket({"stage": "written"}, 2): 3,
        bucket({"stage": "written"}, len(metrics.LATENCY.bounds)): 1,
        total: 4_500_000,
    }
    found = {metrics.parse(name): number for name, number in told.items()}
    port = free_port()
    with exposed(lambda: found, "127.0.0.1", port):
        shown = scrape(port)
        found[metrics.parse(metrics.LATE.beam_name({}))] = 5
        assert scrape(port)["headrace_late_events"].samples[0].value == 5  # as it is when it is asked
    (score,) = shown["headrace_scores"].samples
    assert (score.labels, score.value) == ({"decision": 'a "b"\n', "bundle": "1f"}, 7)
    assert shown["headrace_watermark_lag_seconds"].samples[0].value == 2.5
    assert "headrace_backlog_messages" not in shown
    latency = {(each.name, each.labels.get("le")): each.value for each in shown["headrace_latency_seconds"].samples}
    bounds = [*map(repr, metrics.LATENCY.bounds), "+Inf"]
    assert [latency["headrace_latency_seconds_bucket", bound] for bound in bounds] == [
        0,
        0,
        *[3] * (len(bounds) - 3),
        4,
    ]
    assert latency["headrace_latency_seconds_count", None] == 4
    assert latency["headrace_latency_seconds_sum", None] == 4.5
    assert {"process_cpu_seconds", "process_resident_memory_bytes"} <= set(shown)
    with pytest.raises(urllib.error.URLError):  # it is over with the run
        scrape(port)


def test_a_port_that_is_taken_is_named():
    port = free_port()
    taken = pytest.raises(ExpositionError, match=f"--metrics-port {port} of 127.0.0.1")
    with exposed(dict, "127.0.0.1", port), taken, exposed(dict, "127.0.0.1", port):
        raise AssertionError("two servers on one port")
    with pytest.raises(ExpositionError, match="name another"), exposed(dict, "192.0.2.1", port):
        raise AssertionError("a host that is not this one")


def test_a_port_is_shown_on_again_by_the_run_that_follows():
    port = free_port()
    for rounds in (1, 2, 3):
        with exposed(lambda n=rounds: {(metrics.ROUNDS.name, ()): n}, "127.0.0.1", port):
            assert scrape(port)["headrace_rounds"].samples[0].value == rounds


def test_without_a_port_nothing_listens():
    with exposed(dict, "127.0.0.1", None):
        pass
