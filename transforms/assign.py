"""Assign releases: which release an event belongs to, and which model is to score it, by its own time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.batches import Keys, column, is_provisional, shard_of, times_us, with_column
from models.metrics import ASSIGNED, RELEASE
from models.project.declarations import Project
from models.record import MARKS
from models.rollout.assign import CANARY, CHAMPION, Releases, from_batch, to_batch
from models.rollout.instead import needs_instead
from models.score import live_rows
from models.steps import Log, Shard, Step, spread
from transforms.metrics import count, gauge
from transforms.slices import Hold

_FOREVER = 1 << 62


@dataclasses.dataclass(eq=False)
class AssignReleases(beam.PTransform[dict[str, beam.PCollection[pa.RecordBatch]], beam.PCollection[pa.RecordBatch]]):
    """{"events": batches, "releases": rows of models.rollout.assign} → the events that are to be scored, with columns.

    The columns are those of `models.rollout.assign.Assigned`; events that are history are left out. A release must be
    here by the end of the slice in which it takes effect, and may be here before, and more than once. A late event has
    the release of its own time. A provisional event that is here before any release is left out: it comes once more.
    """

    project: Project
    shards: int = 1

    def expand(self, inputs: dict[str, beam.PCollection]) -> beam.PCollection:
        """Batches of one slice in and out."""
        routes = {"events": self._route_events, "releases": self._route_releases}
        return inputs | "Hold" >> Hold(_Assign(self.project), routes)

    def _route_events(self, batch: pa.RecordBatch) -> Iterator[tuple[int, None, pa.RecordBatch]]:
        live = live_rows(batch)
        yield from spread(live, shard_of(column(live, self.project.event.id), self.shards))

    def _route_releases(self, batch: pa.RecordBatch) -> Iterator[tuple[int, None, pa.RecordBatch]]:
        for shard in range(self.shards):
            yield shard, None, batch


@dataclasses.dataclass
class _Memory:
    releases: Releases


class _Assign(Step[Shard]):
    """The log has the releases, all of them: an event may be as late as it likes."""

    shard = Shard
    horizon_us = _FOREVER

    def __init__(self, project: Project) -> None:
        self._entities, self._breaks = project.entities, needs_instead(project)

    def kind_of(self, batch: pa.RecordBatch) -> int:
        """Of one slice releases first: they have no marks."""
        return int(MARKS in batch.schema.names)

    def recall(self, memory: _Memory | None, log: Log[Shard]) -> _Memory:
        """What is known."""
        if memory is None:
            memory = _Memory(Releases(release for rows in log.read() for release in from_batch(rows)))
        return memory

    def advance(self, batch: pa.RecordBatch, due_us: int, memory: _Memory, log: Log[Shard]) -> Iterator[pa.RecordBatch]:
        """Events with their release; of releases nothing."""
        known = memory.releases
        if not self.kind_of(batch):
            news = {release.seq: release for release in from_batch(batch) if release.seq not in known.by_seq}
            if news:
                memory.releases = Releases([*known.by_seq.values(), *news.values()])
                log.append(to_batch(news.values()))
            return
        provisional = is_provisional(batch)
        if provisional and not len(known):
            return
        keys = {name: column(batch, field) for name, field in self._entities.items()}
        assigned = known.assign(times_us(batch), keys)
        if not provisional:
            canary = int(np.count_nonzero(assigned.role.indices))
            count(ASSIGNED, canary, role=CANARY)
            count(ASSIGNED, batch.num_rows - canary, role=CHAMPION)
            gauge(RELEASE, pc.max(assigned.release).as_py())
        columns = assigned.columns()
        if self._breaks:
            columns |= known.instead(times_us(batch), assigned.role)
        for name, values in columns.items():
            batch = with_column(batch, name, values)
        yield batch

    def needed(self, segments: Sequence[pa.RecordBatch], shard: Shard) -> list[Keys]:
        """All of them."""
        return [np.ones(rows.num_rows, bool) for rows in segments]

    def passed_us(self, segments: Sequence[pa.RecordBatch], shard: Shard) -> int:
        """No release passes."""
        return -_FOREVER
