"""What a stream's status line says of how far it is behind."""

import pytest

from models import metrics
from pipelines.jobs.status import Status

DAY = 86_400.0


@pytest.mark.parametrize(
    ("lag", "delay", "said"),
    [
        (3.5, 0.2, "watermark 3.5 s behind"),
        (9 * DAY, 5.0, "watermark 9 days behind"),  # events of just now, which the stream has not come to
        (3000 * DAY + 12, 3000 * DAY, "watermark 12.0 s behind events that are sent again 3,000 days later"),
        (3000 * DAY, 3000 * DAY + 1, "watermark 0.0 s behind events that are sent again 3,000 days later"),
    ],
)
def test_old_events_that_are_sent_again_are_no_lag(lag, delay, said, monkeypatch):
    found = {
        (metrics.WATERMARK_LAG.name, ()): int(lag * 1e6),
        (metrics.PUBLISH_DELAY.name, ()): int(delay * 1e6),
    }
    status = Status(None)
    monkeypatch.setattr(status, "read", lambda: found)
    assert status().split(", ", 3)[3] == said


def test_without_a_delay_it_is_behind_the_clock(monkeypatch):
    status = Status(None)
    monkeypatch.setattr(status, "read", lambda: {(metrics.WATERMARK_LAG.name, ()): 9_000_000_000})
    assert status().endswith("watermark 2 h behind")
