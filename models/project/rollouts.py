"""The part of a use case's declarations that is of its release log."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from models.project.sections import Declaration, Duration, parse_duration


class Rollout(Declaration):
    """What a release log's times are: of the day, or event times of data that lies in the past; and its lead.

    A release takes effect no sooner than `lead` after it is made: so long it may take until all know of it.
    """

    clock: Literal["wall", "event"] = "wall"
    lead: Annotated[Duration, pydantic.Field(ge=parse_duration("1s"), le=parse_duration("1d"))] = parse_duration("5s")
