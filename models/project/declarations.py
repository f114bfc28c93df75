"""The declarations of a use case, each of its type; models.project.project reads and checks them as a whole."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import itertools
import json
import math
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import pydantic

from models.codecs.times import micros_of
from models.project.contract import Contract
from models.project.expressions import Expression
from models.record import EVENTS, LABELS, RecordType

_UNITS = {"us": 1, "ms": 1_000, "s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}
_DURATION = re.compile(r"([0-9]+)\s*(us|ms|s|m|h|d)")
# After how long the parts of an event time come again.
_CYCLES = {"hour": _UNITS["d"], "weekday": 7 * _UNITS["d"], "day": 31 * _UNITS["d"], "month": 366 * _UNITS["d"]}
_LARGEST_INPUT = 3.4e38
_LONGEST = 100 * 366 * _UNITS["d"]
_AGGREGATE = re.compile(r"(count|sum|mean|min|max|rate)(?:\(\s*([A-Za-z_]\w*)\s*\))?")


def parse_duration(text: object) -> int:
    """Read a duration such as `7d`, `36h` or `500ms` and give it in microseconds."""
    match = _DURATION.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"{text!r} is not a duration: write a whole number and us, ms, s, m, h or d, as in 7d")
    duration = int(match[1][-30:]) * _UNITS[match[2]]
    if len(match[1]) > 30 or duration > _LONGEST:
        raise ValueError("is longer than 100 years")
    return duration


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


def _beside(name: str) -> str:
    if not name.isprintable() or re.search(r"[/\\:]", name) or name.startswith("."):
        raise ValueError(f"{name!r} is not the name of a file that stands beside this one")
    return name


Scalar = Annotated[Any, pydantic.AfterValidator(_scalar)]
Duration = Annotated[int, pydantic.BeforeValidator(parse_duration)]
UtcTime = Annotated[datetime.datetime, pydantic.AfterValidator(_to_utc)]
Finite = Annotated[float, pydantic.Field(allow_inf_nan=False)]


class _Declaration(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class Event(_Declaration):
    """What identifies an event and when it happened."""

    id: str
    time: str
    earliest: UtcTime = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    latest: UtcTime = datetime.datetime(2100, 1, 1, tzinfo=datetime.UTC)
    deduplicate_within: Duration = parse_duration("7d")
    max_bytes: Annotated[int, pydantic.Field(gt=0, le=1 << 30)] = 65536
    unknown_fields: Literal["ignore", "refuse"] = "ignore"


class LabelEvents(_Declaration):
    """Labels come as records of their own, of the event's id, the label and the field that says when it was known."""

    time: str


class Label(_Declaration):
    """What is to be predicted, and how long after the event it becomes known.

    With `events`, features take a label from its own record, and never from the event's column.
    """

    field: str
    delay: Duration
    events: LabelEvents | None = None


class Rolling(_Declaration):
    """Features over rolling windows of one entity; `{window}` in a name stands for a window's name."""

    entity: str
    windows: dict[str, Duration] = pydantic.Field(min_length=1)
    features: dict[str, str] = pydantic.Field(min_length=1)
    delay: Duration = 0
    include_current: bool = True
    empty: Annotated[float, pydantic.AfterValidator(_not_infinite)] | None = None

    def expand(self) -> Iterator[RollingFeature]:
        """Each feature over each window; ValueError for what is not an aggregate."""
        for (window, length), (name, text) in itertools.product(self.windows.items(), self.features.items()):
            match = _AGGREGATE.fullmatch(text.strip())
            if match is None or (match[1] == "count") != (match[2] is None):
                known = "write count, or sum, mean, min, max or rate with a field in brackets"
                raise ValueError(f"{text!r} is not an aggregate: {known}")
            neutral = 0.0 if match[1] in ("count", "sum", "rate") else math.nan
            yield RollingFeature(
                name=name.replace("{window}", window),
                entity=self.entity,
                aggregate=match[1],
                field=match[2],
                window_us=length,
                delay_us=self.delay,
                include_current=self.include_current,
                empty=neutral if self.empty is None else self.empty,
            )


class Features(_Declaration):
    """Row features (expressions over one event) and rolling features (windows over an entity)."""

    row: dict[str, str] = {}
    rolling: list[Rolling] = []


class Model(_Declaration):
    """The model's inputs, in its order, and the parameters it is trained with."""

    inputs: list[str] = pydantic.Field(min_length=1)
    params: dict[str, Scalar] = {}


class Training(_Declaration):
    """The split by time: days to train on, a gap for labels to become known, days to test on.

    The events of the gap, which the model neither learns from nor is tested on, make the baseline.
    """

    train: Duration = parse_duration("7d")
    delay: Duration = parse_duration("7d")
    test: Duration = parse_duration("7d")
    start: UtcTime | None = None
    group: str | None = None
    slices: list[str] = []
    max_dead_letters: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.1  # share of what is read; fails beyond


class Decision(_Declaration):
    """The action for scores of at least a bound."""

    action: Annotated[str, pydantic.Field(min_length=1)]
    at_least: Finite


class Quality(_Declaration):
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


class Project(_Declaration):
    """All declarations of one use case."""

    name: str = pydantic.Field(pattern=r"^[a-z][a-z0-9_]*$")
    schema_file: Annotated[str, pydantic.AfterValidator(_beside)] = pydantic.Field(alias="schema")
    event: Event
    entities: dict[str, str] = {}
    label: Label | None = None
    fixed_point: dict[str, Annotated[int, pydantic.Field(ge=0, le=9)]] = {}
    features: Features = Features()
    model: Model
    training: Training = Training()
    decisions: list[Decision] = []
    quality: Quality | None = None
    output: list[str] = []
    _contract: Contract = pydantic.PrivateAttr()

    @property
    def contract(self) -> Contract:
        """The schema that stands beside the declarations."""
        return self._contract

    @property
    def event_type(self) -> RecordType:
        """Events, as a step reads them."""
        summed = {f.field for f in self.rolling_features if f.field and f.aggregate in ("sum", "mean")}
        return self._record_type(
            EVENTS,
            0,
            self._contract,
            self.event.time,
            carried=self.carried_fields,
            fixed_point={name: self.fixed_point.get(name, 0) for name in sorted(summed)},
        )

    @property
    def label_type(self) -> RecordType | None:
        """Label records: the event's id, the label and the time it was known; None if labels are no records."""
        if self.label is None or self.label.events is None:
            return None
        fields, event_time = self._contract.fields, self._contract.fields[self.event.time]
        needed = {
            self.event.id: fields[self.event.id],
            self.label.field: dataclasses.replace(fields[self.label.field], required=True),
            self.label.events.time: dataclasses.replace(event_time, name=self.label.events.time, required=True),
        }
        carried = tuple(name for name in needed if name != self.label.events.time)
        return self._record_type(LABELS, 1, Contract(needed, b""), self.label.events.time, carried=carried)

    @property
    def record_types(self) -> tuple[RecordType, ...]:
        """All kinds of records that there may be, events first."""
        return (self.event_type, *([self.label_type] if self.label_type else []))

    def _record_type(self, name: str, number: int, contract: Contract, time: str, **more: Any) -> RecordType:
        event = self.event
        return RecordType(
            name=name,
            number=number,
            contract=contract,
            id=event.id,
            time=time,
            earliest_us=micros_of(event.earliest),
            latest_us=micros_of(event.latest),
            max_bytes=event.max_bytes,
            refuses_unknown=event.unknown_fields == "refuse",
            deduplicate_within_us=event.deduplicate_within,
            **more,
        )

    @functools.cached_property
    def row_features(self) -> dict[str, Expression]:
        """Name → expression, in declared order."""
        return {name: Expression.parse(text) for name, text in self.features.row.items()}

    @functools.cached_property
    def rolling_features(self) -> tuple[RollingFeature, ...]:
        """Every rolling feature, windows expanded, in declared order."""
        return tuple(feature for rolling in self.features.rolling for feature in rolling.expand())

    @property
    def feature_names(self) -> tuple[str, ...]:
        """All features in declared order: row features, then rolling ones."""
        return (*self.features.row, *(f.name for f in self.rolling_features))

    @property
    def carried_fields(self) -> tuple[str, ...]:
        """The schema's fields that go on past validation: those that something later reads."""
        wanted = {
            self.event.id,
            *self.entities.values(),
            *self.output,
            *self.model.inputs,
            *self.training.slices,
        }
        wanted |= {self.label.field} if self.label else set()
        wanted |= {name for e in self.row_features.values() for name in e.names}
        wanted |= {f.field for f in self.rolling_features if f.field}
        wanted.discard(self.event.time)  # travels as the event time column
        return tuple(name for name in self._contract.fields if name in wanted)

    @property
    def watched_columns(self) -> tuple[str, ...]:
        """The columns whose values are watched: features, other inputs, and fields that go out but are no label.

        A feature of the event time alone, such as the weekday, is not where windows are shorter than its cycle: it is
        another in each window by its nature.
        """
        unwatched = {self.event.id, *self.entities.values(), *([self.label.field] if self.label else [])}
        window_us = self.quality.window if self.quality else 0
        for name, text in self.features.row.items():
            cycles = [_CYCLES[part] for part in re.findall(r"\b(hour|weekday|day|month)\(", text)]
            if self.row_features[name].names <= {self.event.time} and max(cycles, default=0) > window_us:
                unwatched.add(name)
        names = dict.fromkeys([*self.feature_names, *self.model.inputs, *self.output])
        return tuple(name for name in names if name not in unwatched)

    def feature_definitions(self) -> bytes:
        """Canonical JSON of all that decides what a feature's or a decision's value is."""
        parts = self.model_dump(mode="json", include={"event", "entities", "label", "fixed_point", "features"})
        if self.label and self.label.events is None:
            del parts["label"]["events"]  # bundles from before there were label records stay the same
        parts["inputs"] = self.model.inputs
        parts["decisions"] = self.model_dump(mode="json")["decisions"]
        return json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()


# What is declared at which path; "*" stands for each part of a list.
DECLARED_AT: dict[tuple[int | str, ...], type[pydantic.BaseModel]] = {
    (): Project,
    ("event",): Event,
    ("label",): Label,
    ("label", "events"): LabelEvents,
    ("features",): Features,
    ("features", "rolling", "*"): Rolling,
    ("model",): Model,
    ("training",): Training,
    ("decisions", "*"): Decision,
    ("quality",): Quality,
}


@dataclasses.dataclass(frozen=True)
class RollingFeature:
    """One aggregate over one window: events of the entity with time in (t - delay - window, t - delay]."""

    name: str
    entity: str
    aggregate: str
    field: str | None
    window_us: int
    delay_us: int
    include_current: bool
    empty: float
