"""What can be wrong with declarations that are all of the right type."""

from __future__ import annotations

import re
import zoneinfo
from collections.abc import Iterator, Mapping

from models.partitions import DAY, HOUR
from models.predictors.evaluation import STANDARD
from models.project.available_checks import check_available
from models.project.breaker_checks import check_breaker
from models.project.contract import ARROW_TYPES
from models.project.decision_checks import check_fallback, check_sinks
from models.project.declarations import Project
from models.project.documents import Path
from models.project.expect_checks import check_expect
from models.project.expressions import Expression
from models.project.feedback_checks import check_feedback
from models.project.learned import parse_metric
from models.project.parameters import find_parameter_faults
from models.project.places import Fault, place_of, unknown_field
from models.project.rolling_checks import check_rolling
from models.project.rollout_checks import check_rollout
from models.project.syntax import ExpressionError
from models.project.table_checks import check_tables
from models.project.target_checks import check_categories, check_decisions, check_early_stopping, check_target
from models.project.total_checks import check_totals
from models.quality.backend import parse_schema

NEEDS_MODEL = "needs a model"
_DAY_US = 86_400_000_000
_TIMES = (
    'such as time_domain { string_format: "%Y-%m-%d %H:%M:%S" } for texts (type: BYTES), or '
    "time_domain { integer_format: UNIX_SECONDS } for numbers since 1970 (type: INT; also UNIX_MILLISECONDS, "
    "UNIX_MICROSECONDS and UNIX_NANOSECONDS)"
)


def check_declarations(project: Project) -> Iterator[Fault]:
    """Each fault that needs more than one declaration, or the schema, to see: (path, message)."""
    yield from _check_fields(project)
    yield from _check_event(project)
    yield from _check_derived(project)
    yield from check_tables(project)
    yield from check_available(project)
    for name, text in project.features.row.items():
        yield from _check_row_feature(project, ("features", "row", name), text)
    for i, rolling in enumerate(project.features.rolling):
        yield from check_rolling(project, ("features", "rolling", i), rolling)
    features = list(_named_features(project))
    yield from _check_names(project, features)
    yield from check_totals(project)
    yield from check_expect(project)
    yield from _check_model(project, {name for _, name in features})
    yield from _check_without_model(project)
    yield from _check_training(project)
    yield from _check_metrics(project)
    yield from check_target(project)
    yield from check_categories(project)
    yield from check_early_stopping(project)
    yield from check_decisions(project)
    yield from check_fallback(project)
    yield from check_sinks(project)
    yield from _check_quality(project)
    yield from check_feedback(project)
    yield from check_rollout(project)
    yield from check_breaker(project)
    yield from _check_slo(project)
    yield from _check_partitions(project)


def _check_fields(project: Project) -> Iterator[Fault]:
    fields, event = project.contract.fields, project.event
    keys: list[Fault] = [(("event", "id"), event.id)]
    keys += [(("entities", entity), name) for entity, name in project.entities.items()]
    others: list[Fault] = [(("event", "time"), event.time)]
    others += [(("fixed_point", name), name) for name in project.fixed_point if name not in project.features.row]
    others += [(("output", i), name) for i, name in enumerate(project.output)]
    for path, name in keys + others:
        yield from unknown_field(project, path, name)
    for path, name in keys:
        if name in fields and fields[name].kind in ("float", "time"):
            yield path, f"{name} must be a plain INT or BYTES field"
    for path, name in [*keys, others[0]]:
        if name in fields and not fields[name].required and name not in project.optional_keys:
            wanted = f"presence {{ min_fraction: 1.0 }} in {place_of(project, name)}"
            skip = ", or its rolling features missing: skip" if path[0] == "entities" else ""
            yield path, f"{name} must be required in the schema: give it {wanted}{skip}"
    for name in project.fixed_point:
        if name in fields and fields[name].kind not in ("int", "float"):
            yield ("fixed_point", name), f"{name} is not a number"
    for name in project.more_places.keys() - project.fixed_point.keys():
        yield ("more_places", name), f"declare the decimal places of {name} under fixed_point"
    for i, name in enumerate(project.output):
        if name == event.time:
            yield ("output", i), f"{name} is the event time, which goes out anyway"
    for name, field in fields.items():
        if name.startswith("__"):
            yield ("schema", name), f"the field name {name} is reserved: names starting with __ are headrace's own"
        if field.time_format is not None and name != event.time:
            yield ("schema", name, "time_domain"), f"{name} has a time_domain, which only the event time field may have"
    going_out = {*project.entities.values(), *project.output, event.id, event.time}
    for name in sorted(going_out.intersection(project.reserved)):
        yield ("schema", name), f"the field name {name} is reserved: a score row has a column of that name"


def _check_event(project: Project) -> Iterator[Fault]:
    fields, event, label = project.contract.fields, project.event, project.label
    if event.time in fields and fields[event.time].kind != "time":
        where = place_of(project, event.time)
        yield ("event", "time"), f"{event.time} must be a time: give it a time_domain in {where}, {_TIMES}"
    if event.earliest >= event.latest:
        yield ("event", "earliest"), "must be before event.latest"
    if event.deduplicate_within == 0:
        yield ("event", "deduplicate_within"), "must be longer than zero"
    if label:
        path: Path = ("label", "field")
        yield from unknown_field(project, path, label.field)
        if (
            project.target.kind in ("binary", "anomaly")
            and label.field in fields
            and not fields[label.field].is_boolean
        ):
            wanted = f"an INT field with int_domain {{ min: 0 max: 1 }} in {place_of(project, label.field)}"
            yield path, f"{label.field} must be of 0 and 1: {wanted}"
        if label.field in (event.id, *project.entities.values()):
            yield path, f"{label.field} is the event's id or an entity, which the label can't be"
    if label and label.events:
        path, name = ("label", "events", "time"), label.events.time
        if name in fields:
            yield path, f"{name} is a field of events: name the field of a label's record that says when it was known"
        if not name or not name.isprintable() or name.startswith("__") or name in project.reserved:
            yield path, f"{name!r} can't be a field: it is reserved, or has characters that can't be seen"


def _check_derived(project: Project) -> Iterator[Fault]:
    fields = project.contract.fields
    own = project.event_fields
    kinds: dict[str, str] = {name: field.kind for name, field in own.items() if name not in project.derive}
    for name, text in project.derive.items():
        path: Path = ("derive", name)
        if not re.fullmatch(r"[A-Za-z_]\w*", name) or name.startswith("__"):
            yield path, f"{name!r} is not a name: letters, digits and single underscores, no digit first"
        try:
            expression = Expression.parse(text)
            for read in sorted(expression.names - kinds.keys()):
                known = ", ".join(kinds)
                yield (
                    path,
                    f"{read!r} is neither a field of {project.schema_file} nor derived before; there are {known}",
                )
            kind = expression.check(kinds)
        except ExpressionError as error:
            yield path, str(error)
            kind = fields[name].kind
        wanted = {"bool": ("int",), "int": ("int", "float"), "any": tuple(set(ARROW_TYPES))}.get(kind, (kind,))
        if fields[name].kind not in wanted:
            yield path, f"gives {kind}, but {place_of(project, name)} says that {name} is {fields[name].kind}"
        kinds[name] = fields[name].kind
    if project.where is not None:
        yield from _check_expression(project, ("where",), project.where)


def _check_row_feature(project: Project, path: Path, text: str) -> Iterator[Fault]:
    label = project.label
    if label and re.search(rf"\b{re.escape(label.field)}\b", text):
        yield path, f"reads the label {label.field}, which is not known when the event is scored"
    yield from _check_expression(project, path, text, _rolling_kinds(project))


def _rolling_kinds(project: Project) -> dict[str, str]:
    try:
        return project.rolling_kinds
    except ValueError:  # of which is told where it is declared
        return {}


def _check_expression(
    project: Project, path: Path, text: str, more: Mapping[str, str] | None = None
) -> Iterator[Fault]:
    """That an expression reads fields, or what there is more of the kinds told, and gives a number."""
    kinds = {name: field.kind for name, field in project.contract.fields.items()} | dict(more or {})
    try:
        expression = Expression.parse(text)
        for name in sorted(expression.names - kinds.keys()):
            yield from unknown_field(project, path, name)
        kind = expression.check(kinds)
        if kind in ("string", "time"):
            yield path, f"gives a {'text' if kind == 'string' else 'time'}, and not a number"
    except ExpressionError as error:
        yield path, str(error)


def _named_features(project: Project) -> Iterator[Fault]:
    """Where each feature is declared, and its name."""
    for name in project.features.row:
        yield ("features", "row", name), name
    for i, rolling in enumerate(project.features.rolling):
        for name in rolling.features:
            for full_name in dict.fromkeys(name.replace("{window}", window) for window in rolling.windows):
                yield ("features", "rolling", i, "features", name), full_name


def _check_names(project: Project, features: list[Fault]) -> Iterator[Fault]:
    for place, (path, name) in enumerate(features):
        if name in project.contract.fields:
            yield path, f"{name} is the name of a field already"
        if name in project.reserved:
            yield path, f"{name} is reserved: a score row has a column of that name"
        if not re.fullmatch(r"[A-Za-z_]\w*", name) or name.startswith("__"):
            yield path, f"{name!r} is not a name: letters, digits and single underscores, no digit first"
        if any(name == other and path != elsewhere for elsewhere, other in features[:place]):
            yield path, f"{name} is declared more than once"


def _check_model(project: Project, features: set[str]) -> Iterator[Fault]:
    fields = project.contract.fields
    for i, name in enumerate(project.model.inputs):
        path: Path = ("model", "inputs", i)
        if project.label and name == project.label.field:
            yield path, f"{name} is the label: the model may not read it"
        elif name == project.event.time or (name not in features and name not in fields):
            yield path, f"{name!r} is neither a feature nor a field"
        elif name in fields and fields[name].kind == "time":
            yield path, f"{name} is not a number or a text"
        if name in project.model.inputs[:i]:
            yield path, f"{name} stands twice"
    for name, message in find_parameter_faults(project.model.params, project.target.kind):
        yield ("model", "params", name), message


def _check_without_model(project: Project) -> Iterator[Fault]:
    """What is declared of a model that there is none of."""
    for part in ("training", "metrics", "decisions", "fallback", "sinks", "quality", "rollout"):
        if not project.has_model and part in project.model_fields_set and getattr(project, part):
            yield (part,), f"{NEEDS_MODEL}: declare model, or leave {part} out"


def _check_training(project: Project) -> Iterator[Fault]:
    training, fields = project.training, project.contract.fields
    features = {name for _, name in _named_features(project)}
    for i, name in enumerate(training.slices):
        if name == project.event.time or (name not in features and name not in fields):
            yield ("training", "slices", i), f"{name!r} is neither a feature nor a field"
    if training.group is not None and training.group not in project.entities:
        known = ", ".join(project.entities) or "none"
        yield ("training", "group"), f"{training.group!r} is not an entity; there are {known}"
    elif training.group is not None and project.entities[training.group] in project.optional_keys:
        yield ("training", "group"), f"{training.group} may be missing: name an entity that every event has"
    for part in ("train", "test"):
        if getattr(training, part) % _DAY_US or getattr(training, part) == 0:
            yield ("training", part), "must be whole days"


def _check_metrics(project: Project) -> Iterator[Fault]:
    for name, text in project.metrics.items():
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
            yield ("metrics", name), f"{name!r} is not a name: letters, digits and _, a letter first"
        if name in (*STANDARD, "rows", "positives"):
            yield ("metrics", name), f"{name} is always measured: give another name"
        try:
            entity = parse_metric(text).entity
        except ValueError as error:
            yield ("metrics", name), str(error)
            continue
        if entity not in project.entities:
            known = ", ".join(project.entities) or "none"
            yield ("metrics", name), f"{entity!r} is not an entity; there are {known}"
        elif project.entities[entity] in project.optional_keys:
            yield ("metrics", name), f"{entity} may be missing: name an entity that every event has"
        if project.label is None:
            yield ("metrics", name), "needs a label to measure by: declare label"


def _holds_windows(season_us: int, window_us: int) -> bool:
    return season_us % window_us == 0 and 0 < season_us // window_us <= 200


def _check_quality(project: Project) -> Iterator[Fault]:
    quality = project.quality
    if quality is None:
        return
    if quality.window == 0 or quality.window % 1000:
        yield ("quality", "window"), "must be whole milliseconds, at least one"
    elif quality.series and not _holds_windows(quality.series.season, quality.window):
        yield ("quality", "series", "season"), "must be a whole number of quality.window, at most 200"
    for place, name in enumerate(quality.series.nulls if quality.series else ()):
        if name not in project.watched_columns:
            yield ("quality", "series", "nulls", place), f"{name} is no column that is watched"
    if quality.min_rows > quality.sample:
        yield ("quality", "min_rows"), "must not be more than quality.sample, which is all that is looked at"
    actions = [decision.action for decision in project.decisions]
    if quality.gate == "stop" and project.decisions and quality.safe_action is None:
        yield ("quality", "gate"), "stop needs a safe_action: what is decided while the circuit is open"
    if quality.safe_action is not None and quality.safe_action not in actions:
        known = ", ".join(actions) or "none"
        yield ("quality", "safe_action"), f"{quality.safe_action!r} is not an action of decisions; there are {known}"
    yield from _check_comparators(project)


def _check_comparators(project: Project) -> Iterator[Fault]:
    """What the schema's comparators ask for that is not computed."""
    for feature in parse_schema(project.contract.text).feature:
        name = feature.name
        for kind in ("drift_comparator", "skew_comparator"):
            comparator = getattr(feature, kind)
            if comparator.HasField("normalized_abs_difference"):
                yield (
                    ("schema", name, kind),
                    f"its {kind} has a normalized_abs_difference, which headrace does not know",
                )
            number = project.contract.fields[name].kind in ("int", "float") and not feature.int_domain.is_categorical
            if number and comparator.HasField("infinity_norm"):
                wanted = "use jensen_shannon_divergence, or an int_domain { is_categorical: true }"
                yield ("schema", name, kind), f"its {kind} has an infinity_norm, which is for texts: {wanted}"


def _check_slo(project: Project) -> Iterator[Fault]:
    if project.slo is not None and project.slo.quality is not None and project.quality is None:
        yield ("slo", "quality"), "needs windows that are judged: declare quality"
    fresh = project.serving.freshness if project.serving is not None else None
    if fresh is not None and fresh.otherwise == "fallback" and project.fallback is None:
        yield ("serving", "freshness", "otherwise"), "needs a decision to fall back to: declare fallback"


def _check_partitions(project: Project) -> Iterator[Fault]:
    try:
        zoneinfo.ZoneInfo(project.timezone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        yield ("timezone",), f"{project.timezone} is no time zone that this machine knows, such as Europe/Berlin or UTC"
    for i, name in enumerate(project.output):
        if name in (DAY, HOUR):
            yield ("output", i), f"{name} is the name of a partition of the output: derive a field of another name"
