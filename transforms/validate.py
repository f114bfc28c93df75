"""Validate: every row against its record type; see models.validate."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.pvalue import TaggedOutput

from models.batches import as_int64, column, partition, slice_ends_of, times_us
from models.dead_letters import make_dead_letters, split_good
from models.derive import is_wanted
from models.faults import RowFaults
from models.partitions import EVER, Span
from models.record import MARKS, SOURCE, RecordType
from models.state import Resume, SourceSpan, spans_of
from models.validate import carry, validate_batch
from transforms.batches import timestamp_of
from transforms.refused import DEAD

FILTERED, BEYOND, KNOWN, SPANS = "filtered", "beyond", "known", "spans"


@dataclasses.dataclass(eq=False)
class Validate(beam.PTransform[beam.PCollection[pa.RecordBatch], beam.pvalue.DoOutputsTuple]):
    """Decoded batches → valid batches of one slice of event time each, dead letters, and what the row filter left out.

    Records before the `span` are marked as history, those after it are beyond, and go no further. Slices end at the
    `cuts_us`, too. With `resume`, what is in the state goes no further either, and what is too late for it is refused.
    """

    records: RecordType
    span: Span = EVER
    cuts_us: tuple[int, ...] = ()
    resume: Resume | None = None

    def expand(self, pcoll: beam.PCollection) -> beam.pvalue.DoOutputsTuple:
        """Main output: valid batches, timestamped with their slice's end; `dead`; and to be counted `filtered`,
        `beyond` and `known`. With `resume`, also `spans`: those of the event times of each source.
        """
        tagged = {**dict.fromkeys((DEAD, FILTERED, BEYOND, KNOWN), pa.RecordBatch), SPANS: SourceSpan}
        check = beam.FlatMap(self._validate).with_output_types(pa.RecordBatch, **tagged)
        return pcoll | "Validate" >> check.with_outputs(*tagged, main="rows")

    def _validate(self, batch: pa.RecordBatch) -> Iterator[Any]:
        wanted = is_wanted(batch, self.records)
        if wanted is not None and not wanted.all():
            yield TaggedOutput(FILTERED, split_good(batch, wanted).select([MARKS]))
            batch = split_good(batch, ~wanted)
        if not batch.num_rows:
            return
        faults = validate_batch(batch, self.records)
        if faults.bad.any():
            yield TaggedOutput(DEAD, self._letters(batch, faults))
        good = split_good(batch, faults.bad)
        if self.resume is not None:
            sources, times = column(good, SOURCE), as_int64(column(good, self.records.time))
            known = self.resume.is_known(sources, times)
            late = self.resume.is_too_late(times) & ~known
            there = np.flatnonzero(~late)
            yield from (TaggedOutput(SPANS, span) for span in spans_of(sources.take(pa.array(there)), times[there]))
            if known.any():
                yield TaggedOutput(KNOWN, split_good(good, ~known).select([MARKS]))
            if late.any():
                faults = RowFaults(good.num_rows)
                when = column(good, self.records.time)
                faults.add(np.flatnonzero(late), self.records.time, self.resume.why_late, when)
                yield TaggedOutput(DEAD, self._letters(good, faults))
            good = split_good(good, known | late)
        valid = carry(good, self.records, self.span.start_us)
        if self.span.stop_us is not None and (beyond := times_us(valid) >= self.span.stop_us).any():
            yield TaggedOutput(BEYOND, split_good(valid, ~beyond).select([MARKS]))
            valid = split_good(valid, beyond)
        for end, part in partition(valid, slice_ends_of(batch, times_us(valid), self.cuts_us)):
            yield beam.window.TimestampedValue(part, timestamp_of(end))

    def _letters(self, batch: pa.RecordBatch, faults: RowFaults) -> pa.RecordBatch:
        return make_dead_letters(batch, faults.rows, faults.reasons(), "Validate", self.records)
