"""Alerts of a graph to where people see them, as it runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam.coders import BytesCoder
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec

from models.quality.incidents import Alert
from pipelines.monitoring.alerts import Alerting, open_sink


@dataclasses.dataclass(eq=False)
class SendAlerts(beam.PTransform):
    """Alerts → sinks, named as in `open_sink`, in the order in which they are raised; then they pass on.

    Engines may give elements to several workers at once, but not those of one key to a step that has state.
    """

    sinks: tuple[str, ...]

    def expand(self, pcoll: beam.PCollection) -> beam.PCollection:
        """The same alerts."""
        return (
            pcoll
            | "One key" >> beam.Map(_keyed).with_output_types(tuple[int, Alert])
            # Without this, in-process Beam fuses two stateful steps and loses what the first one's timer emits.
            | "Regroup" >> beam.Reshuffle().with_output_types(tuple[int, Alert])
            | "Send" >> beam.ParDo(_Send(self.sinks)).with_output_types(Alert)
        )


def _keyed(alert: Alert) -> tuple[int, Alert]:
    return 0, alert


class _Send(beam.DoFn):
    TOLD = ReadModifyWriteStateSpec("told", BytesCoder())  # is there for the order, and stays empty

    def __init__(self, sinks: tuple[str, ...]) -> None:
        self._uris = sinks

    def setup(self) -> None:
        self._alerting = Alerting([open_sink(uri) for uri in self._uris])

    def process(self, element: tuple[int, Alert], told: Any = beam.DoFn.StateParam(TOLD)) -> Iterator[Alert]:
        _, alert = element
        self._alerting.send([alert])
        yield alert

    def teardown(self) -> None:
        self._alerting.close()
