"""Messages as a stream's source has them."""

import pyarrow as pa

from models.record import COLUMNS, FORMAT, RECORD_SCHEMA


def records(payloads, ids=None, kind=b"json"):
    rows = len(payloads)
    now = pa.array([0] * rows).cast(pa.timestamp("us", tz="UTC"))
    arrays = [
        pa.array(payloads, pa.binary()),
        pa.array(range(rows), pa.int64()),
        pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["broker"])),
        now,
        now,
        pa.array(ids or [str(n) for n in range(rows)]),
        pa.array([0] * rows, pa.int32()),
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=RECORD_SCHEMA.with_metadata({FORMAT: kind, COLUMNS: b""}))
