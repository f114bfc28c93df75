"""What is published when."""

import threading
import time

import numpy as np

from pipelines.jobs.publish import PUBLISHED_AT_ONCE, paced

HOUR = 3_600_000_000


def test_all_at_once_is_in_parts():
    times = np.arange(2 * PUBLISHED_AT_ONCE + 1, dtype=np.int64)
    assert list(paced(times, None)) == [(0, 1000), (1000, 2000), (2000, 2001)]
    assert list(paced(times[:0], 5.0)) == []


def test_nothing_goes_out_before_it_is_due_and_all_does_in_the_end():
    """Ten hours at 36,000 times their speed are a second; one that is out of order waits for those before it."""
    times = np.array([0, 1, 9, 2, 3, 10], np.int64) * HOUR
    started, found = time.monotonic(), []
    for start, stop in paced(times, 36_000):
        assert times[start:stop].max() <= (time.monotonic() - started) * 1e6 * 36_000
        found += range(start, stop)
    assert found == list(range(6))


def test_it_ends_early_when_it_is_over():
    over = threading.Event()
    found = []
    for place in paced(np.array([0, HOUR], np.int64), 0.001, over):
        found.append(place)
        over.set()
    assert found == [(0, 1)]
