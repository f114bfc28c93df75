"""Files in the order of event time, a slice after another, so that a run need not hold all of them at once.

The statistics of Parquet's row groups tell which times are in each. Those of which nothing is told are read first.
An engine that reads what is given to it before it asks for more, as the in-process one does, then holds no more than
what overlaps a slice. To others it is one more way to say what there is.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.io.restriction_trackers import OffsetRange, OffsetRestrictionTracker
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import MIN_TIMESTAMP

from models.batches import column
from models.errors import HeadraceError
from pipelines.sources import SLICE_US
from pipelines.sources.feeds import Feed
from pipelines.sources.listing import Files, size_of
from pipelines.sources.parquet import RowGroup, row_groups
from pipelines.sources.raw import BrokenFile
from pipelines.sources.split import Split
from transforms.batches import timestamp_of

# Files that are smaller together are not looked at before: whatever their times are, they fit into memory.
SMALL_BYTES = 48 << 20
SLICE_ROWS = 500_000
MAX_ROWS_AT_ONCE = 2_000_000
_HOUR_US = 3_600_000_000
UNTOLD_SLICE_US = 24 * _HOUR_US  # where nothing is known of times
_SLICES_US = (SLICE_US, *(n * _HOUR_US for n in (15 * 24, 10 * 24, 5 * 24, 3 * 24, 2 * 24, 24, 12, 6, 2, 1)))


Int64 = np.ndarray[Any, np.dtype[np.int64]]


class DisorderError(HeadraceError, ValueError):
    """A row group that holds earlier times than its statistics say."""


@dataclasses.dataclass(eq=False)
class InOrder(beam.PTransform[beam.PCollection[Split], beam.PCollection[Split]]):
    """Parts of files → the same in the order of their first times, those of a slice of event time after another."""

    slice_us: int

    def expand(self, splits: beam.PCollection) -> beam.PCollection:
        """Each timestamped with its first time."""
        return (
            splits
            | "Together" >> beam.WithKeys(None).with_output_types(tuple[None, Split])
            | "Gather" >> beam.GroupByKey()
            | "Sort" >> beam.Map(_sorted).with_output_types(tuple[Split, ...])
            | "Slice by slice" >> beam.ParDo(_Emit(self.slice_us)).with_output_types(Split)
        )


def _sorted(element: tuple[None, Iterable[Split]]) -> tuple[Split, ...]:
    return tuple(sorted(element[1], key=lambda split: (_first(split), split.path, split.start)))


def _first(split: Split) -> int:
    return MIN_TIMESTAMP.micros if split.first_us is None else split.first_us


class _Places(beam.transforms.core.RestrictionProvider):
    """A restriction that is the places of the parts in their order."""

    def initial_restriction(self, element: Sequence[Split]) -> OffsetRange:
        return OffsetRange(0, len(element))

    def create_tracker(self, restriction: OffsetRange) -> OffsetRestrictionTracker:
        return OffsetRestrictionTracker(restriction)

    def restriction_size(self, element: Sequence[Split], restriction: OffsetRange) -> int:
        return int(restriction.size())


_PLACES = _Places()
_MANUAL = ManualWatermarkEstimator.default_provider()


class _Emit(beam.DoFn):
    """Emits the parts that begin in the slice that is next, and goes on when those have been dealt with."""

    def __init__(self, slice_us: int) -> None:
        self._slice_us = slice_us

    def process(
        self,
        splits: Sequence[Split],
        tracker: Any = beam.DoFn.RestrictionParam(_PLACES),
        estimator: Any = beam.DoFn.WatermarkEstimatorParam(_MANUAL),
    ) -> Iterator[Any]:
        place = tracker.current_restriction().start
        end_us = None
        while tracker.try_claim(place):
            first_us = splits[place].first_us
            if first_us is not None and end_us is None:
                end_us = (first_us // self._slice_us + 1) * self._slice_us
            yield TimestampedValue(splits[place], timestamp_of(_first(splits[place])))
            place += 1
            if place < len(splits) and end_us is not None and _first(splits[place]) >= end_us:
                estimator.set_watermark(timestamp_of(_first(splits[place])))
                tracker.defer_remainder()
                return


def check_order(batch: pa.RecordBatch, split: Split, time: str) -> None:
    """DisorderError if a part has an earlier time than the statistics of its file say."""
    if split.first_us is None or time not in batch.schema.names:  # or what could not be read
        return
    times = column(batch, time)
    there = times.drop_null().cast(pa.timestamp("us", times.type.tz), safe=False).cast(pa.int64()).to_numpy()
    if len(there) and there.min() < split.first_us:
        raise DisorderError(f"{split.path}: row group {split.start} holds earlier times than its statistics say")


@dataclasses.dataclass(frozen=True)
class Order:
    """How long slices of event time are, in microseconds, and whether records have to be sorted by them first."""

    slice_us: int = SLICE_US
    sort: bool = False


def order_of(feed: Feed[Files]) -> Order:
    """Slices of no more than some hundred thousand events of files that are large; it changes no result.

    They have to be sorted if more than some millions may be there at once, or if their files do not tell their times.
    """
    paths, records = feed.source.paths, feed.record_type
    sizes = {path: size_of(path) for path in paths}
    if sum(sizes.values()) <= SMALL_BYTES:
        return Order()
    groups: list[RowGroup] = []
    for path in paths:
        if feed.source.format_of(path) == "parquet":
            with contextlib.suppress(BrokenFile):  # it is a dead letter when it is read
                found = row_groups(path, tuple(records.read.fields), records.read_time)[1]
                groups += found
                if all(group.span is not None for group in found):
                    del sizes[path]
    is_untold = sum(sizes.values()) > SMALL_BYTES
    timed = [(group.rows, *group.span) for group in groups if group.span is not None]
    if not timed:
        return Order(UNTOLD_SLICE_US, is_untold)
    rows, *ends = (np.array(each) for each in zip(*timed, strict=True))
    firsts, lasts = (np.clip(each, records.earliest_us, records.latest_us) for each in ends)  # others are dead letters
    return Order(_slice_of(rows, firsts, lasts), is_untold or _most_at_once(rows, firsts, lasts) > MAX_ROWS_AT_ONCE)


def _slice_of(rows: Int64, firsts: Int64, lasts: Int64) -> int:
    """The longest slice of which none has too many of the rows, which are taken to lie evenly in their groups."""
    for slice_us in _SLICES_US:
        _, place = np.unique(firsts // slice_us, return_inverse=True)
        inside = rows * np.minimum(slice_us / (lasts - firsts + 1), 1)
        if np.bincount(place, inside).max() <= SLICE_ROWS:
            return slice_us
    return _SLICES_US[-1]


def _most_at_once(rows: Int64, firsts: Int64, lasts: Int64) -> int:
    """The most rows of groups whose times overlap at one time."""
    begun, over = np.argsort(firsts), np.argsort(lasts)
    done = np.concatenate([[0], np.cumsum(rows[over])])[np.searchsorted(lasts[over], firsts[begun])]
    return int((np.cumsum(rows[begun]) - done).max())
