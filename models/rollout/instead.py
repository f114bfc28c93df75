"""What goes out in place of a release's own scores while a circuit breaker is open: those of the release before.

A window's verdict is known when later rows may be scored already, and what follows from it must not depend on that. So
where a breaker is declared, each event is scored by its release's bundle and by the one it would fall back to, and
the gate takes one of the two, by the circuit as it is at the event's own time. What is watched is the release's own
score, so that it is known whether it would do again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from models.batches import as_int64, column, same_text, take_rows, with_column, without
from models.project.declarations import Project
from models.record import (
    BUNDLE,
    BUNDLE_ID,
    DECISION,
    INSTEAD,
    INSTEAD_THRESHOLDS,
    OTHERWISE,
    REASONS,
    ROLE,
    SHADOW_DECISION,
    SINCE,
    THRESHOLDS,
    WEIGHT,
)
from models.rollout.apply import Bundles, score_released
from models.rollout.assign import FALLBACK, parts_of
from models.rollout.records import SHARES

SALT = "breaker"  # of the share of entities that is tried when the circuit is half-open
Rows = npt.NDArray[np.bool_]


class Change(NamedTuple):
    """The circuit from an event time on, microseconds since 1970 UTC, for the releases since another."""

    at_us: int
    state: str
    since_us: int | None


def needs_instead(project: Project) -> bool:
    """Whether events are scored by what they would fall back to, too."""
    return project.breaker is not None and project.breaker.to == "previous" and project.quality is not None


def score_instead(
    batch: pa.RecordBatch, rows: pa.RecordBatch, project: Project, bundles: Bundles, reason_codes: int
) -> dict[str, pa.Array]:
    """What the bundles say that stand in `__instead`, as more columns of the score rows; null where there is none.

    One of other features is none: another run has these.
    `rows` are those of `score_released` for the batch.
    """
    bundle = column(batch, INSTEAD)
    here = [code for code, name in enumerate(bundle.dictionary.to_pylist()) if name and bundles(name) is not None]
    there = np.isin(bundle.indices.to_numpy(), here)
    names = [*project.said_columns, DECISION, REASONS, BUNDLE_ID, WEIGHT]
    said = [name for name in names if name in rows.schema.names]
    columns = {SINCE: column(batch, SINCE)}
    if not there.any():
        return columns | {OTHERWISE + name: pa.nulls(len(there), column(rows, name).type) for name in said}
    other = with_column(with_column(batch, BUNDLE, bundle), THRESHOLDS, column(batch, INSTEAD_THRESHOLDS))
    scored = score_released(take_rows(other, np.flatnonzero(there)), project, bundles, reason_codes)
    places = pa.array(np.cumsum(there) - 1, mask=~there)
    return columns | {OTHERWISE + name: column(scored, name).take(places) for name in said}


def fall_back(
    batch: pa.RecordBatch, changes: Sequence[Change], project: Project
) -> tuple[pa.RecordBatch, dict[str, int]]:
    """Score rows as they go out by a circuit that changed so, and how many fell back to what.

    Where the circuit is open, rows say what the bundle before says, in the role `fallback`, or the safe action, where
    there is none; what was decided by their own is in `shadow_decision`. `changes` are in the order of their times.
    """
    breaker = project.breaker
    assert breaker is not None
    open_now = _is_open(batch, changes, project)
    before = np.zeros(len(open_now), bool)
    if OTHERWISE + BUNDLE_ID in batch.schema.names:
        before = np.asarray(column(batch, OTHERWISE + BUNDLE_ID).is_valid()) & open_now
    result = without(batch, *(n for n in batch.schema.names if n == SINCE or n.startswith(OTHERWISE)))
    has_decision = DECISION in result.schema.names
    own = column(result, DECISION).cast(pa.string()) if has_decision else None
    if before.any():
        for name in (n for n in result.schema.names if OTHERWISE + n in batch.schema.names):
            chosen = _choose(before, column(batch, OTHERWISE + name), column(result, name))
            result = with_column(result, name, chosen)
        result = with_column(result, ROLE, _choose(before, same_text(FALLBACK, len(before)), column(result, ROLE)))
    safe = open_now & ~before if has_decision and breaker.safe_action is not None else np.zeros(len(before), bool)
    if safe.any():
        action = same_text(str(breaker.safe_action), len(safe))
        result = with_column(result, DECISION, _choose(safe, action, column(result, DECISION)))
        if WEIGHT in result.schema.names:
            unknown = pa.nulls(len(safe), pa.float64())
            result = with_column(result, WEIGHT, _choose(safe, unknown, column(result, WEIGHT)))
    if own is not None:
        fell = pa.array(before | safe)
        shadow = pc.if_else(fell, own, pa.scalar(None, pa.string())).dictionary_encode()
        result = with_column(result, SHADOW_DECISION, shadow)
    return result, {"previous": int(before.sum()), "safe_action": int(safe.sum())}


def _is_open(batch: pa.RecordBatch, changes: Sequence[Change], project: Project) -> Rows:
    """For which score rows, bool[n], the circuit is open: of half-open ones, for those that are not tried."""
    times = as_int64(column(batch, project.event.time))
    places = np.searchsorted(np.array([change.at_us for change in changes], np.int64), times, side="right") - 1
    states = np.array([change.state for change in changes] + ["closed"])[places]
    is_open: Rows = states == "open"
    half = states == "half_open"
    if half.any():
        breaker = project.breaker
        assert breaker is not None
        parts = parts_of(column(batch, project.entities[breaker.probed(project.entities)]), SALT)
        is_open |= half & ~((parts >= 0) & (parts < round(breaker.probe * SHARES)))
    if SINCE in batch.schema.names:
        since = column(batch, SINCE)
        of = np.array([change.since_us or 0 for change in changes] + [0], np.int64)[places]
        is_open &= np.asarray(since.is_valid()) & (since.fill_null(0).to_numpy() == of)
    return is_open


def _choose(rows: Rows, there: pa.Array, here: pa.Array) -> pa.Array:
    """`there` in some rows, bool[n], and `here` in the others; texts as a dictionary if they were one."""
    if not pa.types.is_dictionary(here.type):
        return pc.if_else(pa.array(rows), there, here)
    texts = pc.if_else(pa.array(rows), there.cast(pa.string()), here.cast(pa.string()))
    return texts.dictionary_encode()
