"""A use case's declarations: `project.yaml` and the schema beside it, checked as a whole."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import itertools
import json
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import pydantic
import yaml

from models.contract import Contract, SchemaError
from models.expressions import Expression, ExpressionError

PROJECT_FILE = "project.yaml"
MAX_DECLARATION_BYTES = 1 << 20

_UNITS = {"us": 1, "ms": 1_000, "s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}
_DURATION = re.compile(r"(\d+)\s*(us|ms|s|m|h|d)")
_AGGREGATE = re.compile(r"(count|sum|mean|min|max|rate)(?:\(\s*([A-Za-z_]\w*)\s*\))?")

Scalar = int | float | str | bool


class ProjectError(ValueError):
    """A project that can't be used; the message has one fault a line."""


@dataclasses.dataclass(frozen=True)
class Fault:
    """One thing that is wrong in a project, and where."""

    place: str
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


def parse_duration(text: object) -> int:
    """Read a duration such as `7d`, `36h` or `500ms` and give it in microseconds."""
    match = _DURATION.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"{text!r} is not a duration: write a whole number and us, ms, s, m, h or d, as in 7d")
    return int(match[1]) * _UNITS[match[2]]


def _to_utc(value: datetime.datetime) -> datetime.datetime:
    return value.replace(tzinfo=datetime.UTC) if value.tzinfo is None else value.astimezone(datetime.UTC)


Duration = Annotated[int, pydantic.BeforeValidator(parse_duration)]
UtcTime = Annotated[datetime.datetime, pydantic.AfterValidator(_to_utc)]


class _Declaration(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class Event(_Declaration):
    """What identifies an event and when it happened."""

    id: str
    time: str
    earliest: UtcTime = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    latest: UtcTime = datetime.datetime(2100, 1, 1, tzinfo=datetime.UTC)
    deduplicate_within: Duration = parse_duration("7d")
    max_bytes: pydantic.PositiveInt = 65536
    unknown_fields: Literal["ignore", "refuse"] = "ignore"


class Label(_Declaration):
    """What is to be predicted, and how long after the event it becomes known."""

    field: str
    delay: Duration


class Rolling(_Declaration):
    """Features over rolling windows of one entity; `{window}` in a name stands for a window's name."""

    entity: str
    windows: dict[str, Duration] = pydantic.Field(min_length=1)
    features: dict[str, str] = pydantic.Field(min_length=1)
    delay: Duration = 0
    include_current: bool = True
    empty: float | None = None


class Features(_Declaration):
    """Row features (expressions over one event) and rolling features (windows over an entity)."""

    row: dict[str, str] = {}
    rolling: list[Rolling] = []


class Model(_Declaration):
    """The model's inputs, in its order, and the parameters it is trained with."""

    inputs: list[str] = pydantic.Field(min_length=1)
    params: dict[str, Scalar] = {}


class Training(_Declaration):
    """The split by time: days to train on, a gap for labels to become known, days to test on."""

    train: Duration = parse_duration("7d")
    delay: Duration = parse_duration("7d")
    test: Duration = parse_duration("7d")
    start: UtcTime | None = None
    group: str | None = None
    slices: list[str] = []


class Decision(_Declaration):
    """The action for scores of at least a bound."""

    action: str
    at_least: float


class Project(_Declaration):
    """All declarations of one use case."""

    name: str = pydantic.Field(pattern=r"^[a-z][a-z0-9_]*$")
    schema_file: str = pydantic.Field(alias="schema")
    event: Event
    entities: dict[str, str] = {}
    label: Label | None = None
    fixed_point: dict[str, Annotated[int, pydantic.Field(ge=0, le=9)]] = {}
    features: Features = Features()
    model: Model
    training: Training = Training()
    decisions: list[Decision] = []
    output: list[str] = []
    _contract: Contract = pydantic.PrivateAttr()

    @property
    def contract(self) -> Contract:
        """The schema that stands beside the declarations."""
        return self._contract

    @functools.cached_property
    def row_features(self) -> dict[str, Expression]:
        """Name → expression, in declared order."""
        return {name: Expression.parse(text) for name, text in self.features.row.items()}

    @functools.cached_property
    def rolling_features(self) -> tuple[RollingFeature, ...]:
        """Every rolling feature, windows expanded, in declared order."""
        return tuple(feature for rolling in self.features.rolling for feature in _expand(rolling))

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

    def feature_definitions(self) -> bytes:
        """Canonical JSON of all that decides what a feature's or a decision's value is."""
        parts = self.model_dump(mode="json", include={"event", "entities", "label", "fixed_point", "features"})
        parts["inputs"] = self.model.inputs
        parts["decisions"] = self.model_dump(mode="json")["decisions"]
        return json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()


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


def _expand(rolling: Rolling) -> Iterator[RollingFeature]:
    for (window, length), (name, text) in itertools.product(rolling.windows.items(), rolling.features.items()):
        match = _AGGREGATE.fullmatch(text.strip())
        if match is None or (match[1] == "count") != (match[2] is None):
            raise ValueError(
                f"{text!r} is not an aggregate: write count, or sum, mean, min, max or rate with a field in brackets"
            )
        neutral = 0.0 if match[1] in ("count", "sum", "rate") else float("nan")
        yield RollingFeature(
            name=name.replace("{window}", window),
            entity=rolling.entity,
            aggregate=match[1],
            field=match[2],
            window_us=length,
            delay_us=rolling.delay,
            include_current=rolling.include_current,
            empty=neutral if rolling.empty is None else rolling.empty,
        )


def load_project(folder: pathlib.Path) -> Project:
    """Load the project in `folder`; raise ProjectError naming every fault if it has any."""
    project, faults = check_project(folder)
    if project is None or faults:
        raise ProjectError("\n".join(map(str, faults)))
    return project


def check_project(folder: pathlib.Path) -> tuple[Project | None, list[Fault]]:
    """Load the project in `folder` and list all its faults; nothing is run."""
    path = folder / PROJECT_FILE
    try:
        text = _read_bounded(path)
    except OSError as error:
        return None, [Fault(str(path), f"cannot be read: {error.strerror or error}")]
    except ValueError as error:
        return None, [Fault(str(path), str(error))]
    return parse_project(text, lambda name: _read_bounded(folder / name), str(path))


def parse_project(text: bytes, read_schema: Any, place: str = PROJECT_FILE) -> tuple[Project | None, list[Fault]]:
    """Parse declarations; `read_schema` maps the schema's file name to its bytes."""
    try:
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{place}:{mark.line + 1}" if mark else place
        return None, [Fault(where, f"not YAML: {getattr(error, 'problem', None) or error}")]
    if tree is None or not isinstance(raw, dict):
        return None, [Fault(place, "is empty or not a mapping of declarations")]

    def at(*loc: str | int) -> str:
        return f"{place}:{_line_of(tree, loc)}: {_dotted(loc)}"

    faults = [Fault(f"{place}:{line}", f"the key {key!r} stands twice") for key, line in _repeated_keys(tree)]
    try:
        project = Project.model_validate(raw)
    except pydantic.ValidationError as error:
        for item in error.errors():
            faults.append(Fault(at(*item["loc"]), item["msg"].removeprefix("Value error, ")))
        return None, faults
    try:
        project._contract = Contract.parse(read_schema(project.schema_file))
    except OSError as error:
        return None, [
            *faults,
            Fault(at("schema"), f"{project.schema_file} cannot be read: {error.strerror or error}"),
        ]
    except (SchemaError, ValueError) as error:
        return None, [
            *faults,
            *(Fault(at("schema"), f"{project.schema_file}: {line}") for line in str(error).splitlines()),
        ]
    faults += [Fault(at(*loc), message) for loc, message in _cross_check(project)]
    return project, faults


def _read_bounded(path: pathlib.Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(MAX_DECLARATION_BYTES + 1)
    if len(data) > MAX_DECLARATION_BYTES:
        raise ValueError(f"{path} is larger than {MAX_DECLARATION_BYTES} bytes")
    return data


_At = tuple[str | int, ...]


def _cross_check(project: Project) -> Iterator[tuple[_At, str]]:
    """Faults that need more than one declaration, or the schema, to see."""
    fields = project.contract.fields
    event, label = project.event, project.label

    def needs_field(loc: _At, name: str) -> Iterator[tuple[_At, str]]:
        if name not in fields:
            yield loc, f"{name!r} is not a field of {project.schema_file}; it has {', '.join(fields)}"

    named: list[tuple[_At, str]] = [(("event", "id"), event.id), (("event", "time"), event.time)]
    named += [(("entities", entity), name) for entity, name in project.entities.items()]
    named += [(("fixed_point", name), name) for name in project.fixed_point]
    named += [(("output", i), name) for i, name in enumerate(project.output)]
    if label:
        named.append((("label", "field"), label.field))
    for loc, name in named:
        yield from needs_field(loc, name)
    for loc, name in named[: 2 + len(project.entities)]:
        kind = fields[name].kind if name in fields else None
        if loc == ("event", "time"):
            if kind not in (None, "time"):
                yield loc, f"{name} must be a time: give it a time_domain in the schema"
        elif kind in ("float", "time"):
            yield loc, f"{name} must be a plain INT or BYTES field"
        if name in fields and not fields[name].required:
            yield loc, f"{name} must be required in the schema: give it presence {{ min_fraction: 1.0 }}"
    for name, field in fields.items():
        if name.startswith("__"):
            yield ("schema",), f"the field name {name} is reserved: names starting with __ are headrace's own"
        if field.time_format is not None and name != event.time:
            yield ("schema",), f"{name} has a time_domain, which only the event time field may have"
    if event.earliest >= event.latest:
        yield ("event", "earliest"), "must be before event.latest"
    if event.deduplicate_within == 0:
        yield ("event", "deduplicate_within"), "must be longer than zero"
    if label and label.field in fields and fields[label.field].kind != "int":
        yield ("label", "field"), f"{label.field} must be an INT field of 0 and 1"

    for name, text in project.features.row.items():
        loc = ("features", "row", name)
        try:
            expression = Expression.parse(text)
            for operand in sorted(expression.names):
                yield from needs_field(loc, operand)
                if label and operand == label.field:
                    yield loc, f"reads the label {operand}, which is not known when the event is scored"
            expression.check({n: "time" if n == event.time else f.kind for n, f in fields.items()})
        except ExpressionError as error:
            yield loc, str(error)
    yield from _check_rolling(project, needs_field)

    features_ok = True
    try:
        names = list(project.feature_names)
    except ValueError:
        names, features_ok = [*project.features.row], False
    for name in sorted({n for n in names if names.count(n) > 1}):
        yield (
            ("features",),
            f"{name} is declared more than once; a name with several windows needs {{window}} in it",
        )
    for name in names:
        if name in fields:
            yield ("features",), f"{name} is the name of a field already"
        if not re.fullmatch(r"[A-Za-z_]\w*", name) or name.startswith("__"):
            yield (
                ("features",),
                f"{name!r} is not a name: letters, digits and single underscores, no digit first",
            )
    if features_ok:
        yield from _check_model(project, names)

    for i, bound in enumerate(project.decisions):
        if i and bound.at_least >= project.decisions[i - 1].at_least:
            yield ("decisions", i, "at_least"), "bands stand from the highest bound to the lowest"
    if project.decisions and project.decisions[-1].at_least > 0:
        yield ("decisions", len(project.decisions) - 1, "at_least"), "the last band must start at 0.0"
    group = project.training.group
    if group is not None and group not in project.entities:
        yield (
            ("training", "group"),
            f"{group!r} is not an entity; there are {', '.join(project.entities) or 'none'}",
        )
    for part in ("train", "test"):
        if getattr(project.training, part) % _UNITS["d"] or getattr(project.training, part) == 0:
            yield ("training", part), "must be whole days"


def _check_rolling(project: Project, needs_field: Any) -> Iterator[tuple[_At, str]]:
    fields, label = project.contract.fields, project.label
    for i, rolling in enumerate(project.features.rolling):
        loc: _At = ("features", "rolling", i)
        if rolling.entity not in project.entities:
            known = ", ".join(project.entities) or "none"
            yield (*loc, "entity"), f"{rolling.entity!r} is not an entity; there are {known}"
        for window, length in rolling.windows.items():
            if length == 0:
                yield (*loc, "windows", window), "a window must be longer than zero"
        if not rolling.include_current and rolling.delay:
            yield (
                (*loc, "include_current"),
                "a delayed window never includes the current event: leave this out",
            )
        for name, text in rolling.features.items():
            at = (*loc, "features", name)
            if len(rolling.windows) > 1 and "{window}" not in name:
                yield at, "needs {window} in its name, as there is more than one window"
            try:
                feature = next(_expand(rolling.model_copy(update={"features": {name: text}})))
            except ValueError as error:
                yield at, str(error)
                continue
            if feature.field is None:
                continue
            yield from needs_field(at, feature.field)
            if feature.field not in fields:
                continue
            kind = fields[feature.field].kind
            if kind not in ("int", "float"):
                yield at, f"{feature.field} is not a number"
            if feature.aggregate in ("sum", "mean") and kind == "float" and feature.field not in project.fixed_point:
                yield at, f"sums are exact: declare the decimal places of {feature.field} under fixed_point"
            if feature.aggregate == "rate" and not fields[feature.field].is_boolean:
                yield (
                    at,
                    f"rate needs a field of 0 and 1: give {feature.field} int_domain {{ min: 0 max: 1 }}",
                )
            if label and feature.field == label.field and feature.delay_us < label.delay:
                yield (
                    at,
                    f"reads the label {label.field} before it is known: its delay must be at least label.delay",
                )


def _check_model(project: Project, features: Sequence[str]) -> Iterator[tuple[_At, str]]:
    fields = project.contract.fields
    for i, name in enumerate(project.model.inputs):
        loc: _At = ("model", "inputs", i)
        if project.label and name == project.label.field:
            yield loc, f"{name} is the label: the model may not read it"
        elif name == project.event.time or (name not in features and name not in fields):
            yield loc, f"{name!r} is neither a feature nor a field"
        elif name in fields and fields[name].kind not in ("int", "float"):
            yield loc, f"{name} is not a number"
        if name in project.model.inputs[:i]:
            yield loc, f"{name} stands twice"
    for i, name in enumerate(project.training.slices):
        if name not in features and name not in fields:
            yield ("training", "slices", i), f"{name!r} is neither a feature nor a field"


def _dotted(loc: Sequence[str | int]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")


def _line_of(node: yaml.Node, loc: Sequence[str | int]) -> int:
    """The line (from 1) of the deepest part of `loc` that is there."""
    line = node.start_mark.line
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            found = [(k, v) for k, v in node.value if k.value == str(part)]
            if not found:
                break
            line, node = found[0][0].start_mark.line, found[0][1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line
        else:
            break
    return line + 1


def _repeated_keys(node: yaml.Node) -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if key.value in seen:
                yield key.value, key.start_mark.line + 1
            seen.add(key.value)
            yield from _repeated_keys(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _repeated_keys(value)
