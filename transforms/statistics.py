"""WatchQuality: score rows to a statistics record and a verdict for each window of event time.

Batches are summed up where they are, each into one part a window; the parts of a project come together under one
key, in the order of the windows' ends, because a verdict also looks at the window before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import TaggedOutput

from models.metrics import CIRCUIT, CIRCUIT_CHANGES
from models.metrics import VERDICTS as VERDICTS_TOLD
from models.quality.circuit import LEVELS
from models.quality.judge import Memory
from models.quality.parts import batch_to_part, due_end, end_of, part_to_batch, sum_up
from models.quality.records import Verdict, WindowStatistics
from models.quality.window_statistics import WindowJudge, add_parts
from models.steps import Log, Shard, Step
from transforms.metrics import count, gauge
from transforms.slices import Hold
from transforms.state import States

VERDICTS = "verdicts"

# So many parts of open windows are added up into one a window.
MAX_PARTS = 128


class JsonCoder(beam.coders.Coder):
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
class WatchQuality(beam.PTransform[beam.PCollection[pa.RecordBatch], beam.pvalue.DoOutputsTuple]):
    """Batches of score rows → WindowStatistics, and on the output `verdicts` a Verdict, for each window with rows.

    `boundary_us`: every multiple of it is an end of a slice, so that all rows up to it are there once the watermark
    has passed it: the slices' length over files, the window's length over a stream that cuts its slices there.
    Rows of a window that was judged already are counted as late in the next one, and looked at no further.
    """

    judge: WindowJudge
    boundary_us: int
    states: States | None = None  # open windows are kept as `statistics`

    def expand(self, pcoll: beam.PCollection) -> beam.pvalue.DoOutputsTuple:
        """Main output: statistics; output `verdicts`; both in the order of the windows."""
        hold = Hold(
            _Judge(self.judge),
            {"rows": self._route},
            WindowStatistics,
            tagged={VERDICTS: Verdict},
            main="statistics",
            states=self.states,
            name="statistics",
        )
        return {"rows": pcoll} | "Hold" >> hold

    def _route(self, batch: pa.RecordBatch) -> Iterator[tuple[int, int, pa.RecordBatch]]:
        for end_us, part in sum_up(batch, self.judge.project):
            yield 0, due_end(end_us, self.boundary_us), part_to_batch(end_us, part)


@dataclasses.dataclass
class _Judged(Shard):
    judged_us: int | None = None  # the end of the last window that was judged
    late: int = 0  # rows that came for windows judged already, since then
    memory: Memory | str = dataclasses.field(default_factory=Memory)  # JSON where it comes of bytes, until it is needed

    def values(self) -> dict[str, Any]:
        """The fields by name, the memory as JSON."""
        return {**vars(self), "memory": self.memory if isinstance(self.memory, str) else self.memory.to_json()}

    def recalled(self) -> Memory:
        """The memory as it is."""
        return Memory.from_json(self.memory) if isinstance(self.memory, str) else self.memory


class _Judge(Step[_Judged]):
    """One window after another: a kind of part is a window."""

    shard = _Judged

    def __init__(self, judge: WindowJudge) -> None:
        assert judge.project.quality is not None
        self.join_after = MAX_PARTS
        self._judge = judge
        self._sample = judge.project.quality.sample

    def kind_of(self, batch: pa.RecordBatch) -> int:
        """The end of the window."""
        return end_of(batch)

    def join(self, batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
        """The sum."""
        return part_to_batch(end_of(batches[0]), add_parts(list(map(batch_to_part, batches)), self._sample))

    def advance(self, batch: pa.RecordBatch, due_us: int, memory: None, log: Log[_Judged]) -> Iterator[Any]:
        """The statistics and the verdict; of a window that was judged already, nothing."""
        end_us, part, state = end_of(batch), batch_to_part(batch), log.shard
        if state.judged_us is not None and end_us <= state.judged_us:
            state.late += part.counters["rows"]
            return
        statistics, verdict, state.memory = self._judge.advance(part, end_us, state.late, state.recalled())
        state.judged_us, state.late = end_us, 0
        count(VERDICTS_TOLD, 1, status=verdict.status)
        if verdict.circuit is not None:
            gauge(CIRCUIT, LEVELS[verdict.circuit.state])
            count(CIRCUIT_CHANGES, int(verdict.circuit.from_us == end_us), to=verdict.circuit.state)
        yield statistics
        yield TaggedOutput(VERDICTS, verdict)
