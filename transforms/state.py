"""State that is kept: what holds of a graph know at given times comes out, and goes into the graph of another run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa

from models.batches import as_int64, column, marks_of, with_column
from models.record import IS_HISTORY, MARKS
from models.state import Resume, SourceSpan, spans_of

KEPT = "kept"


@dataclasses.dataclass
class States:
    """Of one graph: when its holds keep their state, in microseconds since 1970 UTC, and what they start from.

    `restored` has the parts of models.state of each hold by its name. `at_us` are ends of slices, ascending, all later
    than what `resume` starts from.
    """

    at_us: tuple[int, ...] = ()
    resume: Resume = Resume()  # noqa: RUF009, it is frozen
    restored: Mapping[str, beam.PTransform] = dataclasses.field(default_factory=dict)
    kept: list[beam.PCollection] = dataclasses.field(default_factory=list)

    def __reduce__(self) -> Any:
        """It is of the construction of a graph: what goes to workers has none."""
        return _none, ()


def _none() -> None:
    return None


@dataclasses.dataclass(eq=False)
class MarkKnown(beam.PTransform[beam.PCollection[pa.RecordBatch], beam.PCollection[pa.RecordBatch]]):
    """Dead letters → the same, those that a state already knows of marked as history.

    That is those that are of known sources and of a time that is in the state, or of those that are told and of none.
    """

    resume: Resume

    def expand(self, letters: beam.PCollection) -> beam.PCollection:
        """Batches of as many rows."""
        return letters | "Mark" >> beam.Map(self._mark).with_output_types(pa.RecordBatch)

    def _mark(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        times, sources = column(batch, "event_time"), column(batch, "source")
        timed = np.asarray(times.is_valid())
        known = self.resume.is_known(sources, as_int64(times.fill_null(0)))
        known = np.where(timed, known, self.resume.is_told(sources))
        marks = marks_of(batch) | known * np.int8(IS_HISTORY)
        return with_column(batch, MARKS, pa.array(marks)) if known.any() else batch


@dataclasses.dataclass(eq=False)
class LetterSpans(beam.PTransform[beam.PCollection[pa.RecordBatch], beam.PCollection[SourceSpan]]):
    """Dead letters → the spans of their sources: of those that are news, and not too late for the state."""

    resume: Resume

    def expand(self, letters: beam.PCollection) -> beam.PCollection:
        """Spans of batches."""
        return letters | "Spans" >> beam.FlatMap(self._spans).with_output_types(SourceSpan)

    def _spans(self, letters: pa.RecordBatch) -> Iterator[SourceSpan]:
        news = ((marks_of(letters) & IS_HISTORY) == 0) & np.asarray(column(letters, "event_time").is_valid())
        times = as_int64(column(letters, "event_time").fill_null(0))
        rows = np.flatnonzero(news & ~self.resume.is_too_late(times))
        yield from spans_of(column(letters, "source").take(pa.array(rows)), times[rows])


@dataclasses.dataclass(eq=False)
class CombineSpans(beam.PTransform[beam.PCollection[SourceSpan], beam.PCollection[SourceSpan]]):
    """The spans of batches → one span for each source."""

    def expand(self, spans: beam.PCollection) -> beam.PCollection:
        """A span a source."""
        return spans | "Combine" >> beam.CombinePerKey(_cover).with_output_types(SourceSpan)


def _cover(spans: Iterable[tuple[int, int]]) -> tuple[int, int]:
    firsts, lasts = zip(*spans, strict=True)
    return min(firsts), max(lasts)
