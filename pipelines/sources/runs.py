"""Records sorted by slices of event time on disk, for files that hold times in no order.

Each part of a file is read and decoded once, and what it has of each slice is appended to a Spill.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from models.batches import partition
from models.decode import decode_early
from models.record import RecordType
from pipelines.sources.records import NO_TIME_US, times_of
from pipelines.sources.split import Split
from pipelines.spill import Spill

RUN = "run"  # the format of a part that was sorted
# So many records of a part are held until they are written.
_GATHERED_ROWS = 1 << 19


def sort_records(
    batches: Iterable[pa.RecordBatch], records: RecordType, slice_us: int, spill: Spill
) -> Iterator[Split]:
    """Raw batches with their origin, decoded and appended to `spill`, as a part for each slice."""
    gathered: dict[int, list[pa.RecordBatch]] = collections.defaultdict(list)
    rows = 0
    for batch in batches:
        decoded = decode_early(batch, records)
        times = times_of(decoded, records)
        starts = np.where(times == NO_TIME_US, NO_TIME_US, times // slice_us * slice_us)
        for start, part in partition(decoded, starts):
            gathered[start].append(part)
        rows += decoded.num_rows
        if rows >= _GATHERED_ROWS:
            yield from _written(gathered, spill)
            gathered.clear()
            rows = 0
    yield from _written(gathered, spill)


def _written(gathered: dict[int, Sequence[pa.RecordBatch]] | Any, spill: Spill) -> Iterator[Split]:
    for start_us in sorted(gathered):
        start, stop = spill.append(gathered[start_us])
        yield Split("", RUN, start, stop, first_us=None if start_us == NO_TIME_US else start_us)
