"""Rows of quality tests, cut into slices."""

import random

import numpy as np
import pyarrow as pa

from models.batches import partition, slice_ends
from tests.kit.quality_rows import HOUR, batch_of

DAY = 24 * HOUR


def cut(table, slice_us, pieces=1, seed=0, transform=None):
    """(slice end, batch) pairs of shuffled rows, from so many batches."""
    order = np.random.default_rng(seed).permutation(table.num_rows)
    items = []
    for piece in np.array_split(order, pieces):
        batch = batch_of(table.take(piece))
        items += partition(batch, slice_ends(batch.column(1).cast(pa.int64()).to_numpy(), slice_us))
    random.Random(seed).shuffle(items)
    return items
