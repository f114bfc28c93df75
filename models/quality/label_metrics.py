"""Label metrics: how good scores are, by window of event time, model bundle and slice, as labels become known.

What is measured comes as parts that may be put together in any order: counts of score rows, and rows whose label is
known. Both say from which midnight (UTC) on they count: that after the label was known, and not before their window's
end. So a window is said when it ends, and once more, with a higher `revision`, for each day on which a label of it
became known: a row without a label is counted as such, and never as a negative one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from models.batches import as_batch, as_int64, column, partition, times_us, with_column
from models.predictors.evaluation import MAX_SLICE_VALUES, Evaluation, TopOfDay, evaluate, slice_name, slice_values
from models.predictors.measures import (
    CALIBRATION_BINS,
    Numbers,
    calibration_error,
    evaluate_target,
    exact_sum,
    label_numbers,
    log_loss,
)
from models.predictors.weighted import evaluate_weighted
from models.project.declarations import Project
from models.project.targets import output_name
from models.quality.expectations import (
    Calibrations,
    Estimator,
    by_bundle,
    estimate_fields,
    expect,
    expectation_fields,
    expectations_of,
    no_calibration,
)
from models.record import BUNDLE_ID, DECISION, EVENT_TIME, LABEL_TIME, PREDICTED, SCORE, TIMESTAMP, WEIGHT
from models.rollout.holdout import weights_of

AS_OF, WINDOW_START, WINDOW_END, REVISION = "as_of", "window_start", "window_end", "revision"
COVERAGE, DELAY_MEDIAN, DELAY_MAX = "coverage", "delay_median_s", "delay_max_s"
WEIGHTED = "weighted"  # of projects whose decisions block
DUE, END, ROWS, DELAY = "__due", "__window_end", "__rows", "__delay"
DAY_US = 86_400_000_000
_SLICE = "__slice "
_KINDS = [
    *((name, TIMESTAMP) for name in (WINDOW_START, WINDOW_END, AS_OF)),
    (REVISION, pa.int64()),
    *((name, pa.string()) for name in (BUNDLE_ID, "slice", "value")),
    *((name, pa.int64()) for name in ("rows", "labelled")),
    *((name, pa.float64()) for name in (COVERAGE, DELAY_MEDIAN, DELAY_MAX)),
]
# Of a record, beside those that are named by what is declared.
COLUMNS = {*dict(_KINDS), WEIGHTED, "positives", "log_loss", "calibration_error", "mean_score"}
_SECOND_US = 1_000_000


def carried_columns(project: Project) -> tuple[str, ...]:
    """The columns of score rows, beside id and time, that a row with a label is measured by."""
    ranked = [project.entities[metric.entity] for metric in project.declared_metrics.values()]
    said = [PREDICTED] if project.classes else []
    said += [DECISION] if project.decisions else []
    said += [WEIGHT] if project.rollout.blocks else []
    names = [*project.score_columns, *said, BUNDLE_ID, *ranked, *declared_slices(project)]
    return tuple(dict.fromkeys(names))


def count_rows(
    rows: pa.RecordBatch, project: Project, calibrations: Calibrations = no_calibration
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(when it is due, part) of score rows: how many there are, by window, bundle and slice, and what to expect."""
    for some, calibration in by_bundle(rows, project, calibrations):
        keys = _keys(some, as_int64(column(some, project.event.time)), project)
        steps, summed = expect(some, project, calibration)
        grouped = pa.table({**keys, **steps, **summed}).group_by([*keys, *steps], use_threads=False)
        counted = grouped.aggregate([([], "count_all"), *((name, "sum") for name in summed)])
        columns = {**{name: counted[name] for name in keys}, ROWS: counted["count_all"]}
        yield from _parts(columns | expectations_of(counted, project, calibration), project)


def take_labelled(rows: pa.RecordBatch, project: Project) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(when it is due, part) of score rows with a column of the label, of those whose label is known.

    They have the time at which it was, or else it is known with the event. What is not finite is not measured.
    """
    assert project.label is not None
    known = column(rows, project.label.field).is_valid().to_numpy(zero_copy_only=False)
    for name in _outputs(project):
        known &= np.isfinite(column(rows, name).to_numpy(zero_copy_only=False))
    rows = rows.filter(pa.array(known))
    event_us = as_int64(column(rows, project.event.time))
    known_us = as_int64(column(rows, LABEL_TIME)) if LABEL_TIME in rows.schema.names else event_us
    columns = {name: column(rows, name) for name in _measured(project)}
    columns |= {EVENT_TIME: pa.array(event_us).cast(TIMESTAMP), DELAY: pa.array(known_us - event_us)}
    columns[ROWS] = pa.array(np.zeros(rows.num_rows, np.int64))
    yield from _parts({**_keys(rows, known_us, project), **columns}, project)


def window_ends_of(part: pa.RecordBatch) -> npt.NDArray[np.int64]:
    """The end of the window of each row of a part, microseconds since 1970 UTC."""
    return as_int64(column(part, END))


def due_of(part: pa.RecordBatch) -> int:
    """The midnight from which on a part counts, microseconds since 1970 UTC."""
    return int(as_int64(column(part, DUE))[0])


def as_of_us(records: pa.RecordBatch) -> int:
    """The time up to which records know labels, microseconds since 1970 UTC."""
    return int(as_int64(column(records, AS_OF))[0])


def measure_window(part: pa.RecordBatch, as_of: int, revision: int, project: Project) -> pa.RecordBatch:
    """The records of a window, all of whose rows are given: of each bundle, of all rows and of each slice's values.

    `as_of` is the time up to which labels are known, microseconds since 1970 UTC.
    """
    assert project.label_metrics is not None
    end_us = int(window_ends_of(part)[0])
    times = {WINDOW_START: end_us - project.label_metrics.window, WINDOW_END: end_us, AS_OF: as_of}
    records: list[dict[str, Any]] = []
    measured_columns = [name for name in part.schema.names if name not in expectation_fields(project)]
    for bundle in sorted(column(part, BUNDLE_ID).unique().to_pylist()):
        rows = part.filter(pc.equal(column(part, BUNDLE_ID), bundle))
        labelled = pc.equal(column(rows, ROWS), 0)
        counts, known = rows.filter(pc.invert(labelled)), rows.select(measured_columns).filter(labelled)
        known = known.take(pc.sort_indices(known, [(EVENT_TIME, "ascending"), (project.event.id, "ascending")]))
        if weights_of(known, project) is not None:  # what is not known of some counts nothing
            known = with_column(known, WEIGHT, column(known, WEIGHT).fill_null(0.0))
        names = [name for name in _slices(project) if len(column(counts, _SLICE + name).unique()) <= MAX_SLICE_VALUES]
        measured = _evaluate(known, [name for name in names if name != SCORE], project)
        numbers = as_int64(column(counts, ROWS))
        estimator = Estimator(counts, numbers, project, _SLICE + PREDICTED)
        for name, value, chosen, some in _sliced(counts, known, names):
            figures = measured.slices.get(name, {}).get(value) if name else measured.overall
            number = int(numbers[chosen].sum())
            said = {**times, REVISION: revision, BUNDLE_ID: bundle, "slice": name, "value": value}
            records.append({**said, **_coverage(number, some), **_weighted(some, project)})
            records[-1] |= {**_label_counts(some, project), **estimator.figures(chosen)}
            records[-1] |= {**(figures.figures() if figures else {}), **_of_probabilities(some, project)}
    return as_batch(pa.Table.from_pylist(records, _record_schema(project)))


def figure_names(project: Project) -> tuple[str, ...]:
    """What is measured of rows with a label."""
    none = _no_rows(project)
    return tuple({**_evaluate(none, [], project).overall.figures(), **_of_probabilities(none, project)})


def sort_records(records: pa.RecordBatch) -> pa.RecordBatch:
    """The records by windows, revisions, bundles and slices, of each bundle first that of all rows."""
    names = (WINDOW_END, REVISION, BUNDLE_ID, "slice", "value")
    return records.take(pc.sort_indices(records, [(name, "ascending") for name in names]))


def last_revisions(records: pa.RecordBatch) -> pa.RecordBatch:
    """Of the records of each window, sorted, those with the highest revision."""
    ends, revisions = as_int64(column(records, WINDOW_END)), as_int64(column(records, REVISION))
    last = np.searchsorted(ends, ends, side="right") - 1
    return records.filter(pa.array(revisions == revisions[last]))


def declared_slices(project: Project) -> list[str]:
    """The slices of the training that a score row has."""
    there = {*project.entities.values(), *project.output, *project.feature_names}
    return [name for name in project.training.slices if name in there - {project.label and project.label.field}]


def _has_bins(project: Project) -> bool:
    return project.target.kind in ("binary", "multiclass")


def _slices(project: Project) -> list[str]:
    said = [DECISION] if project.decisions else []
    said += [PREDICTED] if project.classes else []
    return [*said, *([SCORE] if _has_bins(project) else []), *declared_slices(project)]


def _outputs(project: Project) -> tuple[str, ...]:
    return project.score_columns[1:] or project.score_columns


def _measured(project: Project) -> list[str]:
    """The columns of a row with a label that figures are of; null where rows are counted."""
    assert project.label is not None
    ranked = [project.entities[metric.entity] for metric in project.declared_metrics.values()]
    weight = [WEIGHT] if project.rollout.blocks else []
    return list(dict.fromkeys([project.event.id, *_outputs(project), *ranked, *weight, project.label.field]))


def _keys(rows: pa.RecordBatch, known_us: npt.NDArray[np.int64], project: Project) -> dict[str, pa.Array]:
    assert project.label_metrics is not None
    window_us = project.label_metrics.window
    end_us = (as_int64(column(rows, project.event.time)) // window_us + 1) * window_us
    due_us = np.maximum((known_us // DAY_US + 1) * DAY_US, end_us)
    keys = {DUE: pa.array(due_us), END: pa.array(end_us), BUNDLE_ID: column(rows, BUNDLE_ID).cast(pa.string())}
    return keys | {_SLICE + name: _texts(rows, name) for name in _slices(project)}


def _texts(rows: pa.RecordBatch, name: str) -> pa.Array:
    """The value of a slice of each row; of the score its bin, by its lower edge."""
    values = column(rows, name)
    if name == SCORE:
        scores = values.to_numpy(zero_copy_only=False).astype(np.float64)
        places = np.searchsorted(np.arange(1, CALIBRATION_BINS) / CALIBRATION_BINS, scores, side="right")
        return pa.array([f"{place / CALIBRATION_BINS:g}" for place in range(CALIBRATION_BINS)]).take(pa.array(places))
    return slice_texts(name, values)


def slice_texts(name: str, values: pa.Array) -> pa.Array:
    """The name of each row's slice, by the values of a column; EvaluationError if rows can't be cut by them."""
    if pa.types.is_floating(values.type):
        names, codes = slice_values(name, values.to_numpy(zero_copy_only=False), (len(values),))
        return pa.array(list(map(slice_name, names)), pa.string()).take(pa.array(codes))
    return values.cast(pa.string()).fill_null("null")


def _part_schema(project: Project) -> pa.Schema:
    fields = {name: field.arrow_type for name, field in project.contract.fields.items()}
    kinds = [(DUE, pa.int64()), (END, pa.int64()), (BUNDLE_ID, pa.string())]
    kinds += [(_SLICE + name, pa.string()) for name in _slices(project)]
    known = {**fields, **({WEIGHT: pa.float64()} if project.rollout.blocks else {})}
    kinds += [(name, known.get(name, pa.float32())) for name in _measured(project)]
    kinds += [(EVENT_TIME, TIMESTAMP), (DELAY, pa.int64()), (ROWS, pa.int64())]
    return pa.schema([*kinds, *expectation_fields(project).items()])


def _record_schema(project: Project) -> pa.Schema:
    none = _no_rows(project)
    counts = {**_weighted(none, project), **_label_counts(none, project)}
    kinds = [*_KINDS, *((name, pa.int64()) for name in counts)]
    kinds += [(name, pa.float64()) for name in figure_names(project)]
    return pa.schema([*kinds, *estimate_fields(project).items()])


def _no_rows(project: Project) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([], schema=_part_schema(project))


def _parts(columns: dict[str, Any], project: Project) -> Iterator[tuple[int, pa.RecordBatch]]:
    schema, rows = _part_schema(project), len(columns[DUE])
    columns = {f.name: columns[f.name].cast(f.type) if f.name in columns else pa.nulls(rows, f.type) for f in schema}
    part = as_batch(pa.table(columns, schema))
    yield from partition(part, as_int64(column(part, DUE)))


def _sliced(
    counts: pa.RecordBatch, known: pa.RecordBatch, slices: Sequence[str]
) -> Iterator[tuple[str, str, npt.NDArray[np.int64], pa.RecordBatch]]:
    """(slice, value, positions of its counts of score rows, those of them with a label), all of them first."""
    yield "", "", np.arange(counts.num_rows), known
    for name in slices:
        codes = column(counts, _SLICE + name).dictionary_encode()
        indices = codes.indices.to_numpy()
        ends = np.cumsum(np.bincount(indices, minlength=len(codes.dictionary)))[:-1]
        chosen = np.split(np.argsort(indices, kind="stable"), ends)
        places = pc.index_in(column(known, _SLICE + name), value_set=codes.dictionary).fill_null(-1)
        parts = dict(partition(known, as_int64(places)))
        for value, place in sorted((value, place) for place, value in enumerate(codes.dictionary.to_pylist())):
            yield name, value, chosen[place], parts.get(place, known.slice(0, 0))


def _coverage(rows: int, known: pa.RecordBatch) -> dict[str, Any]:
    """Of `rows` score rows those with a label, which are given, and when it was known."""
    delays = np.sort(as_int64(column(known, DELAY)))
    return {
        "rows": rows,
        "labelled": known.num_rows,
        "coverage": known.num_rows / rows if rows else None,
        "delay_median_s": float(delays[(len(delays) - 1) // 2]) / _SECOND_US if len(delays) else None,
        "delay_max_s": float(delays[-1]) / _SECOND_US if len(delays) else None,
    }


def _weighted(known: pa.RecordBatch, project: Project) -> dict[str, int]:
    """Of rows with a label, where decisions block, how many figures are of, as they stand for others; else 0."""
    weight = weights_of(known, project)
    return {WEIGHTED: 0 if weight is None else int((weight > 0).sum())} if project.rollout.blocks else {}


def _label_counts(known: pa.RecordBatch, project: Project) -> dict[str, int]:
    """How many are positive, or of each class."""
    assert project.label is not None
    label, _ = label_numbers(column(known, project.label.field), project)
    if project.has_positives:
        return {"positives": int(label.sum())}
    names = [output_name("labels", output) for output in map(str, project.classes)]
    counts = np.bincount(label.astype(np.int64), minlength=len(names)).tolist() if names else []
    return dict(zip(names, counts, strict=True))


def _labels_and_outputs(known: pa.RecordBatch, project: Project) -> tuple[Numbers, Numbers]:
    assert project.label is not None
    label, _ = label_numbers(column(known, project.label.field), project)
    columns = [column(known, name).to_numpy(zero_copy_only=False) for name in _outputs(project)]
    return label, np.column_stack(columns) if project.outputs else columns[0]


def _evaluate(known: pa.RecordBatch, slices: Sequence[str], project: Project) -> Evaluation:
    """The figures of a test of rows with a label, in the order of event time and id."""
    label, outputs = _labels_and_outputs(known, project)
    values = {name: column(known, _SLICE + name).to_numpy(zero_copy_only=False) for name in slices}
    if not project.has_positives:
        return evaluate_target(label, outputs, project.target, values)
    weight = weights_of(known, project)
    if weight is not None:
        return evaluate_weighted(label, outputs, weight, values)
    days = times_us(known) // DAY_US
    tops = {
        name: TopOfDay(days, column(known, project.entities[m.entity]).to_numpy(zero_copy_only=False), m.k)
        for name, m in project.declared_metrics.items()
    }
    return evaluate(label, outputs, declared=tops, slices=values)


def _of_probabilities(known: pa.RecordBatch, project: Project) -> dict[str, float | None]:
    if weights_of(known, project) is not None:
        return {}
    label, outputs = _labels_and_outputs(known, project)
    return measure_probabilities(label, outputs, project)


def measure_probabilities(label: Numbers, outputs: Numbers, project: Project) -> dict[str, float | None]:
    """How true they are; of classes the mean alone, as the rest is among the figures of a test."""
    if not _has_bins(project):
        return {}
    scores = outputs.max(axis=1, initial=0) if project.classes else outputs
    said = {"mean_score": exact_sum(scores.astype(np.float64)) / len(scores) if len(scores) else None}
    if project.classes:
        return said
    measures = {"log_loss": log_loss, "calibration_error": calibration_error}
    return {**{name: measure(label, scores) if len(label) else None for name, measure in measures.items()}, **said}
