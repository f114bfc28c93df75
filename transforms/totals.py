"""Tables of aggregates: the rows of a period when the watermark has passed it, and again those that change later."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import apache_beam as beam
import pyarrow as pa
from apache_beam.utils.timestamp import Timestamp

from models.metrics import CORRECTED, TOO_LATE
from models.project.declarations import Project
from models.steps import Log, Shard, Step
from models.totals import SLICE_END, add_parts, add_up, end_us_of, finish, rows_in, slice_end_us_of, written
from transforms.metrics import count
from transforms.slices import PHASE_US, Hold, phase_of
from transforms.state import States

# So many parts of open periods are added up into one a period.
_MAX_PARTS = 128


@dataclasses.dataclass(eq=False)
class AddUp(beam.PTransform[beam.PCollection[pa.RecordBatch], beam.PCollection[pa.RecordBatch]]):
    """Batches of events with features → for each period a batch of the rows of the table `name`.

    Batches are added up where they are; the parts of a table come together under one key. A period has rows if one of
    its events is not history, and then counts all of them. Events of a period whose rows are out already change those
    of their keys, which are said once more, if the period ended less than `lateness_us` before the watermark; else they
    are counted, and looked at no further. Without a lateness rows have no `revision`. `boundary_us`: every multiple of
    it is an end of a slice.
    """

    project: Project
    name: str
    boundary_us: int
    lateness_us: int = 0
    states: States | None = None  # open periods are kept as `table NAME`

    def expand(self, pcoll: beam.PCollection) -> beam.PCollection:
        """In the order of periods."""
        if self.lateness_us:
            at = beam.Map(_with_slice_end, phase_of(pcoll) * PHASE_US)
            pcoll = pcoll | "Slice end" >> at.with_output_types(pa.RecordBatch)
        close = _Close(self.project, self.name, self.lateness_us)
        hold = Hold(close, {"rows": self._route}, states=self.states, name=f"table {self.name}")
        return {"rows": pcoll} | "Hold" >> hold

    def _route(self, batch: pa.RecordBatch) -> Iterator[tuple[int, int, pa.RecordBatch]]:
        for end_us, part in add_up(batch, self.name, self.project):
            yield 0, -(-end_us // self.boundary_us) * self.boundary_us, part


def _with_slice_end(batch: pa.RecordBatch, after_us: int, at: Timestamp = beam.DoFn.TimestampParam) -> pa.RecordBatch:
    return batch.replace_schema_metadata({**(batch.schema.metadata or {}), SLICE_END: str(at.micros - after_us)})


@dataclasses.dataclass
class _Closed(Shard):
    closed_us: int | None = None  # the end of the last period whose rows are out
    final_us: int = 0  # with a lateness: what ended no later than this changes no more
    revisions: dict[str, int] = dataclasses.field(default_factory=dict)  # of periods that may change, by their ends


class _Close(Step[_Closed]):
    """One period after another: a kind of part is a period. The history are the parts of those that may change."""

    shard = _Closed
    join_after = _MAX_PARTS

    def __init__(self, project: Project, name: str, lateness_us: int) -> None:
        self._project, self._name, self._lateness_us = project, name, lateness_us

    def kind_of(self, batch: pa.RecordBatch) -> int:
        """The end of the period."""
        return end_us_of(batch)

    def join(self, batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
        """The sum."""
        return add_parts(batches, self._project.aggregates[self._name].by)

    def advance(self, batch: pa.RecordBatch, due_us: int, memory: None, log: Log[_Closed]) -> Iterator[pa.RecordBatch]:
        """The period's rows; of one that is out already those that change, of history alone nothing."""
        state, end_us = log.shard, end_us_of(batch)
        is_out = state.closed_us is not None and end_us <= state.closed_us
        state.final_us = max(state.final_us, slice_end_us_of(batch) - self._lateness_us)
        if is_out and (not self._lateness_us or end_us <= state.final_us):
            count(TOO_LATE, rows_in(batch), table=self._name)
            return
        state.closed_us = state.closed_us if is_out else end_us
        if not self._lateness_us:
            if rows_in(batch):
                yield finish(batch, self._name, self._project)
            return
        whole, revision = self._add(batch, log)
        if rows_in(batch):
            rows = finish(whole, self._name, self._project, revision)
            count(CORRECTED, rows.num_rows if revision else 0)
            yield rows

    def _add(self, batch: pa.RecordBatch, log: Log[_Closed]) -> tuple[pa.RecordBatch, int]:
        """All of a period so far and the number of its revision; periods that change no more are forgotten."""
        final_us = log.shard.final_us
        end_us, parts = end_us_of(batch), {end_us_of(part): part for part in log.base.read()}
        whole = self.join([parts[end_us], batch]) if end_us in parts else batch
        parts[end_us] = written(whole)
        numbers = {int(end): number for end, number in log.shard.revisions.items()}
        numbers[end_us] = numbers.get(end_us, -1) + 1
        log.base.clear()
        for end, part in parts.items():
            if end > final_us:
                log.base.add(part)
        log.shard.revisions = {str(end): number for end, number in numbers.items() if end > final_us}
        return whole, numbers[end_us]
