"""What a step that holds knows at a moment, as batches that can be kept, and given to the step of another run.

A part of a shard's state is a batch whose metadata says under `STATE` which it is: rows of the history (`log`), a batch
that waits for its slice (`waiting`), or the small values (`shard`, a batch with their JSON as its one value). Times are
those of slices, in microseconds since 1970 UTC.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from models.batches import as_dictionary
from models.record import STATE
from models.steps import S, Shard

Int64 = np.ndarray[Any, np.dtype[np.int64]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]

# A source, and the first and the last event time in it, in microseconds since 1970 UTC.
SourceSpan = tuple[str, tuple[int, int]]
TOO_LATE = "later than --lateness allows"
BEFORE_STATE = "earlier than the state that the stream started from"


@dataclasses.dataclass(frozen=True)
class Resume:
    """How a run over files goes on from a state of `from_us`, None if there is none, in microseconds since 1970 UTC.

    Of the sources `known`, what is earlier than that is in the state, and of those that are `told` what has no time was
    written by earlier runs. Others may be as early as `oldest_us`; `why_late` says what is wrong with those before it.
    """

    from_us: int | None = None
    known: frozenset[str] = frozenset()
    told: frozenset[str] = frozenset()
    oldest_us: int | None = None
    why_late: str = TOO_LATE

    def is_known(self, sources: pa.Array, times_us: Int64) -> Bools:
        """Which rows are in the state, by their sources, a column of texts, and times int64[n], bool[n]."""
        if self.from_us is None or not self.known:
            return np.zeros(len(times_us), bool)
        return _is_one_of(sources, self.known) & (times_us < self.from_us)

    def is_told(self, sources: pa.Array) -> Bools:
        """Of which rows, by their sources, nothing is news if they have no time, bool[n]."""
        return _is_one_of(sources, self.told)

    def is_too_late(self, times_us: Int64) -> Bools:
        """Which rows, that are not in the state, no state is old enough for, bool[n]."""
        return np.zeros(len(times_us), bool) if self.oldest_us is None else times_us < self.oldest_us


def spans_of(sources: pa.Array, times_us: Int64) -> Iterator[SourceSpan]:
    """The span of each source in a batch, by columns of both."""
    encoded = as_dictionary(sources)
    codes = encoded.indices.to_numpy()
    for code, source in enumerate(encoded.dictionary.to_pylist()):
        times = times_us if len(encoded.dictionary) == 1 else times_us[codes == code]
        if len(times):
            yield source, (int(times.min()), int(times.max()))


def _is_one_of(values: pa.Array, known: frozenset[str]) -> Bools:
    encoded = as_dictionary(values)
    found = np.array([value in known for value in encoded.dictionary.to_pylist()], bool)
    return np.full(len(values), found[0]) if len(found) == 1 else found[encoded.indices.to_numpy()]


# Fields of a shard that are of one process alone.
_OWN = {field.name for field in dataclasses.fields(Shard)}


@dataclasses.dataclass(frozen=True)
class Part:
    """Which part a batch is: of the step `name` at `at_us`, number `number` of the shard `shard` of that run."""

    name: str
    at_us: int
    kind: Literal["log", "waiting", "shard"]
    shard: int
    number: int
    due_us: int = 0  # the end of the slice that is waited for

    def on(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The batch with this said of it."""
        said = json.dumps(dataclasses.asdict(self), sort_keys=True).encode()
        return batch.replace_schema_metadata({**(batch.schema.metadata or {}), STATE: said})


def is_part(batch: pa.RecordBatch) -> bool:
    """Whether a batch is a part of a state."""
    return STATE in (batch.schema.metadata or {})


def part_of(batch: pa.RecordBatch) -> Part | None:
    """Which part of a state a batch is, if it is one."""
    said = (batch.schema.metadata or {}).get(STATE)
    return None if said is None else Part(**json.loads(said))


def bare(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch as the step had it."""
    told: Mapping[bytes, Any] = {key: value for key, value in batch.schema.metadata.items() if key != STATE}
    return batch.replace_schema_metadata(told or None)


def values_of(shard: Shard) -> pa.RecordBatch:
    """The small values of a shard that its step put there, as a batch."""
    said = {name: value for name, value in shard.values().items() if name not in _OWN}
    return pa.RecordBatch.from_arrays([pa.array([json.dumps(said, sort_keys=True)])], names=["shard"])


def take_values(shard: S, batch: pa.RecordBatch) -> None:
    """Give a shard the values of `values_of`; of numbers that it has already, the larger ones."""
    for name, value in json.loads(batch.column(0)[0].as_py()).items():
        before = getattr(shard, name)
        both = isinstance(value, int) and isinstance(before, int)
        setattr(shard, name, max(before, value) if both else before if value is None else value)
