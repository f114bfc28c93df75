"""Tables of aggregates: what the events of a period add up to, by parts that may be added in any order.

A part is a batch with a row for each value that the keys, and the fields whose values are counted, have together. Sums
are of integers, each in two parts, so that 64 bits hold those of 2**41 events. Of values that are counted approximately
a row has a sketch.

A period of a stream is written when the watermark has passed it, and once more what late events change of it: with a
higher `revision`, whole numbers that begin at 0.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.batches import as_batch, as_float64, as_int64, column, concat_batches, marks_of, partition, times_us
from models.features.aggregates import end_of, start_of
from models.features.row import with_conditions
from models.features.sketches import estimate, sketch_of
from models.fixed_point import to_units
from models.project.declarations import Project
from models.project.sections import RollingFeature
from models.record import IS_HISTORY, IS_OPEN, IS_PROVISIONAL, TIMESTAMP

TABLE, PERIOD_START, PERIOD_END, REVISION = "aggregate", "period_start", "period_end", "revision"
SLICE_END = b"headrace.slice_end_us"  # of a batch of events of a stream
_END = b"headrace.period_end_us"
_BY = b"headrace.by"
_LIVE = "live rows"
_LOW_BITS = 22
_HOW = {"min": "min", "max": "max", "sketch": "list"}  # by the kind of a column, what parts of it are added up by


def add_up(batch: pa.RecordBatch, name: str, project: Project) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(end of a period in microseconds, its part) of events with their features; provisional ones are left out."""
    table, features, marks = project.aggregates[name], project.totals[name], marks_of(batch)
    if marks[0] & IS_PROVISIONAL:
        return
    slice_end_us = _number_of(batch, SLICE_END)
    batch = with_conditions(batch, features, project)
    live = ((marks & IS_HISTORY) == 0) | ((marks & IS_OPEN[table.period]) != 0)
    columns: dict[str, Any] = {key: _key(column(batch, key)) for key in table.by}
    columns[_LIVE] = pa.array(live.astype(np.int64))
    for place, feature in enumerate(features):
        decimals = project.fixed_point.get(feature.field or "", 0)
        columns |= {f"{kind} {place}": values for kind, values in _measures(batch, feature, decimals).items()}
    rows = pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
    for end_us, part in partition(rows, end_of(table.period, times_us(batch))):
        yield end_us, _of_period(_group(part, table.by), end_us, slice_end_us)


def add_parts(parts: Sequence[pa.RecordBatch], by: Sequence[str]) -> pa.RecordBatch:
    """Parts of one period as one."""
    whole = _group(concat_batches(list(parts)), by)
    return _of_period(whole, end_us_of(parts[0]), max(map(slice_end_us_of, parts)))


def end_us_of(part: pa.RecordBatch) -> int:
    """The end of a part's period, microseconds since 1970 UTC."""
    return _number_of(part, _END)


def slice_end_us_of(part: pa.RecordBatch) -> int:
    """The end of the last slice that a part's events came with, microseconds since 1970 UTC; 0 if none is told."""
    return _number_of(part, SLICE_END)


def written(part: pa.RecordBatch) -> pa.RecordBatch:
    """A part whose rows are out: what is added to it is all that is live."""
    place = part.schema.get_field_index(_LIVE)
    none = pa.array(np.zeros(part.num_rows, np.int64))
    return part.set_column(place, _LIVE, none)


def last_revisions(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """Of a period's rows, as `finish` gives them, the last of each key, without their revision."""
    if REVISION not in batches[0].schema.names:
        return concat_batches(batches)
    by = json.loads(batches[0].schema.metadata[_BY])
    rows = pa.Table.from_batches(sorted(batches, key=lambda batch: int(column(batch, REVISION)[0].as_py())))
    places = pa.table({**{key: rows[key] for key in by}, "row": pa.array(np.arange(len(rows)))})
    last = places.group_by(by, use_threads=False).aggregate([("row", "max")])["row_max"]
    kept = rows.take(last).drop_columns([REVISION])
    return as_batch(kept.take(pc.sort_indices(kept, [(key, "ascending") for key in by])) if by else kept)


def period_end_us(rows: pa.RecordBatch) -> int:
    """The end of the period of a table's rows, microseconds since 1970 UTC."""
    return int(as_int64(column(rows, PERIOD_END))[0])


def rows_in(part: pa.RecordBatch) -> int:
    """How many of a part's events are not history."""
    return int(pc.sum(column(part, _LIVE)).as_py())


def finish(part: pa.RecordBatch, name: str, project: Project, revision: int | None = None) -> pa.RecordBatch:
    """The rows of the table for a period, in the order of its keys; of a revision above 0 those of live events."""
    table, features = project.aggregates[name], project.totals[name]
    distinct = [f"value {place}" for place, f in enumerate(features) if f.aggregate == "distinct"]
    grouped = _aggregate(part, table.by, distinct)
    grouped = grouped.filter(pc.greater(grouped[_LIVE], 0)) if revision else grouped
    grouped = grouped.take(pc.sort_indices(grouped, [(key, "ascending") for key in table.by])) if table.by else grouped
    end_us = end_us_of(part)
    start_us = int(start_of(table.period, np.array([end_us - 1]))[0])
    bounds = {PERIOD_START: start_us, PERIOD_END: end_us}
    columns: dict[str, Any] = {TABLE: pa.repeat(name, len(grouped))}
    columns |= {each: pa.repeat(us, len(grouped)).cast(TIMESTAMP) for each, us in bounds.items()}
    columns |= {key: grouped[key] for key in table.by}
    for place, feature in enumerate(features):
        unit = 10 ** project.fixed_point.get(feature.field or "", 0)
        columns[feature.name] = _result(grouped, place, feature, unit)
    if revision is None:
        return as_batch(pa.table(columns))
    columns[REVISION] = pa.repeat(revision, len(grouped)).cast(pa.int64())
    return as_batch(pa.table(columns)).replace_schema_metadata({_BY: json.dumps(table.by)})


def _key(values: pa.Array) -> pa.Array:
    """A row feature may be whole numbers, of which some are missing."""
    return (
        pa.array(as_float64(values), from_pandas=True).cast(pa.int64()) if pa.types.is_floating(values.type) else values
    )


def _measures(batch: pa.RecordBatch, feature: RollingFeature, decimals: int) -> dict[str, pa.Array]:
    if feature.column is None:
        return {"known": pa.array(np.ones(batch.num_rows, np.int64))}
    values = column(batch, feature.column)
    if feature.aggregate in ("distinct", "approx_distinct"):
        kind = "value" if feature.aggregate == "distinct" else "sketch"
        if pa.types.is_floating(values.type):
            return {kind: pa.array(as_float64(values) + 0.0, from_pandas=True)}
        return {kind: values if kind == "value" else _plain(values)}
    numbers = as_float64(values)
    there = ~np.isnan(numbers)
    known = {"known": pa.array(there.astype(np.int64))}
    if feature.aggregate == "count":
        return known
    if feature.aggregate in ("min", "max"):
        return {feature.aggregate: pa.array(numbers + 0.0, from_pandas=True)}
    scaled = to_units(np.where(there, numbers, 0), decimals).astype(np.int64)
    return {**known, "high": pa.array(scaled >> _LOW_BITS), "low": pa.array(scaled & ((1 << _LOW_BITS) - 1))}


def _group(rows: pa.RecordBatch, by: Sequence[str]) -> pa.RecordBatch:
    values = [name for name in rows.schema.names if name.startswith("value ")]
    grouped = _aggregate(rows, [*by, *values], [])
    return as_batch(grouped.select(rows.schema.names))


def _aggregate(rows: pa.RecordBatch, keys: Sequence[str], distinct: Sequence[str]) -> pa.Table:
    """Sums, least and greatest values, and how many different ones, by keys; columns keep their names."""
    asked: list[Any] = []
    for name in rows.schema.names:
        if name in distinct:
            asked.append((name, "count_distinct", pc.CountOptions(mode="only_valid")))
        elif name not in keys:
            asked.append((name, _HOW.get(name.partition(" ")[0], "sum"), None))
    table = pa.Table.from_batches([rows])
    if not keys:  # lists are made by key alone
        keys, table = [""], table.append_column("", pa.repeat(0, len(table)))
    table = table.group_by(list(keys), use_threads=False).aggregate(asked)
    names = {f"{name}_{how}": name for name, how, _ in asked}
    columns = dict(zip([names.get(name, name) for name in table.schema.names], table.columns, strict=True))
    for name in columns:
        if name.startswith("sketch "):
            columns[name] = pa.array([sketch_of(values.values) for values in columns[name]], pa.binary())
    return pa.table(columns)


def _plain(values: pa.Array) -> pa.Array:
    """Integers of all kinds as int64, texts as they are."""
    values = values.dictionary_decode() if pa.types.is_dictionary(values.type) else values
    return values if pa.types.is_string(values.type) else values.cast(pa.int64())


def _of_period(part: pa.RecordBatch, end_us: int, slice_end_us: int) -> pa.RecordBatch:
    return part.replace_schema_metadata({_END: str(end_us), SLICE_END: str(slice_end_us)})


def _number_of(batch: pa.RecordBatch, key: bytes) -> int:
    return int((batch.schema.metadata or {}).get(key, b"0"))


def _result(grouped: pa.Table, place: int, feature: RollingFeature, unit: int) -> pa.Array:
    if feature.aggregate == "distinct":
        return grouped[f"value {place}"]
    if feature.aggregate == "approx_distinct":
        return pa.array([estimate(sketch) for sketch in grouped[f"sketch {place}"].to_pylist()], pa.int64())
    if feature.aggregate in ("min", "max"):
        return grouped[f"{feature.aggregate} {place}"]
    if feature.aggregate == "count":
        return grouped[f"known {place}"]
    known, high, low = (grouped[f"{kind} {place}"].to_pylist() for kind in ("known", "high", "low"))
    totals = [(h << _LOW_BITS) + part for h, part in zip(high, low, strict=True)]
    if feature.aggregate == "sum":
        return pa.array([total / unit for total in totals], pa.float64())
    return pa.array([total / (unit * n) if n else None for total, n in zip(totals, known, strict=True)], pa.float64())
