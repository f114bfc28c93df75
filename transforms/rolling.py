"""Rolling windows over an entity's events, event by event, in event time, whatever order they arrive in.

Events are spread over shards by a hash of the entity, and of each shard the kernel gets a slice at once.

A provisional event is not kept: it goes on at once, with what is known at its arrival, and comes once more.

Labels that come as records of their own are a second kind of batch, told by their column `__label_time`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import pyarrow as pa

from models.batches import (
    Keys,
    as_float64,
    as_int64,
    column,
    is_provisional,
    key_column,
    shard_of,
    take_rows,
    times_us,
)
from models.features.aggregates import code_name
from models.features.columns import with_keys, with_rolling
from models.features.labels import LabelledKernel, Labels
from models.features.windows import Events, History, RollingKernel, encode_entities, encode_values
from models.metrics import ROWS
from models.order import Ids, sort_order
from models.record import ASKED, EVENT_TIME, LABEL_TIME
from models.steps import Log, Shard, Step, has_labels, spread
from transforms.metrics import count
from transforms.slices import Hold
from transforms.state import States

TieBreaker = str | Callable[[pa.RecordBatch], Ids]


@dataclasses.dataclass(eq=False)
class RollingWindows(
    beam.PTransform[
        beam.PCollection[pa.RecordBatch] | dict[str, beam.PCollection[pa.RecordBatch]], beam.PCollection[pa.RecordBatch]
    ]
):
    """Batches → the same rows with one more column for each feature of `kernel`.

    `entity` names a column: events of one entity at one time are ordered by the `tie_breaker`, a column or what makes
    one of the rows for which it is needed. The entity
    may be several columns, whose values together are its key, or none: all events are of one. A row without a key has
    no features. The result of a row depends on the set of events alone, not on shards, batches or slices.

    With `states`, the windows' history is kept, and starts from what was kept, under `name`.

    With a `LabelledKernel`, the input is {"events": batches, "labels": batches of transforms.join.JoinLabels}. With
    "asked" in it, batches of rows that are no events, these come out with their features, and events do not.
    """

    entity: str | tuple[str, ...]
    tie_breaker: TieBreaker
    kernel: RollingKernel
    shards: int
    states: States | None = None
    name: str = ""

    def expand(self, inputs: beam.PCollection | dict[str, beam.PCollection]) -> beam.PCollection:
        """Batches of one slice in, and those of events out."""
        inputs = inputs if isinstance(inputs, dict) else {"events": inputs}
        step = (_Answers if "asked" in inputs else _Windows)(self._names, self.tie_breaker, self.kernel)
        routes = dict.fromkeys(inputs, self._route)
        return inputs | "Hold" >> Hold(step, routes, states=self.states, name=self.name, shards=self.shards)

    def _route(self, batch: pa.RecordBatch) -> Iterator[tuple[int, None, pa.RecordBatch]]:
        return spread(batch, shard_of(key_column(batch, self._names), self.shards))

    @property
    def _names(self) -> tuple[str, ...]:
        return (self.entity,) if isinstance(self.entity, str) else self.entity


@dataclasses.dataclass
class _Memory:
    """A shard's history as the kernel wants it."""

    history: History
    codes: dict[Any, int]
    ahead: History = dataclasses.field(default_factory=History)  # provisional events, which are in no state


class _Windows(Step[Shard]):
    """The kernel over one slice after another."""

    shard = Shard

    def __init__(self, entity: str | tuple[str, ...], tie_breaker: TieBreaker, kernel: RollingKernel) -> None:
        self.horizon_us = kernel.horizon_us
        self._entity = (entity,) if isinstance(entity, str) else entity
        self._tie_breaker = tie_breaker
        self._kernel = kernel
        self._label = kernel.label if isinstance(kernel, LabelledKernel) else ""

    def places(self, segment: pa.RecordBatch, shards: int) -> Keys:
        """By entity, as events are spread."""
        return shard_of(key_column(segment, self._entity), shards)

    def kind_of(self, batch: pa.RecordBatch) -> int:
        """Of one slice labels first."""
        return int(not has_labels(batch))

    def recall(self, memory: _Memory | None, log: Log[Shard]) -> _Memory:
        """Made anew, too, once most of the entities that it has codes for are of the past."""
        kinds = 1 + len(self._kernel.coded)
        if memory is not None and len(memory.codes) <= 2 * kinds * len(memory.history) + 10_000:
            return memory
        memory = _Memory(History(), {})
        for past in log.read():
            if has_labels(past):
                memory.history = self._learn(memory, past)
            else:
                events = self._events(past, memory, pa.nulls(past.num_rows))
                memory.history = self._kernel.extend(memory.history, events)
        return memory

    def advance(self, batch: pa.RecordBatch, due_us: int, memory: _Memory, log: Log[Shard]) -> Iterator[pa.RecordBatch]:
        """Events with their features; of labels nothing."""
        known, rows = with_keys(batch, self._entity)
        if has_labels(batch):
            if known.num_rows:
                memory.history = self._learn(memory, known)
                log.append(self._segment(known, [LABEL_TIME, self._label]))
            return
        events = self._events(known, memory, self._ids(known))
        if is_provisional(batch):  # by the history and by what came before
            past = dataclasses.replace(memory.history, runs=(*memory.history.runs, *memory.ahead.runs))
            columns, _ = self._kernel.advance(past, events)
            memory.ahead = self._kernel.extend(memory.ahead, events)
        else:
            count(ROWS, batch.num_rows, step="windowed")
            columns, memory.history = self._kernel.advance(memory.history, events)
            if len(events):
                self._keep(known, events, memory, log)
        yield with_rolling(batch, self._kernel, columns, rows)

    def _keep(self, batch: pa.RecordBatch, events: Events, memory: _Memory, log: Log[Shard]) -> None:
        if self._kernel.is_ordered:  # a history that is read again has no ids to order events of one time by
            batch = take_rows(batch, sort_order(events.ids, events.entity, events.time))
        log.append(self._segment(batch, self._kernel.fields))
        reached = int(events.time.max())
        memory.ahead = History(tuple(run.after(reached) for run in memory.ahead.runs if run.last > reached))

    def passed_us(self, segments: Sequence[pa.RecordBatch], shard: Shard) -> int:
        """What has passed every window of the latest event; a label passes with its event."""
        return max((int(times_us(segment).max()) for segment in segments), default=0) - self.horizon_us

    def _segment(self, batch: pa.RecordBatch, fields: Sequence[str]) -> pa.RecordBatch:
        """A batch's part of the history."""
        names = list(dict.fromkeys([*self._entity, EVENT_TIME, *fields]))
        return pa.RecordBatch.from_arrays([column(batch, name) for name in names], names=names)

    def _learn(self, memory: _Memory, batch: pa.RecordBatch) -> History:
        labels = Labels(
            entity=encode_entities(key_column(batch, self._entity), memory.codes),
            time=times_us(batch),
            known=as_int64(column(batch, LABEL_TIME)),
            value=as_float64(column(batch, self._label)),
        )
        kernel: Any = self._kernel
        return kernel.learn(memory.history, labels)  # type: ignore[no-any-return]

    def _ids(self, batch: pa.RecordBatch) -> Ids:
        by = self._tie_breaker
        return column(batch, by) if isinstance(by, str) else by(batch)

    def _events(self, batch: pa.RecordBatch, memory: _Memory, ids: Ids) -> Events:
        values: dict[str, Any] = {name: as_float64(column(batch, name)) for name in self._kernel.numbers}
        for name in self._kernel.coded:
            values[code_name(name)] = encode_values(column(batch, name), memory.codes)
        return Events(
            entity=encode_entities(key_column(batch, self._entity), memory.codes),
            time=times_us(batch),
            ids=ids,
            values=values,
        )


class _Answers(_Windows):
    """What the kernel has for rows that are asked for; events are but kept."""

    def kind_of(self, batch: pa.RecordBatch) -> int:
        """Of one slice labels first, then events."""
        return 2 if ASKED in batch.schema.names else super().kind_of(batch)

    def advance(self, batch: pa.RecordBatch, due_us: int, memory: _Memory, log: Log[Shard]) -> Iterator[pa.RecordBatch]:
        """Rows that are asked for with their features; of events and labels nothing."""
        known, rows = with_keys(batch, self._entity)
        if ASKED in batch.schema.names:
            entity = encode_entities(key_column(known, self._entity), memory.codes)
            asked = Events(entity, times_us(known), pa.nulls(known.num_rows), {})
            yield with_rolling(batch, self._kernel, self._kernel.answer(memory.history, asked), rows)
        elif has_labels(batch):
            yield from super().advance(batch, due_us, memory, log)
        elif known.num_rows:
            count(ROWS, known.num_rows, step="windowed")
            entity = encode_entities(key_column(known, self._entity), memory.codes)
            known = take_rows(known, sort_order(self._ids(known), entity, times_us(known)))
            events = self._events(known, memory, self._ids(known))
            memory.history = self._kernel.extend(memory.history, events)
            self._keep(known, events, memory, log)
