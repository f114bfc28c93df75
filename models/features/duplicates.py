"""Duplicates: an event is one if another with its id happened shortly before, as a window over ids tells."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa

from models.batches import column, hash_keys, marks_of, take_rows
from models.features.windows import RollingKernel
from models.project.sections import RollingFeature
from models.record import (
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


@dataclasses.dataclass(frozen=True)
class Contents:
    """What orders records of one id and time: made for these alone."""

    batch: pa.RecordBatch

    def take(self, rows: pa.Array) -> pa.Array:
        """The contents of some of the rows, see `content_of`."""
        return content_of(take_rows(self.batch, rows))


def content_of(batch: pa.RecordBatch) -> pa.Array:
    """Of each row a hash of its content in the high 32 bits, one bit if it is live, and its origin's hash, int64."""
    content = np.zeros(batch.num_rows, np.uint64)
    for name, values in zip(batch.schema.names, batch.columns, strict=True):
        if name not in (SOURCE, POSITION, MARKS, PUBLISHED, INGESTED, PAYLOAD, PAYLOAD_FORMAT):
            content = hash_keys(values) + content * np.uint64(31)
    origin = hash_keys(column(batch, SOURCE)) + hash_keys(column(batch, POSITION)) * np.uint64(31)
    live = (marks_of(batch) & IS_HISTORY) == 0
    both = (content & np.uint64(0xFFFFFFFF00000000)) | (live * np.uint64(1 << 31)) | (origin >> np.uint64(33))
    return pa.array(both.view(np.int64))
