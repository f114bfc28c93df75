"""Features against what is expected of them, row by row."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.batches import as_float64, column, marks_of, take_rows, with_column
from models.faults import RowFaults
from models.features.row import find_impossible
from models.project.declarations import Project
from models.project.sections import Expect
from models.record import IS_HISTORY, IS_PROVISIONAL, UNEXPECTED

Rows = np.ndarray[Any, np.dtype[np.bool_]]


def check_features(batch: pa.RecordBatch, project: Project) -> tuple[pa.RecordBatch, RowFaults, dict[str, int]]:
    """The batch with fallbacks and marks, what is wrong with rows to be refused, and by feature the live rows meant.

    All features are looked at as they came; where one breaks several rules, each is a reason.
    """
    faults, found, marked = RowFaults(batch.num_rows), {}, []
    live = (marks_of(batch) & (IS_HISTORY | IS_PROVISIONAL)) == 0
    checked = batch
    for name, expected in project.expect.items():
        values, broken = column(batch, name), np.zeros(batch.num_rows, bool)
        for rule, rows in _broken_rules(batch, name, expected, project):
            broken |= rows
            if expected.otherwise == "dead_letter":
                faults.add(np.flatnonzero(rows), name, rule, values)
        if expected.otherwise == "mark":
            marked.append(pc.if_else(pa.array(broken), name, pa.scalar(None, pa.string())))
        if not broken.any():
            continue
        if expected.fallback is not None:
            fallback = pa.scalar(expected.fallback, pa.float64()).cast(values.type)
            checked = with_column(checked, name, pc.if_else(pa.array(broken), fallback, values))
        if number := int(np.count_nonzero(broken & live)):
            found[name] = number
    if marked:
        checked = with_column(checked, UNEXPECTED, functools.reduce(_and, marked))
    return checked, faults, found


def _and(names: pa.Array, more: pa.Array) -> pa.Array:
    return pc.coalesce(pc.binary_join_element_wise(names, more, ", "), names, more)


def _broken_rules(batch: pa.RecordBatch, name: str, expected: Expect, project: Project) -> Iterator[tuple[str, Rows]]:
    numbers = as_float64(column(batch, name))
    missing = np.isnan(numbers)
    if expected.min is not None:
        yield f"below {expected.min:g}", numbers < expected.min
    if expected.max is not None:
        yield f"above {expected.max:g}", numbers > expected.max
    impossible = np.zeros(len(numbers), bool)
    if expected.finite and missing.any():
        rows = np.flatnonzero(missing)
        impossible[rows] = find_impossible(take_rows(batch, rows), name, project)
        yield "not finite", impossible
    if expected.required:
        yield "missing", missing & ~impossible
