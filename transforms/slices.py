"""The one hold: rows wait until the watermark says that what they need is there, and then go on, slice by slice.

A shard's batches are kept until the watermark has passed the end of their slice, so that all of it and all earlier
ones are there. What a step knows of the past is a few typed values and, if it needs more, a history: a log of segments,
of which a worker makes what the step wants and keeps that in memory.

Each step that holds has a phase, one more than the highest phase of its inputs, and hands a slice on so many
milliseconds after its end: so all that it makes of a slice is there before a step after it looks. It is milliseconds
because runners keep timers and timestamps to the millisecond.
"""

from __future__ import annotations

import bisect
import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.coders import BytesCoder, TupleCoder, VarIntCoder
from apache_beam.pvalue import PCollection, TaggedOutput
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import Timestamp

from models.batches import partition
from models.metrics import STATE
from models.state import Part, bare, is_part, part_of, take_values, values_of
from models.steps import SEGMENT_ROWS, Log, Shard, Step, pieces
from transforms.batches import LazyBatch, LazyBatchCoder, RecordBatchCoder, timestamp_of
from transforms.metrics import gauge
from transforms.state import KEPT, States

# So many rows go on at once: engines move and compress a few megabytes faster than hundreds.
OUTPUT_ROWS = 16384
# From one phase to the next: a watermark at a time may still have something of that time behind it, a millisecond
# later it has nothing.
PHASE_US = 1000
# A stream's watermark goes 50 ms past a slice's end and rests there until the next slice: all phases are over by then.
MAX_PHASE = 49
# So many slices wait where each release reads them; those after them are read once for so many releases.
NEAR_SLICES = 16
# The kind of parts of a state that was kept, and when they are due: before all else, in 1900. Like all times of timers
# it is of whole milliseconds: one that an engine cuts off fires before it is due, and sets itself again without end.
RESTORED, FIRST_US = -1, -2_208_988_800_000_000


# A shard, and when a batch is due there. What comes of a batch goes on no earlier than with the element's timestamp.
Held = tuple[int, tuple[int, LazyBatch]]
# Makes (shard, end of the slice whose end is waited for, or None for its own, batch) of an input's element.
Route = Callable[[Any], Iterable[tuple[int, Any, pa.RecordBatch]]]


class TooManySteps(ValueError):
    """More steps wait for one another than a slice has time for."""


@dataclasses.dataclass(eq=False)
class Hold(beam.PTransform):
    """PCollections by name, timestamped with the ends of their slices → what a step makes of them.

    `routes` has the route of each input, `output` the type of the main output, `tagged` the types of others by tag.
    With `states`, the step's state is kept, and starts from what was kept, under `name`, by any number of `shards`.
    """

    step: Step[Any]
    routes: Mapping[str, Route]
    output: Any = pa.RecordBatch
    tagged: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    main: str = "rows"
    states: States | None = None
    name: str = ""
    shards: int = 1

    def expand(self, inputs: Mapping[str, PCollection]) -> Any:
        """A PCollection, or with tags several; TooManySteps if a slice has no time for one more step."""
        phase = 1 + max(map(phase_of, inputs.values()))
        if phase > MAX_PHASE:
            raise TooManySteps(
                f"{phase} steps would wait for one another, and a slice has time for {MAX_PHASE}: "
                "declare rolling features over fewer entities"
            )
        routed = [
            pcoll
            | f"Route {name}" >> beam.FlatMap(_route, self.routes[name], phase_of(pcoll), phase).with_output_types(Held)
            for name, pcoll in inputs.items()
        ]
        states, tagged = self.states or States(), dict(self.tagged)
        if restored := states.restored.get(self.name):
            pipeline = next(iter(inputs.values())).pipeline
            give = beam.FlatMap(_restore, self.step, self.shards, phase).with_output_types(Held)
            routed.append(pipeline | "Restore" >> restored | "Give back" >> give)
        if states.at_us:
            tagged[KEPT] = pa.RecordBatch
        keep = Keep(self.name, tuple(at_us + phase * PHASE_US for at_us in states.at_us))
        advance = beam.ParDo(AdvanceSlices(self.step, phase, keep)).with_output_types(self.output, **tagged)
        advanced = (
            routed
            | "All" >> beam.Flatten()
            # Without this, in-process Beam fuses two stateful steps and loses what the first one's timer emits.
            | "Regroup" >> beam.Reshuffle().with_output_types(Held)
            | "Advance" >> (advance.with_outputs(*tagged, main=self.main) if tagged else advance)
        )
        if states.at_us:
            states.kept.append(advanced[KEPT])
        return advanced if self.tagged or not tagged else advanced[self.main]


def phase_of(pcoll: PCollection) -> int:
    """The phase of a PCollection: how many steps that hold stand one after another before it.

    ValueError where PCollections of different phases were flattened: their slices can't be told apart.
    """
    applied = pcoll.producer
    if applied is None:
        return 0
    fn = getattr(applied.transform, "fn", None)
    if isinstance(fn, AdvanceSlices):
        return fn.phase
    phases = set(map(phase_of, applied.inputs))
    if len(phases) > 1:
        raise ValueError(f"{applied.full_label}: has inputs of the phases {sorted(phases)}: each must go to the hold")
    return phases.pop() if phases else 0


def _route(
    element: Any, route: Route, phase: int, to_phase: int, at: Timestamp = beam.DoFn.TimestampParam
) -> Iterator[TimestampedValue]:
    after_us = to_phase * PHASE_US
    slice_end_us = _whole_ms(at.micros) - phase * PHASE_US
    for shard, end_us, batch in route(element):
        due_us = (slice_end_us if end_us is None else _whole_ms(end_us)) + after_us
        yield TimestampedValue((shard, (due_us, LazyBatch(batch))), timestamp_of(slice_end_us + after_us))


def _restore(batch: pa.RecordBatch, step: Step[Any], shards: int, phase: int) -> Iterator[TimestampedValue]:
    part = part_of(batch)
    assert part is not None
    after_us = phase * PHASE_US
    if part.kind == "shard":  # each takes what it needs of it
        held = [(shard, batch) for shard in range(shards)]
    else:
        held = list(partition(batch, step.places(batch, shards)))
    for shard, rows in held:
        waiting = part.kind == "waiting"
        due_us = part.due_us + after_us if waiting else FIRST_US
        value = shard, (due_us, LazyBatch(bare(rows) if waiting else rows))
        yield TimestampedValue(value, timestamp_of(_whole_ms(part.at_us) + after_us))


def _whole_ms(time_us: int) -> int:
    return -(-time_us // 1000) * 1000


@dataclasses.dataclass(frozen=True)
class Keep:
    """The name of a hold, and the times at which its state is kept: those of slices' ends, with the hold's phase."""

    name: str = ""
    at_us: tuple[int, ...] = ()

    def next_us(self, after_us: int | None) -> int | None:
        """The first of the times after one, or of all."""
        return next((at_us for at_us in self.at_us if after_us is None or at_us > after_us), None)


class AdvanceSlices(beam.DoFn):
    """(shard, (when it is due, batch)) → what the step makes of it, timestamped no earlier than it is due.

    What is due already goes on with the timer that is set for it: at once. So does a provisional batch, which is not
    kept.
    """

    # When a batch is due, and its timestamp.
    PENDING = BagStateSpec("pending", TupleCoder((VarIntCoder(), VarIntCoder(), LazyBatchCoder())))
    LATER = BagStateSpec("later", TupleCoder((VarIntCoder(), VarIntCoder(), LazyBatchCoder())))
    BASE = BagStateSpec("base", RecordBatchCoder())
    RECENT = BagStateSpec("recent", RecordBatchCoder())
    SHARD = ReadModifyWriteStateSpec("shard", BytesCoder())
    RELEASE = TimerSpec("release", TimeDomain.WATERMARK)

    def __init__(self, step: Step[Any], phase: int = 1, keep: Keep = Keep()) -> None:
        self.phase = phase
        self._step = step
        self._keep = keep

    def setup(self) -> None:
        self._memories: dict[int, tuple[str, Any]] = {}  # with the token of the state that each is of
        self._unjoined: collections.Counter[int] = collections.Counter()  # batches that this worker put to wait

    def start_bundle(self) -> None:
        # As this bundle has read or written them: a read of state is a round trip.
        self._shards: dict[int, Shard] = {}

    def process(
        self,
        element: Held,
        at: Timestamp = beam.DoFn.TimestampParam,
        pending: Any = beam.DoFn.StateParam(PENDING),
        later: Any = beam.DoFn.StateParam(LATER),
        base: Any = beam.DoFn.StateParam(BASE),
        recent: Any = beam.DoFn.StateParam(RECENT),
        shard_state: Any = beam.DoFn.StateParam(SHARD),
        release: Any = beam.DoFn.TimerParam(RELEASE),
    ) -> Iterator[Any]:
        key, (due_us, batch) = element
        shard = self._shards.get(key)
        if shard is None:
            shard = self._shards[key] = self._step.shard.from_bytes(shard_state.read())
        if batch.provisional:
            log = Log(base, recent, shard, self._step)
            memory = self._recall(key, log)
            yield from self._step.advance(batch.batch, due_us, memory, log)
            self._memories[key] = (log.shard.token, memory)
            return
        (pending if shard.later_us is None or due_us < shard.later_us else later).add((due_us, at.micros, batch))
        if self._step.join_after is not None:
            self._join_those_waiting(key, self._step.join_after, pending)
        wake_us = min(due_us, self._keep.next_us(shard.kept_us) or due_us)
        if shard.timer_us is None or wake_us < shard.timer_us:
            shard.timer_us = wake_us
            shard_state.write(shard.to_bytes())
            release.set(timestamp_of(wake_us))

    @on_timer(RELEASE)
    def release(
        self,
        key: int = beam.DoFn.KeyParam,
        fired: Timestamp = beam.DoFn.TimestampParam,
        pending: Any = beam.DoFn.StateParam(PENDING),
        later: Any = beam.DoFn.StateParam(LATER),
        base: Any = beam.DoFn.StateParam(BASE),
        recent: Any = beam.DoFn.StateParam(RECENT),
        shard_state: Any = beam.DoFn.StateParam(SHARD),
        release: Any = beam.DoFn.TimerParam(RELEASE),
    ) -> Iterator[Any]:
        shard = self._step.shard.from_bytes(shard_state.read())
        slices = self._take(pending, {})
        kept_us = self._keep.next_us(shard.kept_us)
        if kept_us is not None and kept_us > fired.micros:
            kept_us = None
        if shard.later_us is not None and (kept_us is not None or all(place[0] <= fired.micros for place in slices)):
            self._take(later, slices)
            shard.later_us = None
        ends = sorted({due_us for due_us, *_ in slices if due_us > fired.micros})
        if len(ends) > NEAR_SLICES:
            shard.later_us = ends[NEAR_SLICES]
        ahead = [(place, waiting) for place, waiting in slices.items() if place[0] > fired.micros]
        waits = [each for place, waiting in ahead for each in self._joint(place, waiting)]
        for waiting in waits:
            (pending if shard.later_us is None or waiting[0] < shard.later_us else later).add(waiting)

        log = Log(base, recent, shard, self._step)
        due = sorted({place[:2] for place in slices if place[0] <= fired.micros})
        for due_us, kind in [place for place in due if place[1] == RESTORED]:
            self._start_from(slices[due_us, kind, 0], log)
        memory = self._recall(key, log)
        for due_us, kind in [place for place in due if place[1] != RESTORED]:
            parts = [part for place, part in slices.items() if place[:2] == (due_us, kind)]
            at_us, batch = self._joined([each for part in parts for each in part])
            at = timestamp_of(max(at_us, due_us))
            for output in self._step.advance(batch.batch, due_us, memory, log):
                if isinstance(output, TaggedOutput):
                    yield TaggedOutput(output.tag, TimestampedValue(output.value, at))
                    continue
                for piece in pieces(output, OUTPUT_ROWS) if isinstance(output, pa.RecordBatch) else (output,):
                    yield TimestampedValue(piece, at)
        self._memories[key] = (shard.token, memory)
        self._shards.pop(key, None)
        if kept_us is not None:
            yield from self._kept(key, kept_us, log, waits)
            shard.kept_us = kept_us
        shard.timer_us = min([*ends[:1], *filter(None, [self._keep.next_us(shard.kept_us)])], default=None)
        if shard.timer_us is not None:
            release.set(timestamp_of(shard.timer_us))
        shard_state.write(shard.to_bytes())
        if self._keep.name and shard.token:
            gauge(STATE, shard.history_bytes, step=self._keep.name, shard=str(key))

    def _join_those_waiting(self, key: int, join_after: int, pending: Any) -> None:
        self._unjoined[key] += 1
        if self._unjoined[key] > join_after:
            self._unjoined[key] = 0
            for place, waiting in self._take(pending, {}).items():
                for each in self._joint(place, waiting):
                    pending.add(each)

    def _take(self, bag: Any, slices: _Slices) -> _Slices:
        """Move all of a bag into `slices`, by when they are due, their kind, and how many states are kept before."""
        for due_us, at_us, batch in bag.read():
            before = bisect.bisect_left(self._keep.at_us, at_us)
            place = (due_us, RESTORED, 0) if is_part(batch.batch) else (due_us, self._step.kind_of(batch.batch), before)
            slices.setdefault(place, []).append((at_us, batch))
        bag.clear()
        return slices

    def _start_from(self, restored: list[tuple[int, LazyBatch]], log: Log[Any]) -> None:
        """Put parts of a state that was kept into a shard that has none."""
        segments: dict[tuple[int, int], pa.RecordBatch] = {}
        for _, batch in restored:
            part = part_of(batch.batch)
            assert part is not None
            if part.kind == "shard":
                take_values(log.shard, bare(batch.batch))
            else:
                segments[part.shard, part.number] = bare(batch.batch)
        log.restore([segments[place] for place in sorted(segments)])

    def _kept(
        self, key: int, kept_us: int, log: Log[Any], waits: list[tuple[int, int, LazyBatch]]
    ) -> Iterator[TaggedOutput]:
        """The state of a shard: its history, what waits that came of earlier slices, and its values."""
        after_us, numbers = self.phase * PHASE_US, itertools.count()

        def part(kind: Any, batch: pa.RecordBatch, due_us: int = 0) -> TaggedOutput:
            said = Part(self._keep.name, kept_us - after_us, kind, key, next(numbers), due_us)
            return TaggedOutput(KEPT, TimestampedValue(said.on(batch), timestamp_of(kept_us)))

        for segment in log.read():
            for piece in pieces(segment, SEGMENT_ROWS):
                yield part("log", piece)
        for due_us, at_us, batch in waits:
            if at_us <= kept_us:
                yield part("waiting", batch.batch, due_us - after_us)
        yield part("shard", values_of(log.shard))

    def _joint(
        self, place: tuple[int, int, int], waiting: list[tuple[int, LazyBatch]]
    ) -> list[tuple[int, int, LazyBatch]]:
        """Batches of one place that wait as one; parts of a state stay apart."""
        return [(place[0], *each) for each in (waiting if place[1] == RESTORED else [self._joined(waiting)])]

    def _joined(self, waiting: list[tuple[int, LazyBatch]]) -> tuple[int, LazyBatch]:
        """The latest timestamp of batches that wait, and all their rows."""
        if len(waiting) == 1:
            return waiting[0]
        return max(at_us for at_us, _ in waiting), LazyBatch(self._step.join([each.batch for _, each in waiting]))

    def _recall(self, key: int, log: Log[Any]) -> Any:
        """The shard's history in memory, read from state where memory is not of this state.

        It is taken out of `_memories`: were the bundle to fail on the way, it would be ahead of the state.
        """
        token, memory = self._memories.pop(key, ("", None))
        return self._step.recall(memory if token == log.shard.token else None, log)


_Slices = dict[tuple[int, int, int], list[tuple[int, LazyBatch]]]
