"""The part of a use case's declarations that is of its service level objectives."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

import pydantic

from models.metrics import FRESHNESS, LATENCY, REQUEST_SECONDS, Metric
from models.project.sections import Declaration, Duration, parse_duration

Share = Annotated[float, pydantic.Field(gt=0, lt=1)]


class Objective(Declaration):
    """A share of good ones among all of a period; what has fewer than `minimum` in an alert's window is not told."""

    target: Share
    minimum: Annotated[int, pydantic.Field(ge=1)] = 100


def _bounded(metric: Metric) -> pydantic.fields.FieldInfo:
    """That a duration is one that a histogram tells of."""
    return pydantic.Field(ge=int(metric.bounds[0] * 1e6), le=int(metric.bounds[-1] * 1e6))  # type: ignore[no-any-return]


class Fast(Objective):
    """Good is what takes no longer than `within`, which is taken down to the next bound of the metric."""

    within: Annotated[Duration, _bounded(LATENCY)]


class Recent(Objective):
    """Good is what is no older than `within`, which is taken down to the next bound of the metric."""

    within: Annotated[Duration, _bounded(FRESHNESS)]


class Known(Declaration):
    """Good is a score row whose label is known so long after the end of its window of `label_metrics`."""

    target: Share
    within: Annotated[Duration, pydantic.Field(ge=parse_duration("1m"))]


class Figure(Declaration):
    """Good is a window of `label_metrics` of which a figure is at least, or at most, so much."""

    target: Share
    at_least: float | None = None
    at_most: float | None = None

    @pydantic.model_validator(mode="after")
    def _one(self) -> Self:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("say one of at_least and at_most")
        return self

    def is_kept(self, value: float) -> bool:
        """Whether a window's figure is good."""
        return value >= self.at_least if self.at_least is not None else value <= (self.at_most or 0.0)

    def __str__(self) -> str:
        return f"at least {self.at_least:g}" if self.at_least is not None else f"at most {self.at_most:g}"


class Objectives(Declaration):
    """What the project promises, over a period of so long."""

    period: Annotated[Duration, pydantic.Field(ge=parse_duration("1d"))] = parse_duration("30d")
    latency: Fast | None = None
    freshness: Recent | None = None
    valid: Objective | None = None
    quality: Objective | None = None
    labels: Known | None = None
    performance: dict[str, Figure] = pydantic.Field(default_factory=dict)
    rows: Annotated[int, pydantic.Field(ge=1)] | None = None
    done_within: Annotated[Duration, pydantic.Field(ge=parse_duration("1m"))] | None = None
    newer: ClassVar[tuple[str, ...]] = ("freshness", "done_within", "labels", "performance")


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
