"""Labels that come as records of their own, joined with what was kept of their events."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.batches import column, concat_batches, hash_keys, ranks_of, take_rows, times_us
from models.faults import RowFaults
from models.features.windows import Int64, Run
from models.record import EVENT_TIME, LABEL_TIME, POSITION, SOURCE

NO_EVENT = "no event with this id"
ALREADY_KNOWN = "label already known"

# Kept events are joined to those kept before once these are no longer so many times more.
_KEPT_RATIO = 8

_Rows = np.ndarray[Any, np.dtype[np.bool_]]


@dataclasses.dataclass(frozen=True, eq=False)
class KeptEvents:
    """Events that labels may still come for: id first, __event_time last; and which of them have one, bool[n].

    `index` has the hash of each id as entity, and as value "row" which row of `events` it is.
    """

    events: pa.RecordBatch
    labelled: _Rows
    index: Run

    @staticmethod
    def of(events: pa.RecordBatch, labelled: _Rows | None = None) -> KeptEvents:
        """At least one event."""
        hashes, times = _hashes(events.column(0)), times_us(events)
        order = np.lexsort((times, hashes))
        index = Run(hashes[order], times[order], {"row": order.astype(np.float64)})
        return KeptEvents(events, np.zeros(len(order), bool) if labelled is None else labelled, index)

    def __len__(self) -> int:
        return len(self.labelled)

    def merge(self, later: KeptEvents) -> KeptEvents:
        """The events of both."""
        moved = dataclasses.replace(later.index, values={"row": later.index.values["row"] + len(self)})
        events = concat_batches([self.events, later.events])
        return KeptEvents(events, np.concatenate([self.labelled, later.labelled]), self.index.merge(moved))

    def after(self, time_us: int) -> KeptEvents:
        """The events later than `time_us`, of which there must be one."""
        if self.index.first > time_us:
            return self
        rows = np.flatnonzero(times_us(self.events) > time_us)
        return KeptEvents.of(take_rows(self.events, rows), self.labelled[rows])

    def find(self, ids: pa.Array, until_us: Int64) -> Int64:
        """The row int64[n] of the latest event of each id that is not later than `until_us`; -1 where there is none."""
        if not len(ids):
            return np.empty(0, np.int64)
        hashes = _hashes(ids)
        query = Run(hashes, until_us, {})
        place = self.index.rows_until(query, [0], query.first)[0] - 1
        while True:
            place[(place >= 0) & (self.index.entity[place] != hashes)] = -1
            found = np.flatnonzero(place >= 0)
            rows = self.index.values["row"][place[found]].astype(np.int64)
            same = pc.equal(self.events.column(0).take(pa.array(rows)), ids.take(pa.array(found)))
            other = found[~same.to_numpy(zero_copy_only=False).astype(bool)]
            if not len(other):  # else two ids have one hash
                break
            place[other] -= 1
        result = np.full(len(ids), -1)
        result[found] = rows
        return result


Kept = tuple[KeptEvents, ...]


def keep_events(kept: Kept, events: pa.RecordBatch, passed_us: int) -> Kept:
    """What is kept and at least one event more; those up to `passed_us` may be thrown out."""
    parts = [part for part in (*kept, KeptEvents.of(events)) if part.index.last > passed_us]
    while len(parts) > 1 and len(parts[-2]) < _KEPT_RATIO * len(parts[-1]):
        last = parts.pop()
        parts[-1] = parts[-1].merge(last)
        if len(parts) == 1:
            parts = [parts[0].after(passed_us)]
    return tuple(parts)


def join_labels(
    kept: Kept, labels: pa.RecordBatch, event_id: str, label: str, horizon_us: int
) -> tuple[pa.RecordBatch | None, RowFaults, Kept]:
    """Labels with their events, the other rows of `labels` with the reason, and what is kept with what has a label.

    `labels` has the id, the label, where it came from, and its time as __event_time. The result, None for no rows,
    has the columns of events, then __label_time and the label.
    """
    ids, times, faults = column(labels, event_id), times_us(labels), RowFaults(labels.num_rows)
    starts = np.cumsum([0, *map(len, kept)])
    event, event_us = np.full(len(ids), -1), np.full(len(ids), np.iinfo(np.int64).min)
    for part, start in zip(kept, starts[:-1].tolist(), strict=True):
        rows = part.find(ids, times)
        part_us = times_us(part.events)[rows]
        later = (rows >= 0) & (part_us >= event_us) & (times - part_us < horizon_us)
        event[later], event_us[later] = rows[later] + start, part_us[later]
    faults.add(np.flatnonzero(event < 0), event_id, NO_EVENT, ids)

    origin = hash_keys(column(labels, SOURCE)) + hash_keys(column(labels, POSITION)) * np.uint64(31)
    order = np.lexsort((origin, ranks_of(column(labels, label)), times, event))
    order = order[event[order] >= 0]
    repeated = np.concatenate([[False], event[order[1:]] == event[order[:-1]]]) if len(order) else np.empty(0, bool)
    labelled = np.concatenate([part.labelled for part in kept]) if kept else np.empty(0, bool)
    repeated |= labelled[event[order]]
    faults.add(np.sort(order[repeated]), event_id, ALREADY_KNOWN, ids)
    first = order[~repeated]
    if not len(first):
        return None, faults, kept

    labelled[event[first]] = True
    edges = np.searchsorted(event[first], starts)  # `first` is in the order of `event`
    pieces, marked = [], []
    for number, part in enumerate(kept):
        rows = event[first[edges[number] : edges[number + 1]]] - starts[number]
        pieces.append(take_rows(part.events, rows))
        marked.append(dataclasses.replace(part, labelled=labelled[starts[number] : starts[number + 1]]))
    events, chosen = concat_batches(pieces), pa.array(first)
    known = [column(labels, name).take(chosen) for name in (EVENT_TIME, label)]
    names = [*events.schema.names, LABEL_TIME, label]
    return pa.RecordBatch.from_arrays([*events.columns, *known], names=names), faults, tuple(marked)


def _hashes(ids: pa.Array) -> Int64:
    return np.asarray(hash_keys(ids).view(np.int64))
