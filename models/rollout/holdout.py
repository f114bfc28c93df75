"""Holdout: what those who pass whatever their score tell of what is blocked, whose labels never become known.

Of a row that is blocked, a label says nothing: there is none, or it is of the model's own choice. So such a row counts
nothing, and each row that is held out and would be blocked stands for 1 / share of them: the estimator of Horvitz and
Thompson (1952), the chance to be held out being the share that the entity's hash falls into.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from models.batches import as_int64, column
from models.project.declarations import Project
from models.record import DECISION, SHADOW_DECISION, WEIGHT
from models.rollout.records import HOLDOUT, SHARES

UNIT = 10_000  # weights are whole numbers of 1/UNIT
Int64 = npt.NDArray[np.int64]


# What has to be known to read figures by labels, where decisions block.
SELECTED = (
    "Labels are selected by the models' own decisions: what is blocked (rollout.blocks) gets none, and there is no "
    "holdout, so figures by labels are of what passed alone. `headrace release PROJECT champion --holdout 1%` lets a "
    "share pass."
)
WEIGHTED = (
    "Figures by labels are weighted: rows that are held out and would be blocked stand for all that are blocked, whose "
    "labels are not known; other rows that were blocked count nothing."
)


def weigh(decided: pa.Array, held_out: pa.Array, share: pa.Array, blocks: Sequence[str]) -> pa.Array:
    """How much each row counts for figures by labels, float64[n] of four decimal places.

    It is null where nothing tells of what was blocked, as there is no holdout.

    Args:
        decided: what the models decided, texts [n].
        held_out: bool[n], which rows pass nonetheless.
        share: of keys that do, integers[n] in 10,000ths; 0 where there is no holdout.
        blocks: the decisions that block.
    """
    blocked = np.asarray(pc.is_in(decided.cast(pa.string()), value_set=pa.array(blocks, pa.string())))
    shares = as_int64(share)
    stands_for = (UNIT * SHARES + shares // 2) // np.maximum(shares, 1)
    whole = np.where(blocked, np.where(np.asarray(held_out), stands_for, 0), UNIT)
    return pa.array(whole / UNIT, mask=shares == 0)


def weights_of(rows: pa.RecordBatch | pa.Table, project: Project) -> Int64 | None:
    """How much each score row counts, int64[n] in 1/UNIT; None where each is one, as nothing is known or needed.

    Rows of a time without a holdout count nothing beside others of a time with one.
    """
    if not (project.rollout.blocks and project.has_positives and WEIGHT in rows.schema.names):
        return None
    weights = rows.column(rows.schema.get_field_index(WEIGHT))
    if weights.null_count == len(weights):
        return None
    return np.asarray(np.rint(weights.fill_null(0.0).to_numpy() * UNIT), np.int64)


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
