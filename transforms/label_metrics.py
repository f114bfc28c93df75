"""Label metrics: records of a window of score rows when it ends, and again as labels of it become known."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.batches import Keys, concat_batches, is_provisional, partition
from models.features.row import feedback_horizon_us
from models.metrics import CORRECTED, TOO_LATE
from models.project.declarations import Project
from models.quality.expectations import Calibrations, no_calibration
from models.quality.label_metrics import (
    DAY_US,
    END,
    count_rows,
    due_of,
    measure_window,
    take_labelled,
    window_ends_of,
)
from models.routes import LABEL_METRICS
from models.steps import Log, Shard, Step
from transforms.metrics import count
from transforms.slices import Hold
from transforms.state import States

# So many parts that wait are put together into one.
_MAX_PARTS = 128


@dataclasses.dataclass(eq=False)
class MeasureLabels(beam.PTransform[dict[str, beam.PCollection[pa.RecordBatch]], beam.PCollection[pa.RecordBatch]]):
    """{"scores": score rows, "labelled": those whose label became known} → the records of windows.

    Without "labelled", score rows have their label themselves, if they have one. All windows are measured under one
    key. A row or label of a window whose labels can come no more, as they do for `feedback_horizon_us`, is counted, and
    changes nothing. `boundary_us`: every multiple of it is an end of a slice.
    """

    project: Project
    boundary_us: int
    lateness_us: int = 0
    calibrations: Calibrations = no_calibration  # of the bundles that score, for estimates
    states: States | None = None  # rows of windows that may change are kept as `label metrics`

    def expand(self, inputs: dict[str, beam.PCollection]) -> beam.PCollection:
        """In the order of midnights."""
        routes = {"scores": self._count if "labelled" in inputs else self._count_and_take}
        routes |= {"labelled": self._take} if "labelled" in inputs else {}
        step = _Measure(self.project, feedback_horizon_us(self.project) + self.lateness_us + DAY_US)
        return inputs | "Hold" >> Hold(step, routes, states=self.states, name="label metrics")

    def _count(self, rows: pa.RecordBatch) -> Iterator[tuple[int, int, pa.RecordBatch]]:
        if not is_provisional(rows):  # it comes once more
            yield from self._due(count_rows(rows, self.project, self.calibrations))

    def _take(self, rows: pa.RecordBatch) -> Iterator[tuple[int, int, pa.RecordBatch]]:
        yield from self._due(take_labelled(rows, self.project))

    def _count_and_take(self, rows: pa.RecordBatch) -> Iterator[tuple[int, int, pa.RecordBatch]]:
        assert self.project.label is not None
        yield from self._count(rows)
        if self.project.label.field in self.project.output and not is_provisional(rows):
            yield from self._take(rows)

    def _due(self, parts: Iterator[tuple[int, pa.RecordBatch]]) -> Iterator[tuple[int, int, pa.RecordBatch]]:
        for due_us, part in parts:
            yield 0, -(-due_us // self.boundary_us) * self.boundary_us, part


@dataclasses.dataclass
class _Measured(Shard):
    as_of_us: int = -(1 << 62)  # the last midnight whose records are out
    revisions: dict[str, int] = dataclasses.field(default_factory=dict)  # of windows that may change, by their ends


class _Measure(Step[_Measured]):
    """One midnight after another, which is the kind of a part. The history are parts of windows that may change."""

    shard = _Measured
    join_after = _MAX_PARTS

    def __init__(self, project: Project, kept_us: int) -> None:
        self._project, self._kept_us = project, kept_us

    def kind_of(self, batch: pa.RecordBatch) -> int:
        """The midnight from which on it counts."""
        return due_of(batch)

    def needed(self, segments: Sequence[pa.RecordBatch], shard: _Measured) -> list[Keys]:
        """All: what is not is thrown out at each midnight."""
        return [np.ones(segment.num_rows, bool) for segment in segments]

    def advance(self, batch: pa.RecordBatch, due_us: int, memory: Any, log: Log[_Measured]) -> Iterator[pa.RecordBatch]:
        """The records of the windows that the batch has rows of."""
        shard = log.shard
        shard.as_of_us = max(shard.as_of_us, due_of(batch))
        final_us = shard.as_of_us - self._kept_us  # windows that ended no later change no more
        open_rows = window_ends_of(batch) > final_us
        count(TOO_LATE, int(np.count_nonzero(~open_rows)), table=LABEL_METRICS)
        batch = batch.filter(pa.array(open_rows))
        whole = concat_batches([*log.base.read(), batch])
        changed = pa.array(np.unique(window_ends_of(batch)))
        rows = whole.filter(pc.is_in(whole.column(END), changed))
        for end_us, part in partition(rows, window_ends_of(rows)):
            revision = shard.revisions[str(end_us)] = shard.revisions.get(str(end_us), -1) + 1
            records = measure_window(part, shard.as_of_us, revision, self._project)
            count(CORRECTED, records.num_rows if revision else 0)
            yield records
        log.base.clear()
        log.base.add(whole.filter(pa.array(window_ends_of(whole) > final_us)))
        shard.revisions = {end: number for end, number in shard.revisions.items() if int(end) > final_us}
