"""The part of a use case's declarations that is of its circuit breaker: when it trips, and when it closes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import pydantic

from models.project.objectives import Fast, Objective, Share
from models.project.sections import Declaration, Duration, parse_duration
from models.quality.records import Kind

Windows = Annotated[int, pydantic.Field(ge=1, le=1000)]


class Labelled(Objective):
    """Good is a score with that decision whose label is `label`; others are with the decision and another label."""

    decision: str
    label: Annotated[str, pydantic.BeforeValidator(lambda value: str(value) if type(value) is int else value)]

    @property
    def name(self) -> str:
        """As people call it."""
        return f"{self.decision} labelled {self.label}"


class ByClock(Declaration):
    """What a running stream is held against, in windows of so long by the clock; what trips so is a release record.

    A window of fewer than the objectives' `minimum` says nothing; labels wait until they are so many.
    """

    every: Annotated[Duration, pydantic.Field(ge=parse_duration("1s"), le=parse_duration("1d"))] = parse_duration("10s")
    latency: Fast | None = None
    valid: Objective | None = None
    labels: list[Labelled] = pydantic.Field(default_factory=list)
    newer: ClassVar[tuple[str, ...]] = ("labels",)


class Breaker(Declaration):
    """When releases fall back by themselves: after `after` bad windows in a row, of `quality` or of `clock`.

    `kinds` are those of findings that make a window bad, all if there are none. `wait` windows later a share `probe` of
    the keys of `entity` is tried, and after `good` windows of that the circuit closes.
    """

    kinds: list[Kind] = pydantic.Field(default_factory=list)
    after: Windows = 1
    wait: Windows = 2
    probe: Share = 0.05
    entity: str | None = None
    good: Windows = 2
    to: Literal["previous", "safe_action"] = "previous"
    safe_action: str | None = None
    clock: ByClock | None = None

    def probed(self, entities: Mapping[str, str]) -> str:
        """The entity of whose keys a share is tried: the one declared, or the only one of these."""
        return self.entity or next(iter(entities))
