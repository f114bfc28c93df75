"""Propose a contract for columns of data, with TFDV's statistics and inference."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2

from models.codecs.columns import Columns
from models.codecs.times import times_from_numbers, times_from_text
from models.project.contract import UNIX_UNITS, Contract
from models.project.declarations import Project
from models.quality.backend import import_tfdv
from models.record import TIMESTAMP

ISO_FORMAT = "%Y-%m-%d %H:%M:%S"  # stands for all forms of ISO 8601
MAX_DOMAIN = 100  # values; text with more is free text
_VALUES_A_ROW = 0.5  # a domain has at most so many values a row: else they hardly repeat
_YEARS = (1990, 2100)  # that whole numbers of a Unix unit lie in


@dataclasses.dataclass(frozen=True)
class Proposal:
    """A schema's features with what was seen of each, and what its author should know."""

    schema: schema_pb2.Schema
    seen: dict[str, str]
    notes: list[str]

    def text(self, origin: str) -> bytes:
        """The schema as schema.pbtxt, with `origin` and the notes as comments: the same for the same data."""
        comments = [origin, "Review it: an event outside of it becomes a dead letter.", *self.notes]
        lines = [f"# {_one_line(comment)}" for comment in comments]
        for feature in self.schema.feature:
            lines += [f"feature {{  # {self.seen[feature.name]}", *(f"  {part}" for part in _parts(feature)), "}"]
        text = "\n".join([*lines, ""]).encode()
        Contract.parse(text)
        return text


def _parts(feature: schema_pb2.Feature) -> list[str]:
    """Each part of a feature on a line."""
    parts = []
    for part, value in feature.ListFields():
        if part.message_type is None:
            alone = schema_pb2.Feature(**{part.name: value})
            parts.append(text_format.MessageToString(alone, as_one_line=True, as_utf8=True).strip())
        else:
            inside = text_format.MessageToString(value, as_one_line=True, as_utf8=True).strip()
            parts.append(f"{part.name} {{ {inside} }}" if inside else f"{part.name} {{ }}")
    return parts


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def propose_schema(columns: Columns, unusable: Mapping[str, str], project: Project) -> Proposal:
    """A schema for int64, float64, string, bool and timestamp columns of n rows each.

    TFDV decides on types, presence and domains of text. The project's declarations decide which column is the event
    time, and that a label need not be there, as it becomes known later. What TFDV says of the number of values is
    left out, as an event has one at most. A number that is never negative gets the minimum 0.
    """
    notes = [f"Left out: {name}: {why}." for name, why in unusable.items()]
    kept: Columns = {}
    times: dict[str, schema_pb2.TimeDomain] = {}
    for name, column in columns.items():
        if name == project.event.time:
            found = find_time_format(column)
            if found is None:
                notes.append(
                    f"Left out: {name}: the event time, but neither ISO 8601 nor Unix time: write its time_domain."
                )
                continue
            times[name], column = found
        elif column.type == TIMESTAMP:
            notes.append(f"Left out: {name}: a time, which only the event time field may be.")
            continue
        kept[name] = column
    label = project.label.field if project.label else None
    schema = schema_pb2.Schema()
    inferred = _infer(kept) if kept else schema
    domains = {domain.name: sorted(domain.value) for domain in inferred.string_domain}
    for found in sorted(inferred.feature, key=lambda feature: list(kept).index(feature.name)):
        name, column = found.name, kept[found.name]
        feature = schema.feature.add(name=name, type=found.type)
        if found.presence.min_fraction >= 1.0 and name != label:
            feature.presence.min_fraction = 1.0
        if name in times:
            feature.type = schema_pb2.BYTES if times[name].string_format else schema_pb2.INT
            feature.time_domain.CopyFrom(times[name])
        elif found.type == schema_pb2.BYTES:
            if found.domain and name not in _keys(project):
                _add_domain(feature, domains[found.domain], column, notes)
        else:
            _add_bounds(feature, column, notes)
    notes += _notes_on_roles(schema, project)
    return Proposal(schema, {name: _one_line(_seen(column)) for name, column in kept.items()}, notes)


def _keys(project: Project) -> set[str]:
    return {project.event.id, *project.entities.values()}


def _add_domain(feature: schema_pb2.Feature, values: list[str], column: pa.Array, notes: list[str]) -> None:
    if len(values) <= _VALUES_A_ROW * (len(column) - column.null_count):
        feature.string_domain.value.extend(values)
    else:
        notes.append(f"{feature.name} has no domain: its {len(values)} values hardly repeat in the rows read.")


def _add_bounds(feature: schema_pb2.Feature, column: pa.Array, notes: list[str]) -> None:
    if pa.types.is_boolean(column.type):
        feature.bool_domain.SetInParent()
        return
    if feature.type == schema_pb2.INT:
        low, high = (pc.min_max(column)[side].as_py() for side in ("min", "max"))
        if (low, high) == (0, 1):
            feature.int_domain.min, feature.int_domain.max = 0, 1
        elif low >= 0:
            feature.int_domain.min = 0
        return
    finite = column.filter(pc.is_finite(column).fill_null(False))
    if odd := len(column) - column.null_count - len(finite):
        notes.append(f"{feature.name}: {odd} values are not finite: such events become dead letters.")
    if len(finite) and pc.min(finite).as_py() >= 0:
        feature.float_domain.min = 0.0


def _notes_on_roles(schema: schema_pb2.Schema, project: Project) -> list[str]:
    features = {feature.name: feature for feature in schema.feature}
    event, notes = project.event, []
    roles = [("event id", event.id), ("event time", event.time)]
    roles += [(f"entity {entity}", name) for entity, name in project.entities.items()]
    for role, name in roles:
        if name in project.derive:
            continue
        if name not in features:
            notes.append(f"Missing: {name}, the {role}.")
            continue
        if features[name].presence.min_fraction < 1.0:
            notes.append(f"{name}, the {role}, is missing in some rows: it must be required.")
        if features[name].type == schema_pb2.FLOAT:
            notes.append(f"{name}, the {role}, is a number with a fraction, which no key may be.")
    if project.label and project.label.field not in features:
        notes.append(f"Missing: {project.label.field}, the label.")
    elif project.label and project.target.kind == "binary":
        feature = features[project.label.field]
        if not (
            feature.HasField("bool_domain") or (feature.int_domain.HasField("max") and feature.int_domain.max == 1)
        ):
            notes.append(f"{project.label.field}, the label, is not of 0 and 1 in the rows read.")
    return notes


def find_time_format(column: pa.Array) -> tuple[schema_pb2.TimeDomain, pa.Array] | None:
    """How a column writes times, and the times: ISO 8601, or the Unix unit that puts all between 1990 and 2100."""
    if column.type == TIMESTAMP:
        return schema_pb2.TimeDomain(string_format=ISO_FORMAT), column
    if column.type == pa.string():
        times = times_from_text(column, ISO_FORMAT)
        read = times.null_count == column.null_count
        return (schema_pb2.TimeDomain(string_format=ISO_FORMAT), times) if read else None
    if column.type != pa.int64():
        return None
    for name, unit in UNIX_UNITS.items():
        times = times_from_numbers(column, unit)
        years = pc.min_max(pc.year(times))
        first, last = years["min"].as_py(), years["max"].as_py()
        if times.null_count == column.null_count and first >= _YEARS[0] and last < _YEARS[1]:
            integer_format = schema_pb2.TimeDomain.IntegerTimeFormat.Value(name)
            return schema_pb2.TimeDomain(integer_format=integer_format), times
    return None


def _seen(column: pa.Array) -> str:
    """What the rows had of a field, for people."""
    missing = column.null_count / len(column)
    # Rounded away from 0 and 1, so that "0% missing" and "100% missing" are never said of some.
    rest = f", {min(max(missing, 0.001), 0.999):.1%} missing" if missing else ""
    if pa.types.is_floating(column.type):
        column = column.filter(pc.is_finite(column).fill_null(False))
    low, high = (pc.min_max(column)[side].as_py() for side in ("min", "max"))
    if pa.types.is_string(column.type):
        count = pc.count_distinct(column).as_py()
        return f"{count:,} different text{'s' if count != 1 else ''}{rest}"
    return f"{low} to {high}{rest}" if low is not None else f"no finite value{rest}"


def _infer(columns: Columns) -> schema_pb2.Schema:
    """TFDV's schema of columns, without a Beam job: its generators over one batch."""
    tfdv = import_tfdv()
    from tensorflow_data_validation.statistics import stats_impl

    batch = pa.RecordBatch.from_arrays([_as_lists(column) for column in columns.values()], names=list(columns))
    # A domain is of the values that its histogram names, so it must have room for one more than a domain may have.
    options = tfdv.StatsOptions(num_rank_histogram_buckets=MAX_DOMAIN + 1)
    statistics = stats_impl.generate_statistics_in_memory(batch, options)
    return tfdv.infer_schema(statistics, infer_feature_shape=False, max_string_domain_size=MAX_DOMAIN)


def _as_lists(column: pa.Array) -> pa.ListArray:
    """A column as TFDV has them: a list of one value a row, null where it is missing; times as whole numbers."""
    values = column.drop_null()
    if pa.types.is_string(values.type):
        values = values.cast(pa.binary())
    elif not pa.types.is_floating(values.type):
        values = values.cast(pa.int64())
    missing = pc.is_null(column).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(~missing)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets, mask=np.append(missing, False)), values)
