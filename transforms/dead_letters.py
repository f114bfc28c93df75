"""The one record type for events that could not be used, whatever step refused them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from models.codecs import row_as_json
from transforms.batches import EVENT_TIME, FORMAT, PAYLOAD, POSITION, SOURCE, Keys, take_rows

DEAD_LETTER_SCHEMA = pa.schema(
    [
        pa.field("payload", pa.binary()),  # the record's original bytes, or its row as JSON
        pa.field("format", pa.string()),  # of the payload: json, csv, avro, row, ...
        pa.field("reasons", pa.string()),  # a JSON list of {field, rule, value}
        pa.field("step", pa.string()),
        pa.field("source", pa.string()),
        pa.field("position", pa.int64()),
        pa.field("event_id", pa.string()),
        pa.field("event_time", pa.timestamp("us", tz="UTC")),
    ]
)


def make_dead_letters(
    batch: pa.RecordBatch, rows: Keys, reasons: Sequence[str], step: str, event_id: str
) -> pa.RecordBatch:
    """Dead letters for some rows of a batch; `event_id` names the id's column, which may not be there yet."""
    bad = take_rows(batch, rows)
    names = bad.schema.names
    columns = dict(zip(names, bad.columns, strict=True))
    known_format = (bad.schema.metadata or {}).get(FORMAT, b"row").decode()
    payloads = columns[PAYLOAD].to_pylist() if PAYLOAD in columns else [None] * len(rows)
    own = [name for name in names if not name.startswith("__")]
    if None in payloads:
        kept = [*own, EVENT_TIME] if EVENT_TIME in columns else own
        dicts = pa.Table.from_batches([bad]).select(kept).to_pylist()
        payloads = [row_as_json(row) if p is None else p for p, row in zip(payloads, dicts, strict=True)]
    formats = [known_format if PAYLOAD in columns and p is not None else "row" for p in payloads]
    ids = (
        [None if value is None else str(value) for value in columns[event_id].to_pylist()] if event_id in own else None
    )
    return pa.RecordBatch.from_arrays(
        [
            pa.array([(payload or b"").rstrip(b"\r\n") for payload in payloads], pa.binary()),
            pa.array(formats, pa.string()),
            pa.array(reasons, pa.string()),
            pa.array([step] * len(rows), pa.string()),
            columns[SOURCE].cast(pa.string()),
            columns[POSITION],
            pa.array(ids, pa.string()) if ids is not None else pa.nulls(len(rows), pa.string()),
            columns.get(EVENT_TIME, pa.nulls(len(rows), DEAD_LETTER_SCHEMA.field("event_time").type)),
        ],
        schema=DEAD_LETTER_SCHEMA,
    )


def split_good(batch: pa.RecordBatch, bad: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> pa.RecordBatch:
    """The rows that are not bad; the batch itself where none is."""
    return take_rows(batch, np.flatnonzero(~bad)) if bad.any() else batch
