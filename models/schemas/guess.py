"""Guess a project for columns of data: which field is what, what may be computed and learned, and how to split it.

Everything that is guessed is told, so that whoever has the data can put it right.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from models.batches import as_float64
from models.codecs.columns import Columns
from models.errors import HeadraceError
from models.predictors.leaks import rank_correlation
from models.schemas.propose import find_time_format

_DAY_US = 86_400_000_000
_ID = re.compile(r"(?i)(^|_|\b)(id|uuid|guid|key|number|nr|no|ref|reference)$|[a-z](Id|ID|Key|Number)$")
_ENTITY = re.compile(
    r"(?i)customer|client|user|member|account|card|terminal|device|merchant|shop|store|vendor|seller|driver|vehicle|"
    r"product|item|sku|patient|company|agent|sensor|machine|station|area|region|zone"
)
_LABEL = re.compile(r"(?i)label|target|fraud|churn|outcome|default|convert|click|cancel|return|spam|^is_|^y$")
_TIME = re.compile(r"(?i)time|date|_at$|timestamp|^ts$")
_MOST_ENTITIES, _MOST_MEANS, _MOST_NAMES, _MOST_CLASSES = 3, 3, 50, 50
_MANY_ROWS = 200  # a day: of fewer, a window of quality is a week
_SEEN_OFTEN = 0.05  # a text with more values a row hardly repeats
_MOST_PLACES = 6
_LARGEST = 1 << 44  # of a value in units of its last place, as windows sum
_TREND = 0.99  # a rank correlation with the time beyond which a number only counts it


class GuessError(HeadraceError, ValueError):
    """Data that no project can be guessed for; the message says what to tell."""


@dataclasses.dataclass(frozen=True)
class Roles:
    """What is told of the fields; None and () where it is to be guessed."""

    id: str | None = None
    time: str | None = None
    label: str | None = None
    entities: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Guess:
    """Declarations as project.yaml holds them, and a sentence on each that was guessed."""

    declarations: dict[str, Any]
    notes: list[str]


def guess_project(name: str, columns: Columns, told: Roles, late: Mapping[str, str]) -> Guess:
    """A project called `name` for int64, float64, string, bool or timestamp columns of n rows each.

    `late` has the columns that are known as late as the label, and how that shows.

    Raises:
        GuessError: if what is told is not there or can't be, no column is a time, or all is of less than two days.
    """
    for role in (told.id, told.time, told.label, *told.entities):
        if role is not None and role not in columns:
            raise GuessError(f"there is no field {role!r} in the data; it has {', '.join(columns)}")
    notes: list[str] = []
    time, times = _time(columns, told.time, notes)
    event_id, derived = _id(columns, told.id, time, notes)
    label = _label(columns, told.label, {time, event_id}, notes)
    entities = _entities(columns, told.entities, {time, event_id, label}, notes)
    numbers, names = _inputs(columns, times, {time, event_id, label, *entities.values(), *late}, notes)
    places = {n: p for n in numbers if (p := _places(columns[n])) is not None}
    measured = [n for n in numbers if n in places and _is_name(n)][:_MOST_MEANS]
    days = _days(times)
    windows = {f"{w}D": f"{w}d" for w in (1, 7, 30) if w == 1 or 3 * w <= days}
    row = _row_features(time, columns)
    rolling = [
        {
            "entity": entity,
            "windows": windows,
            "features": {
                f"{entity}_count_{{window}}": "count",
                **{f"{entity}_mean_{n}_{{window}}": f"mean({n})" for n in measured},
            },
        }
        for entity in entities
    ]
    features = [*row, *(f.replace("{window}", w) for part in rolling for w in windows for f in part["features"])]
    declared: dict[str, Any] = {
        "name": name,
        "schema": "schema.pbtxt",
        **({"derive": derived} if derived else {}),
        "event": {"id": event_id, "time": time},
        **({"entities": entities} if entities else {}),
    }
    if label is not None:
        delay = _label_delay(days)
        declared["label"] = {"field": label, "delay": f"{delay}d"}
        declared |= _target(columns[label], label, notes)
        declared["available"] = dict.fromkeys(late, f"after {delay}d")
        notes += [
            f"available.{field}: as late as the label, which it alone tells ({why})" for field, why in late.items()
        ]
        if not numbers and not names:
            raise GuessError(f"no field is left that a model could read: {'; '.join(notes)}")
        notes.append(f"label.delay: {delay}d, a guess: say how long after its event a label becomes known")
    declared["fixed_point"] = {n: places[n] for n in measured if pa.types.is_floating(columns[n].type)}
    declared["features"] = {**({"row": row} if row else {}), **({"rolling": rolling} if rolling else {})}
    if label is None:
        notes.append("no label: features are written, and no model is trained; name one by --label")
        return Guess({**declared, "output": [*numbers, *names]}, notes)
    declared["model"] = {
        "inputs": [*numbers, *names, *features],
        "params": {"n_estimators": 100, "max_depth": 6, "learning_rate": 0.3, "seed": 0},
    }
    many = [n for n in names if _distinct(columns[n]) > _MOST_NAMES]
    if many:
        declared["model"]["categories"] = {n: {"encoding": "splits", "most": _MOST_NAMES} for n in many}
    declared["training"] = _split(days, notes)
    if "target" not in declared:
        declared["decisions"] = [{"action": "flag", "at_least": 0.5}, {"action": "pass", "at_least": 0.0}]
    declared["output"] = [label]
    declared["quality"] = _quality(len(times) / days)
    return Guess({part: value for part, value in declared.items() if value}, notes)


def _time(columns: Columns, told: str | None, notes: list[str]) -> tuple[str, pa.Array]:
    named = sorted(columns, key=lambda name: _TIME.search(name) is None)  # stable: in their order
    for name in [told] if told else named:
        column = columns[name]
        if not told and (column.null_count or (column.type == pa.int64() and not _TIME.search(name))):
            continue
        found = find_time_format(column)
        if found is not None and not column.null_count:
            if not told:
                notes.append(f"event.time: {name}")
            return name, found[1]
    wanted = "ISO 8601, such as 2018-06-08T12:00:00Z, or whole numbers since 1970"
    if told:
        some = columns[told].drop_null()[:1].to_pylist()
        raise GuessError(
            f"{told} is no time of every row: {wanted}; it has {some[0]!r}" if some else f"{told} is empty"
        )
    raise GuessError(f"no field is a time of every row ({wanted}): name it by --time")


def _id(columns: Columns, told: str | None, time: str, notes: list[str]) -> tuple[str, dict[str, str]]:
    if told is not None:
        if not _is_key(columns[told]) or columns[told].null_count:
            raise GuessError(f"{told} can't be the id: it must be a text or a whole number of every row")
        return told, {}
    for name, column in columns.items():
        if name != time and _ID.search(name) and _is_key(column) and _distinct(column) == len(column):
            notes.append(f"event.id: {name}, which is another in every row")
            return name, {}
    name = next(
        n for n in ("event_id", "record_id", "hash_of_record", *map("id_{}".format, range(9))) if n not in columns
    )
    notes.append(f"event.id: {name}, a hash of the record: no field is named like an id and another in every row")
    return name, {name: "hash()"}


def _label(columns: Columns, told: str | None, others: set[str], notes: list[str]) -> str | None:
    if told is not None:
        return told
    for name, column in columns.items():
        if name not in others and _LABEL.search(name) and _is_boolean(column):
            notes.append(f"label.field: {name}, of 0 and 1")
            return name
    return None


def _entities(columns: Columns, told: Sequence[str], others: set[str | None], notes: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in told:
        if not _is_key(columns[name]) or columns[name].null_count:
            raise GuessError(f"{name} can't be an entity: it must be a text or a whole number of every row")
    fields = told or [n for n, c in columns.items() if n not in others and _may_be_entity(n, c)][:_MOST_ENTITIES]
    for name in fields:
        short = re.sub(r"\W+", "_", re.sub(r"(?i)_?id$", "", name).lower()).strip("_")
        entity = short if re.fullmatch(r"[a-z]\w*", short) and short not in found else f"entity_{len(found) + 1}"
        found[entity] = name
        if not told:
            notes.append(f"entities.{entity}: {name}, whose {_distinct(columns[name]):,} values come again")
    return found


def _may_be_entity(name: str, column: pa.Array) -> bool:
    named = _ENTITY.search(name) or _ID.search(name)
    return bool(named) and _is_key(column) and not column.null_count and 2 <= _distinct(column) <= len(column) / 2


def _inputs(
    columns: Columns, times: pa.Array, others: set[str | None], notes: list[str]
) -> tuple[list[str], list[str]]:
    """Fields that are numbers, and fields that are names of few values."""
    numbers, names = [], []
    clock = as_float64(times.cast(pa.int64()))
    for name, column in columns.items():
        if name in others or pa.types.is_timestamp(column.type):
            continue
        count = _distinct(column)
        if count < 2:
            notes.append(f"{name} is no input: it has one value")
        elif pa.types.is_string(column.type):
            if count <= _SEEN_OFTEN * len(column):
                names.append(name)
            else:
                notes.append(f"{name} is no input: it is a text of {count:,} values, which hardly come again")
        elif not column.null_count and rank_correlation(as_float64(_numeric(column)), clock) >= _TREND:
            notes.append(f"{name} is no input: it grows with the time")
        else:
            numbers.append(name)
    return numbers, names


def _target(label: pa.Array, name: str, notes: list[str]) -> dict[str, str]:
    if _is_boolean(label):
        return {}
    if pa.types.is_string(label.type):
        if _distinct(label) > _MOST_CLASSES:
            raise GuessError(f"{name} can't be the label: it is a text of more than {_MOST_CLASSES} values")
        notes.append(f"target: multiclass, as {name} is a text of few values")
        return {"target": "multiclass"}
    if pa.types.is_timestamp(label.type):
        raise GuessError(f"{name} can't be the label: it is a time")
    notes.append(f"target: regression, as {name} is a number")
    return {"target": "regression"}


def _row_features(time: str, columns: Columns) -> dict[str, str]:
    wanted = {"event_hour": f"hour({time})", "event_weekday": f"weekday({time})"}
    return {n: text for n, text in wanted.items() if n not in columns} if _is_name(time) else {}


def _days(times: pa.Array) -> int:
    ends = pc.min_max(times.cast(pa.int64()))
    return int(ends["max"].as_py()) // _DAY_US - int(ends["min"].as_py()) // _DAY_US + 1


def _label_delay(days: int) -> int:
    return min(7, days // 5)


def _split(days: int, notes: list[str]) -> dict[str, str]:
    if days < 2:
        raise GuessError("all events are of one day: a model is trained on some days and tested on later ones")
    delay = _label_delay(days)
    test = max(1, (days - delay) // 4)
    train = days - delay - test
    notes.append(
        f"training: {train} days, {delay} for labels to become known, {test} to test on, of {days} in the data"
    )
    return {"train": f"{train}d", "delay": f"{delay}d", "test": f"{test}d"}


def _quality(rows_a_day: float) -> dict[str, Any]:
    """Windows that have rows enough to be judged."""
    days = 1 if rows_a_day >= _MANY_ROWS else 7
    return {"window": f"{days}d", "min_rows": max(30, min(500, int(rows_a_day * days / 2)))}


def _places(column: pa.Array) -> int | None:
    """The decimal places that all values have, at most six; None if they have more, or are too large for sums."""
    values = as_float64(_numeric(column))
    values = values[np.isfinite(values)]
    for places in range(_MOST_PLACES + 1):
        units = values * 10.0**places
        if np.abs(units).max(initial=0) >= _LARGEST:
            return None
        if np.array_equal(np.rint(units) / 10.0**places, values):
            return places
    return None


def _numeric(column: pa.Array) -> pa.Array:
    return column.cast(pa.int64()) if pa.types.is_boolean(column.type) else column


def _is_key(column: pa.Array) -> bool:
    return bool(pa.types.is_string(column.type) or pa.types.is_integer(column.type))


def _is_boolean(column: pa.Array) -> bool:
    if pa.types.is_boolean(column.type):
        return True
    return bool(pa.types.is_integer(column.type) and set(pc.unique(column.drop_null()).to_pylist()) == {0, 1})


def _distinct(column: pa.Array) -> int:
    return int(pc.count_distinct(column).as_py())


def _is_name(name: str) -> bool:
    return re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) is not None and not name.startswith("__")


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def render(guess: Guess, origin: str) -> Iterator[str]:
    """The lines of project.yaml."""
    yield f"# {origin}"
    yield "# What was guessed, to be put right where it is wrong:"
    yield from (f"# - {' '.join(note.split())}" for note in guess.notes)
    for part, value in guess.declarations.items():
        if isinstance(value, dict | list):
            yield ""
        text = yaml.dump({part: value}, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
        yield text.rstrip("\n")
