"""Incidents: alarms that belong together are told once, again after a cool-down, and once more when they are over.

An incident is a feature and a kind of finding. All here is in event time, the ends of the windows, and depends
on the verdicts alone: the same verdicts give the same alerts, whenever and wherever they are judged.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from typing import Literal

import numpy as np

from models.quality.records import Finding, Verdict

Event = Literal["open", "reminder", "clear"]


@dataclasses.dataclass(frozen=True)
class Policy:
    """When an open incident is told again, and after how many windows without its alarm it is over."""

    cool_down_us: int
    clear_after: int = 1


@dataclasses.dataclass(frozen=True)
class Incident:
    """An open incident; times are ends of windows: of the first alarm, and of the last one that was told."""

    feature: str
    kind: str
    opened_us: int
    told_us: int
    alarms: int
    quiet: int
    value: float | None
    threshold: float | None
    text: str


@dataclasses.dataclass(frozen=True)
class Alert:
    """What people are told of an incident. A repeated one has the same `alert_id`: receivers can drop it."""

    alert_id: str
    project: str
    event: Event
    feature: str
    kind: str
    text: str
    value: float | None
    threshold: float | None
    opened: str
    window_start: str
    window_end: str
    alarms: int
    verdict_id: str
    bundle_id: str

    def to_json(self) -> bytes:
        """One line of JSON, without the newline; the same bytes for the same alert."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False, sort_keys=True).encode()


@dataclasses.dataclass(frozen=True)
class Incidents:
    """The state: the incidents that are open, by feature and kind, and the end of the last window that was seen."""

    until_us: int | None = None
    open: tuple[Incident, ...] = ()

    def to_json(self) -> bytes:
        """The state as JSON; the same bytes for the same state."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False, sort_keys=True).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Incidents:
        """The state that `to_json` wrote."""
        data = json.loads(text)
        return cls(data["until_us"], tuple(Incident(**incident) for incident in data["open"]))


def advance(state: Incidents, verdict: Verdict, policy: Policy, project: str) -> tuple[Incidents, tuple[Alert, ...]]:
    """The state after a window, and what is to be told, by feature and kind.

    Findings of severity `alarm` count. A window that was not judged opens and ends nothing. One that does not end
    after the last one changes nothing: verdicts that come again, as after a restart, raise no alert again. The
    caller brings verdicts in the order of their windows' ends.
    """
    if state.until_us is not None and verdict.window_end_us <= state.until_us:
        return state, ()
    if not verdict.judged:
        return dataclasses.replace(state, until_us=verdict.window_end_us), ()
    alarms = _worst(verdict.findings)
    former = {(incident.feature, incident.kind): incident for incident in state.open}
    still: list[Incident] = []
    alerts: list[Alert] = []
    for key in sorted(alarms.keys() | former.keys()):
        incident, event = _advance_one(former.get(key), alarms.get(key), verdict.window_end_us, policy)
        if event is not None:
            alerts.append(_alert(incident, event, verdict, project))
        if event != "clear":
            still.append(incident)
    return Incidents(verdict.window_end_us, tuple(still)), tuple(alerts)


def raise_alerts(
    verdicts: Iterable[Verdict],
    policy: Policy,
    project: str,
    state: Incidents = Incidents(),
) -> tuple[Incidents, tuple[Alert, ...]]:
    """`advance` over verdicts in any order: they are taken in the order of their windows' ends."""
    alerts: list[Alert] = []
    for verdict in sorted(verdicts, key=lambda v: (v.window_end_us, v.verdict_id)):
        state, told = advance(state, verdict, policy, project)
        alerts += told
    return state, tuple(alerts)


def _advance_one(
    former: Incident | None, alarm: Finding | None, end_us: int, policy: Policy
) -> tuple[Incident, Event | None]:
    if alarm is None:
        assert former is not None
        quiet = dataclasses.replace(former, quiet=former.quiet + 1)
        return quiet, "clear" if quiet.quiet >= policy.clear_after else None
    measured = (alarm.value, alarm.threshold, alarm.text)
    if former is None:
        return Incident(alarm.feature, alarm.kind, end_us, end_us, 1, 0, *measured), "open"
    due = end_us - former.told_us >= policy.cool_down_us
    told_us = end_us if due else former.told_us
    known = Incident(former.feature, former.kind, former.opened_us, told_us, former.alarms + 1, 0, *measured)
    return known, "reminder" if due else None


def to_iso(time_us: int) -> str:
    """ISO 8601 of microseconds since 1970 UTC, to the second."""
    return f"{np.datetime64(time_us, 'us').astype('M8[s]')}Z"


def _worst(findings: Iterable[Finding]) -> dict[tuple[str, str], Finding]:
    """The alarms, and of those of one feature and kind, as of two comparators, the one furthest above its threshold."""

    def rank(finding: Finding) -> tuple[float, str]:
        if finding.value is None or finding.threshold is None:
            return 0.0, finding.text
        return finding.value - finding.threshold, finding.text

    worst: dict[tuple[str, str], Finding] = {}
    for finding in findings:
        if finding.severity != "alarm":
            continue
        key = (finding.feature, finding.kind)
        if key not in worst or rank(finding) > rank(worst[key]):
            worst[key] = finding
    return worst


def _alert(incident: Incident, event: Event, verdict: Verdict, project: str) -> Alert:
    said = [
        project,
        incident.feature,
        incident.kind,
        incident.opened_us,
        event,
        verdict.window_end_us,
        verdict.bundle_id,
    ]
    text = incident.text
    if event == "clear":
        text = (
            f"over since the window up to {to_iso(verdict.window_end_us)}, after {incident.alarms} alarms; last: {text}"
        )
    return Alert(
        alert_id=hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16],
        project=project,
        event=event,
        feature=incident.feature,
        kind=incident.kind,
        text=text,
        value=incident.value,
        threshold=incident.threshold,
        opened=to_iso(incident.opened_us),
        window_start=to_iso(verdict.window_start_us),
        window_end=to_iso(verdict.window_end_us),
        alarms=incident.alarms,
        verdict_id=verdict.verdict_id,
        bundle_id=verdict.bundle_id,
    )
