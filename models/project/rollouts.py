"""The part of a use case's declarations that is of its releases: the log, and what a challenger is judged by."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import pydantic

from models.project.sections import Declaration, Duration, Finite, parse_duration

Limit = Annotated[Finite, pydantic.Field(ge=0)] | None


class Minimum(Declaration):
    """What each of champion and challenger must have before anything, or anything by labels, is decided."""

    events: Annotated[int, pydantic.Field(ge=1)] = 1000
    labels: Annotated[int, pydantic.Field(ge=1)] = 100


class Margins(Declaration):
    """By how much a challenger may be worse than the champion, or other; what has no margin is not judged.

    `metric` is of the figure over all rows, `slices` of it on each slice's value. `decisions` is the change of a
    decision's share, `psi` the population stability index of scores, `errors` by how much more of the events may be
    without a finite score. `latency` is a factor of the champion's 99th percentile.
    """

    metric: Limit = None
    slices: Limit = None
    decisions: Limit = None
    psi: Limit = None
    errors: Limit = None
    latency: Annotated[Finite, pydantic.Field(ge=1)] | None = None


class Rules(Declaration):
    """When `headrace rollout` says promote, hold or roll back. Windows are of event time, counted from 1970-01-01."""

    window: Annotated[Duration, pydantic.Field(ge=parse_duration("1s"))] = parse_duration("1d")
    metric: str | None = None
    minimum: Minimum = Minimum()
    margins: Margins = Margins()


class Rollout(Declaration):
    """What a release log's times are: of the day, or event times of data that lies in the past; and its lead.

    A release takes effect no sooner than `lead` after it is made: so long it may take until all know of it. `blocks`
    are the decisions after which no label becomes known, as what was asked for does not happen.
    """

    clock: Literal["wall", "event"] = "wall"
    lead: Annotated[Duration, pydantic.Field(ge=parse_duration("1s"), le=parse_duration("1d"))] = parse_duration("5s")
    blocks: list[str] = pydantic.Field(default_factory=list)
    rules: Rules | None = None
    newer: ClassVar[tuple[str, ...]] = ("blocks", "rules")
