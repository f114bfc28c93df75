"""A spine: rows that ask for the features of their keys as of their times, and are no events themselves."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection

import numpy as np
import pyarrow as pa

from models.batches import as_batch, column
from models.codecs.columns import decode_rows
from models.derive import derive
from models.errors import HeadraceError
from models.faults import RowFaults
from models.features.expect import check_features
from models.features.row import with_features
from models.project.contract import check_event_time
from models.project.declarations import Project
from models.record import ASKED, EVENT_TIME, IS_HISTORY, MARKS, SYSTEM_FIELDS, RecordType


class SpineError(HeadraceError, ValueError):
    """A spine that has no time, no key, or values that are not of their fields' types."""


@dataclasses.dataclass(frozen=True)
class Answerable:
    """What a spine with the columns `given` can have of a project.

    `own` are the fields that are read of the spine or derived of it, `tables` those that its keys are looked up in,
    `windows` the entities with rolling features, `row` the row features. `names` are the columns that it gets, features
    after fields of tables and derived ones that models read or that go out. `lacking` has for each other feature the
    columns that the spine lacks for it.
    """

    project: Project
    given: frozenset[str]
    own: tuple[str, ...]
    tables: tuple[str, ...]
    windows: tuple[str, ...]
    row: tuple[str, ...]
    names: tuple[str, ...]
    lacking: dict[str, tuple[str, ...]]

    @property
    def records(self) -> RecordType:
        """The spine's rows, as far as they are read."""
        event, contract = self.project.event_type, self.project.contract
        fields = {name: contract.fields[name] for name in self.own}
        derived = {name: how for name, how in event.derived.items() if name in self.own and name not in self.given}
        return dataclasses.replace(event, contract=dataclasses.replace(contract, fields=fields), derived=derived)


def find_answerable(project: Project, given: Collection[str]) -> Answerable:
    """What a spine with the columns `given` can have; SpineError if that is nothing, or it has it already."""
    needs, time = _Needs(project, given), project.event.time
    if time not in needs.fields:
        raise SpineError(f"the spine has no column {time}, the time as of which its rows ask for features")
    read = {*project.model.inputs, *project.output}
    added = (name for name in (*project.derived_fields, *project.joined_fields) if name in read)
    beside = tuple(name for name in added if name in needs.fields and name not in given)
    features = tuple(name for name in project.feature_names if name in needs.fields)
    if not features:
        columns = ", ".join(dict.fromkeys(each for missing in needs.lacking.values() for each in missing))
        raise SpineError(f"the spine has no key of any feature: give it a column of {columns}")
    if there := [name for name in features if name in given]:
        raise SpineError(f"the spine has a column {there[0]} already, which it is to get: rename it, or leave it out")
    wanted = frozenset[str]().union(*(needs.fields[name] for name in (time, *beside, *features)))
    keys = {name: project.entities[table.entity] for name, table in project.tables.items()}
    return Answerable(
        project,
        frozenset(given),
        own=tuple(name for name in project.event_fields if name in wanted),
        tables=tuple(name for name, key in keys.items() if key in wanted),
        windows=tuple(dict.fromkeys(f.entity for f in project.rolling_features if f.name in features)),
        row=tuple(name for name in project.row_features if name in features),
        names=(*beside, *features),
        lacking=needs.lacking,
    )


class _Needs:
    """By the name of each field or feature that can be had the spine's fields that it takes; and what is lacking."""

    def __init__(self, project: Project, given: Collection[str]) -> None:
        self.lacking: dict[str, tuple[str, ...]] = {}
        self.fields = {name: frozenset([name]) for name in project.event_fields if name in given}
        for name, derived in project.derived_fields.items():
            if name not in given and not derived.reads_all:
                self._add(name, derived.names, name)
        for table in project.tables.values():
            for name in table.fields:
                self._add(name, [project.entities[table.entity]])
        for feature in project.rolling_features:
            self._add(feature.name, project.key_fields[feature.entity])
        for name, expression in project.row_features.items():
            self._add(name, sorted(expression.names))
        self.lacking = {name: self.lacking[name] for name in project.feature_names if name in self.lacking}

    def _add(self, name: str, reads: Collection[str], *own: str) -> None:
        missing = [m for each in reads if each not in self.fields for m in self.lacking.get(each, (each,))]
        if missing:
            self.lacking[name] = tuple(dict.fromkeys(missing))
        else:
            self.fields[name] = frozenset(own).union(*(self.fields[each] for each in reads))


def to_asked(spine: pa.Table, answerable: Answerable) -> pa.RecordBatch:
    """The rows of a spine, numbered, with the fields that are read; SpineError for values that can't be.

    A key may be missing, but no time, nor a field that the schema requires and a row feature reads.
    """
    records, project = answerable.records, answerable.project
    batch = as_batch(spine.select([name for name in spine.schema.names if name in records.read.fields]))
    faults = RowFaults(batch.num_rows)
    read = decode_rows(batch, records.read, False, faults)
    fields = derive(pa.RecordBatch.from_arrays(list(read.values()), names=list(read)), records)
    times = column(fields, records.time)
    check_event_time(times, records.time, records.earliest_us, records.latest_us, faults)
    needed = {records.time, *(name for row in answerable.row for name in project.row_features[row].names)}
    for name in sorted(needed.intersection(records.contract.fields)):
        if name == records.time or records.contract.fields[name].required:
            faults.add(np.flatnonzero(column(fields, name).is_null()), name, "missing")
    if faults.bad.any():
        reason = json.loads(faults.reasons()[0])[0]
        value = f": {reason['value']}" if reason["value"] else ""
        raise SpineError(
            f"{np.count_nonzero(faults.bad):,} of {batch.num_rows:,} rows of the spine can't be read; the first is row "
            f"{faults.rows[0]}, counted from 0: {reason['field']}: {reason['rule']}{value}"
        )
    own = [name for name in answerable.own if name != records.time]
    system = [SYSTEM_FIELDS[EVENT_TIME], SYSTEM_FIELDS[MARKS], pa.field(ASKED, pa.int64())]
    marks = np.full(batch.num_rows, IS_HISTORY, np.int8)
    arrays = [*(column(fields, name) for name in own), times, pa.array(marks), pa.array(np.arange(batch.num_rows))]
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema([*(fields.schema.field(name) for name in own), *system]))


def complete(batch: pa.RecordBatch, answerable: Answerable) -> pa.RecordBatch:
    """Of rows with their rolling features, their numbers and the columns that the spine gets.

    A feature that is not as expected has its fallback, if there is one; no row is refused.
    """
    project = answerable.project
    batch = with_features(batch, answerable.row, project)
    fallbacks = {n: e for n, e in project.expect.items() if e.otherwise == "fallback" and n in answerable.names}
    batch, _, _ = check_features(batch, project.model_copy(update={"expect": fallbacks}))
    return batch.select([ASKED, *answerable.names])
