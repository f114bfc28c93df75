"""The parts of a use case's declarations that are of what is known after scoring: label metrics, and retraining."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import pydantic

from models.project.sections import Declaration, Duration, Finite

_DAY_US = 86_400_000_000


def _whole_days(duration_us: int) -> int:
    if duration_us == 0 or duration_us % _DAY_US:
        raise ValueError("must be whole days, such as 1d or 7d")
    return duration_us


Days = Annotated[Duration, pydantic.AfterValidator(_whole_days)]


class LabelMetrics(Declaration):
    """How good scores are, by windows of event time, [start, end) counted from 1970-01-01, as labels become known.

    With `estimate`, also how good they are to be expected to be, before any label is known.
    """

    newer: ClassVar[tuple[str, ...]] = ("estimate",)

    window: Days
    estimate: bool = False


class Gate(Declaration):
    """What a challenger must be better in than the champion, on the days of the training's test.

    Better by `margin` over all rows, and on no slice worse by more than `loss`, or than what `slices` says of it.
    """

    metric: str
    margin: Annotated[Finite, pydantic.Field(ge=0)] = 0.0
    loss: Annotated[Finite, pydantic.Field(ge=0)] | None = None
    slices: dict[str, Annotated[Finite, pydantic.Field(ge=0)]] = pydantic.Field(default_factory=dict)


class Retrain(Declaration):
    """When `headrace nightly` trains anew, and what becomes of the bundle.

    `fall` is how far the gate's metric may fall below that of the champion's test before `label_metrics` asks for it.
    """

    every: Days
    or_on: list[Literal["drift", "label_metrics"]] = pydantic.Field(default_factory=list)
    fall: Annotated[Finite, pydantic.Field(ge=0)] = 0.05
    gate: Gate
    promote: bool = False
