"""What a run's records of label metrics say: how good scores are by window, as labels became known."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from models.batches import as_batch
from models.quality.expectations import ESTIMATED, estimates_in
from models.quality.label_metrics import (
    AS_OF,
    COVERAGE,
    DELAY_MAX,
    DELAY_MEDIAN,
    REVISION,
    WINDOW_END,
    WINDOW_START,
    sort_records,
)
from models.record import BUNDLE_ID
from models.routes import LABEL_METRICS
from pipelines.report.quality import Floats, Times
from pipelines.results import RunError, read_kind

_OF_LABELS = (COVERAGE, DELAY_MEDIAN, DELAY_MAX)


@dataclasses.dataclass(frozen=True)
class Said:
    """A record: of a window (microseconds since 1970 UTC), a model bundle and a slice, "" for all rows."""

    start_us: int
    end_us: int
    as_of_us: int
    revision: int
    bundle: str
    slice: str
    value: str
    rows: int
    labelled: int
    coverage: float | None
    delay_median_s: float | None
    delay_max_s: float | None
    figures: dict[str, float | None]
    positives: int | None  # of a binary target
    estimates: dict[str, tuple[float, float, float]]  # by figure, with the ends of its interval

    def realised(self, name: str) -> float | None:
        """A figure that is estimated, of the rows with a label; None without any."""
        if not self.labelled:
            return None
        return self.positives if name == "positives" else self.figures[name]


@dataclasses.dataclass(frozen=True)
class Course:
    """A figure of one bundle over the windows, by their ends: when it was said first, and as it is known now."""

    name: str
    bundle: str
    ends: Times
    first: Floats
    last: Floats


@dataclasses.dataclass(frozen=True)
class LabelMetrics:
    """Records of label metrics; those of all rows in `windows`, the newest first."""

    windows: tuple[Said, ...]  # the last revision
    first: tuple[Said, ...]  # of the same windows and bundles, the first revision that knew a label
    slices: tuple[Said, ...]  # of the newest window with a label
    newest: tuple[Said, ...]  # slices of the newest window
    corrected: int  # windows that were said again
    courses: tuple[Course, ...]


def read_label_metrics(run: str) -> LabelMetrics | None:
    """The label metrics of a run, None if it has none; RunError if they are not what a run writes."""
    try:
        return label_metrics_of(read_kind(run, LABEL_METRICS))
    except (pa.ArrowException, KeyError) as error:
        raise RunError(f"{run}: its label metrics are not those of one project: {error}") from None


def read_windows(run: str) -> tuple[Said, ...]:
    """What a run's label metrics say of all rows of each window; none is fine."""
    found = read_label_metrics(run)
    return found.windows if found else ()


def label_metrics_of(table: pa.Table) -> LabelMetrics | None:
    """What records say, in any order; None without any. KeyError or ArrowException if they are no label metrics."""
    if not len(table):
        return None
    records = sort_records(as_batch(table))
    figures = [field.name for field in records.schema if pa.types.is_float64(field.type)]
    figures = [name for name in figures if name not in _OF_LABELS and not name.startswith(ESTIMATED)]
    said = [_said(row, figures) for row in _rows(records)]
    newest: dict[int, int] = {}
    for each in said:
        newest[each.end_us] = max(each.revision, newest.get(each.end_us, 0))
    last = [each for each in said if each.revision == newest[each.end_us]]
    first: dict[tuple[int, str], Said] = {}
    for each in said:
        if not each.slice and (each.labelled or each.revision == newest[each.end_us]):
            first.setdefault((each.end_us, each.bundle), each)
    windows = sorted((each for each in last if not each.slice), key=lambda each: (-each.end_us, each.bundle))
    shown_us = next((each.end_us for each in windows if each.labelled), None)
    slices = tuple(each for each in last if each.slice and each.end_us == shown_us)
    newest_us = max(newest)
    of_newest = tuple(each for each in last if each.slice and each.end_us == newest_us)
    firsts = tuple(first[each.end_us, each.bundle] for each in windows)
    corrected = sum(revision > 0 for revision in newest.values())
    return LabelMetrics(tuple(windows), firsts, slices, of_newest, corrected, _courses(windows[::-1], firsts[::-1]))


def _rows(records: pa.RecordBatch) -> list[dict[str, Any]]:
    times = [records.schema.get_field_index(name) for name in (WINDOW_START, WINDOW_END, AS_OF)]
    for place in times:
        name = records.schema.names[place]
        records = records.set_column(place, name, records.column(place).cast(pa.int64()))
    rows: list[dict[str, Any]] = records.to_pylist()
    return rows


def _said(row: dict[str, Any], figures: Sequence[str]) -> Said:
    return Said(
        start_us=row[WINDOW_START],
        end_us=row[WINDOW_END],
        as_of_us=row[AS_OF],
        revision=row[REVISION],
        bundle=row[BUNDLE_ID],
        slice=row["slice"],
        value=row["value"],
        rows=row["rows"],
        labelled=row["labelled"],
        coverage=row[COVERAGE],
        delay_median_s=row[DELAY_MEDIAN],
        delay_max_s=row[DELAY_MAX],
        figures={name: row[name] for name in figures},
        positives=row.get("positives"),
        estimates=estimates_in(row),
    )


def _courses(windows: Sequence[Said], firsts: Sequence[Said]) -> tuple[Course, ...]:
    """Of windows in their order; a figure that has no value anywhere is left out."""
    found = []
    names = [COVERAGE, *(windows[0].figures if windows else ())]
    for bundle in sorted({each.bundle for each in windows}):
        of = [place for place, each in enumerate(windows) if each.bundle == bundle]
        ends = np.array([windows[place].end_us for place in of]).astype("M8[us]")
        for name in names:
            first, last = (np.array([_value(some[place], name) for place in of], float) for some in (firsts, windows))
            if not np.isnan(last).all():
                found.append(Course(name, bundle, ends, first, last))
    return tuple(found)


def _value(said: Said, name: str) -> float | None:
    return said.coverage if name == COVERAGE else said.figures[name]
