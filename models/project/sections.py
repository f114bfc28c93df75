"""The parts of a use case's declarations, each of its type; models.project.declarations is the whole."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import itertools
import re
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

import pydantic

from models.project.aggregates import AGGREGATES, COUNTS, PERIODS, parse_aggregate
from models.project.expressions import Expression

_UNITS = {"us": 1, "ms": 1_000, "s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}
_DURATION = re.compile(r"([0-9]+)\s*(us|ms|s|m|h|d)")
# After how long the parts of an event time come again.
CYCLES = {"hour": _UNITS["d"], "weekday": 7 * _UNITS["d"], "day": 31 * _UNITS["d"], "month": 366 * _UNITS["d"]}
_LARGEST_INPUT = 3.4e38
_LONGEST = 100 * 366 * _UNITS["d"]


def parse_duration(text: object) -> int:
    """Read a duration such as `7d`, `36h` or `500ms` and give it in microseconds."""
    match = _DURATION.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"{text!r} is not a duration: write a whole number and us, ms, s, m, h or d, as in 7d")
    duration = int(match[1][-30:]) * _UNITS[match[2]]
    if len(match[1]) > 30 or duration > _LONGEST:
        raise ValueError("is longer than 100 years")
    return duration


def _parse_window(text: object) -> int | str:
    """A duration in microseconds, or the name of a calendar period."""
    if isinstance(text, str) and text.strip() in PERIODS:
        return text.strip()
    try:
        return parse_duration(text)
    except ValueError as error:
        raise ValueError(f"{error}; or {', '.join(PERIODS)}") from None


def _entity_or_entities(value: object) -> object:
    if not isinstance(value, str) and not (isinstance(value, list) and all(isinstance(each, str) for each in value)):
        raise ValueError("must be the name of an entity, or a list of several")
    return value


def duration_text(duration_us: int) -> str:
    """A duration as it may be declared, in the largest unit that it is a whole number of."""
    unit = next(unit for unit, length in reversed(_UNITS.items()) if duration_us % length == 0)
    return f"{duration_us // _UNITS[unit]}{unit}"


def _to_utc(value: datetime.datetime) -> datetime.datetime:
    try:
        return value.replace(tzinfo=datetime.UTC) if value.tzinfo is None else value.astimezone(datetime.UTC)
    except OverflowError:
        raise ValueError("is outside the years 1 to 9999") from None


def _scalar(value: object) -> object:
    if not isinstance(value, int | float | str):
        raise ValueError("must be a number, a text, true or false")
    return value


def _not_infinite(value: float) -> float:
    if abs(value) > _LARGEST_INPUT:
        raise ValueError("must be finite in the 32 bits that models read, or .nan for missing")
    return value


def beside(name: str) -> str:
    """A file's name, of one in the same folder; ValueError if it is another."""
    if not name.isprintable() or re.search(r"[/\\:]", name) or name.startswith("."):
        raise ValueError(f"{name!r} is not the name of a file that stands beside this one")
    return name


Scalar = Annotated[Any, pydantic.AfterValidator(_scalar)]
Duration = Annotated[int, pydantic.BeforeValidator(parse_duration)]
Window = Annotated[int | str, pydantic.BeforeValidator(_parse_window)]
UtcTime = Annotated[datetime.datetime, pydantic.AfterValidator(_to_utc)]
Finite = Annotated[float, pydantic.Field(allow_inf_nan=False)]


class Declaration(pydantic.BaseModel):
    """A part of project.yaml: frozen, and without unknown keys.

    What there was not in the first version is in no dump where it has its default, so that digests stay the same.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")
    newer: ClassVar[tuple[str, ...]] = ()

    @pydantic.model_serializer(mode="wrap")
    def _dump(self, handler: Any) -> Any:
        fields = type(self).model_fields
        omitted = {n for n in self.newer if getattr(self, n) == fields[n].get_default(call_default_factory=True)}
        return {name: value for name, value in handler(self).items() if name not in omitted}


class Event(Declaration):
    """What identifies an event and when it happened."""

    id: str
    time: str
    earliest: UtcTime = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    latest: UtcTime = datetime.datetime(2100, 1, 1, tzinfo=datetime.UTC)
    deduplicate_within: Duration = parse_duration("7d")
    max_bytes: Annotated[int, pydantic.Field(gt=0, le=1 << 30)] = 65536
    unknown_fields: Literal["ignore", "refuse"] = "ignore"


class LabelEvents(Declaration):
    """Labels come as records of their own, of the event's id, the label and the field that says when it was known."""

    time: str


class Label(Declaration):
    """What is to be predicted, and how long after the event it becomes known.

    With `events`, features take a label from its own record, and never from the event's column.
    """

    field: str
    delay: Duration
    events: LabelEvents | None = None


class Rolling(Declaration):
    """Features over rolling windows of one entity; `{window}` in a name stands for a window's name.

    The entity may be several, whose keys together are one, or `all`: all events are of one. `gap` cuts a window where
    so long no event was. With `missing`, an event may be without the key, and is then without the features.
    """

    entity: Annotated[Any, pydantic.AfterValidator(_entity_or_entities)]
    windows: dict[str, Window] = pydantic.Field(min_length=1)
    features: dict[str, str] = pydantic.Field(min_length=1)
    delay: Duration = 0
    include_current: bool = True
    empty: Annotated[float, pydantic.AfterValidator(_not_infinite)] | None = None
    gap: Duration | None = None
    missing: Literal["skip"] | None = None
    newer: ClassVar[tuple[str, ...]] = ("gap", "missing")

    @property
    def entities(self) -> tuple[str, ...]:
        """Those whose keys together are the key."""
        return (self.entity,) if isinstance(self.entity, str) else tuple(self.entity)

    def expand(self) -> Iterator[RollingFeature]:
        """Each feature over each window; ValueError for what is not an aggregate."""
        for (window, length), (name, text) in itertools.product(self.windows.items(), self.features.items()):
            written = parse_aggregate(text)
            yield RollingFeature(
                name=name.replace("{window}", window),
                entity=" and ".join(self.entities),
                aggregate=written.name,
                field=written.field,
                window_us=PERIODS[length] if isinstance(length, str) else length,
                delay_us=self.delay,
                include_current=self.include_current,
                empty=AGGREGATES[written.name].empty if self.empty is None else self.empty,
                where=written.where,
                rank=written.rank,
                period=length if isinstance(length, str) else None,
                gap_us=self.gap,
            )


class Features(Declaration):
    """Row features (expressions over one event) and rolling features (windows over an entity)."""

    row: dict[str, str] = {}
    rolling: list[Rolling] = []


class Expect(Declaration):
    """What values of a feature are expected, and what becomes of a row with another.

    `mark` names the feature in the row, `fallback` puts that value in its place, `dead_letter` refuses the row.
    """

    min: Finite | None = None
    max: Finite | None = None
    required: bool = False  # not missing
    finite: bool = False  # not impossible, as a quotient by zero is
    otherwise: Literal["mark", "fallback", "dead_letter"]
    fallback: Finite | None = None


class Series(Declaration):
    """What a window is compared with that is no window before it: those of the same place of earlier seasons.

    All of its numbers but `season` and `seasons` are limits.
    """

    season: Duration = parse_duration("7d")  # windows so far apart are alike
    seasons: Annotated[int, pydantic.Field(ge=3, le=52)] = 8
    deviations: Annotated[Finite, pydantic.Field(gt=0)] = 4.0
    run_length: Annotated[int, pydantic.Field(ge=50, le=1_000_000)] = 1000  # windows from one false alarm to the next
    nulls: list[str] = pydantic.Field(default_factory=list)  # watched columns whose rows without a value are a series
    newer: ClassVar[tuple[str, ...]] = ("nulls",)


class Quality(Declaration):
    """How windows of score rows are watched, and what a bad one does; every limit is a difference or a divergence.

    Shares (null_rate, decision_share, unseen) are held against the baseline's, without one against the window before.
    `drift` and `skew` are for the columns that the schema has no comparator for.
    """

    window: Duration
    min_rows: Annotated[int, pydantic.Field(ge=30)] = 500  # of fewer nothing is said
    sample: Annotated[int, pydantic.Field(ge=100, le=1_000_000)] = 10_000  # rows of a window that are looked at
    false_alarm_rate: Annotated[float, pydantic.Field(gt=0, lt=1)] = 0.01  # of a window, all comparisons together
    drift: Annotated[float, pydantic.Field(gt=0)] = 0.1
    skew: Annotated[float, pydantic.Field(gt=0)] = 0.1
    psi: Annotated[float, pydantic.Field(gt=0)] = 0.2
    null_rate: Annotated[float, pydantic.Field(gt=0)] = 0.05
    decision_share: Annotated[float, pydantic.Field(gt=0)] = 0.05
    unseen: Annotated[float, pydantic.Field(gt=0)] = 0.2
    gate: Literal["warn", "quarantine", "stop"] = "warn"
    safe_action: str | None = None  # what a stopped stream decides
    hold_off: Annotated[int, pydantic.Field(ge=1)] = 1  # so many good windows in a row close the circuit
    alert_cool_down: Duration = parse_duration("1d")  # an open incident is told again after this long
    alert_clear_after: Annotated[int, pydantic.Field(ge=1)] = 1  # windows without its alarm end an incident
    series: Series | None = None
    newer: ClassVar[tuple[str, ...]] = ("series",)

    @property
    def held_us(self) -> int | None:
        """How long a row may wait for the verdict on its own window, in microseconds; None if no gate holds it."""
        return self.window if self.gate == "quarantine" else None


@dataclasses.dataclass(frozen=True)
class RollingFeature:
    """One aggregate over one window: events of the entity with time in (t - delay - window, t - delay].

    Of them only those for which `where` holds; of a calendar window, those since the start of the `period` that
    t - delay lies in; with `gap_us`, those since the last time that so long there was no event.
    """

    name: str
    entity: str
    aggregate: str
    field: str | None
    window_us: int
    delay_us: int
    include_current: bool
    empty: float
    where: Expression | None = None
    rank: int = 1  # last() gives the how many-th from the end
    period: str | None = None
    gap_us: int | None = None

    @property
    def is_count(self) -> bool:
        """Whether it is a whole number."""
        return self.aggregate in COUNTS

    @property
    def is_plain_count(self) -> bool:
        """Whether it is the number of all events in the window."""
        return self.aggregate == "count" and self.where is None and self.gap_us is None

    @functools.cached_property
    def column(self) -> str | None:
        """The column whose values it reads: a field, or what `where` leaves of it; None if it reads none."""
        if self.where is None:
            return self.field
        return f"__{self.field or ''} where {self.where.text}"

    @property
    def reads(self) -> frozenset[str]:
        """The fields and row features that it reads."""
        return frozenset([self.field] if self.field else []) | (self.where.names if self.where else frozenset())
