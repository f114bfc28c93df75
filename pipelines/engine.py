"""The in-process engine: runs a Beam graph, bounded or unbounded, in one thread of this process.

Why headrace has one: of the engines in Beam 2.72's DirectRunner, one can't run unbounded splittable DoFns,
one is another program, and the third (FnApiRunner) fires event-time timers without waiting for the watermark
and hands nothing on to the step after a GroupByKey while its source still runs. See docs/engine.md.

How it works: an element is handed from step to step by a plain call, without being encoded. A round lets each
source emit for a moment, moves the watermarks on, in topological order, fires the timers they pass, finishes
the bundles and calls their finalizers. Beam's own DoFnRunner calls the DoFns, so that their parameters mean
what they mean everywhere.

What it runs: Impulse, ParDo with side inputs, tags, state, timers and finalizers, splittable DoFns, Flatten,
GroupByKey with the default trigger or, as in Reshuffle, with one that always fires. State lives in memory:
who needs it after a crash replays the journal.
"""

from __future__ import annotations

import collections
import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import apache_beam as beam
from apache_beam import pvalue
from apache_beam.internal import pickler
from apache_beam.pipeline import AppliedPTransform, PipelineVisitor
from apache_beam.runners import common
from apache_beam.runners.runner import PipelineResult, PipelineRunner, PipelineState
from apache_beam.transforms import core, sideinputs, userstate
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.trigger import AfterCount, Always, DefaultTrigger, Repeatedly
from apache_beam.transforms.window import GlobalWindows, TimestampCombiner
from apache_beam.utils.timestamp import MAX_TIMESTAMP, MIN_TIMESTAMP, Timestamp
from apache_beam.utils.windowed_value import PANE_INFO_UNKNOWN, WindowedValue

MIN_US: int = MIN_TIMESTAMP.micros
MAX_US: int = MAX_TIMESTAMP.micros
IDLE_SECONDS = 0.002

Receive = Callable[[WindowedValue], None]


class UnsupportedGraph(NotImplementedError):
    """A graph with a part that this engine does not run."""


class LocalRunner(PipelineRunner):  # type: ignore[misc]
    """Runs a pipeline in this process and thread, and returns when it has ended or `stop` was called."""

    def __init__(self) -> None:
        self.stopping = threading.Event()

    def stop(self) -> None:
        """Let sources emit no more; what is under way is finished, what waits for a watermark is left."""
        self.stopping.set()

    def run_pipeline(self, pipeline: beam.Pipeline, options: Any) -> LocalResult:
        """Run to the end; an exception of a step ends the run and is raised."""
        # A step's exception is raised to the caller; that it is also logged, with a traceback, is once too often.
        logger = logging.getLogger("apache_beam.runners.common")
        level = logger.level
        logger.setLevel(logging.CRITICAL)
        try:
            _Run(pipeline, self.stopping).run()
        finally:
            logger.setLevel(level)
        return LocalResult()


class LocalResult(PipelineResult):  # type: ignore[misc]
    """A run that has ended."""

    def __init__(self) -> None:
        super().__init__(PipelineState.DONE)

    def wait_until_finish(self, duration: int | None = None) -> str:
        """DONE, at once."""
        return str(self._state)


class _Node:
    """One primitive transform: receives elements, emits to the consumers of its outputs."""

    def __init__(self, applied: AppliedPTransform, run: _Run) -> None:
        self.label = applied.full_label
        self.inputs = [source for source in applied.inputs if isinstance(source, pvalue.PCollection)]
        self.outputs: list[pvalue.PCollection] = list(applied.outputs.values())
        self._run = run
        self.input_watermark = MIN_US

    def hold(self) -> int:
        """The time that the output watermark may not pass yet, whatever the input's."""
        return MAX_US

    def receive(self, element: WindowedValue) -> None:
        self.emit(element)

    def emit(self, element: WindowedValue) -> None:
        for consumer in self._run.consumers[self.outputs[0]]:
            consumer(element)

    def advance(self) -> bool:
        """Do what the input watermark now allows; whether anything was done."""
        return False

    def poll(self) -> bool:
        """Emit from a source, or fire what is due by the clock; whether anything was done."""
        return False

    def finish_bundle(self) -> bool:
        """End a bundle if one is open; whether one was."""
        return False

    def finalize(self) -> None:
        """Call the finalizers of the bundle that has ended."""

    def teardown(self) -> None:
        """The run is over."""


class _Impulse(_Node):
    def __init__(self, applied: AppliedPTransform, run: _Run) -> None:
        super().__init__(applied, run)
        self._fired = False

    def poll(self) -> bool:
        if self._fired:
            return False
        self._fired = True
        self.emit(GlobalWindows.windowed_value(b""))
        return True

    def hold(self) -> int:
        return MAX_US if self._fired else MIN_US


class _GroupByKey(_Node):
    """Groups by key and window: when the watermark passes a window's end, or each element at once."""

    def __init__(self, applied: AppliedPTransform, run: _Run) -> None:
        super().__init__(applied, run)
        windowing = self.inputs[0].windowing
        trigger = windowing.triggerfn
        self._at_once = isinstance(trigger, Always) or trigger == Repeatedly(AfterCount(1))
        if not self._at_once and not isinstance(trigger, DefaultTrigger):
            raise UnsupportedGraph(f"{self.label}: the in-process engine does not run the trigger {trigger}")
        if windowing.windowfn.is_merging():
            raise UnsupportedGraph(f"{self.label}: the in-process engine does not merge windows")
        self._combiner = windowing.timestamp_combiner
        self._lateness = windowing.allowed_lateness.micros
        self._groups: dict[Any, dict[Any, list[Any]]] = {}
        self._earliest: dict[Any, int] = {}

    def receive(self, element: WindowedValue) -> None:
        key, value = element.value
        if self._at_once:
            self.emit(element.with_value((key, [value])))
            return
        for window in element.windows:
            end = window.max_timestamp().micros
            if end + self._lateness < self.input_watermark:
                continue  # later than allowed: Beam's rule is to drop it
            self._groups.setdefault(window, {}).setdefault(key, []).append(value)
            self._earliest[window] = min(self._earliest.get(window, MAX_US), element.timestamp.micros)

    def hold(self) -> int:
        return min((self._time_of(window) for window in self._groups), default=MAX_US)

    def _time_of(self, window: Any) -> int:
        if self._combiner in (
            TimestampCombiner.OUTPUT_AT_EARLIEST,
            TimestampCombiner.OUTPUT_AT_EARLIEST_TRANSFORMED,
        ):
            return self._earliest[window]
        return int(window.max_timestamp().micros)

    def advance(self) -> bool:
        due = [w for w in self._groups if w.max_timestamp().micros < self.input_watermark]
        for window in sorted(due, key=lambda w: w.max_timestamp()):
            time_us = self._time_of(window)
            for key, values in self._groups.pop(window).items():
                self.emit(WindowedValue((key, values), Timestamp(micros=time_us), (window,)))
            del self._earliest[window]
        return bool(due)


class _Receiver(common.Receiver):  # type: ignore[misc]
    """Hands what a DoFn emits on one output to that output's consumers."""

    def __init__(self, consumers: list[Receive]) -> None:
        self._consumers = consumers

    def receive(self, windowed_value: WindowedValue) -> None:
        for consumer in self._consumers:
            consumer(windowed_value)


class _ParDo(_Node):
    def __init__(self, applied: AppliedPTransform, run: _Run) -> None:
        super().__init__(applied, run)
        self._transform = applied.transform
        self._fn = pickler.loads(pickler.dumps(self._transform.fn))
        self._side_views = list(applied.side_inputs)
        self._receivers = {tag: _Receiver(run.consumers[collection]) for tag, collection in applied.outputs.items()}
        self._receivers.setdefault(None, _Receiver([]))
        for tag in self._transform.output_tags if hasattr(self._transform, "output_tags") else ():
            self._receivers.setdefault(tag, _Receiver([]))
        self._windowing = self.outputs[0].windowing if self.outputs else self.inputs[0].windowing
        signature = common.DoFnSignature(self._fn)
        self._state = _State() if signature.is_stateful_dofn() else None
        self._timers = {spec.name: spec for spec in userstate.get_dofn_specs(self._fn)[1]} if self._state else {}
        self._splittable = signature.is_splittable_dofn()
        self._signature = signature
        self._residuals: list[tuple[WindowedValue, int, float]] = []  # element, watermark, not before this clock
        self._waiting: list[WindowedValue] = []
        self._runner: Any = None
        self._open = False
        # What such a DoFn emits at its bundle's end is still to come: until then the watermark stays.
        self._emits_late = type(self._fn).finish_bundle is not beam.DoFn.finish_bundle
        if not self._side_views:
            self._make_runner([])

    def _make_runner(self, side_inputs: list[Any]) -> None:
        self._runner = common.DoFnRunner(
            self._fn,
            self._transform.args,
            self._transform.kwargs,
            side_inputs,
            self._windowing,
            self._receivers,
            step_name=self.label,
            user_state_context=self._state,
        )
        self._runner.setup()

    def receive(self, element: WindowedValue) -> None:
        if self._runner is None:
            self._waiting.append(element)
        elif self._splittable:
            self._start_restriction(element)
        else:
            self._open_bundle()
            self._runner.process(element)

    def _open_bundle(self) -> None:
        if not self._open:
            self._open = True
            self._runner.start()

    def _start_restriction(self, element: WindowedValue) -> None:
        restriction = self._signature.get_restriction_provider().initial_restriction(element.value)
        estimator = self._signature.get_watermark_estimator_provider().initial_estimator_state(
            element.value, restriction
        )
        sized = element.with_value(((element.value, (restriction, estimator)), 0))
        self._residuals.append((sized, MIN_US, 0.0))

    def poll(self) -> bool:
        if self._state is not None:
            return self._fire(TimeDomain.REAL_TIME, round(time.time() * 1_000_000))
        now = time.time()
        due = [residual for residual in self._residuals if residual[2] <= now]
        if not due or self._run.stopping.is_set():
            return False
        self._residuals = [residual for residual in self._residuals if residual[2] > now]
        for element, _, _ in due:
            self._open_bundle()
            for residual in self._runner.process_with_sized_restriction(element) or ():
                watermark = residual.current_watermark
                deferred = residual.deferred_timestamp
                resume = 0.0
                if isinstance(deferred, Timestamp):
                    resume = deferred.micros / 1e6
                elif deferred is not None:
                    resume = time.time() + deferred.micros / 1e6
                self._residuals.append((residual.residual_value, watermark.micros if watermark else MIN_US, resume))
        return True

    def wakes_at(self) -> float | None:
        """The clock time at which there is something to do again; None if never."""
        times = [resume for _, _, resume in self._residuals]
        if self._state is not None:
            times += [t / 1e6 for t in self._state.times(TimeDomain.REAL_TIME)]
        return min(times, default=None)

    def hold(self) -> int:
        if self._runner is None or (self._open and self._emits_late):
            return MIN_US
        holds = [watermark for _, watermark, _ in self._residuals]
        if self._state is not None:
            holds.append(self._state.hold())
        return min(holds, default=MAX_US)

    def advance(self) -> bool:
        if self._runner is None:
            if any(self._run.watermark_of(view.pvalue) < MAX_US for view in self._side_views):
                return False
            self._make_runner([_side_input(view, self._run.kept[view.pvalue]) for view in self._side_views])
            for element in self._waiting:
                self.receive(element)
            self._waiting = []
            return True
        return self._state is not None and self._fire(TimeDomain.WATERMARK, self.input_watermark)

    def _fire(self, domain: str, until_us: int) -> bool:
        assert self._state is not None
        fired = False
        while (timer := self._state.pop_due(domain, until_us)) is not None:
            fired = True
            self._open_bundle()
            name, key, window, tag, time_us = timer
            self._runner.process_user_timer(
                self._timers[name], key, window, Timestamp(micros=time_us), PANE_INFO_UNKNOWN, tag
            )
        return fired

    def finish_bundle(self) -> bool:
        if not self._open:
            return False
        self._open = False
        self._runner.finish()
        return True

    def finalize(self) -> None:
        finalizer = self._runner.bundle_finalizer_param if self._runner is not None else None
        if finalizer is not None and finalizer.has_callbacks():
            finalizer.finalize_bundle()
            finalizer.reset()

    def teardown(self) -> None:
        if self._runner is not None:
            self._runner.teardown()


def _side_input(view: Any, values: list[WindowedValue]) -> Any:
    return sideinputs.SideInputMap(type(view), view._view_options(), values)


class _Run:
    """One execution of one pipeline."""

    def __init__(self, pipeline: beam.Pipeline, stopping: threading.Event) -> None:
        self.stopping = stopping
        self.consumers: dict[Any, list[Receive]] = collections.defaultdict(list)
        self.kept: dict[Any, list[WindowedValue]] = {}  # of PCollections that are side inputs
        self._nodes: list[_Node] = []
        self._watermarks: dict[Any, int] = {}
        self._build(pipeline)

    def _build(self, pipeline: beam.Pipeline) -> None:
        leaves: list[AppliedPTransform] = []

        class Leaves(PipelineVisitor):  # type: ignore[misc]
            def visit_transform(self, applied: AppliedPTransform) -> None:
                leaves.append(applied)

        pipeline.visit(Leaves())
        for applied in leaves:
            node = self._make_node(applied)
            self._nodes.append(node)
            for collection in node.inputs:
                self.consumers[collection].append(node.receive)
            for view in applied.side_inputs:
                if view.pvalue not in self.kept:
                    self.kept[view.pvalue] = []
                    self.consumers[view.pvalue].append(self.kept[view.pvalue].append)

    def _make_node(self, applied: AppliedPTransform) -> _Node:
        kinds: list[tuple[type, type[_Node]]] = [
            (core.Impulse, _Impulse),
            (core.ParDo, _ParDo),
            (core.GroupByKey, _GroupByKey),
            (core.Flatten, _Node),
        ]
        for transform, node in kinds:
            if isinstance(applied.transform, transform):
                return node(applied, self)
        raise UnsupportedGraph(f"{applied.full_label}: the in-process engine does not run {applied.transform!r}")

    def watermark_of(self, collection: pvalue.PCollection) -> int:
        """How far a PCollection's watermark is, in microseconds."""
        return self._watermarks.get(collection, MIN_US)

    def run(self) -> None:
        """Rounds until nothing is left to do, or until stopping and quiet."""
        try:
            while True:
                worked = [node.poll() for node in self._nodes]
                self._settle()
                for node in self._nodes:
                    if node.finish_bundle():
                        self._settle()
                for node in self._nodes:
                    node.finalize()
                if any(worked):
                    continue
                if self.stopping.is_set() or self._is_over():
                    return
                self._sleep()
        finally:
            for node in self._nodes:
                node.teardown()

    def _settle(self) -> None:
        """Move the watermarks on, and fire what they pass, until they rest."""
        moved = True
        while moved:
            moved = False
            for node in self._nodes:
                if node.inputs:
                    node.input_watermark = min(map(self.watermark_of, node.inputs))
                else:
                    node.input_watermark = MAX_US
                while node.advance():
                    moved = True
                watermark = min(node.input_watermark, node.hold())
                for output in node.outputs:
                    if watermark > self.watermark_of(output):
                        self._watermarks[output] = watermark
                        moved = True

    def _is_over(self) -> bool:
        return all(self.watermark_of(output) >= MAX_US for node in self._nodes for output in node.outputs)

    def _sleep(self) -> None:
        wakes = [node.wakes_at() for node in self._nodes if isinstance(node, _ParDo)]
        soonest = min((wake for wake in wakes if wake is not None), default=None)
        if soonest is None:
            raise RuntimeError("the graph waits for a watermark that nothing moves on; this is a bug of the engine")
        time.sleep(min(max(soonest - time.time(), 0.0), IDLE_SECONDS))


class _State(userstate.UserStateContext):  # type: ignore[misc]
    """State cells and timers of one stateful step, by key and window, in memory."""

    def __init__(self) -> None:
        self._cells: dict[Any, Any] = {}
        self._timers: dict[Any, tuple[int, int, str]] = {}  # (name, key, window, tag) → time, hold, domain
        self._queues: dict[str, list[Any]] = {TimeDomain.WATERMARK: [], TimeDomain.REAL_TIME: []}
        self._numbers = itertools.count()

    def get_state(self, state_spec: Any, key: Any, window: Any) -> Any:
        """The cell of a key and window."""
        place = (state_spec.name, key, window)
        cell = self._cells.get(place)
        if cell is None:
            cell = self._cells[place] = _make_cell(state_spec)
        return cell

    def get_timer(self, timer_spec: Any, key: Any, window: Any, timestamp: Timestamp, pane: Any) -> _Timer:
        """A timer that can be set or cleared."""
        return _Timer(self, timer_spec, key, window, timestamp)

    def commit(self) -> None:
        """Cells are written as they are changed."""

    def set_timer(self, place: Any, time_us: int, hold_us: int, domain: str) -> None:
        """Set or move a timer."""
        self._timers[place] = (time_us, hold_us, domain)
        heapq.heappush(self._queues[domain], (time_us, next(self._numbers), place))

    def clear_timer(self, place: Any) -> None:
        """Take a timer back."""
        self._timers.pop(place, None)

    def pop_due(self, domain: str, until_us: int) -> tuple[str, Any, Any, str, int] | None:
        """Take the earliest timer that is due, as (name, key, window, tag, time)."""
        queue = self._queues[domain]
        while queue and queue[0][0] <= until_us:
            time_us, _, place = heapq.heappop(queue)
            current = self._timers.get(place)
            if current is not None and current[0] == time_us and current[2] == domain:
                del self._timers[place]
                return (*place, time_us)
        return None

    def times(self, domain: str) -> Iterable[int]:
        """When the timers of a domain are to fire."""
        return [time_us for time_us, _, own in self._timers.values() if own == domain]

    def hold(self) -> int:
        """The least time that a timer holds the watermark at."""
        return min((hold for _, hold, _ in self._timers.values()), default=MAX_US)


class _Timer(userstate.BaseTimer):  # type: ignore[misc]
    def __init__(self, state: _State, spec: Any, key: Any, window: Any, timestamp: Timestamp) -> None:
        self._state = state
        self._spec = spec
        self._place = (spec.name, key, window)
        self._timestamp = timestamp

    def set(self, timestamp: Any, dynamic_timer_tag: str = "") -> None:
        time_us = Timestamp.of(timestamp).micros
        domain = self._spec.time_domain
        # As everywhere in Beam: an event-time timer holds the watermark at its time, one by the clock at its element's.
        hold_us = time_us if domain == TimeDomain.WATERMARK else self._timestamp.micros
        self._state.set_timer((*self._place, dynamic_timer_tag), time_us, hold_us, domain)

    def clear(self, dynamic_timer_tag: str = "") -> None:
        self._state.clear_timer((*self._place, dynamic_timer_tag))


class _Bag(userstate.BagRuntimeState):  # type: ignore[misc]
    def __init__(self) -> None:
        self._values: list[Any] = []

    def read(self) -> list[Any]:
        return list(self._values)

    def add(self, value: Any) -> None:
        self._values.append(value)

    def clear(self) -> None:
        self._values = []


class _Value(userstate.ReadModifyWriteRuntimeState):  # type: ignore[misc]
    def __init__(self) -> None:
        self._value: Any = None

    def read(self) -> Any:
        return self._value

    def write(self, value: Any) -> None:
        self._value = value

    def clear(self) -> None:
        self._value = None


class _Combining(userstate.CombiningValueRuntimeState):  # type: ignore[misc]
    def __init__(self, combine_fn: Any) -> None:
        self._fn = combine_fn
        self._accumulator = combine_fn.create_accumulator()

    def read(self) -> Any:
        return self._fn.extract_output(self._accumulator)

    def add(self, value: Any) -> None:
        self._accumulator = self._fn.add_input(self._accumulator, value)

    def clear(self) -> None:
        self._accumulator = self._fn.create_accumulator()


def _make_cell(spec: Any) -> Any:
    if isinstance(spec, userstate.BagStateSpec):
        return _Bag()
    if isinstance(spec, userstate.ReadModifyWriteStateSpec):
        return _Value()
    if isinstance(spec, userstate.CombiningValueStateSpec):
        return _Combining(spec.combine_fn)
    raise UnsupportedGraph(f"the in-process engine does not keep {type(spec).__name__} {spec.name}")
