"""The parts of a use case's declarations that are of its model: what it reads, how it is trained, judged and used."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import pydantic

from models.project.sections import Declaration, Duration, Finite, Scalar, UtcTime, parse_duration

_PRECISION = re.compile(r"precision_at_k\(\s*([A-Za-z_]\w*)\s*,\s*([0-9]{1,9})\s*\)")


class Category(Declaration):
    """How the values of an input that are but names become numbers, and which of them the model knows.

    It knows those that come in at least `at_least` of the training rows, of these the `most` frequent ones; of equally
    frequent ones the first by value. All others are unknown. `smoothing` is of the encoding `target`.
    """

    encoding: Literal["splits", "one_hot", "target"] = "splits"
    most: Annotated[int, pydantic.Field(ge=1)] | None = None
    at_least: Annotated[int, pydantic.Field(ge=1, le=1_000_000_000)] = 1
    smoothing: Annotated[int, pydantic.Field(ge=1, le=1_000_000_000)] = 10

    @pydantic.model_validator(mode="before")
    @classmethod
    def _from_encoding(cls, value: Any) -> Any:
        return {"encoding": value} if isinstance(value, str) else value


class EarlyStopping(Declaration):
    """Training ends when `rounds` trees have not improved the loss of the last part of the training's time."""

    rounds: Annotated[int, pydantic.Field(ge=1, le=100_000)]
    on_last: Duration


class Model(Declaration):
    """The model's inputs, in its order, how those are coded that are but names, and how it is trained."""

    newer: ClassVar[tuple[str, ...]] = ("categories", "early_stopping", "alone")

    inputs: list[str] = pydantic.Field(min_length=1)
    params: dict[str, Scalar] = pydantic.Field(default_factory=dict)
    categories: dict[str, Category] = pydantic.Field(default_factory=dict)
    early_stopping: EarlyStopping | None = None
    alone: bool = False  # of an imported model: score one row at a time, as a row's bits depend on the others

    @staticmethod
    def none() -> Model:
        """That of a project without a model: it has no inputs."""
        return Model.model_construct(inputs=[])


class Training(Declaration):
    """The split by time: days to train on, a gap for labels to become known, days to test on.

    The events of the gap, which the model neither learns from nor is tested on, make the baseline.
    """

    train: Duration = parse_duration("7d")
    delay: Duration = parse_duration("7d")
    test: Duration = parse_duration("7d")
    start: UtcTime | None = None
    group: str | None = None
    slices: list[str] = pydantic.Field(default_factory=list)
    max_dead_letters: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.1  # share of what is read; fails beyond


class Decision(Declaration):
    """The action for scores of at least a bound, or of one of several outputs: a class or a quantile.

    The last one has no bound where scores may be below 0.
    """

    newer: ClassVar[tuple[str, ...]] = ("of",)

    action: Annotated[str, pydantic.Field(min_length=1)]
    at_least: Finite | None = None
    of: str | int | float | None = None


class Fallback(Declaration):
    """What is decided of an event that can't be scored."""

    action: Annotated[str, pydantic.Field(min_length=1)]


class PrecisionAtK(NamedTuple):
    """A declared metric: of the k entities with the highest scores of a day, the share that is positive."""

    entity: str
    k: int


def parse_metric(text: str) -> PrecisionAtK:
    """Read `precision_at_k(ENTITY, K)`; ValueError for what is no metric."""
    match = _PRECISION.fullmatch(text.strip())
    if match is None or int(match[2]) == 0:
        raise ValueError(
            f"{text!r} is not a metric: write precision_at_k(ENTITY, K), such as precision_at_k(customer, 100)"
        )
    return PrecisionAtK(match[1], int(match[2]))
