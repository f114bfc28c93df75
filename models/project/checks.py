"""What can be wrong with declarations that are all of the right type."""

from __future__ import annotations

import re
from collections.abc import Iterator

from models.project.declarations import Project, Rolling
from models.project.documents import Path
from models.project.expressions import Expression, ExpressionError
from models.project.parameters import find_parameter_faults
from models.quality.backend import parse_schema
from models.record import RESERVED

Fault = tuple[Path, str]

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
    for name, text in project.features.row.items():
        yield from _check_expression(project, ("features", "row", name), text)
    for i, rolling in enumerate(project.features.rolling):
        yield from _check_rolling(project, ("features", "rolling", i), rolling)
    features = list(_named_features(project))
    yield from _check_names(project, features)
    yield from _check_model(project, {name for _, name in features})
    yield from _check_training(project)
    yield from _check_decisions(project)
    yield from _check_quality(project)


def _place(project: Project, name: str) -> str:
    """Where a field stands in the schema."""
    return f"{project.schema_file}:{project.contract.line_of(name)}"


def _unknown_field(project: Project, path: Path, name: str) -> Iterator[Fault]:
    fields = project.contract.fields
    if name not in fields:
        yield path, f"{name!r} is not a field of {project.schema_file}; it has {', '.join(fields)}"


def _check_fields(project: Project) -> Iterator[Fault]:
    fields, event = project.contract.fields, project.event
    keys: list[Fault] = [(("event", "id"), event.id)]
    keys += [(("entities", entity), name) for entity, name in project.entities.items()]
    others: list[Fault] = [(("event", "time"), event.time)]
    others += [(("fixed_point", name), name) for name in project.fixed_point]
    others += [(("output", i), name) for i, name in enumerate(project.output)]
    for path, name in keys + others:
        yield from _unknown_field(project, path, name)
    for path, name in keys:
        if name in fields and fields[name].kind in ("float", "time"):
            yield path, f"{name} must be a plain INT or BYTES field"
    for path, name in [*keys, others[0]]:
        if name in fields and not fields[name].required:
            wanted = f"presence {{ min_fraction: 1.0 }} in {_place(project, name)}"
            yield path, f"{name} must be required in the schema: give it {wanted}"
    for name in project.fixed_point:
        if name in fields and fields[name].kind not in ("int", "float"):
            yield ("fixed_point", name), f"{name} is not a number"
    for i, name in enumerate(project.output):
        if name == event.time:
            yield ("output", i), f"{name} is the event time, which goes out anyway"
    for name, field in fields.items():
        if name.startswith("__"):
            yield ("schema", name), f"the field name {name} is reserved: names starting with __ are headrace's own"
        if field.time_format is not None and name != event.time:
            yield ("schema", name, "time_domain"), f"{name} has a time_domain, which only the event time field may have"
    going_out = {*project.entities.values(), *project.output, event.id, event.time}
    for name in sorted(going_out.intersection(RESERVED)):
        yield ("schema", name), f"the field name {name} is reserved: a score row has a column of that name"


def _check_event(project: Project) -> Iterator[Fault]:
    fields, event, label = project.contract.fields, project.event, project.label
    if event.time in fields and fields[event.time].kind != "time":
        where = _place(project, event.time)
        yield ("event", "time"), f"{event.time} must be a time: give it a time_domain in {where}, {_TIMES}"
    if event.earliest >= event.latest:
        yield ("event", "earliest"), "must be before event.latest"
    if event.deduplicate_within == 0:
        yield ("event", "deduplicate_within"), "must be longer than zero"
    if label:
        path: Path = ("label", "field")
        yield from _unknown_field(project, path, label.field)
        if label.field in fields and not fields[label.field].is_boolean:
            wanted = f"an INT field with int_domain {{ min: 0 max: 1 }} in {_place(project, label.field)}"
            yield path, f"{label.field} must be of 0 and 1: {wanted}"
        if label.field in (event.id, *project.entities.values()):
            yield path, f"{label.field} is the event's id or an entity, which the label can't be"
    if label and label.events:
        path, name = ("label", "events", "time"), label.events.time
        if name in fields:
            yield path, f"{name} is a field of events: name the field of a label's record that says when it was known"
        if not name or not name.isprintable() or name.startswith("__") or name in RESERVED:
            yield path, f"{name!r} can't be a field: it is reserved, or has characters that can't be seen"


def _check_expression(project: Project, path: Path, text: str) -> Iterator[Fault]:
    fields, label = project.contract.fields, project.label
    try:
        expression = Expression.parse(text)
        for name in sorted(expression.names):
            yield from _unknown_field(project, path, name)
            if label and name == label.field:
                yield path, f"reads the label {name}, which is not known when the event is scored"
        expression.check({n: "time" if n == project.event.time else f.kind for n, f in fields.items()})
    except ExpressionError as error:
        yield path, str(error)


def _check_rolling(project: Project, path: Path, rolling: Rolling) -> Iterator[Fault]:
    if rolling.entity not in project.entities:
        known = ", ".join(project.entities) or "none"
        yield (*path, "entity"), f"{rolling.entity!r} is not an entity; there are {known}"
    for window, length in rolling.windows.items():
        if length == 0:
            yield (*path, "windows", window), "a window must be longer than zero"
    if not rolling.include_current and rolling.delay:
        yield (*path, "include_current"), "a delayed window never includes the current event: leave this out"
    for name, text in rolling.features.items():
        if len(rolling.windows) > 1 and "{window}" not in name:
            yield (*path, "features", name), "needs {window} in its name, as there is more than one window"
        for message in _faults_of_aggregate(project, rolling.model_copy(update={"features": {name: text}})):
            yield (*path, "features", name), message


def _faults_of_aggregate(project: Project, rolling: Rolling) -> Iterator[str]:
    fields, label = project.contract.fields, project.label
    try:
        feature = next(rolling.expand())
    except ValueError as error:
        yield str(error)
        return
    name, aggregate = feature.field, feature.aggregate
    if name is None:
        return
    for _, message in _unknown_field(project, (), name):
        yield message
    if name not in fields:
        return
    if fields[name].kind not in ("int", "float"):
        yield f"{name} is not a number"
    if aggregate in ("sum", "mean") and fields[name].kind == "float" and name not in project.fixed_point:
        yield f"sums are exact: declare the decimal places of {name} under fixed_point"
    if aggregate == "rate" and not fields[name].is_boolean:
        where = _place(project, name)
        yield f"rate needs a field of 0 and 1: give {name} int_domain {{ min: 0 max: 1 }} in {where}"
    if label and name == label.field and rolling.delay < label.delay:
        yield f"reads the label {name} before it is known: its delay must be at least label.delay"
    if label and label.events and name == label.field:
        if aggregate in ("min", "max"):
            yield f"there is no {aggregate} of labels that are records of their own: write sum, mean or rate"
        if not rolling.delay:
            yield f"reads the label {name}: where labels are records of their own, a delay must be longer than zero"


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
        if name in RESERVED:
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
        elif name in fields and fields[name].kind not in ("int", "float"):
            yield path, f"{name} is not a number"
        if name in project.model.inputs[:i]:
            yield path, f"{name} stands twice"
    for name, message in find_parameter_faults(project.model.params):
        yield ("model", "params", name), message


def _check_training(project: Project) -> Iterator[Fault]:
    training, fields = project.training, project.contract.fields
    features = {name for _, name in _named_features(project)}
    for i, name in enumerate(training.slices):
        if name == project.event.time or (name not in features and name not in fields):
            yield ("training", "slices", i), f"{name!r} is neither a feature nor a field"
    if training.group is not None and training.group not in project.entities:
        known = ", ".join(project.entities) or "none"
        yield ("training", "group"), f"{training.group!r} is not an entity; there are {known}"
    for part in ("train", "test"):
        if getattr(training, part) % _DAY_US or getattr(training, part) == 0:
            yield ("training", part), "must be whole days"


def _check_decisions(project: Project) -> Iterator[Fault]:
    bounds = [decision.at_least for decision in project.decisions]
    for i, bound in enumerate(bounds):
        if i and bound >= bounds[i - 1]:
            yield ("decisions", i, "at_least"), "bands stand from the highest bound to the lowest"
    if bounds and bounds[-1] > 0:
        yield ("decisions", len(bounds) - 1, "at_least"), "the last band must start at 0.0"


def _check_quality(project: Project) -> Iterator[Fault]:
    quality = project.quality
    if quality is None:
        return
    if quality.window == 0 or quality.window % 1000:
        yield ("quality", "window"), "must be whole milliseconds, at least one"
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
