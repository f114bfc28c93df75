"""What a request for scores gets: of answers to events of several requests the part of each."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from models.serving.answers import Answers
from models.serving.freshness import Told
from models.serving.requests import is_valid


@dataclasses.dataclass(frozen=True)
class Reply:
    """Answers to a request's events, JSON each in their order, and what became of each.

    `ages_us` is how far each that has a state is past it, and `valid` are the events that windows of later ones see.
    `ids` are those of events that were not refused, and `begun_ns` and `done_ns` when the thread had them, nanoseconds
    since 1970 UTC.
    """

    answers: Sequence[bytes]
    outcomes: Sequence[str]
    ages_us: Sequence[int] = ()
    valid: Sequence[bytes] = ()
    ids: pa.Array | None = None
    begun_ns: int = 0
    done_ns: int = 0


def replies_of(
    payloads: Sequence[bytes], sizes: Sequence[int], answers: Answers, told: Told, ids: pa.Array, begun_ns: int
) -> list[Reply]:
    """The replies to requests of so many events each; `ids` are those of the rows of the answers."""
    edges = np.cumsum([0, *sizes])
    rows = np.searchsorted(answers.places, edges).tolist()
    done_ns = time.time_ns()
    replies = []
    for (begin, end), (low, high) in zip(itertools.pairwise(edges.tolist()), itertools.pairwise(rows), strict=True):
        places = range(begin, end)
        ages = [told.ages_us[place] for place in places if place in told.ages_us]
        valid = [payloads[place] for place in places if is_valid(answers.refused.get(place))]
        own = ids.slice(low, high - low)
        replies.append(Reply(told.lines[begin:end], told.outcomes[begin:end], ages, valid, own, begun_ns, done_ns))
    return replies
