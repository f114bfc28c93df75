"""Run one transform over batches that a test makes, in step with a watermark that the test moves."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.io.restriction_trackers import OffsetRange, OffsetRestrictionTracker
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.utils.timestamp import MAX_TIMESTAMP, Duration, Timestamp

from pipelines.runners import DIRECT, make_pipeline
from transforms.refused import DEAD

END = MAX_TIMESTAMP.micros

Step = tuple[list[tuple[int, pa.RecordBatch]], int]


class _Steps(beam.transforms.core.RestrictionProvider):
    def initial_restriction(self, steps):
        return OffsetRange(0, len(steps))

    def create_tracker(self, restriction):
        return OffsetRestrictionTracker(restriction)

    def restriction_size(self, _, restriction):
        return restriction.size()


_STEPS = _Steps()
_WATERMARK = ManualWatermarkEstimator.default_provider()


class _Emit(beam.DoFn):
    """An unbounded source: a step's batches, then the watermark to where the step says."""

    @beam.DoFn.unbounded_per_element()
    def process(
        self,
        steps,
        tracker=beam.DoFn.RestrictionParam(_STEPS),
        watermark=beam.DoFn.WatermarkEstimatorParam(_WATERMARK),
    ):
        number = tracker.current_restriction().start
        if tracker.try_claim(number):
            batches, watermark_us = steps[number]
            yield from map(_at_slice_end, batches)
            watermark.set_watermark(Timestamp(micros=watermark_us))
            tracker.defer_remainder(Duration(0))


def _at_slice_end(item):
    end_us, batch = item
    return beam.window.TimestampedValue(batch, Timestamp(micros=end_us))


_collected: dict[str, list[Any]] = {}


def _collect(batch, place):
    # As the batch is now: a later step that wrote into it would be seen.
    _collected[place].append(pickle.loads(pickle.dumps(batch)))


def through(
    transform: beam.PTransform, steps: Sequence[Step], engine: str = DIRECT
) -> tuple[pa.Table | None, pa.Table | None]:
    """The main output and the dead letters of a transform over steps of (slice end, batch) and a watermark.

    FnApiRunner has no watermark to speak of while a source runs: it takes the batches of all steps at once.
    """
    _collected.update(rows=[], dead=[])
    with make_pipeline(engine, []) as pipeline:
        if engine == DIRECT:
            source = pipeline | beam.Create([list(steps)]) | beam.ParDo(_Emit())
        else:
            items = [item for batches, _ in steps for item in batches]
            source = pipeline | beam.Create(items) | beam.Map(_at_slice_end)
        output = source | "Through" >> transform
        outputs = (
            {"rows": output} if isinstance(output, beam.PCollection) else {"rows": output.rows, "dead": output[DEAD]}
        )
        for place, collection in outputs.items():
            collection | f"Collect {place}" >> beam.Map(_collect, place)
    rows, dead = (pa.Table.from_batches(_collected[p]) if _collected[p] else None for p in ("rows", "dead"))
    return rows, dead
