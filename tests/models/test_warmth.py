"""Whether a run that is to take over is warm, by the times of what it has read."""

import pytest

from models.rollout.warmth import MOST_BEHIND_US, Known, find_cold, find_lost

MINUTE = 60_000_000
NOW = 1_000 * MINUTE
FROM = NOW + MINUTE
REACH = 30 * MINUTE


def lacking(now_us=NOW, **known):
    return list(find_cold(Known(**known), REACH, FROM, now_us))


@pytest.mark.parametrize(
    "known",
    [
        {"history": (0, FROM - 1)},
        {"history": (FROM - REACH, NOW)},
        {"stream": (FROM - REACH, NOW)},
        {"stream": (FROM - REACH, NOW - MOST_BEHIND_US)},
        {"history": (0, NOW - MINUTE), "stream": (NOW - MINUTE, NOW)},
    ],
)
def test_it_is_warm_with_all_that_windows_reach_back_to(known):
    assert lacking(**known) == []


@pytest.mark.parametrize(
    ("known", "said"),
    [
        ({}, "nothing tells"),
        ({"history": (FROM - REACH + 1, NOW)}, "its first event"),
        ({"stream": (FROM - REACH + 1, NOW)}, "its first event"),
        ({"history": (0, NOW - 2 * MINUTE), "stream": (NOW - MINUTE, NOW)}, "its history ends"),
        ({"stream": (0, NOW), "over": True}, "was stopped"),
        ({"stream": (0, NOW - MOST_BEHIND_US - 1)}, "it is behind"),
    ],
)
def test_what_it_lacks_is_said(known, said):
    (found,) = lacking(**known)
    assert said in found


def test_a_log_of_event_times_has_no_now():
    assert lacking(now_us=None, stream=(0, 1)) == []


def test_history_of_the_time_that_is_handed_over_would_be_scored_by_nobody():
    known = Known((0, FROM), (NOW, NOW))
    assert "is not scored" in find_lost(known, FROM)
    assert find_lost(known, FROM + 1) is None
    assert find_lost(Known((0, FROM)), FROM) is None  # of a batch it is what is scored
