"""How fresh the state is that events are answered by, and what is answered when it is older than declared."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from models.batches import as_int64, column
from models.objectives import FALLBACK, REFUSED, SCORED, UNANSWERED
from models.project.declarations import Project
from models.project.objectives import Fresh
from models.project.sections import duration_text
from models.serving.answers import Answering, Answers
from models.serving.requests import Refusal

FRESHNESS = "Freshness"  # the step that refuses what no step of the graph does
NEVER_US = -(1 << 62)


@dataclasses.dataclass(frozen=True)
class State:
    """How far a store goes, in microseconds since 1970 UTC: `as_of_us` as the stream says, None if it has said nothing.

    All events before `whole_us` are there, but for late ones, and those that windows of events before `since_us` need
    may have been dropped: NEVER_US if that is not known.
    """

    as_of_us: int | None = None
    whole_us: int = NEVER_US
    since_us: int = NEVER_US

    def told(self, time_us: int) -> bytes:
        """Members of an answer to an event of a time: how far the stream has come, and if all before it are there."""
        is_complete = self.since_us <= time_us < self.whole_us
        return b'"as_of":%s,"complete":%s' % (self._as_of, b"true" if is_complete else b"false")

    @functools.cached_property
    def _as_of(self) -> bytes:
        return b"null" if self.as_of_us is None else b'"%s"' % time_text(self.as_of_us).encode()

    def age_us(self, time_us: int) -> int:
        """How far a time is past what is there: 0 if it is not."""
        return max(time_us - self.whole_us, 0)


class Told(NamedTuple):
    """By the place of each event its answer, JSON, and what became of it; and of scored ones how far past the state."""

    lines: list[bytes]
    outcomes: list[str]
    ages_us: dict[int, int]


def tell(answering: Answering, payloads: Sequence[bytes], answers: Answers, state: State, with_features: bool) -> Told:
    """Render answers by a state; events that are too far past it are answered as the project declares."""
    project = answering.project
    times = as_int64(column(answers.rows, project.event.time)).tolist() if answers.rows.num_rows else []
    ages = [state.age_us(time_us) for time_us in times]
    fresh = project.serving.freshness if project.serving is not None else None
    is_stale = [fresh is not None and age_us > fresh.within for age_us in ages]
    marks = [b',"stale":true' if stale else b"" for stale in is_stale]
    lines = answering.render(
        answers, [state.told(t) + mark for t, mark in zip(times, marks, strict=True)], with_features
    )
    outcomes = [SCORED] * len(lines)
    for place in answers.refused:
        outcomes[place] = REFUSED
    told = Told(lines, outcomes, dict(zip(answers.places.tolist(), ages, strict=True)) if ages else {})
    stale = answers.places[np.array(is_stale, bool)].tolist() if any(is_stale) else []
    if fresh is None or not stale or fresh.otherwise == "mark":
        return told
    if fresh.otherwise == "fallback" and project.fallback is not None:
        instead = answering.without_past([payloads[place] for place in stale], project.fallback.action)
        about = [b'"fallback":true,' + state.told(t) + mark for t, mark in zip(times, marks, strict=True) if mark]
        for place, line in zip(stale, answering.render(instead, about, False), strict=True):
            lines[place], outcomes[place] = line, FALLBACK
        return told
    refusal = answering.render(
        Answers(answers.rows.slice(0, 0), answers.places[:0], {0: _refusal(fresh, project, state)}), [], False
    )
    for place in stale:
        lines[place], outcomes[place] = refusal[0], UNANSWERED
    return told


def _refusal(fresh: Fresh, project: Project, state: State) -> Refusal:
    rule = f"the state is older by more than {duration_text(fresh.within)}"
    so_far = "" if state.whole_us == NEVER_US else time_text(state.whole_us)
    return Refusal(FRESHNESS, json.dumps([{"field": project.event.time, "rule": rule, "value": so_far}]))


def time_text(time_us: int) -> str:
    """A time as ISO 8601 writes it."""
    since = np.datetime64(time_us, "us").astype(datetime.datetime)
    return f"{since.isoformat()}Z" if isinstance(since, datetime.datetime) else str(time_us)
