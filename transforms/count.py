"""Counts of events by outcome, for the check that none was lost."""

from __future__ import annotations

import collections
import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping

import apache_beam as beam
import pyarrow as pa

from models.counts import count_events, mismatch
from models.metrics import EVENTS, MISSING
from models.quality.incidents import to_iso
from models.record import Outcome
from models.steps import Log, Shard, Step
from transforms import metrics
from transforms.slices import PHASE_US, Hold

_LOG = logging.getLogger("headrace")
# From a batch to its events by outcome.
Count = Callable[[pa.RecordBatch], Iterator[tuple[str, int]]]


@dataclasses.dataclass(eq=False)
class CountEvents(beam.PTransform[beam.PCollection[pa.RecordBatch], beam.PCollection[tuple[str, int]]]):
    """Batches → (outcome, events), one a batch; of `history_only`, just the events that are history.

    What is provisional is not counted: it comes once more."""

    outcome: Outcome
    history_only: bool = False

    def expand(self, pcoll: beam.PCollection) -> beam.PCollection:
        """Pairs that add up to the number of events."""
        count = beam.FlatMap(count_events, self.outcome, self.history_only)
        return pcoll | "Count" >> count.with_output_types(tuple[str, int])


@dataclasses.dataclass(eq=False)
class CheckCounts(beam.PTransform):
    """Batches by name → nothing: an error is logged for each slice of which not every event that was read came out.

    `counts` says how each input's events are counted. All must be timestamped with their slices, as in a stream.
    """

    counts: Mapping[str, Count]

    def expand(self, inputs: Mapping[str, beam.PCollection]) -> beam.PCollection:
        """The slices' numbers by outcome."""
        routes = {name: _Route(count) for name, count in self.counts.items()}
        return inputs | "Hold" >> Hold(_Balance(), routes, output=dict[str, int])


@dataclasses.dataclass(frozen=True)
class _Route:
    count: Count

    def __call__(self, batch: pa.RecordBatch) -> Iterator[tuple[int, None, pa.RecordBatch]]:
        for outcome, events in self.count(batch):
            yield 0, None, pa.RecordBatch.from_arrays([pa.array([outcome]), pa.array([events])], names=["outcome", "n"])


class _Balance(Step[Shard]):
    shard = Shard

    def advance(self, batch: pa.RecordBatch, due_us: int, memory: None, log: Log[Shard]) -> Iterator[dict[str, int]]:
        """The numbers of a slice, which are also shown."""
        found: collections.Counter[str] = collections.Counter()
        for outcome, events in zip(*(values.to_pylist() for values in batch.columns), strict=True):
            found[outcome] += events
        for outcome, events in found.items():
            metrics.count(EVENTS, events, outcome=outcome)
        if (text := mismatch(found)) is not None:
            metrics.count(MISSING, abs(2 * found[Outcome.READ] - found.total()))
            _LOG.error("of the slice that was due at %s, %s", to_iso(due_us - PHASE_US), text)
        yield dict(found)
