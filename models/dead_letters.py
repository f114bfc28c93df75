"""The one record type for events that could not be used, whatever step refused them."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.batches import Keys, column, take_rows
from models.codecs import rows_as_json
from models.codecs.times import times_from_timestamps
from models.faults import python_values, rules_of
from models.record import (
    DEAD_LETTER_SCHEMA,
    EVENT_TIME,
    FORMAT,
    INGESTED,
    INGESTED_AT,
    MARKS,
    PAYLOAD,
    PAYLOAD_FORMAT,
    POSITION,
    PUBLISHED,
    PUBLISHED_AT,
    SOURCE,
    TIMESTAMP,
    RecordType,
)

_AT_ONCE = 1 << 11  # letters whose reasons are in memory as texts
LINES = ("json", "csv")  # formats whose records end with a line, as dead letters don't


# Columns of dead letters of a stream, by their names in batches.
_STREAM_TIMES = {PUBLISHED_AT: PUBLISHED, INGESTED_AT: INGESTED}


def make_dead_letters(
    batch: pa.RecordBatch, rows: Keys, reasons: Sequence[str], step: str, records: RecordType
) -> pa.RecordBatch:
    """Dead letters for some rows of a batch; `records` names the id and the time, which may not be there yet.

    They keep the rows' marks until transforms.refused.DropKnown; those of a stream tell when each was published and
    ingested.
    """
    bad = take_rows(batch, rows)
    columns = dict(zip(bad.schema.names, bad.columns, strict=True))
    own = [name for name in columns if not name.startswith("__")]
    payloads: pa.Array = columns.get(PAYLOAD, pa.nulls(len(rows), pa.binary()))
    known = pa.repeat((bad.schema.metadata or {}).get(FORMAT, b"row").decode(), len(rows))
    formats = columns.get(PAYLOAD_FORMAT, known).cast(pa.string())
    bare = pc.replace_substring_regex(payloads, pattern=r"\r?\n\z", replacement="")
    payloads = pc.if_else(pc.is_in(formats, pa.array(LINES)), bare, payloads)
    formats = pc.if_else(pc.is_null(payloads), "row", formats)
    if payloads.null_count:
        shown = [*own, EVENT_TIME] if EVENT_TIME in columns else own
        payloads = pc.coalesce(payloads, pa.array(rows_as_json({name: columns[name] for name in shown}), pa.binary()))
    times = columns.get(EVENT_TIME, columns.get(records.time, pa.nulls(len(rows))))
    letters = pa.RecordBatch.from_arrays(
        [
            payloads,
            formats,
            pa.array(reasons, pa.string()),
            pa.repeat(step, len(rows)),
            columns[SOURCE].cast(pa.string()),
            columns[POSITION],
            _texts(columns[records.id]) if records.id in own else pa.nulls(len(rows), pa.string()),
            times_from_timestamps(times) if times.type == TIMESTAMP else pa.nulls(len(rows), TIMESTAMP),
        ],
        schema=DEAD_LETTER_SCHEMA,
    )
    kept = {name: columns[system] for name, system in _STREAM_TIMES.items() if system in columns}
    kept[MARKS] = columns[MARKS]
    fields = [pa.field(name, values.type) for name, values in kept.items()]
    schema = pa.schema([*letters.schema, *fields])
    return pa.RecordBatch.from_arrays([*letters.columns, *kept.values()], schema=schema)


def by_rules(letters: pa.RecordBatch) -> collections.Counter[tuple[str, tuple[tuple[str, str], ...]]]:
    """How many dead letters there are by their step, and the fields and rules of all of their reasons."""
    found: collections.Counter[tuple[str, tuple[tuple[str, str], ...]]] = collections.Counter()
    for start in range(0, letters.num_rows, _AT_ONCE):
        part = letters.slice(start, _AT_ONCE)
        rules = rules_of(column(part, "reasons").to_pylist())
        found.update(zip(column(part, "step").to_pylist(), rules, strict=True))
    return found


def _texts(ids: pa.Array) -> pa.StringArray:
    if pa.types.is_integer(ids.type):
        return ids.cast(pa.string())
    return pa.array([None if value is None else _text(value) for value in python_values(ids)], pa.string())


def _text(value: Any) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def split_good(batch: pa.RecordBatch, bad: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> pa.RecordBatch:
    """The rows that are not bad; the batch itself where none is."""
    return take_rows(batch, np.flatnonzero(~bad)) if bad.any() else batch
