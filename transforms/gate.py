"""Gate: what a verdict does to score rows, as the project declares: warn, quarantine or stop.

Every row gets the column `verdict_id`. Rows wait until the watermark says that the verdict they need is there, so
it is the same whatever comes first, in batch and in stream.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import TaggedOutput

from models.batches import Keys, column, partition, shard_of
from models.metrics import FALLEN_BACK
from models.project.declarations import Project
from models.quality.circuit import Circuit
from models.quality.gate import Known, OnStop, QualityStop, Verdicts, apply_verdicts, gate_ends, still_needed
from models.quality.parts import due_end
from models.quality.records import Verdict, batch_to_verdicts, verdict_to_batch
from models.quality.window_statistics import WindowJudge
from models.rollout.instead import Change, fall_back
from models.steps import Log, Shard, Step
from transforms.metrics import count
from transforms.slices import Hold
from transforms.state import States
from transforms.statistics import WatchQuality

QUARANTINE = "quarantine"


@dataclasses.dataclass(eq=False)
class Gate(beam.PTransform[dict[str, beam.PCollection], beam.pvalue.DoOutputsTuple]):
    """{"rows": score rows, "verdicts": Verdicts} → score rows with `verdict_id`; output `quarantine`: held rows.

    With the gate `warn` or `stop`, a row carries the id of the last verdict on a window that had ended by its event
    time, "" if there is none. With `quarantine` it waits for the verdict on its own window, up to that window's length.
    With `stop` and `on_stop` "fail", an alarm raises QualityStop. With "fallback", rows after an alarm get the safe
    action until windows are ok again, and what the model decided is in `shadow_decision`, else null there.
    Where a circuit breaker is declared, rows fall back as models.rollout.instead says, in any mode.
    `boundary_us` is that of WatchQuality.
    """

    project: Project
    boundary_us: int
    on_stop: OnStop = "fail"
    shards: int = 1
    states: States | None = None  # the verdicts that rows may need are kept as `gate`
    noted: tuple[Circuit, ...] = ()  # as of WindowJudge

    def expand(self, pcolls: dict[str, beam.PCollection]) -> beam.pvalue.DoOutputsTuple:
        """Main output: rows that may be published; output `quarantine`: rows of bad windows, with their verdict."""
        routes = {"rows": self._route_rows, "verdicts": self._route_verdict}
        step = _Gate(self.project, self.boundary_us, self.on_stop, self.noted)
        tagged = {QUARANTINE: pa.RecordBatch}
        hold = Hold(step, routes, tagged=tagged, states=self.states, name="gate", shards=self.shards)
        return pcolls | "Hold" >> hold

    def _route_rows(self, batch: pa.RecordBatch) -> Iterator[tuple[int, int, pa.RecordBatch]]:
        for shard, rows in partition(batch, shard_of(column(batch, self.project.event.id), self.shards)):
            for end_us, some in partition(rows, due_end(gate_ends(rows, self.project), self.boundary_us)):
                yield shard, end_us, some

    def _route_verdict(self, verdict: Verdict) -> Iterator[tuple[int, None, pa.RecordBatch]]:
        for shard in range(self.shards):
            yield shard, None, verdict_to_batch(verdict)


@dataclasses.dataclass(eq=False)
class WatchScores(beam.PTransform[dict[str, beam.PCollection], dict[str, beam.PCollection]]):
    """{"scored": rows as they were scored, "rows": rows as they are to go out} → what there is to write.

    That is by name: `scores`, rows that passed the gate; `quarantine`, rows that it holds back; `statistics` and
    `verdicts`, a record for each window. `boundary_us` and `on_stop` as in WatchQuality and Gate.
    """

    judge: WindowJudge
    boundary_us: int
    on_stop: OnStop = "fail"
    shards: int = 1
    states: States | None = None

    def expand(self, pcolls: dict[str, beam.PCollection]) -> dict[str, beam.PCollection]:
        """A dictionary of PCollections."""
        watched = pcolls["scored"] | "Judge windows" >> WatchQuality(self.judge, self.boundary_us, self.states)
        ends = (self.boundary_us, self.on_stop, self.shards, self.states)
        gate = Gate(self.judge.project, *ends, self.judge.noted)
        gated = {"rows": pcolls["rows"], "verdicts": watched.verdicts} | "Gate" >> gate
        records = {"statistics": watched.statistics, "verdicts": watched.verdicts}
        return {"scores": gated.rows, "quarantine": gated.quarantine, **records}


@dataclasses.dataclass
class _Known(Shard):
    verdicts: list[Known] = dataclasses.field(default_factory=list)
    circuits: list[Change] = dataclasses.field(default_factory=list)


class _Gate(Step[_Known]):
    """Of what is due at one time, verdicts first; then the rows that needed them."""

    shard = _Known

    def __init__(self, project: Project, boundary_us: int, on_stop: OnStop, noted: Sequence[Circuit] = ()) -> None:
        assert project.quality is not None
        self._project, self._quality = project, project.quality
        self._boundary_us = boundary_us
        self._on_stop = on_stop
        self._noted = [Change(each.from_us or 0, each.state, each.since_us) for each in noted]

    def places(self, segment: pa.RecordBatch, shards: int) -> Keys:
        """By the event's id."""
        return shard_of(column(segment, self._project.event.id), shards)

    def kind_of(self, batch: pa.RecordBatch) -> int:
        """Rows have an id."""
        return int(self._project.event.id in batch.schema.names)

    def advance(self, batch: pa.RecordBatch, due_us: int, memory: None, log: Log[_Known]) -> Iterator[Any]:
        """The rows that may go on, and those that are held back; of verdicts nothing."""
        if self.kind_of(batch):
            passed, held = apply_verdicts(batch, Verdicts.of(log.shard.verdicts), self._project, self._on_stop)
            if passed is not None and self._project.breaker is not None:
                changes = list(map(Change._make, log.shard.circuits)) if log.shard.verdicts else self._noted
                passed, fallen = fall_back(passed, changes, self._project)
                for to, rows in fallen.items():
                    count(FALLEN_BACK, rows, to=to)
            if passed is not None:
                yield passed
            if held is not None:
                yield TaggedOutput(QUARANTINE, held)
            return
        known: list[Known] = [(end, name, alarm, is_open) for end, name, alarm, is_open in log.shard.verdicts]
        for verdict in batch_to_verdicts(batch):
            alarm = verdict.status == "alarm"
            if alarm and self._quality.gate == "stop" and self._on_stop == "fail":
                raise QualityStop(verdict)
            known.append((verdict.window_end_us, verdict.verdict_id, alarm, verdict.circuit_open))
            if (circuit := verdict.circuit) is not None:
                if not known[1:]:
                    log.shard.circuits = [each for each in self._noted if each.at_us < verdict.window_end_us]
                change = Change(verdict.window_end_us, circuit.state, circuit.since_us)
                if not log.shard.circuits or tuple(log.shard.circuits[-1][1:]) != change[1:]:
                    log.shard.circuits.append(change)
        # Rows may still come in time for those of two windows and slices.
        oldest_us = due_us - 2 * (self._boundary_us + self._quality.window)
        log.shard.verdicts = still_needed(known, oldest_us)
        first = sum(change[0] <= oldest_us for change in log.shard.circuits[1:])
        log.shard.circuits = log.shard.circuits[first:]
