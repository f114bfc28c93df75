"""Whether a run that is to take over knows what its windows need by then, as far as its inputs tell."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from models.rollout.records import time_text

MOST_BEHIND_US = 60_000_000  # of a stream by the clock of the wall, from its watermark to now


@dataclasses.dataclass(frozen=True)
class Known:
    """The event times, microseconds since 1970 UTC, of what a run has read; None where there is none.

    Fields:
        history: the first and last of the files, or of the state, that it began with.
        stream: those of its journal: the first, and up to where events have been released.
        over: whether its stream was stopped.
    """

    history: tuple[int, int] | None = None
    stream: tuple[int, int] | None = None
    over: bool = False


def find_cold(known: Known, reach_us: int, from_us: int, now_us: int | None) -> Iterator[str]:
    """What a run lacks that takes over from an event time on, each as a clause; none if it is warm.

    `reach_us` is how far back windows and duplicates reach; `now_us` the time of the wall, None of a log of event
    times.
    """
    if known.history is None and known.stream is None:
        yield "nothing tells what it has read: name its --journal, and the --history that it began with"
        return
    needed_us = from_us - reach_us
    first_us = min(first for first, _ in filter(None, (known.history, known.stream)))
    if first_us > needed_us:
        yield (
            f"its first event is of {time_text(first_us)}, and windows and duplicates reach back to "
            f"{time_text(needed_us)}: begin it with more --history, or hand over later"
        )
    if known.stream is None:
        return
    began_us, released_us = known.stream
    if known.history is not None and known.history[1] < began_us:
        yield (
            f"its history ends at {time_text(known.history[1])}, and its stream begins at {time_text(began_us)}: what "
            "is between may be missing"
        )
    if known.over:
        yield "its stream was stopped"
    if now_us is not None and released_us < now_us - MOST_BEHIND_US:
        yield f"its stream has released events up to {time_text(released_us)} alone: it is behind, or does not run"


def find_lost(known: Known, from_us: int) -> str | None:
    """Why events would be scored by no run: they are history of the one that takes over; None if none are."""
    if known.history is None or known.stream is None or known.history[1] < from_us:
        return None
    return (
        f"its history reaches to {time_text(known.history[1])}, and what is history is not scored: hand over after that"
    )
