"""The declarations of a use case, each of its type; models.project.project reads and checks them as a whole."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
from typing import Annotated, Any, ClassVar, Literal

import pydantic

from models.codecs.times import micros_of
from models.partitions import UTC, Partitions
from models.project.aggregates import COUNTS, SUMMED
from models.project.availability import AT_EVENT, KnownAt
from models.project.breakers import Breaker
from models.project.contract import Contract, Field, field_of_kind
from models.project.expressions import Expression
from models.project.functions import ISO_8601
from models.project.learned import Category, Decision, Fallback, Model, PrecisionAtK, Training, parse_metric
from models.project.objectives import Objectives, Serving
from models.project.retraining import LabelMetrics, Retrain
from models.project.rollouts import Rollout
from models.project.sections import CYCLES, Declaration, Event, Expect, Features, Label, Quality, RollingFeature, beside
from models.project.syntax import ExpressionError
from models.project.tables import Table, Totals
from models.project.targets import MAX_CLASSES, Target, output_name
from models.record import EVENTS, LABELS, PREDICTED, RESERVED, SCORE, RecordType

# What decides what a feature's value is, beside what models read and decide.
_OF_FEATURES = {"event", "entities", "label", "fixed_point", "more_places", "tables", "features", "expect"}
# What beside that decides what steps keep.
_OF_STATE = ("derive", "where", "quality", "aggregates", "label_metrics", "breaker")
_EARLIEST_US = -2_208_988_800_000_000  # 1900: rows of tables may be known long before the first event


class Project(Declaration):
    """All declarations of one use case."""

    name: str = pydantic.Field(pattern=r"^[a-z][a-z0-9_]*$")
    schema_file: Annotated[str, pydantic.AfterValidator(beside)] = pydantic.Field(alias="schema")
    event: Event
    derive: dict[str, str] = pydantic.Field(default_factory=dict)
    where: str | None = None
    entities: dict[str, str] = pydantic.Field(default_factory=dict)
    available: dict[str, str | KnownAt] = pydantic.Field(default_factory=dict)
    label: Label | None = None
    target: Target = Target()
    tables: dict[Annotated[str, pydantic.Field(pattern=r"^[a-z][a-z0-9_]*$")], Table] = pydantic.Field(
        default_factory=dict
    )
    fixed_point: dict[str, Annotated[int, pydantic.Field(ge=0, le=9)]] = pydantic.Field(default_factory=dict)
    more_places: dict[str, Literal["round", "refuse"]] = pydantic.Field(default_factory=dict)
    features: Features = Features()
    aggregates: dict[Annotated[str, pydantic.Field(pattern=r"^[a-z][a-z0-9_]*$")], Totals] = pydantic.Field(
        default_factory=dict
    )
    expect: dict[str, Expect] = pydantic.Field(default_factory=dict)
    model: Model = pydantic.Field(default_factory=Model.none)
    training: Training = Training()
    metrics: dict[str, str] = pydantic.Field(default_factory=dict)
    decisions: list[Decision] = pydantic.Field(default_factory=list)
    fallback: Fallback | None = None
    sinks: dict[str, str] = pydantic.Field(default_factory=dict)
    quality: Quality | None = None
    label_metrics: LabelMetrics | None = None
    retrain: Retrain | None = None
    rollout: Rollout = Rollout()
    breaker: Breaker | None = None
    slo: Objectives | None = None
    serving: Serving | None = None
    output: list[str] = pydantic.Field(default_factory=list)
    partition: Literal["day", "hour"] = "day"
    timezone: str = UTC
    newer: ClassVar[tuple[str, ...]] = (
        *("target", "tables", "available", "aggregates", "more_places", "expect", "fallback", "sinks", "partition"),
        *("timezone", "label_metrics", "retrain", "rollout", "breaker", "slo", "serving"),
    )
    _contract: Contract = pydantic.PrivateAttr()
    _own_fields: frozenset[str] = pydantic.PrivateAttr()

    @property
    def contract(self) -> Contract:
        """The schema that stands beside the declarations."""
        return self._contract

    @property
    def partitions(self) -> Partitions:
        """What the output of runs is partitioned by."""
        return Partitions(self.partition, self.timezone)

    @property
    def event_type(self) -> RecordType:
        """Events, as a step reads them."""
        return self._record_type(
            EVENTS,
            0,
            dataclasses.replace(self._contract, fields=self.event_fields),
            self.event.time,
            carried=self.carried_fields,
            fixed_point={n: places for n, places in self.summed_places.items() if n not in self.joined_fields},
            computed={name: self.row_features[name] for name in self.summed_places if name in self.row_features},
            exact_places=self._exact_places,
            derived=self.derived_fields,
            where=None if self.where is None else Expression.parse(self.where),
        )

    @functools.cached_property
    def summed_places(self) -> dict[str, int]:
        """The decimal places of the fields and row features that are summed, or must have no more."""
        added_up = (f for features in self.totals.values() for f in features)
        summed = {f.field for f in (*self.rolling_features, *added_up) if f.field and f.aggregate in SUMMED}
        summed |= {name for name, what in self.more_places.items() if what == "refuse"}
        return {name: self.fixed_point.get(name, 0) for name in sorted(summed)}

    @property
    def _exact_places(self) -> frozenset[str]:
        return frozenset(name for name, what in self.more_places.items() if what == "refuse")

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
        tables = map(self.table_type, self.tables)
        return (self.event_type, *([self.label_type] if self.label_type else []), *tables)

    @property
    def event_fields(self) -> dict[str, Field]:
        """The fields of an event itself: those that tables add are not among them."""
        return {name: field for name, field in self._contract.fields.items() if name not in self.joined_fields}

    @property
    def own_fields(self) -> frozenset[str]:
        """The fields of the schema's text."""
        return self._own_fields

    @functools.cached_property
    def joined_fields(self) -> dict[str, str]:
        """Name → kind of the fields that tables add to an event."""
        kinds = {"text": "string"}
        return {name: kinds.get(kind, kind) for table in self.tables.values() for name, kind in table.fields.items()}

    def table_type(self, name: str) -> RecordType:
        """Rows of a table: the key, the time from which it is known, its fields, its end and its deletion."""
        table = self.tables[name]
        time = self._contract.fields[self.event.time]
        time = dataclasses.replace(time, time_format=table.time_format or time.time_format or ISO_8601, required=True)
        key = self._contract.fields[self.entities[table.entity]]
        fields = [dataclasses.replace(key, name=table.key or key.name, required=True)]
        fields += [field_of_kind(n, self.joined_fields[n], False) for n in table.fields]
        fields += [dataclasses.replace(time, name=table.until, required=False)] if table.until else []
        fields += [field_of_kind(table.deleted, "bool", False)] if table.deleted else []
        carried = tuple(field.name for field in fields)
        fields.append(dataclasses.replace(time, name=table.time))
        records = self._record_type(
            name,
            2 + list(self.tables).index(name),
            Contract({field.name: field for field in fields}, b""),
            table.time,
            carried=carried,
            fixed_point={n: places for n, places in self.summed_places.items() if n in table.fields},
            exact_places=self._exact_places,
        )
        return dataclasses.replace(records, id=carried[0], earliest_us=_EARLIEST_US)

    def with_schema(self, contract: Contract) -> Project:
        """Sets the schema's contract, and of derived fields that do not stand in it what their expressions say."""
        must = {self.event.id, self.event.time, *self.entities.values()} - self.optional_keys
        kinds: dict[str, str] = {name: field.kind for name, field in contract.fields.items() if name not in self.derive}
        for name, text in self.derive.items():
            try:
                kinds[name] = Expression.parse(text).check(kinds)
            except ExpressionError:  # of which models.project.checks tells
                kinds[name] = "any"
        self._own_fields = frozenset(contract.fields)
        derived = {n: field_of_kind(n, kinds[n], n in must) for n in self.derive}
        joined = {
            n: field_of_kind(n, kind, False) for n, kind in self.joined_fields.items() if n not in contract.fields
        }
        self._contract = contract.with_fields({**derived, **joined})
        return self

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
    def derived_fields(self) -> dict[str, Expression]:
        """Name → expression of the fields that are computed as soon as a record is decoded, in declared order."""
        return {name: Expression.parse(text) for name, text in self.derive.items()}

    @functools.cached_property
    def row_features(self) -> dict[str, Expression]:
        """Name → expression, in declared order."""
        return {name: Expression.parse(text) for name, text in self.features.row.items()}

    @functools.cached_property
    def rolling_features(self) -> tuple[RollingFeature, ...]:
        """Every rolling feature, windows expanded, in declared order."""
        return tuple(feature for rolling in self.features.rolling for feature in rolling.expand())

    @property
    def key_fields(self) -> dict[str, tuple[str, ...]]:
        """The fields of the key by `RollingFeature.entity`; none where all events are of one entity."""
        fields = self.entities
        names = {" and ".join(rolling.entities): rolling.entities for rolling in self.features.rolling}
        return {key: tuple(fields[each] for each in entities if each in fields) for key, entities in names.items()}

    @property
    def optional_keys(self) -> frozenset[str]:
        """The fields of entities that events may be without."""
        skipping = {name for rolling in self.features.rolling if rolling.missing for name in rolling.entities}
        return frozenset(self.entities[name] for name in skipping if name in self.entities)

    @functools.cached_property
    def before_windows(self) -> tuple[str, ...]:
        """The row features that windows read."""
        read = {name for f in self.rolling_features for name in f.reads}
        return tuple(name for name in self.features.row if name in read)

    @functools.cached_property
    def windows_only(self) -> dict[str, RollingFeature]:
        """The columns that only windows read, each with a feature of it: a field where a condition holds."""
        return {f.column: f for f in self.rolling_features if f.column and f.where}

    @functools.cached_property
    def rolling_kinds(self) -> dict[str, str]:
        """Name → int or float, of the rolling features, which row features may read."""
        return {f.name: "int" if f.aggregate in COUNTS else "float" for f in self.rolling_features}

    @functools.cached_property
    def totals(self) -> dict[str, tuple[RollingFeature, ...]]:
        """Of each table of aggregates its columns, in declared order."""
        return {name: tuple(table.expand()) for name, table in self.aggregates.items()}

    @property
    def refuses_features(self) -> bool:
        """Whether rows are refused for their features, when all steps before have let them through."""
        return any(expected.otherwise == "dead_letter" for expected in self.expect.values())

    @property
    def marks_rows(self) -> bool:
        """Whether a row says which of its features are not as expected."""
        return any(expected.otherwise == "mark" for expected in self.expect.values())

    @property
    def has_model(self) -> bool:
        """Whether events are scored; without a model they go out with their features."""
        return bool(self.model.inputs)

    @property
    def actions(self) -> tuple[str, ...]:
        """All that may be decided, each once."""
        fallback = [self.fallback.action] if self.fallback else []
        return tuple(dict.fromkeys([*(band.action for band in self.decisions), *fallback]))

    @functools.cached_property
    def declared_metrics(self) -> dict[str, PrecisionAtK]:
        """Name → what is measured beside AUC and average precision, in declared order."""
        return {name: parse_metric(text) for name, text in self.metrics.items()}

    @property
    def has_positives(self) -> bool:
        """Whether the label is 0 and 1, which figures are of; that of an anomaly target is not learned from."""
        return self.target.kind == "binary" or (self.target.kind == "anomaly" and self.label is not None)

    @property
    def classes(self) -> tuple[str, ...] | tuple[int, ...]:
        """The classes of a multi-class target, in the order of the label's domain; () if it is none."""
        field = self._contract.fields.get(self.label.field) if self.label else None
        if self.target.kind != "multiclass" or field is None:
            return ()
        if field.kind == "string":
            return field.domain or ()
        if field.minimum is None or field.maximum is None or field.maximum - field.minimum >= MAX_CLASSES:
            return ()  # of which models.project.target_checks tells
        return tuple(range(int(field.minimum), int(field.maximum) + 1))

    @property
    def label_texts(self) -> tuple[str, ...]:
        """All values of the label, as texts; () if it is a number that is no class."""
        return ("0", "1") if self.has_positives else tuple(map(str, self.classes))

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of a model's outputs: classes or quantiles; () of a model of one output without a name."""
        if self.target.kind == "quantile":
            return tuple(f"{quantile:g}" for quantile in self.target.quantiles)
        return tuple(map(str, self.classes))

    @property
    def score_columns(self) -> tuple[str, ...]:
        """The columns of a score row that hold numbers of the model; the first is what bands and quality look at."""
        return (SCORE, *(output_name(SCORE, output) for output in self.outputs))

    @property
    def said_columns(self) -> tuple[str, ...]:
        """The columns of a score row that hold what the model says: numbers, and of a multi-class target a class."""
        return (*self.score_columns, *([PREDICTED] if self.classes else []))

    @property
    def reserved(self) -> tuple[str, ...]:
        """What no declaration may be called, as a score row has a column of that name."""
        return tuple(dict.fromkeys([*RESERVED, *self.said_columns]))

    @functools.cached_property
    def categories(self) -> dict[str, Category]:
        """Name → how it is coded, of the model's inputs that are but names: texts, and whole numbers declared so."""
        fields, declared = self._contract.fields, self.model.categories
        texts = {name for name in self.model.inputs if name in fields and fields[name].kind == "string"}
        return {n: declared.get(n, Category()) for n in self.model.inputs if n in declared or n in texts}

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
            *(self.entities[table.entity] for table in self.tables.values() if table.entity in self.entities),
        }
        wanted |= {self.label.field} if self.label else set()
        wanted |= {name for e in self.row_features.values() for name in e.names}
        wanted |= {name for f in self.rolling_features for name in f.reads}
        wanted |= {name for table in self.aggregates.values() for name in table.by}
        wanted |= {name for features in self.totals.values() for f in features for name in f.reads}
        wanted.discard(self.event.time)  # travels as the event time column
        return tuple(name for name in self.event_fields if name in wanted)

    @functools.cached_property
    def identifying_fields(self) -> tuple[str, ...]:
        """The carried fields that are known at the event, but for its id: so not its label, nor what reads it."""
        late = {name for name, when in self.available.items() if when != AT_EVENT}
        late |= {self.label.field} if self.label else set()
        for name, expression in self.derived_fields.items():
            late |= {name} if expression.names & late else set()
        return tuple(name for name in self.event_type.carried if name not in late | {self.event.id})

    @property
    def watched_columns(self) -> tuple[str, ...]:
        """The columns whose values are watched: features, other inputs, and fields that go out but are no label.

        A feature of the event time alone, such as the weekday, is not where windows are shorter than its cycle: it is
        another in each window by its nature.
        """
        unwatched = {self.event.id, *self.entities.values(), *([self.label.field] if self.label else [])}
        window_us = self.quality.window if self.quality else 0
        for name, text in self.features.row.items():
            cycles = [CYCLES[part] for part in re.findall(r"\b(hour|weekday|day|month)\(", text)]
            if self.row_features[name].names <= {self.event.time} and max(cycles, default=0) > window_us:
                unwatched.add(name)
        names = dict.fromkeys([*self.feature_names, *self.model.inputs, *self.output])
        return tuple(name for name in names if name not in unwatched)

    @property
    def state_definitions(self) -> str:
        """SHA-256 of all that decides what the state of a run's steps is."""
        return self._digest_of(*_OF_FEATURES, *_OF_STATE)

    @property
    def feature_set(self) -> str:
        """The id of all that decides what the values of features are, whatever models read of them: 16 digits."""
        return self._digest_of(*_OF_FEATURES, "derive", "where")[:16]

    def _digest_of(self, *names: str) -> str:
        dumped = self.model_dump(mode="json")
        parts = {name: dumped[name] for name in names if name in dumped}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def feature_definitions(self) -> bytes:
        """Canonical JSON of all that decides what a feature's or a decision's value is."""
        dumped = self.model_dump(mode="json")
        parts = {name: dumped[name] for name in _OF_FEATURES if name in dumped}
        if self.label and self.label.events is None:
            del parts["label"]["events"]  # bundles from before there were label records stay the same
        parts |= {name: part for name in ("derive", "where") if (part := getattr(self, name))}
        if self.target != Target():
            parts["target"] = {**dumped["target"], "outputs": self.outputs}
        if self.categories:
            parts["categories"] = {name: category.model_dump(mode="json") for name, category in self.categories.items()}
        if self.model.alone:
            parts["alone"] = True
        parts["inputs"] = self.model.inputs
        parts["decisions"] = dumped["decisions"]
        return json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()
