"""Which alarms ask for a training."""

import types

import pytest

from models.partitions import Span
from models.quality.records import Finding, Verdict
from pipelines.jobs import retrain
from pipelines.jobs.retrain import Retrainer

DAY = 86_400_000_000


def verdict(day, kind):
    finding = Finding("mean score", kind, "alarm", 9.0, 5.0, "it moves")
    return Verdict.make(
        window_start_us=(day - 1) * DAY, window_end_us=day * DAY, rows=500, status="alarm", judged=True,
        circuit_open=False, bundle_id="b", findings=(finding,), measures=(), counters={},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "asks"),
    [("drift", True), ("slow_drift", True), ("psi", True), ("season", False), ("null_rate", False)],
)
def test_a_drift_asks_for_it_however_slow(kind, asks, monkeypatch):
    monkeypatch.setattr(retrain, "read_verdicts", lambda sink: [verdict(5, kind)])
    trainer = Retrainer(types.SimpleNamespace(sink="sink"), None, "", "champion")
    why = trainer._find_drift(Span(3 * DAY, 6 * DAY), None)
    assert why == (f"{kind} in the window to 1970-01-06T00:00:00Z" if asks else None)
    assert trainer._find_drift(Span(5 * DAY, 6 * DAY), None) is None  # the window had ended before
