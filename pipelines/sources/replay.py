"""What a journal tells a stream that starts anew: the past, slice by slice as it was, and what is left to do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from models.batches import column, concat_batches, take_rows
from models.record import COLUMNS, FORMAT, MESSAGE
from pipelines.sources.ahead import Int64
from pipelines.sources.journal import read_segment_file
from pipelines.sources.journal_check import Journal, Segment
from pipelines.sources.probe import Look, Probe
from pipelines.sources.records import NO_TIME_US, about, type_number

CRASHES = "crashes the decoder"


@dataclasses.dataclass(frozen=True)
class _Records:
    """Records with their numbers in the journal, event times, and the marks that released them."""

    batch: pa.RecordBatch
    numbers: Int64
    times: Int64
    mark: Int64

    def take(self, rows: Any) -> _Records:
        return _Records(take_rows(self.batch, rows), self.numbers[rows], self.times[rows], self.mark[rows])


class Replay:
    """A journal that is read once, by `past`; then `pending`, `set_aside`, `found` and `message_ids` are known.

    The records were released in the order that the marks tell, and are released in that order again, so that
    state comes out as it was, late records included. Marks are joined where no record was late: within them, order
    of event time is all that counts. What is older than `horizon_us` before the last mark is in no window any more
    and is not read.

    `decode` gives records as they go out, and their times. After a crash, records that may not have been decoded before
    are given to `look` in a child process first. Those that crash it are set aside: they go out as unreadable.
    """

    def __init__(
        self,
        journal: Journal,
        decode: Callable[[pa.RecordBatch], tuple[pa.RecordBatch, Int64]],
        look: Look,
        horizon_us: int,
    ) -> None:
        self._segments = journal.segments
        self._decode = decode
        self._probe = Probe(look)
        self._marks = journal.marks
        self._done_rows = int(self._marks.rows[-1]) if len(self._marks.rows) else 0
        self._first_needed = self._find_first(horizon_us)
        self.crashed = any([*journal.segments, *(file.texts for file in journal.files)]) and not self._marks.stopped
        self.end_us = int(self._marks.ends_us[-1]) if len(self._marks.ends_us) else None
        self.pending: list[tuple[pa.RecordBatch, Int64]] = []
        self.set_aside: list[pa.RecordBatch] = []
        self.found: list[int] = []  # numbers of records that were found to crash
        self.message_ids: list[str] = []

    def past(self) -> Iterator[tuple[int, list[pa.RecordBatch]]]:
        """(slice end, records of each format) in the order in which they were released."""
        waiting: list[_Records] = []
        for segment in self._needed():
            row = segment.first_row
            for batch in read_segment_file(segment.path, segment.end_row):
                numbers = np.arange(row, row + batch.num_rows)
                row += batch.num_rows
                self.message_ids += column(batch, MESSAGE).to_pylist()
                batch, numbers = self._without(batch, numbers, np.isin(numbers, sorted(self._marks.aside)))
                if self.crashed and row > self._done_rows:
                    batch, numbers = self._without_crashing(batch, numbers)
                batch, times = self._decode(batch)
                by_number = np.searchsorted(self._marks.rows, numbers, side="right")
                mark = np.maximum(by_number, np.searchsorted(self._marks.ends_us, times))
                waiting.append(_Records(batch, numbers, times, mark))
            # Of the marks that lie before the end of this segment all records are here.
            complete = int(np.searchsorted(self._marks.rows, row, side="right"))
            due = [records.take(np.flatnonzero(records.mark < complete)) for records in waiting]
            waiting = [records.take(np.flatnonzero(records.mark >= complete)) for records in waiting]
            waiting = [records for records in waiting if len(records.numbers)]
            yield from self._in_groups([r.take(np.flatnonzero(r.times != NO_TIME_US)) for r in due])
        self.pending = [(records.batch, records.times) for records in waiting]
        self._probe.close()

    def _needed(self) -> list[Segment]:
        return [segment for segment in self._segments if segment.end_row > self._first_needed]

    def _find_first(self, horizon_us: int) -> int:
        """The number of the first record that some window may still need."""
        marks = self._marks
        if not len(marks.rows):
            return 0
        over = np.maximum.accumulate(marks.newest_us) < marks.ends_us[-1] - horizon_us
        return int(marks.rows[over].max(initial=0))

    def _without_crashing(self, batch: pa.RecordBatch, numbers: Int64) -> tuple[pa.RecordBatch, Int64]:
        crashing = np.zeros(batch.num_rows, bool)
        crashing[self._probe.find_crashing(batch)] = True
        self.found += numbers[crashing].tolist()
        return self._without(batch, numbers, crashing)

    def _without(self, batch: pa.RecordBatch, numbers: Int64, aside: Any) -> tuple[pa.RecordBatch, Int64]:
        if not aside.any():
            return batch, numbers
        news = np.flatnonzero(aside & (numbers >= self._done_rows))
        if len(news):
            metadata = {FORMAT: b"unreadable", COLUMNS: CRASHES.encode(), **about(type_number(batch))}
            self.set_aside.append(take_rows(batch, news).replace_schema_metadata(metadata))
        kept = np.flatnonzero(~aside)
        return take_rows(batch, kept), numbers[kept]

    def _in_groups(self, due: Sequence[_Records]) -> Iterator[tuple[int, list[pa.RecordBatch]]]:
        due = [records for records in due if len(records.numbers)]
        if not due:
            return
        ends = self._marks.ends_us
        times, mark = (np.concatenate(part) for part in zip(*((r.times, r.mark) for r in due), strict=True))
        before = np.where(mark > 0, ends[np.maximum(mark, 1) - 1], NO_TIME_US)
        # A mark with a late record stands alone: a group ends before it and with it.
        late = np.unique(mark[times <= before])
        edges = np.unique(np.concatenate([late, late + 1]))
        last_of = {number: int(mark[group].max()) for number, group in _groups(np.searchsorted(edges, mark, "right"))}
        for number, last in last_of.items():
            parts = [r.take(np.flatnonzero(np.searchsorted(edges, r.mark, "right") == number)) for r in due]
            yield int(ends[last]), _by_schema([part.batch for part in parts if len(part.numbers)])


def _groups(numbers: Int64) -> Iterator[tuple[int, Any]]:
    for number in np.unique(numbers).tolist():
        yield number, numbers == number


def _by_schema(batches: list[pa.RecordBatch]) -> list[pa.RecordBatch]:
    by_schema: dict[bytes, list[pa.RecordBatch]] = {}
    for batch in batches:
        by_schema.setdefault(batch.schema.serialize().to_pybytes(), []).append(batch)
    return [concat_batches(group) for group in by_schema.values()]
