"""The part of a use case's declarations that is of its service level objectives."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from models.metrics import LATENCY, REQUEST_SECONDS
from models.project.sections import Declaration, Duration, parse_duration

Share = Annotated[float, pydantic.Field(gt=0, lt=1)]


class Objective(Declaration):
    """A share of good ones among all of a period; what has fewer than `minimum` in an alert's window is not told."""

    target: Share
    minimum: Annotated[int, pydantic.Field(ge=1)] = 100


class Fast(Objective):
    """Good is what takes no longer than `within`, which is taken down to the next bound of the metric."""

    within: Annotated[Duration, pydantic.Field(ge=int(LATENCY.bounds[0] * 1e6), le=int(LATENCY.bounds[-1] * 1e6))]


class Objectives(Declaration):
    """What the project promises, over a period of so long."""

    period: Annotated[Duration, pydantic.Field(ge=parse_duration("1d"))] = parse_duration("30d")
    latency: Fast | None = None
    valid: Objective | None = None
    quality: Objective | None = None
    rows: Annotated[int, pydantic.Field(ge=1)] | None = None


class Fresh(Objective):
    """Good is an event no further past what the store has than `within`; `otherwise` is done with the others."""

    target: Share = 0.99
    within: Annotated[Duration, pydantic.Field(ge=parse_duration("1s"), le=parse_duration("7d"))]
    otherwise: Literal["mark", "fallback", "refuse"] = "mark"


class Serving(Declaration):
    """What an endpoint promises: how soon 99 of 100 requests are answered, what share of events, and how fresh."""

    p99: (
        Annotated[Duration, pydantic.Field(ge=parse_duration("1ms"), le=int(REQUEST_SECONDS.bounds[-1] * 1e6))] | None
    ) = None
    availability: Share | None = None
    freshness: Fresh | None = None
