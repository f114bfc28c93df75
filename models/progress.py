"""How far work in this process has come: events through each step, for whoever shows it.

It is for display only: no result depends on it, and on other machines than the launcher's nobody reads it.
"""

from __future__ import annotations

import collections

STEPS = ("read", "windowed", "scored", "written")

_done: collections.Counter[str] = collections.Counter()


def advance(step: str, events: int) -> None:
    """Say that `events` more have come through `step`."""
    _done[step] += events


def done() -> dict[str, int]:
    """Events through each step since the last reset."""
    return dict(_done)


def reset() -> None:
    """Start from zero."""
    _done.clear()
