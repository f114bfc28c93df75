"""What a run counts, as text that Prometheus reads, on a port of its own while the run goes on.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import start_http_server
from prometheus_client.registry import Collector

from models import metrics
from models.errors import HeadraceError
from models.metrics import Series

Read = Callable[[], Mapping[Series, int]]


class ExpositionError(HeadraceError, OSError):
    """A port that metrics can't be shown on."""


class RunCollector(Collector):
    """The metrics of the table that a run has counted so far, each time it is asked."""

    def __init__(self, read: Read) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """Families of Prometheus's, in the order of the table."""
        for family in metrics.families(self._read()):
            yield _to_prometheus(family)


@contextlib.contextmanager
def exposed(read: Read, host: str, port: int | None) -> Iterator[None]:
    """Show what `read` gives, and the processor time and memory of this process, at http://HOST:PORT/metrics.

    Without a port, nothing. Counters start at nothing with each run.

    Raises:
        ExpositionError: if the port can't be had.
    """
    if port is None:
        yield
        return
    registry = CollectorRegistry()
    registry.register(RunCollector(read))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise ExpositionError(f"--metrics-port {port} of {host}: {error.strerror or error}: name another") from None
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _to_prometheus(family: metrics.Family) -> Metric:
    metric = family.metric
    if metric.kind == "histogram":
        histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
        for labels, (buckets, total) in family.histograms.items():
            histogram.add_metric(labels, buckets, total)
        return histogram
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    series = kind(metric.name, metric.help, labels=metric.labels)
    for labels, value in family.values.items():
        series.add_metric(labels, value)
    return series
