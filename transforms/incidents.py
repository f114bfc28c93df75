"""Verdicts to alerts: one for each incident, in event time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import apache_beam as beam
import pyarrow as pa

from models.metrics import ALERTS, OPEN
from models.quality.incidents import Alert, Incidents, Policy, raise_alerts
from models.quality.records import Verdict, batch_to_verdicts, verdict_to_batch
from models.steps import Log, Shard, Step
from transforms.metrics import count, gauge
from transforms.slices import Hold
from transforms.state import States


@dataclasses.dataclass(eq=False)
class RaiseAlerts(beam.PTransform):
    """Verdicts → alerts.

    A verdict waits until the watermark has passed its own timestamp. Verdicts on earlier windows have earlier or
    equal timestamps, so they are there by then, and they are taken in the order of their windows' ends.
    """

    project: str
    policy: Policy
    states: States | None = None  # open incidents are kept as `incidents`

    def expand(self, pcoll: beam.PCollection) -> beam.PCollection:
        """Alerts, see `models.quality.incidents`."""
        step = _Raise(self.project, self.policy)
        return {"verdicts": pcoll} | "Hold" >> Hold(
            step, {"verdicts": _route}, Alert, states=self.states, name="incidents"
        )


def _route(verdict: Verdict) -> Iterator[tuple[int, None, pa.RecordBatch]]:
    yield 0, None, verdict_to_batch(verdict)


@dataclasses.dataclass
class _Open(Shard):
    incidents: str = dataclasses.field(default_factory=lambda: Incidents().to_json().decode())


class _Raise(Step[_Open]):
    shard = _Open

    def __init__(self, project: str, policy: Policy) -> None:
        self._project = project
        self._policy = policy

    def advance(self, batch: pa.RecordBatch, due_us: int, memory: None, log: Log[_Open]) -> Iterator[Alert]:
        """What is to be told of these windows."""
        before = Incidents.from_json(log.shard.incidents.encode())
        after, alerts = raise_alerts(batch_to_verdicts(batch), self._policy, self._project, before)
        log.shard.incidents = after.to_json().decode()
        gauge(OPEN, len(after.open))
        for alert in alerts:
            count(ALERTS, 1, event=alert.event)
            yield alert
