"""Rows of a batch that have an entity's key, and the columns that a kernel adds to them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from models.batches import Keys, as_column, column, take_rows
from models.features.windows import RollingKernel


def with_keys(batch: pa.RecordBatch, entity: Sequence[str]) -> tuple[pa.RecordBatch, Keys | None]:
    """The rows that have a key, of the columns `entity`, and which they are if some don't."""
    if not any(column(batch, name).null_count for name in entity):
        return batch, None
    there = functools.reduce(np.logical_and, [np.asarray(column(batch, name).is_valid()) for name in entity])
    rows = np.flatnonzero(there)
    return take_rows(batch, rows), rows


def with_rolling(batch: pa.RecordBatch, kernel: RollingKernel, columns: list[Any], rows: Keys | None) -> pa.RecordBatch:
    """The batch with the kernel's features, columns of the given `rows` or of all; in others they are missing."""
    features, holes = kernel.features, None
    if rows is not None:
        place = np.full(batch.num_rows, len(rows))
        place[rows] = np.arange(len(rows))
        holes = place == len(rows)
        columns = [np.append(v, 0 if f.is_count else np.nan)[place] for f, v in zip(features, columns, strict=True)]
    for feature, values in zip(features, columns, strict=True):
        made = as_column(values) if holes is None or not feature.is_count else pa.array(values, mask=holes)
        batch = batch.append_column(feature.name, made)
    return batch
