"""Verdicts to alerts: one for each incident, in event time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam.coders import BytesCoder, TupleCoder, VarIntCoder
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.utils.timestamp import Timestamp

from models.quality.incidents import Alert, Incidents, Policy, raise_alerts
from models.quality.records import Verdict
from transforms.batches import timestamp_of

# A watermark at a time may have something of that time behind it; a millisecond later it has not.
AFTER_MS = 1


@dataclasses.dataclass(eq=False)
class RaiseAlerts(beam.PTransform):  # type: ignore[misc]
    """Verdicts → alerts.

    A verdict waits until the watermark has passed its own timestamp. Verdicts on earlier windows have earlier or
    equal timestamps, so they are there by then, and they are taken in the order of their windows' ends.
    """

    project: str
    policy: Policy

    def expand(self, pcoll: beam.PCollection) -> beam.PCollection:
        """Alerts, see `models.quality.incidents`."""
        return (
            pcoll
            | "Key" >> beam.Map(lambda verdict: (0, verdict.to_json().encode())).with_output_types(tuple[int, bytes])
            | "Regroup" >> beam.Reshuffle().with_output_types(tuple[int, bytes])
            | "Advance" >> beam.ParDo(_Advance(self.project, self.policy)).with_output_types(Alert)
        )


class _Advance(beam.DoFn):  # type: ignore[misc]
    PENDING = BagStateSpec("pending", TupleCoder((VarIntCoder(), BytesCoder())))
    DUE = ReadModifyWriteStateSpec("due", VarIntCoder())  # what the timer is set to
    INCIDENTS = ReadModifyWriteStateSpec("incidents", BytesCoder())
    JUDGE = TimerSpec("judge", TimeDomain.WATERMARK)

    def __init__(self, project: str, policy: Policy) -> None:
        self._project = project
        self._policy = policy

    def process(
        self,
        element: tuple[int, bytes],
        timestamp: Timestamp = beam.DoFn.TimestampParam,
        pending: Any = beam.DoFn.StateParam(PENDING),
        due: Any = beam.DoFn.StateParam(DUE),
        judge: Any = beam.DoFn.TimerParam(JUDGE),
    ) -> None:
        # In whole milliseconds, because some engines round the time of a timer down to them.
        due_us = (-(-timestamp.micros // 1000) + AFTER_MS) * 1000
        pending.add((due_us, element[1]))
        known_us = due.read()
        if known_us is None or due_us < known_us:
            due.write(due_us)
            judge.set(timestamp_of(due_us))

    @on_timer(JUDGE)  # type: ignore[untyped-decorator]
    def judge(
        self,
        fired: Timestamp = beam.DoFn.TimestampParam,
        pending: Any = beam.DoFn.StateParam(PENDING),
        due: Any = beam.DoFn.StateParam(DUE),
        incidents: Any = beam.DoFn.StateParam(INCIDENTS),
        judge: Any = beam.DoFn.TimerParam(JUDGE),
    ) -> Iterator[Alert]:
        everything = list(pending.read())
        verdicts = [Verdict.from_json(text) for due_us, text in everything if due_us <= fired.micros]
        waiting = [item for item in everything if item[0] > fired.micros]
        pending.clear()
        due.clear()
        for item in waiting:
            pending.add(item)
        if waiting:
            next_us = min(due_us for due_us, _ in waiting)
            due.write(next_us)
            judge.set(timestamp_of(next_us))
        state = Incidents.from_json(incidents.read() or Incidents().to_json())
        state, alerts = raise_alerts(verdicts, self._policy, self._project, state)
        incidents.write(state.to_json())
        yield from alerts
