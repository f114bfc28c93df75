"""Samples that do not depend on order: of a set of rows, those with the least hashes of their ids.

Such a bottom-k sample is as good as a random one, as the hash has nothing to do with what is in a row; and the sample
of two sets together is the sample of their two samples, however rows were split.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# A sample's first columns: the hash uint64, the id, the event time.
HASH, ID, TIME = "__hash", "__id", "__time"
BUNDLE = "__bundle"  # the id of each row's bundle, where its score is estimated by


def least(hashes: np.ndarray[Any, np.dtype[np.uint64]], size: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The places of the `size` least hashes, in their order, and of those that equal the largest of them."""
    if len(hashes) <= size:
        return np.arange(len(hashes))
    bound = np.partition(hashes, size - 1)[size - 1]
    return np.flatnonzero(hashes <= bound)


def merge(samples: Sequence[pa.RecordBatch], size: int) -> pa.RecordBatch:
    """The sample of all rows together, not in order, and with all that tie with its last one."""
    if len(samples) == 1:
        return samples[0]
    table = pa.Table.from_batches(samples)
    kept = least(table.column(HASH).to_numpy(), size)
    if len(kept) < table.num_rows:
        table = table.take(pa.array(kept))
    return table.combine_chunks().to_batches()[0] if table.num_rows else samples[0]


def settle(sample: pa.RecordBatch, size: int) -> pa.RecordBatch:
    """Exactly the sample, not in order: of rows that tie for its last place, the first by id and event time."""
    if sample.num_rows <= size:
        return sample
    keys = [(name, "ascending") for name in (HASH, ID, TIME)]
    order = pc.sort_indices(pa.Table.from_batches([sample]), sort_keys=keys)[:size]
    return pa.RecordBatch.from_arrays([c.take(order) for c in sample.columns], schema=sample.schema)
