"""The two sides of a comparison, champion and challenger: which score rows are each one's, made comparable.

A shadow scores the very events of the champion: its rows are paired with theirs, one by one. A canary has entities of
its own: its rows stand against those of all other entities in the same releases. Rows may come in any order, in any
number of parts, and again, as those of a stream do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from models.batches import as_batch, as_float64, as_int64, column, partition, take_rows
from models.predictors.evaluation import EvaluationError
from models.predictors.measures import label_numbers
from models.project.declarations import Project
from models.quality.label_metrics import declared_slices, slice_texts
from models.record import (
    BUNDLE_ID,
    CORRECTION,
    DECISION,
    INGESTED_AT,
    RELEASE,
    ROLE,
    SCORE,
    SCORED_AT,
    SHADOW_DECISION,
    TIMESTAMP,
    WEIGHT,
)
from models.rollout.apply import decide_by
from models.rollout.assign import CANARY, CHAMPION, SHADOW, thresholds_text
from models.rollout.duel import ComparisonError, Duel
from models.rollout.figures import DAY_US, Int64, Labelled, groups_of
from models.rollout.holdout import decided_rows, held_out, weights_of
from models.rollout.records import Release
from models.score import columns_of_outputs

MAX_SLICE_VALUES = 100  # by which champion and challenger are compared


@dataclasses.dataclass(frozen=True, eq=False)
class Side:
    """Rows of champion or challenger, [n] each, by event time and id.

    Fields:
        ids: of the events.
        times: event times int64, microseconds since 1970 UTC.
        score: float32, NaN where there is none.
        finite: where all that the model says is.
        decided: int64, the place in `Sides.actions` of what the model decided; -1 where there is nothing.
        group: int64, for intervals, see models.rollout.figures.
        labelled: what figures by labels take; None without a column of labels.
        latency_ms: float64, from the source to the score by the clock; NaN where that is unknown.
        slices: by a slice's name, the place int64 of each row's value in `Sides.slices`.
    """

    ids: pa.Array
    times: Int64
    score: npt.NDArray[np.float32]
    finite: npt.NDArray[np.bool_]
    decided: Int64
    group: Int64
    labelled: Labelled | None
    latency_ms: npt.NDArray[np.float64]
    slices: dict[str, Int64]


@dataclasses.dataclass(frozen=True, eq=False)
class Sides:
    """Both sides, of a shadow row by row the same events, with what their rows are told by.

    `without_pair` counts events of the champion that the shadow did not score, `apart` those that are in no share, and
    `held_out` those that passed whatever their score. `left_out` are slices of too many values.
    """

    champion: Side
    challenger: Side
    actions: tuple[str, ...]
    slices: dict[str, tuple[str, ...]]
    left_out: tuple[str, ...]
    without_pair: int = 0
    apart: int = 0
    held_out: int = 0


def needed_columns(project: Project) -> list[str]:
    """The columns of score rows that a comparison reads, as far as there are; the first ones it can't do without."""
    label = [project.label.field] if project.label else []
    more = [SHADOW_DECISION, WEIGHT, CORRECTION, INGESTED_AT, SCORED_AT, *label]
    return list(dict.fromkeys([*required_columns(project), *more, *declared_slices(project)]))


def required_columns(project: Project) -> list[str]:
    """The columns that score rows must have to be compared."""
    decision = [DECISION] if project.decisions else []
    said = [*project.score_columns, *decision, BUNDLE_ID, ROLE, RELEASE]
    return [project.event.id, project.event.time, *project.entities.values(), *said]


def make_sides(scores: pa.Table, shadows: pa.Table, duel: Duel, project: Project) -> Sides:
    """Both sides out of score rows and, for a shadow, the rows of shadows, which have the columns of `needed_columns`.

    Raises:
        ComparisonError: if one of the two has no row.
    """
    mine = _rows_of(scores, duel.champion, CHAMPION, duel, project)
    if duel.way == "canary":
        theirs = _rows_of(scores, duel.challenger, CANARY, duel, project)
        _require_rows(mine, theirs, duel)
        keys = [column(rows, project.entities[str(duel.entity)]) for rows in (mine, theirs)]
        apart = keys[0].null_count
        mine, theirs = (rows.filter(key.is_valid()) for rows, key in zip((mine, theirs), keys, strict=True))
        groups = [groups_of(key.drop_null()) for key in keys]
        return _sides(mine, theirs, groups, duel, project, apart=apart)
    theirs = _rows_of(shadows, duel.challenger, SHADOW, duel, project)
    _require_rows(mine, theirs, duel)
    # Of events after the shadow's last one, its rows may not be there yet.
    last_us = as_int64(column(theirs, project.event.time)).max()
    mine = take_rows(mine, np.flatnonzero(as_int64(column(mine, project.event.time)) <= last_us))
    _require_rows(mine, theirs, duel)
    places = _find(mine, theirs, project)
    theirs = _beside(mine, theirs, places, project)
    group = groups_of(column(mine, project.event.id))
    return _sides(mine, theirs, [group, group], duel, project, without_pair=int((places < 0).sum()))


def _require_rows(mine: pa.RecordBatch, theirs: pa.RecordBatch, duel: Duel) -> None:
    for rows, bundle, role in ((mine, duel.champion, CHAMPION), (theirs, duel.challenger, duel.way)):
        if not rows.num_rows:
            numbers = ", ".join(map(str, sorted(duel.releases)))
            raise ComparisonError(f"no row that bundle {bundle} scored as {role} in the releases {numbers}")


def _rows_of(table: pa.Table, bundle: str, role: str, duel: Duel, project: Project) -> pa.RecordBatch:
    """The rows of a bundle in a role in the releases of both, each event once: its last correction, by time and id."""
    if not len(table):
        return as_batch(table)
    told = pc.and_(pc.equal(table[BUNDLE_ID], bundle), pc.equal(table[ROLE], role))
    told = pc.and_(told, pc.is_in(table[RELEASE], value_set=pa.array(list(duel.releases), table[RELEASE].type)))
    rows = as_batch(table.filter(told).combine_chunks())
    keys = [(project.event.time, "ascending"), (project.event.id, "ascending")]
    if CORRECTION in rows.schema.names:
        keys.append((CORRECTION, "descending"))
    if SCORED_AT in rows.schema.names:
        keys.append((SCORED_AT, "ascending"))
    names = [name for name, _ in keys]
    order_ = pc.sort_indices(pa.table([_sortable(column(rows, n)) for n in names], names=names), sort_keys=keys)
    rows = rows.take(order_)
    if rows.num_rows < 2:
        return rows
    ids, times = column(rows, project.event.id), as_int64(column(rows, project.event.time))
    again = np.asarray(pc.equal(ids[1:], ids[:-1])) & (times[1:] == times[:-1])
    return take_rows(rows, np.flatnonzero(np.append(True, ~again)))


def _sortable(values: pa.Array) -> pa.Array:
    return values.cast(pa.int8()) if pa.types.is_boolean(values.type) else values


def _find(mine: pa.RecordBatch, theirs: pa.RecordBatch, project: Project) -> Int64:
    """The place int64[n] in `theirs` of each row's event, -1 where there is none."""
    names = (project.event.time, project.event.id)
    left, right = (
        pa.table([column(rows, name) for name in names], names=["time", "id"]).append_column(
            "place", pa.array(np.arange(rows.num_rows))
        )
        for rows in (mine, theirs)
    )
    found = left.join(right.rename_columns(["time", "id", "there"]), ["time", "id"]).sort_by("place")
    return as_int64(found["there"].combine_chunks().fill_null(-1))


def _beside(mine: pa.RecordBatch, theirs: pa.RecordBatch, places: Int64, project: Project) -> pa.RecordBatch:
    """What a shadow said of each event of the champion, null where it said nothing; all else is the champion's row."""
    said = {*project.score_columns, DECISION}
    found = theirs.take(pa.array(places, mask=places < 0))
    arrays = [column(found if n in said and n in theirs.schema.names else mine, n) for n in mine.schema.names]
    return pa.RecordBatch.from_arrays(arrays, names=mine.schema.names)


def _sides(
    mine: pa.RecordBatch,
    theirs: pa.RecordBatch,
    groups: Sequence[Int64],
    duel: Duel,
    project: Project,
    without_pair: int = 0,
    apart: int = 0,
) -> Sides:
    decided = [_decisions(rows, duel, project, is_shadow) for rows, is_shadow in _each(mine, theirs, duel)]
    declared = [band.action for band in project.decisions]
    found = {name for each in decided if each is not None for name in each.unique().to_pylist() if name is not None}
    actions = tuple(dict.fromkeys([*declared, *sorted(found)]))
    slices, left_out = _slices(mine, theirs, project)
    weights = [weights_of(rows, project) for rows in (mine, theirs)]
    if any(weight is not None for weight in weights):  # of one of which nothing is known, no row counts
        weights = [np.zeros(len(g), np.int64) if w is None else w for w, g in zip(weights, groups, strict=True)]
    sides = [
        _side(some, own, group, weight, actions, slices, project)
        for some, own, group, weight in zip((mine, theirs), decided, groups, weights, strict=True)
    ]
    held = sum(int(held_out(some, project).sum()) for some in ((mine,) if duel.way == "shadow" else (mine, theirs)))
    return Sides(sides[0], sides[1], actions, slices, left_out, without_pair, apart, held)


def _each(mine: pa.RecordBatch, theirs: pa.RecordBatch, duel: Duel) -> Iterator[tuple[pa.RecordBatch, bool]]:
    yield mine, False
    yield theirs, duel.way == "shadow"


def _decisions(rows: pa.RecordBatch, duel: Duel, project: Project, is_shadow: bool) -> pa.Array | None:
    """What the model decided; of a shadow that is in its rows as it is."""
    if not project.decisions:
        return None
    if is_shadow:
        return column(rows, DECISION).cast(pa.string())
    return _own_decisions(rows, project, duel.releases)


def _own_decisions(rows: pa.RecordBatch, project: Project, releases: dict[int, Release]) -> pa.Array:
    """What the model decided of each score row, strings [n]: of one that is held out, what it would have decided."""
    decided, held = decided_rows(rows), held_out(rows, project)
    if not held.any():
        return decided
    some = take_rows(rows, np.flatnonzero(held))
    numbers = as_int64(column(some, RELEASE))
    found = []
    for number, part in partition(some, numbers):
        by = decide_by(project, thresholds_text(releases[number]))
        found.append(columns_of_outputs(_outputs(part, project), by)[DECISION].cast(pa.string()))
    place = np.argsort(np.argsort(numbers, kind="stable"), kind="stable")
    return pc.replace_with_mask(decided, pa.array(held), pa.concat_arrays(found).take(pa.array(place)))


def _outputs(rows: pa.RecordBatch, project: Project) -> npt.NDArray[np.float32]:
    """What the model said of score rows: float32[n], or of several outputs [n, o]; null as NaN."""
    names = project.score_columns[1:] or project.score_columns
    outputs = [column(rows, name).cast(pa.float32()).to_numpy(zero_copy_only=False) for name in names]
    return np.column_stack(outputs) if project.outputs else np.asarray(outputs[0])


def _side(
    rows: pa.RecordBatch,
    decided: pa.Array | None,
    group: Int64,
    weight: Int64 | None,
    actions: tuple[str, ...],
    slices: dict[str, tuple[str, ...]],
    project: Project,
) -> Side:
    outputs = _outputs(rows, project)
    finite = np.isfinite(outputs) if outputs.ndim == 1 else np.isfinite(outputs).all(axis=1)
    times = as_int64(column(rows, project.event.time))
    score = column(rows, SCORE).cast(pa.float32()).to_numpy(zero_copy_only=False)
    places = np.full(rows.num_rows, -1) if decided is None else _places(decided, actions)
    values = {name: _places(slice_texts(name, column(rows, name)), found) for name, found in slices.items()}
    labelled = _labelled(rows, outputs, finite, weight, times, project)
    return Side(column(rows, project.event.id), times, score, finite, places, group, labelled, _latency(rows), values)


def _labelled(
    rows: pa.RecordBatch,
    outputs: npt.NDArray[np.float32],
    finite: npt.NDArray[np.bool_],
    weight: Int64 | None,
    times: Int64,
    project: Project,
) -> Labelled | None:
    if project.label is None or project.label.field not in rows.schema.names:
        return None
    label, known = label_numbers(column(rows, project.label.field), project)
    known = known & finite & (True if weight is None else weight > 0)
    ranked = {
        name: column(rows, project.entities[metric.entity]).to_numpy(zero_copy_only=False)
        for name, metric in project.declared_metrics.items()
    }
    return Labelled(label, outputs, known, weight, times // DAY_US, ranked)


def _latency(rows: pa.RecordBatch) -> npt.NDArray[np.float64]:
    if not {INGESTED_AT, SCORED_AT} <= set(rows.schema.names):
        return np.full(rows.num_rows, np.nan)
    start, end = (
        column(rows, name).cast(TIMESTAMP).cast(pa.int64()).cast(pa.float64()) for name in (INGESTED_AT, SCORED_AT)
    )
    return (as_float64(end) - as_float64(start)) / 1000


def _slices(
    mine: pa.RecordBatch, theirs: pa.RecordBatch, project: Project
) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
    """The values of each slice that rows are compared by, and slices that have too many or can't be."""
    found, left_out = {}, []
    for name in declared_slices(project):
        if name not in mine.schema.names or name not in theirs.schema.names:
            left_out.append(name)
            continue
        try:
            texts = [slice_texts(name, column(rows, name)).unique().to_pylist() for rows in (mine, theirs)]
        except EvaluationError:
            left_out.append(name)
            continue
        values = tuple(sorted({*texts[0], *texts[1]}))
        if len(values) > MAX_SLICE_VALUES:
            left_out.append(name)
        else:
            found[name] = values
    return found, tuple(left_out)


def _places(texts: pa.Array, names: tuple[str, ...]) -> Int64:
    place = pc.index_in(texts, value_set=pa.array(names, pa.string())).fill_null(-1)
    return np.asarray(place.cast(pa.int64()).to_numpy(zero_copy_only=False))
