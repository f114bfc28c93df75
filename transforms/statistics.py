"""WatchQuality: score rows to a statistics record and a verdict for each window of event time.

Batches are summed up where they are, each into one part a window; the parts of a project come together under one
key, in the order of the windows' ends, because a verdict also looks at the window before.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.coders import BytesCoder, TupleCoder, VarIntCoder
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import Timestamp

from models.batches import Keys, as_int64, column, hash_keys, is_provisional, take_rows
from models.project.project import Project
from models.quality.judge import Memory
from models.quality.records import Verdict, WindowStatistics
from models.quality.sampling import HASH, ID, TIME, least
from models.quality.windows import BASELINE_ROWS, Part, WindowJudge, add_parts, baseline_of
from models.record import BUNDLE_ID, DECISION, SCORE
from transforms.batches import RecordBatchCoder, timestamp_of

VERDICTS = "verdicts"

# The steps before hand a slice on some milliseconds after its end, one for each step that waits.
AFTER_SLICES_US = 20_000
# So many parts of open windows are added up into one a window.
MAX_PARTS = 128

_Part = tuple[int, bytes, pa.RecordBatch]


class JsonCoder(beam.coders.Coder):  # type: ignore[misc]
    """Records of a class with `to_json` and `from_json`; equal records are equal bytes."""

    def __init__(self, kind: Any) -> None:
        self._kind = kind

    def encode(self, value: Any) -> bytes:
        """Canonical JSON."""
        return str(value.to_json()).encode()

    def decode(self, encoded: bytes) -> Any:
        """The record."""
        return self._kind.from_json(encoded)

    def is_deterministic(self) -> bool:
        """Yes."""
        return True

    @classmethod
    def from_type_hint(cls, typehint: Any, registry: Any) -> JsonCoder:
        """The coder of a class."""
        return cls(typehint)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, JsonCoder) and self._kind == other._kind

    def __hash__(self) -> int:
        return hash(self._kind)


beam.coders.registry.register_coder(WindowStatistics, JsonCoder)
beam.coders.registry.register_coder(Verdict, JsonCoder)


@dataclasses.dataclass(eq=False)
class WatchQuality(beam.PTransform):  # type: ignore[misc]
    """Batches of score rows → WindowStatistics, and on the output `verdicts` a Verdict, for each window with rows.

    `boundary_us`: every multiple of it is an end of a slice, so that all rows up to it are there once the watermark
    has passed it: the slices' length over files, the window's length over a stream that cuts its slices there.
    Rows of a window that was judged already are counted as late in the next one, and looked at no further.
    """

    judge: WindowJudge
    boundary_us: int

    def expand(self, pcoll: beam.PCollection) -> beam.DoOutputsTuple:
        """Main output: statistics; output `verdicts`; both in the order of the windows."""
        part = tuple[int, tuple[int, bytes, pa.RecordBatch]]
        return (
            pcoll
            | "Sum up" >> beam.FlatMap(_sum_up, self.judge.project).with_output_types(part)
            | "Regroup" >> beam.Reshuffle().with_output_types(part)
            | "Judge"
            >> beam.ParDo(_Judge(self.judge, self.boundary_us))
            .with_output_types(WindowStatistics, verdicts=Verdict)
            .with_outputs(VERDICTS, main="statistics")
        )


def _sum_up(batch: pa.RecordBatch, project: Project) -> Iterator[tuple[int, _Part]]:
    for end_us, part in sum_up(batch, project):
        yield 0, (end_us, _to_bytes(part), part.sample)


def window_end(time_us: Any, window_us: int) -> Any:
    """The end of the window [start, end) that a time, or each of an array, lies in."""
    return (time_us // window_us + 1) * window_us


def due_us(end_us: Any, boundary_us: int) -> Any:
    """When all rows of a window that ends at `end_us`, or of each of an array, are there."""
    return -(-end_us // boundary_us) * boundary_us + AFTER_SLICES_US


def sum_up(batch: pa.RecordBatch, project: Project) -> Iterator[tuple[int, Part]]:
    """For each window that has rows in a batch of score rows, its end and the part that they are.

    Provisional rows are left out: they come once more when the watermark has passed them.
    """
    assert project.quality is not None
    if not batch.num_rows or is_provisional(batch):
        return
    ends = window_end(as_int64(column(batch, project.event.time)), project.quality.window)
    yield from _parts(batch, ends, project, project.quality.sample)


def make_baseline(rows: Iterable[pa.RecordBatch], project: Project) -> bytes:
    """A baseline file of score rows in any order and split; BaselineError if there are none."""
    parts, times = [], []
    for batch in rows:
        if batch.num_rows:
            parts += [part for _, part in _parts(batch, np.zeros(batch.num_rows, np.int64), project, BASELINE_ROWS)]
            event_times = as_int64(column(batch, project.event.time))
            times += [int(event_times.min()), int(event_times.max())]
    return baseline_of(parts, min(times, default=0), max(times, default=0) + 1, project)


def _parts(batch: pa.RecordBatch, ends: Keys, project: Project, size: int) -> Iterator[tuple[int, Part]]:
    if (np.diff(ends) < 0).any():
        order = np.argsort(ends, kind="stable")
        batch, ends = take_rows(batch, order), ends[order]
    starts = np.concatenate([[0], np.flatnonzero(np.diff(ends)) + 1])
    watched = {name: column(batch, name) for name in (*project.watched_columns, SCORE)}
    counts = {"rows": np.diff(np.append(starts, len(ends)))}
    counts |= {f"decision.{band.action}": np.zeros(len(starts), np.int64) for band in project.decisions}
    counts |= {name: np.add.reduceat(flags, starts, dtype=np.int64) for name, flags in _flags(batch, watched, project)}
    for kind, name in (("decision", DECISION), ("bundle", BUNDLE_ID)):
        if name in batch.schema.names:
            counts |= _value_counts(kind, column(batch, name), starts)
    ids, times = column(batch, project.event.id), column(batch, project.event.time)
    hashes = hash_keys(ids)
    for place, (start, stop) in enumerate(itertools.pairwise([*starts.tolist(), len(ends)])):
        rows = least(hashes[start:stop], size) + start
        indices = pa.array(rows)
        columns = {HASH: pa.array(hashes[rows]), ID: ids.take(indices), TIME: times.take(indices)}
        columns |= {name: values.take(indices) for name, values in watched.items()}
        sample = pa.RecordBatch.from_arrays([_plain(values) for values in columns.values()], names=list(columns))
        yield int(ends[start]), Part({name: int(values[place]) for name, values in counts.items()}, sample)


def _plain(values: pa.Array) -> pa.Array:
    return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values


def _flags(batch: pa.RecordBatch, watched: dict[str, pa.Array], project: Project) -> Iterator[tuple[str, Keys]]:
    """Yes or no for each row: a column without a finite value, an entity that was not seen before."""
    for name, values in watched.items():
        if pa.types.is_floating(values.type):
            yield f"null.{name}", ~np.isfinite(values.to_numpy(zero_copy_only=False))
        elif values.null_count:
            yield f"null.{name}", values.is_null().to_numpy(zero_copy_only=False)
        else:
            yield f"null.{name}", np.zeros(len(values), bool)
    for entity, (name, most) in unseen_features(project).items():
        yield f"unseen.{entity}", column(batch, name).to_numpy(zero_copy_only=False) <= most


def unseen_features(project: Project) -> dict[str, tuple[str, int]]:
    """By entity, the count over its longest window, and what it is at most for an entity not seen in it before."""
    found: dict[str, tuple[str, int]] = {}
    counts = [feature for feature in project.rolling_features if feature.aggregate == "count"]
    for feature in sorted(counts, key=lambda feature: (feature.window_us, -feature.delay_us)):
        found[feature.entity] = (feature.name, int(feature.include_current and not feature.delay_us))
    return found


def _value_counts(kind: str, values: pa.Array, starts: Keys) -> dict[str, Keys]:
    """The rows with each value between one start and the next."""
    encoded = values if pa.types.is_dictionary(values.type) else values.dictionary_encode()
    indices = encoded.indices.to_numpy(zero_copy_only=False)
    found: dict[str, Keys] = {}
    for place, name in enumerate(encoded.dictionary.to_pylist()):
        counted = np.add.reduceat(indices == place, starts, dtype=np.int64)
        found[f"{kind}.{name}"] = found.get(f"{kind}.{name}", 0) + counted
    return found


def _to_bytes(part: Part) -> bytes:
    return json.dumps(part.counters).encode()


@dataclasses.dataclass
class _Progress:
    """The small part of the state; times are in microseconds."""

    timer_us: int | None = None
    parts: int = 0  # that were added since they were last added up
    judged_us: int | None = None  # the end of the last window that was judged
    late: int = 0  # rows that came for windows judged already, since then

    @staticmethod
    def from_bytes(data: bytes | None) -> _Progress:
        return _Progress(**json.loads(data)) if data else _Progress()

    def to_bytes(self) -> bytes:
        return json.dumps(dataclasses.asdict(self)).encode()


class _Judge(beam.DoFn):  # type: ignore[misc]
    PARTS = BagStateSpec("parts", TupleCoder((VarIntCoder(), BytesCoder(), RecordBatchCoder())))
    PROGRESS = ReadModifyWriteStateSpec("progress", BytesCoder())
    MEMORY = ReadModifyWriteStateSpec("memory", JsonCoder(Memory))
    RELEASE = TimerSpec("release", TimeDomain.WATERMARK)

    def __init__(self, judge: WindowJudge, boundary_us: int) -> None:
        self._judge = judge
        self._boundary_us = boundary_us

    def process(
        self,
        element: tuple[int, _Part],
        parts: Any = beam.DoFn.StateParam(PARTS),
        progress_state: Any = beam.DoFn.StateParam(PROGRESS),
        release: Any = beam.DoFn.TimerParam(RELEASE),
    ) -> None:
        end_us, counters, _ = element[1]
        progress = _Progress.from_bytes(progress_state.read())
        if progress.judged_us is not None and end_us <= progress.judged_us:
            progress.late += json.loads(counters)["rows"]
            progress_state.write(progress.to_bytes())
            return
        parts.add(element[1])
        progress.parts += 1
        if progress.parts > MAX_PARTS:
            added = self._add_up(parts)
            parts.clear()
            for end, part in added.items():
                parts.add((end, _to_bytes(part), part.sample))
            progress.parts = 0
        due = due_us(end_us, self._boundary_us)
        if progress.timer_us is None or due < progress.timer_us:
            progress.timer_us = due
            release.set(timestamp_of(due))
        progress_state.write(progress.to_bytes())

    @on_timer(RELEASE)  # type: ignore[untyped-decorator]
    def release(
        self,
        fired: Timestamp = beam.DoFn.TimestampParam,
        parts: Any = beam.DoFn.StateParam(PARTS),
        progress_state: Any = beam.DoFn.StateParam(PROGRESS),
        memory_state: Any = beam.DoFn.StateParam(MEMORY),
        release: Any = beam.DoFn.TimerParam(RELEASE),
    ) -> Iterator[Any]:
        progress = _Progress.from_bytes(progress_state.read())
        memory = memory_state.read() or Memory()
        added = self._add_up(parts)
        dues = {end: due_us(end, self._boundary_us) for end in sorted(added)}
        for end, due in dues.items():
            if due <= fired.micros:
                statistics, verdict, memory = self._judge.advance(added.pop(end), end, progress.late, memory)
                progress.judged_us, progress.late = end, 0
                yield TimestampedValue(statistics, timestamp_of(due))
                yield TaggedOutput(VERDICTS, TimestampedValue(verdict, timestamp_of(due)))
        parts.clear()
        for end, part in added.items():
            parts.add((end, _to_bytes(part), part.sample))
        progress.parts = 0
        progress.timer_us = min((dues[end] for end in added), default=None)
        if progress.timer_us is not None:
            release.set(timestamp_of(progress.timer_us))
        memory_state.write(memory)
        progress_state.write(progress.to_bytes())

    def _add_up(self, parts: Any) -> dict[int, Part]:
        """All parts of the state by the end of their window, one for each."""
        found: dict[int, list[Part]] = {}
        for end_us, counters, sample in parts.read():
            found.setdefault(end_us, []).append(Part(json.loads(counters), sample))
        quality = self._judge.project.quality
        assert quality is not None
        return {end: add_parts(some, quality.sample) for end, some in found.items()}
