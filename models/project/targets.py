"""What a model predicts, and limits of its inputs and outputs; models.project.declarations is the whole."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import pydantic

from models.project.sections import Declaration

Kind = Literal["binary", "multiclass", "regression", "count", "quantile", "anomaly"]

# By kind of target that xgboost learns the objectives of xgboost that may be declared; the first is the default.
OBJECTIVES: dict[str, tuple[str, ...]] = {
    "binary": ("binary:logistic", "reg:logistic"),
    "multiclass": ("multi:softprob",),
    "regression": ("reg:squarederror", "reg:absoluteerror", "reg:gamma", "reg:tweedie"),
    "count": ("count:poisson",),
    "quantile": ("reg:quantileerror",),
}
# So many different values an input may have by its encoding; of more, the most frequent ones can be declared.
MOST_VALUES: dict[str, int] = {"splits": 1_000, "one_hot": 200, "target": 100_000}
MAX_CLASSES = 200
MAX_QUANTILES = 20


class Target(Declaration):
    """What is predicted. The classes of a multi-class target are the domain of the label in the schema."""

    newer: ClassVar[tuple[str, ...]] = ("quantiles",)

    kind: Kind = "binary"
    quantiles: list[Annotated[float, pydantic.Field(gt=0, lt=1)]] = pydantic.Field(default_factory=list)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _from_kind(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value


def output_name(column: str, output: str) -> str:
    """The column of a score row for one of several outputs of a model: a class or a quantile."""
    return f"{column}_{output}"


def output_text(output: str | int | float) -> str:
    """The name of an output, as it is declared: a class as it is, a quantile such as 0.50 as 0.5."""
    return f"{output:g}" if isinstance(output, float) else str(output)
