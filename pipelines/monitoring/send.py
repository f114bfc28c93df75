"""Alerts of a graph to where people see them, as it runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import apache_beam as beam

from models.quality.incidents import Alert
from pipelines.monitoring.alerts import Alerting, open_sink


@dataclasses.dataclass(eq=False)
class SendAlerts(beam.PTransform):
    """Alerts → sinks, named as in `open_sink`; they pass, for whoever counts them."""

    sinks: tuple[str, ...]

    def expand(self, pcoll: beam.PCollection) -> beam.PCollection:
        """The same alerts."""
        return pcoll | "Send" >> beam.ParDo(_Send(self.sinks)).with_output_types(Alert)


class _Send(beam.DoFn):
    def __init__(self, sinks: tuple[str, ...]) -> None:
        self._uris = sinks

    def setup(self) -> None:
        self._alerting = Alerting([open_sink(uri) for uri in self._uris])

    def process(self, alert: Alert) -> Iterator[Alert]:
        self._alerting.send([alert])
        yield alert

    def teardown(self) -> None:
        self._alerting.close()
