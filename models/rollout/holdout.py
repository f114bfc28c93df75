"""Holdout: what those who pass whatever their score tell of what is blocked, whose labels never become known.

Of a row that is not held out and blocked, a label says nothing, as it is one of the model's own choice. So such rows
count nothing, and each row that is held out and would be blocked stands for 1 / share of them: the estimator of Horvitz
and Thompson (1952), the chance to be held out being that of the entity's hash.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from models.batches import as_int64, column, partition, take_rows
from models.project.declarations import Project
from models.record import DECISION, RELEASE, SHADOW_DECISION
from models.rollout.apply import decide_by
from models.rollout.assign import thresholds_text
from models.rollout.records import HOLDOUT, SHARES, Release
from models.score import columns_of_outputs

UNIT = 10_000  # the weight of a row that stands for itself alone
Int64 = npt.NDArray[np.int64]


def decided_rows(rows: pa.RecordBatch) -> pa.Array:
    """What is in score rows' decision, strings [n]; of a gate's safe action, what it took the place of."""
    decided = column(rows, DECISION).cast(pa.string())
    if SHADOW_DECISION not in rows.schema.names:
        return decided
    return pc.coalesce(column(rows, SHADOW_DECISION).cast(pa.string()), decided)


def held_out(rows: pa.RecordBatch, project: Project) -> npt.NDArray[np.bool_]:
    """Which score rows, bool[n], pass whatever their score."""
    if not project.decisions:
        return np.zeros(rows.num_rows, bool)
    return np.asarray(pc.equal(decided_rows(rows), HOLDOUT).fill_null(False))


def own_decisions(rows: pa.RecordBatch, project: Project, releases: dict[int, Release]) -> pa.Array:
    """What the model decided of each score row, strings [n]: of one that is held out, what it would have decided.

    `releases` are the records by their numbers, of all that the rows have in `release`.
    """
    decided, held = decided_rows(rows), np.flatnonzero(held_out(rows, project))
    if not len(held):
        return decided
    some = take_rows(rows, held)
    place, found = np.empty(len(held), np.int64), []
    numbers = as_int64(column(some, RELEASE))
    places = np.argsort(numbers, kind="stable")
    place[places] = np.arange(len(held))
    for number, part in partition(some, numbers):
        outputs = outputs_of(part, project)
        by = decide_by(project, thresholds_text(releases[number]))
        found.append(columns_of_outputs(outputs, by)[DECISION].cast(pa.string()))
    would = pa.concat_arrays(found).take(pa.array(place))
    mask = np.zeros(rows.num_rows, bool)
    mask[held] = True
    return pc.replace_with_mask(decided, pa.array(mask), would)


def outputs_of(rows: pa.RecordBatch, project: Project) -> npt.NDArray[np.float32]:
    """What the model said of score rows: float32[n], or of several outputs [n, o]; null as NaN."""
    names = project.score_columns[1:] or project.score_columns
    outputs = [column(rows, name).cast(pa.float32()).to_numpy(zero_copy_only=False) for name in names]
    return np.column_stack(outputs) if project.outputs else outputs[0]


def weigh(rows: pa.RecordBatch, own: pa.Array, project: Project, releases: dict[int, Release]) -> Int64:
    """How much each score row counts for figures by labels, int64[n], in 1/UNIT of a row.

    Rows of a release without a holdout count nothing, as none of them tells of what was blocked. `own` is what the
    model decided, as `own_decisions` has it.
    """
    blocked = np.asarray(pc.is_in(own, value_set=pa.array(project.rollout.blocks, pa.string())))
    numbers = as_int64(column(rows, RELEASE))
    share = np.zeros(len(numbers), np.int64)
    for number in np.unique(numbers).tolist():
        holdout = releases[number].holdout
        share[numbers == number] = holdout.per_10000 if holdout else 0
    stands_for = (UNIT * SHARES + share // 2) // np.maximum(share, 1)
    weight = np.where(blocked, np.where(held_out(rows, project), stands_for, 0), UNIT)
    return np.where(share > 0, weight, 0)
