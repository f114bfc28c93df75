"""Duplicates: an event is one if another with its id happened shortly before, as a window over ids tells."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from models.batches import column, hash_keys, marks_of
from models.features.windows import RollingKernel
from models.project.sections import RollingFeature
from models.record import (
    CONTENT,
    EARLIER,
    INGESTED,
    IS_HISTORY,
    MARKS,
    PAYLOAD,
    PAYLOAD_FORMAT,
    POSITION,
    PUBLISHED,
    SOURCE,
)

DUPLICATE = "duplicate event id"


def count_earlier(within_us: int, lateness_us: int = 0) -> RollingKernel:
    """A kernel whose one feature, EARLIER, counts the records with an id that are less than `within_us` earlier.

    Those of earlier calls count if they are as much later, too: so of two with one id no second goes on, in whatever
    order they come.
    """
    earlier = RollingFeature(EARLIER, "event", "count", None, 2 * within_us - 1, 1 - within_us, False, 0.0)
    return RollingKernel((earlier,), {}, lateness_us)


def with_content(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with a hash of each row's content in the high 32 bits, one bit if it is live, and its origin's hash."""
    content = np.zeros(batch.num_rows, np.uint64)
    for name, values in zip(batch.schema.names, batch.columns, strict=True):
        if name not in (SOURCE, POSITION, MARKS, PUBLISHED, INGESTED, PAYLOAD, PAYLOAD_FORMAT):
            content = hash_keys(values) + content * np.uint64(31)
    origin = hash_keys(column(batch, SOURCE)) + hash_keys(column(batch, POSITION)) * np.uint64(31)
    live = (marks_of(batch) & IS_HISTORY) == 0
    both = (content & np.uint64(0xFFFFFFFF00000000)) | (live * np.uint64(1 << 31)) | (origin >> np.uint64(33))
    schema = pa.schema([*batch.schema, pa.field(CONTENT, pa.int64())])
    return pa.RecordBatch.from_arrays([*batch.columns, pa.array(both.view(np.int64))], schema=schema)
