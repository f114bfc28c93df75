"""Raw records, and what a dead letter says."""

import json

import numpy as np
import pyarrow as pa

from models.record import COLUMNS, FORMAT, MARKS, PAYLOAD, POSITION, SLICE, SOURCE, SYSTEM_FIELDS


def with_origin(arrays, fields, kind, about=b""):
    rows = len(arrays[0])
    arrays = [
        *arrays,
        pa.array(np.arange(rows) * 10),
        pa.array(["file"] * rows, pa.string()).dictionary_encode(),
        pa.array([0] * rows, pa.int8()),
    ]
    fields = [*fields, SYSTEM_FIELDS[POSITION], SYSTEM_FIELDS[SOURCE], SYSTEM_FIELDS[MARKS]]
    metadata = {FORMAT: kind.encode(), COLUMNS: about, SLICE: b"1000000"}
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields, metadata))


def raw(kind, payloads, about=b""):
    return with_origin([pa.array(payloads, pa.binary())], [SYSTEM_FIELDS[PAYLOAD]], kind, about)


def rows(columns):
    arrays = [values if isinstance(values, pa.Array) else pa.array(values) for values in columns.values()]
    return with_origin(arrays, [pa.field(n, a.type) for n, a in zip(columns, arrays, strict=True)], "rows")


def reasons(letter):
    return [(reason["field"], reason["rule"], reason["value"]) for reason in json.loads(letter["reasons"])]


BAD_TEXT = pa.Array.from_buffers(
    pa.string(), 2, [None, pa.py_buffer(np.array([0, 1, 2], np.int32)), pa.py_buffer(b"a\xff")]
)
