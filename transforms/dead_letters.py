"""The one record type for events that could not be used, whatever step refused them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from models.codecs import rows_as_json
from models.codecs.times import times_from_timestamps
from models.contract import TIMESTAMP
from models.declarations import Event
from models.faults import python_values
from transforms.batches import EVENT_TIME, FORMAT, PAYLOAD, POSITION, SOURCE, Keys, take_rows

LINES = ("json", "csv")  # formats whose records are lines, which don't end in a newline as dead letters

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
    batch: pa.RecordBatch, rows: Keys, reasons: Sequence[str], step: str, event: Event
) -> pa.RecordBatch:
    """Dead letters for some rows of a batch; `event` names the id and the time, which may not be there yet."""
    bad = take_rows(batch, rows)
    columns = dict(zip(bad.schema.names, bad.columns, strict=True))
    own = [name for name in columns if not name.startswith("__")]
    payloads: list[Any] = columns[PAYLOAD].to_pylist() if PAYLOAD in columns else [None] * len(rows)
    known_format = (bad.schema.metadata or {}).get(FORMAT, b"row").decode()
    formats = ["row" if payload is None else known_format for payload in payloads]
    if None in payloads:
        shown = [*own, EVENT_TIME] if EVENT_TIME in columns else own
        texts = rows_as_json({name: columns[name] for name in shown})
        payloads = [text if payload is None else payload for payload, text in zip(payloads, texts, strict=True)]
    if known_format in LINES:
        payloads = [payload.rstrip(b"\r\n") for payload in payloads]
    ids = python_values(columns[event.id]) if event.id in own else [None] * len(rows)
    times = columns.get(EVENT_TIME, columns.get(event.time, pa.nulls(len(rows))))
    return pa.RecordBatch.from_arrays(
        [
            pa.array(payloads, pa.binary()),
            pa.array(formats, pa.string()),
            pa.array(reasons, pa.string()),
            pa.array([step] * len(rows), pa.string()),
            columns[SOURCE].cast(pa.string()),
            columns[POSITION],
            pa.array([None if value is None else _text(value) for value in ids], pa.string()),
            times_from_timestamps(times) if times.type == TIMESTAMP else pa.nulls(len(rows), TIMESTAMP),
        ],
        schema=DEAD_LETTER_SCHEMA,
    )


def _text(value: Any) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def split_good(batch: pa.RecordBatch, bad: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> pa.RecordBatch:
    """The rows that are not bad; the batch itself where none is."""
    return take_rows(batch, np.flatnonzero(~bad)) if bad.any() else batch
