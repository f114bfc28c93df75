"""Raw records, as sources give them and `models.decode` takes them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from models.batches import same_text
from models.record import FORMAT, MARKS, PAYLOAD, POSITION, SLICE, SOURCE, SYSTEM_FIELDS


def raw_records(payloads: Sequence[bytes], source: str, slice_us: int) -> pa.RecordBatch:
    """JSON records of a source that has no positions, to be cut into slices of `slice_us` of event time."""
    rows = len(payloads)
    arrays = [
        pa.array(payloads, pa.binary()),
        pa.nulls(rows, pa.int64()),
        same_text(source, rows),
        pa.array(np.zeros(rows, np.int8)),
    ]
    fields = [SYSTEM_FIELDS[name] for name in (PAYLOAD, POSITION, SOURCE, MARKS)]
    return pa.RecordBatch.from_arrays(
        arrays, schema=pa.schema(fields, {FORMAT: b"json", SLICE: str(slice_us).encode()})
    )
