"""Gate: what a verdict does to score rows, as the project declares: warn, quarantine or stop.

Every row gets the column `verdict_id`. Rows wait until the watermark says that the verdict they need is there, so
it is the same whatever comes first, in batch and in stream.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any, Literal

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.coders import BytesCoder, TupleCoder, VarIntCoder
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import MIN_TIMESTAMP, Timestamp

from models.batches import Keys, as_int64, column, partition, shard_of, take_rows
from models.errors import HeadraceError
from models.project.project import Project
from models.quality.records import Verdict
from models.quality.windows import WindowJudge
from models.record import DECISION, SHADOW_DECISION, VERDICT_ID
from transforms.batches import RecordBatchCoder, timestamp_of
from transforms.statistics import WatchQuality, due_us, window_end

QUARANTINE = "quarantine"
# A verdict comes with the time at which its window was due; some milliseconds later it is there.
AFTER_VERDICT_US = 5_000

OnStop = Literal["fail", "fallback"]


class QualityStop(HeadraceError, RuntimeError):
    """The gate is declared to stop, and a window is bad: nothing may be published."""

    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict
        texts = "; ".join(finding.text for finding in verdict.findings[:5])
        more = len(verdict.findings) - 5
        start, end = (timestamp_of(time).to_rfc3339() for time in (verdict.window_start_us, verdict.window_end_us))
        super().__init__(
            f"the gate stops: the window from {start} to {end} is bad (verdict {verdict.verdict_id}): {texts}"
            + (f"; and {more} more" if more > 0 else "")
            + ". Nothing was published. Mend the data or its baseline, or declare another quality.gate."
        )


@dataclasses.dataclass(eq=False)
class Gate(beam.PTransform):  # type: ignore[misc]
    """{"rows": score rows, "verdicts": Verdicts} → score rows with `verdict_id`; output `quarantine`: held rows.

    With the gate `warn` or `stop`, a row carries the id of the last verdict on a window that had ended by its event
    time, "" if there is none. With `quarantine` it waits for the verdict on its own window, up to that window's length.
    With `stop` and `on_stop` "fail", an alarm raises QualityStop. With "fallback", rows after an alarm get the safe
    action until windows are ok again, and what the model decided is in `shadow_decision`, else null there.
    `boundary_us` is that of WatchQuality.
    """

    project: Project
    boundary_us: int
    on_stop: OnStop = "fail"
    shards: int = 1

    def expand(self, pcolls: dict[str, beam.PCollection]) -> beam.DoOutputsTuple:
        """Main output: rows that may be published; output `quarantine`: rows of bad windows, with their verdict."""
        item = tuple[int, tuple[bytes, pa.RecordBatch]]
        rows = pcolls["rows"] | "Route rows" >> beam.FlatMap(self._route_rows).with_output_types(item)
        verdicts = pcolls["verdicts"] | "Route verdicts" >> beam.FlatMap(self._route_verdict).with_output_types(item)
        return (
            (rows, verdicts)
            | "Join" >> beam.Flatten().with_output_types(item)
            | "Regroup" >> beam.Reshuffle().with_output_types(item)
            | "Hold"
            >> beam.ParDo(_Hold(self.project, self.boundary_us, self.on_stop))
            .with_output_types(pa.RecordBatch, quarantine=pa.RecordBatch)
            .with_outputs(QUARANTINE, main="rows")
        )

    def _route_rows(self, batch: pa.RecordBatch) -> Iterator[tuple[int, tuple[bytes, pa.RecordBatch]]]:
        for shard, rows in partition(batch, shard_of(column(batch, self.project.event.id), self.shards)):
            yield shard, (b"", rows)

    def _route_verdict(self, verdict: Verdict) -> Iterator[tuple[int, tuple[bytes, pa.RecordBatch]]]:
        for shard in range(self.shards):
            yield shard, (verdict.to_json().encode(), _NO_ROWS)


@dataclasses.dataclass(eq=False)
class WatchScores(beam.PTransform):  # type: ignore[misc]
    """{"scored": rows as they were scored, "rows": rows as they are to go out} → what there is to write.

    That is by name: `scores`, rows that passed the gate; `quarantine`, rows that it holds back; `statistics` and
    `verdicts`, a record for each window. `boundary_us` and `on_stop` as in WatchQuality and Gate.
    """

    judge: WindowJudge
    boundary_us: int
    on_stop: OnStop = "fail"
    shards: int = 1

    def expand(self, pcolls: dict[str, beam.PCollection]) -> dict[str, beam.PCollection]:
        """A dictionary of PCollections."""
        watched = pcolls["scored"] | "Judge windows" >> WatchQuality(self.judge, self.boundary_us)
        gate = Gate(self.judge.project, self.boundary_us, self.on_stop, self.shards)
        gated = {"rows": pcolls["rows"], "verdicts": watched.verdicts} | "Gate" >> gate
        records = {"statistics": watched.statistics, "verdicts": watched.verdicts}
        return {"scores": gated.rows, "quarantine": gated.quarantine, **records}


_NO_ROWS = pa.RecordBatch.from_arrays([pa.array([], pa.int64())], names=["none"])


@dataclasses.dataclass(frozen=True)
class Verdicts:
    """What a gate needs of the verdicts so far: [n] arrays in the order of the windows' ends."""

    ends: Keys
    ids: list[str]
    alarm: np.ndarray[Any, np.dtype[np.bool_]]
    circuit_open: np.ndarray[Any, np.dtype[np.bool_]]

    @staticmethod
    def of(items: list[tuple[int, str, bool, bool]]) -> Verdicts:
        """From (window end, id, whether alarming, whether the circuit is open)."""
        items = sorted(items)
        return Verdicts(
            np.array([item[0] for item in items], np.int64),
            [item[1] for item in items],
            np.array([item[2] for item in items], bool),
            np.array([item[3] for item in items], bool),
        )


def apply_verdicts(
    batch: pa.RecordBatch, verdicts: Verdicts, project: Project, on_stop: OnStop
) -> tuple[pa.RecordBatch | None, pa.RecordBatch | None]:
    """The rows that may go on, with their verdict, and those that are to be held back; None for no rows."""
    quality = project.quality
    assert quality is not None
    times = as_int64(column(batch, project.event.time))
    if quality.gate == "quarantine":
        ends = window_end(times, quality.window)
        places = np.searchsorted(verdicts.ends, ends, side="left")
        there = np.append(verdicts.ends, -1)[places] == ends
        places = np.where(there, places, -1)
    else:
        places = np.searchsorted(verdicts.ends, times, side="right") - 1
    result = _append(batch, VERDICT_ID, _ids(places, verdicts.ids))
    bad = np.append(verdicts.alarm, False)[places]
    if quality.gate == "quarantine" and bad.any():
        good = np.flatnonzero(~bad)
        return (take_rows(result, good) if len(good) else None), take_rows(result, np.flatnonzero(bad))
    if quality.gate == "stop" and on_stop == "fallback" and DECISION in batch.schema.names:
        result = _fall_back(result, np.append(verdicts.circuit_open, False)[places], str(quality.safe_action))
    return result, None


def _fall_back(batch: pa.RecordBatch, stopped: Keys, safe_action: str) -> pa.RecordBatch:
    decided = column(batch, DECISION)
    texts, mask = decided.cast(pa.string()), pa.array(stopped)
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    columns[DECISION] = pc.if_else(mask, safe_action, texts).dictionary_encode()
    columns[SHADOW_DECISION] = pc.if_else(mask, texts, pa.scalar(None, pa.string())).dictionary_encode()
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def _ids(places: Keys, ids: list[str]) -> pa.DictionaryArray:
    """The id at each place, "" at -1."""
    return pa.DictionaryArray.from_arrays(pa.array((places + 1).astype(np.int32)), pa.array(["", *ids], pa.string()))


def _append(batch: pa.RecordBatch, name: str, values: pa.Array) -> pa.RecordBatch:
    schema = batch.schema.append(pa.field(name, values.type))
    return pa.RecordBatch.from_arrays([*batch.columns, values], schema=schema)


@dataclasses.dataclass
class _Known:
    """The small part of the state; times are in microseconds."""

    passed_us: int = MIN_TIMESTAMP.micros  # all verdicts due by then are here
    timer_us: int | None = None
    verdicts: list[tuple[int, str, bool, bool]] = dataclasses.field(default_factory=list)  # see Verdicts.of

    @staticmethod
    def from_bytes(data: bytes | None) -> _Known:
        known = _Known(**json.loads(data)) if data else _Known()
        known.verdicts = [(end_us, name, alarm, is_open) for end_us, name, alarm, is_open in known.verdicts]
        return known

    def to_bytes(self) -> bytes:
        return json.dumps(dataclasses.asdict(self)).encode()


class _Hold(beam.DoFn):  # type: ignore[misc]
    # Of each batch when it is due, and when it came.
    ROWS = BagStateSpec("rows", TupleCoder((VarIntCoder(), VarIntCoder(), RecordBatchCoder())))
    KNOWN = ReadModifyWriteStateSpec("known", BytesCoder())
    RELEASE = TimerSpec("release", TimeDomain.WATERMARK)

    def __init__(self, project: Project, boundary_us: int, on_stop: OnStop) -> None:
        assert project.quality is not None
        self._project, self._quality = project, project.quality
        self._boundary_us = boundary_us
        self._on_stop = on_stop

    def process(
        self,
        element: tuple[int, tuple[bytes, pa.RecordBatch]],
        came: Timestamp = beam.DoFn.TimestampParam,
        rows: Any = beam.DoFn.StateParam(ROWS),
        known_state: Any = beam.DoFn.StateParam(KNOWN),
        release: Any = beam.DoFn.TimerParam(RELEASE),
    ) -> Iterator[Any]:
        said, batch = element[1]
        known = _Known.from_bytes(known_state.read())
        if said:
            verdict = Verdict.from_json(said)
            alarm = verdict.status == "alarm"
            if alarm and self._quality.gate == "stop" and self._on_stop == "fail":
                raise QualityStop(verdict)
            known.verdicts.append((verdict.window_end_us, verdict.verdict_id, alarm, verdict.circuit_open))
            known_state.write(known.to_bytes())
            return
        for due, some in partition(batch, self._dues(batch)):
            if due <= known.passed_us:
                yield from self._emit(some, Verdicts.of(known.verdicts), came.micros)
                continue
            rows.add((due, came.micros, some))
            if known.timer_us is None or due < known.timer_us:
                known.timer_us = due
                release.set(timestamp_of(due))
                known_state.write(known.to_bytes())

    def _dues(self, batch: pa.RecordBatch) -> Keys:
        """When the verdict on each row is there."""
        ends = window_end(as_int64(column(batch, self._project.event.time)), self._quality.window)
        if self._quality.gate != "quarantine":
            ends -= self._quality.window
        return np.asarray(due_us(ends, self._boundary_us) + AFTER_VERDICT_US)

    @on_timer(RELEASE)  # type: ignore[untyped-decorator]
    def release(
        self,
        fired: Timestamp = beam.DoFn.TimestampParam,
        rows: Any = beam.DoFn.StateParam(ROWS),
        known_state: Any = beam.DoFn.StateParam(KNOWN),
        release: Any = beam.DoFn.TimerParam(RELEASE),
    ) -> Iterator[Any]:
        known = _Known.from_bytes(known_state.read())
        known.passed_us = max(known.passed_us, fired.micros)
        verdicts = Verdicts.of(known.verdicts)
        held = list(rows.read())
        rows.clear()
        waiting = [item for item in held if item[0] > known.passed_us]
        for item in waiting:
            rows.add(item)
        for due, came_us, batch in held:
            if due <= known.passed_us:
                yield from self._emit(batch, verdicts, max(due, came_us))
        known.verdicts = self._needed(known.verdicts, known.passed_us)
        known.timer_us = min((due for due, _, _ in waiting), default=None)
        if known.timer_us is not None:
            release.set(timestamp_of(known.timer_us))
        known_state.write(known.to_bytes())

    def _emit(self, batch: pa.RecordBatch, verdicts: Verdicts, at_us: int) -> Iterator[Any]:
        passed, held = apply_verdicts(batch, verdicts, self._project, self._on_stop)
        if passed is not None:
            yield TimestampedValue(passed, timestamp_of(at_us))
        if held is not None:
            yield TaggedOutput(QUARANTINE, TimestampedValue(held, timestamp_of(at_us)))

    def _needed(self, verdicts: list[tuple[int, str, bool, bool]], now_us: int) -> list[tuple[int, str, bool, bool]]:
        """The last verdict, and those that rows may still come for in time."""
        oldest = now_us - 2 * (self._boundary_us + self._quality.window)
        ordered = sorted(verdicts)
        return [item for item in ordered[:-1] if item[0] >= oldest] + ordered[-1:]
