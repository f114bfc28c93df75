"""Every key of project.yaml: which declaration stands where, and the tables of docs/keys.md."""

from __future__ import annotations

import datetime
import math
import typing
from collections.abc import Iterator
from typing import Any

import pydantic
from pydantic.fields import FieldInfo

from models.project.availability import KnownAt
from models.project.breakers import Breaker, ByClock, Labelled
from models.project.declarations import Project
from models.project.learned import Category, Decision, EarlyStopping, Fallback, Model, Training
from models.project.objectives import Fast, Figure, Fresh, Known, Objective, Objectives, Recent, Serving
from models.project.retraining import Gate, LabelMetrics, Retrain
from models.project.rollouts import Margins, Minimum, Rollout, Rules
from models.project.sections import Event, Expect, Features, Label, LabelEvents, Quality, Rolling, Series, duration_text
from models.project.tables import Table, Totals
from models.project.targets import Target

# What is declared at which path; "*" stands for each part of a list, or each name of a mapping.
DECLARED_AT: dict[tuple[int | str, ...], type[pydantic.BaseModel]] = {
    (): Project,
    ("event",): Event,
    ("available", "*"): KnownAt,
    ("label",): Label,
    ("label", "events"): LabelEvents,
    ("target",): Target,
    ("tables", "*"): Table,
    ("features",): Features,
    ("features", "rolling", "*"): Rolling,
    ("aggregates", "*"): Totals,
    ("expect", "*"): Expect,
    ("model",): Model,
    ("model", "categories", "*"): Category,
    ("model", "early_stopping"): EarlyStopping,
    ("training",): Training,
    ("decisions", "*"): Decision,
    ("fallback",): Fallback,
    ("quality",): Quality,
    ("quality", "series"): Series,
    ("label_metrics",): LabelMetrics,
    ("retrain",): Retrain,
    ("retrain", "gate"): Gate,
    ("rollout",): Rollout,
    ("rollout", "rules"): Rules,
    ("rollout", "rules", "minimum"): Minimum,
    ("rollout", "rules", "margins"): Margins,
    ("breaker",): Breaker,
    ("breaker", "clock"): ByClock,
    ("breaker", "clock", "latency"): Fast,
    ("breaker", "clock", "valid"): Objective,
    ("breaker", "clock", "labels", "*"): Labelled,
    ("slo",): Objectives,
    ("slo", "latency"): Fast,
    ("slo", "freshness"): Recent,
    ("slo", "valid"): Objective,
    ("slo", "quality"): Objective,
    ("slo", "labels"): Known,
    ("slo", "performance", "*"): Figure,
    ("serving",): Serving,
    ("serving", "freshness"): Fresh,
}
_DURATIONS = {
    "deduplicate_within", "delay", "gap", "on_last", "train", "test", "window", "alert_cool_down", "every",
    "lead", "season", "period", "within", "done_within", "p99",
}  # fmt: skip
_RATIOS = ("latency", "freshness", "valid", "quality")  # objectives of a share
WHAT = {
    "name": "The project's name, and the model's in the registry.",
    "schema": "The file of the schema, beside project.yaml.",
    "event": "What an event is.",
    "derive": "Name → expression of a field that is computed as soon as a record is decoded.",
    "where": "An expression; events for which it is not true are left out and counted as filtered.",
    "entities": "Name → the field of its keys.",
    "available": "Field → when it is known: `at_event`, `after 7d`, or `{at: FIELD}`.",
    "label": "What is to be predicted.",
    "target": "The kind of label, or a mapping with `kind`.",
    "tables": "Name → a table whose fields are joined as of the event's time.",
    "fixed_point": "Field or row feature → decimal places of what is summed, 0 to 9.",
    "more_places": "Field → what becomes of values with more places: `round` or `refuse`.",
    "features": "What is computed of events.",
    "aggregates": "Name → a table of what events add up to by period.",
    "expect": "Feature → what values are expected of it.",
    "model": "What the model reads, and how it is trained. Without it, features are written.",
    "training": "How the events are split by time.",
    "metrics": "Name → what is measured beside the standard figures: `precision_at_k(ENTITY, K)`.",
    "decisions": "Bands, from the highest bound to the lowest; the first that a score reaches holds.",
    "fallback": "What is decided of events that can't be scored.",
    "sinks": "Decision → the topic, or in batch the folder, that its rows go to, in place of the run's `--sink`.",
    "quality": "How score rows are watched.",
    "label_metrics": "How good scores are, as labels become known.",
    "retrain": "When `headrace nightly` trains anew, and what becomes of the bundle.",
    "rollout": "How the project's release log is kept, and what a challenger is judged by.",
    "breaker": "When a release falls back by itself, and when it is tried again (docs/releases.md).",
    "slo": "What the project promises: `headrace slo` tells whether it is kept (docs/slo.md).",
    "serving": "What an endpoint promises (docs/serving.md).",
    "partition": "What the output of runs is partitioned by, in event time: `day` or `hour`.",
    "timezone": "Of days and hours, such as `Europe/Berlin`.",
    "output": "Fields that go into the output beside id, time, entities, features and score.",
    "event.id": "The field that tells events apart.",
    "event.time": "The field of the event's time.",
    "event.earliest": "An event before it is a dead letter.",
    "event.latest": "An event at or after it is a dead letter.",
    "event.deduplicate_within": "A second event with an id this soon is a duplicate.",
    "event.max_bytes": "A larger record is a dead letter.",
    "event.unknown_fields": "Whether fields that the schema does not have are passed over.",
    "available.*.at": "A field of the event: the time at which the value is known.",
    "label.field": "The field that is to be predicted.",
    "label.delay": "How long after its event a label is known.",
    "label.events": "Labels come as records of their own.",
    "label.events.time": "Their field of the time at which the label was known.",
    "target.kind": "What is predicted.",
    "target.quantiles": "Of the kind `quantile`: which, ascending, each between 0 and 1.",
    "tables.*.entity": "The entity whose keys the rows have.",
    "tables.*.time": "The field of the time from which a row is known.",
    "tables.*.fields": "Field → its type.",
    "tables.*.key": "The field of the key, if it is not called as the entity's.",
    "tables.*.until": "The field of the time at which a row ends to hold.",
    "tables.*.deleted": "The field, true or false, that says that a row ends what was known of its entity.",
    "tables.*.time_format": "How its times are written, if not as the event's.",
    "features.row": "Name → expression.",
    "features.rolling": "Windows over entities.",
    "features.rolling.*.entity": "An entity, several whose keys together are one, or `all`.",
    "features.rolling.*.windows": "Name → length: a duration or a calendar period.",
    "features.rolling.*.features": "Name, with `{window}` in it → aggregate.",
    "features.rolling.*.delay": "How long before the event a window ends.",
    "features.rolling.*.include_current": "Whether the event itself is in its windows.",
    "features.rolling.*.empty": "The value of a window without events, in place of the aggregate's own.",
    "features.rolling.*.gap": "A session ends where so long no event was.",
    "features.rolling.*.missing": "`skip`: events may be without the key.",
    "aggregates.*.period": "How long a period is.",
    "aggregates.*.by": "Fields and row features whose values together have a row each.",
    "aggregates.*.columns": "Name → aggregate.",
    "expect.*.min": "The least value.",
    "expect.*.max": "The largest value.",
    "expect.*.required": "Whether it may not be missing.",
    "expect.*.finite": "Whether it may not be impossible, as a quotient by zero is.",
    "expect.*.otherwise": "What becomes of a row with another value.",
    "expect.*.fallback": "The value in its place, of `otherwise: fallback`.",
    "model.inputs": "Features and fields, in the model's order.",
    "model.params": "Parameters of the training (docs/declarations.md).",
    "model.categories": "Input → how it is coded, of those that are but names; a mapping or the encoding alone.",
    "model.early_stopping": "The training may end before all trees are made.",
    "model.alone": "An imported model scores one row at a time.",
    "model.categories.*.encoding": "How values become numbers.",
    "model.categories.*.most": "So many of the most frequent values are known.",
    "model.categories.*.at_least": "Values of fewer rows are unknown.",
    "model.categories.*.smoothing": "Of the encoding `target`: rows of the mean of all that are added to each value's.",
    "model.early_stopping.rounds": "So many trees without a better loss end it.",
    "model.early_stopping.on_last": "The loss is that of the last part, so long, of the time to train on.",
    "training.train": "Whole days to train on.",
    "training.delay": "How long labels take to become known; the baseline is made of these events.",
    "training.test": "Whole days to test on.",
    "training.start": "When training starts; if not given, the test ends with the last day of the events.",
    "training.group": "An entity: those known to be positive leave the test.",
    "training.slices": "Features and fields by whose values the figures are given, too.",
    "training.max_dead_letters": "The share of records that may be refused before training fails.",
    "decisions.*.action": "What is decided.",
    "decisions.*.at_least": "From this score on; the last band has none where scores may be below 0.",
    "decisions.*.of": "The class or quantile whose number is compared.",
    "fallback.action": "What is decided: one of the decisions, or another.",
    "quality.window": "The length of a window of score rows, in event time.",
    "quality.min_rows": "Of a smaller window nothing is said.",
    "quality.sample": "Rows of a window whose values are looked at; what is counted is counted over all.",
    "quality.false_alarm_rate": "The chance of an alarm of a window without a change, all comparisons together.",
    "quality.drift": "Limit of the distance to the window before, where the schema has none.",
    "quality.skew": "Limit of the distance to the baseline, where the schema has none.",
    "quality.psi": "Limit of the population stability index of scores.",
    "quality.null_rate": "Limit of the change of the share that is missing.",
    "quality.decision_share": "Limit of the change of a decision's share.",
    "quality.unseen": "Limit of the change of the share of entities that have no past.",
    "quality.gate": "What a bad window does to rows.",
    "quality.safe_action": "What a stopped stream decides.",
    "quality.hold_off": "So many good windows in a row close the circuit.",
    "quality.alert_cool_down": "An open incident is told again after this long.",
    "quality.alert_clear_after": "So many windows without its alarm end an incident.",
    "quality.series": "Compare windows with those of the same hour and weekday of the weeks before.",
    "quality.series.season": "Windows so far apart are alike; at most 200 windows.",
    "quality.series.seasons": "So many earlier ones are compared with; from the third on.",
    "quality.series.deviations": "Limit of a window's deviation, in units of those before.",
    "quality.series.run_length": "Windows from one false alarm of a slow drift to the next, all series together.",
    "quality.series.nulls": "Watched columns whose share of rows without a value is a series, too.",
    "label_metrics.window": "The length of a window of score rows, in event time: whole days.",
    "label_metrics.estimate": "Whether figures are estimated, too, before labels are known (docs/estimates.md).",
    "retrain.every": "So long after the test of the last training: whole days.",
    "retrain.or_on": "What else asks for it: `drift`, also slow; `label_metrics`, the gate's metric has fallen.",
    "retrain.fall": "How far it may fall below that of the champion's test.",
    "retrain.gate": "What the new bundle must be better in than the champion, to be registered.",
    "retrain.promote": "Whether a bundle that passes the gate is the champion of later nights.",
    "retrain.gate.metric": "A figure of the test, such as `roc_auc`.",
    "retrain.gate.margin": "By so much it must be better, over all rows.",
    "retrain.gate.loss": "By so much it may be worse on a value of any slice of `training.slices`; none is any.",
    "retrain.gate.slices": "The same, by slice.",
    "rollout.clock": "What a release log's times are: `wall`, of the day, or `event`, of data that lies in the past.",
    "breaker.kinds": "Kinds of findings that make a window bad, such as `score_range`; all if none is named.",
    "breaker.after": "So many bad windows in a row open the circuit.",
    "breaker.wait": "So many windows in a row that are not bad, while it is open, make it half-open.",
    "breaker.probe": "The share of keys for which the release is tried when it is half-open.",
    "breaker.entity": "Of whose keys; needed where there are several entities.",
    "breaker.good": "So many windows in a row that are not bad, while it is half-open, close it.",
    "breaker.to": "What an open circuit falls back to: the release before, or a safe action.",
    "breaker.safe_action": "What is decided then, or where no release was before.",
    "breaker.clock": "What a running stream is held against; what trips so is a record in the release log.",
    "breaker.clock.every": "The length of a window by the clock: 1s to 1d.",
    "breaker.clock.latency": "How many rows must be written soon enough after they were published.",
    "breaker.clock.valid": "How many events must be no dead letters.",
    "breaker.clock.labels": "Of scores with a decision, how many must turn out to have a label.",
    "breaker.clock.labels.*.decision": "The decision, one of `decisions`.",
    "breaker.clock.labels.*.label": "The label that is good: `'0'` or `'1'`, or a class.",
    "breaker.clock.labels.*.minimum": "So many labels are waited for, across windows, before anything is said.",
    **{f"breaker.clock.{name}.target": "The share that must be good." for name in ("latency", "valid", "labels.*")},
    **{f"breaker.clock.{name}.minimum": "A window of fewer says nothing." for name in ("latency", "valid")},
    "slo.period": "Over so long an error budget is to last.",
    "slo.latency": "How many rows of a stream are written soon enough after they were published.",
    "slo.freshness": "How many rows of a stream are written soon enough after their events happened.",
    "slo.valid": "How many events are no dead letters.",
    "slo.quality": "How many windows of `quality` have no alarm.",
    "slo.labels": "How many score rows have a label, some time after their window of `label_metrics` has ended.",
    "slo.labels.within": "So long after the end of a window its labels are to be known.",
    "slo.performance": "Figure of `label_metrics` → how good it must be, in how many windows.",
    "slo.performance.*.at_least": "The least that is good; this or `at_most`.",
    "slo.performance.*.at_most": "The most that is good.",
    "slo.rows": "So many score rows a run must leave.",
    "slo.done_within": "So long after its end, each day (hour) must be in the sink.",
    **{f"slo.{name}.target": "The share that must be good." for name in (*_RATIOS, "labels", "performance.*")},
    **{f"slo.{name}.minimum": "With fewer in an alert's long window, nothing is told." for name in _RATIOS},
    **{
        f"{place}.within": "How soon is soon enough; taken down to the next bound of `headrace_latency_seconds`."
        for place in ("slo.latency", "breaker.clock.latency")
    },
    "slo.freshness.within": "How soon is soon enough; taken down to the next bound of `headrace_freshness_seconds`.",
    "serving.p99": "So soon 99 of 100 requests to score are to be answered.",
    "serving.availability": "The share of events that are to get a score, or be refused by the contract.",
    "serving.freshness": "How old the state may be that an event is scored by.",
    "serving.freshness.target": "The share of events whose state is to be as fresh.",
    "serving.freshness.minimum": "With fewer in an alert's long window, nothing is told.",
    "serving.freshness.within": "So far an event may be past what the store has.",
    "serving.freshness.otherwise": "What becomes of an event that is further: `fallback` is the declared decision.",
    "rollout.lead": "So long after it is made a release takes effect at the earliest: 1s to 1d.",
    "rollout.blocks": "Decisions after which no label becomes known, as what was asked for does not happen.",
    "rollout.rules": "When `headrace rollout` says promote, hold or roll back.",
    "rollout.rules.window": "The length of the windows of event time that champion and challenger are shown by.",
    "rollout.rules.metric": "The figure that they are judged by as labels become known, such as `roc_auc`.",
    "rollout.rules.minimum": "What each of the two must have before anything is decided.",
    "rollout.rules.margins": "How far the challenger may be from the champion; what has no margin is not judged.",
    "rollout.rules.minimum.events": "So many events; with fewer the verdict is hold.",
    "rollout.rules.minimum.labels": "So many of them with a label, for what is judged by labels.",
    "rollout.rules.margins.metric": "By so much the metric may be worse, over all rows.",
    "rollout.rules.margins.slices": "By so much it may be worse on any value of any slice of `training.slices`.",
    "rollout.rules.margins.decisions": "By so much the share of any decision may be another.",
    "rollout.rules.margins.psi": "So large the population stability index of the scores may be.",
    "rollout.rules.margins.errors": "By so much the share of events without a finite score may be larger.",
    "rollout.rules.margins.latency": "So many times that of the champion the 99th percentile of the latency may be.",
}


def reference() -> Iterator[str]:
    """The lines of docs/keys.md from its first table on."""
    for place, declared in DECLARED_AT.items():
        path = ".".join(map(str, place))
        yield f"## {f'`{path}`' if path else 'At the top'}"
        yield ""
        yield "| Key | Value | If not given | What |"
        yield "|---|---|---|---|"
        for name, field in declared.model_fields.items():
            key = field.alias or name
            default = "must be given" if field.is_required() else _default(key, field)
            what = WHAT[f"{path}.{key}" if path else key]
            yield f"| `{key}` | {_value(key, field.annotation)} | {default} | {what} |"
        yield ""


def _value(key: str, annotation: Any) -> str:
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _value(key, parts[0])
    if origin is typing.Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin is dict:
        return "a mapping"
    if origin is list:
        return "a list"
    if parts:  # of several kinds, or none
        return " or ".join(dict.fromkeys(_value(key, part) for part in parts if part is not type(None)))
    if key in _DURATIONS and annotation is int:
        return "a duration"
    names = {
        str: "a text",
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        datetime.datetime: "a time",
    }
    return names.get(annotation, "a mapping" if isinstance(annotation, type) else "a text or a list")


def _default(key: str, field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if isinstance(value, pydantic.BaseModel) or value is None or value in ({}, []):
        return "`binary`" if isinstance(value, Target) else "none"
    if key in _DURATIONS:
        return f"`{duration_text(value)}`"
    if isinstance(value, datetime.datetime):
        return f"`{value:%Y-%m-%d}`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return "`.nan`" if isinstance(value, float) and math.isnan(value) else f"`{value}`"
