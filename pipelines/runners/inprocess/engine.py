"""The in-process engine: runs a Beam graph, bounded or unbounded, in one thread of this process.

Beam's own in-process engines don't run a stream right (docs/engine.md says how). Here an element is handed from
step to step by a plain call, without being encoded, and a run is made of rounds. In a round each step takes one
turn, in topological order: it learns how far its input's watermark has come, emits if it is a source, fires the
timers that are due, finishes its bundle and moves its output's watermark on. Then all finalizers are called.
Beam's own DoFnRunner calls the DoFns, so that their parameters mean what they mean everywhere.

It runs Impulse, ParDo with bounded side inputs, tags, state, timers and finalizers, splittable DoFns, Flatten,
GroupByKey with the default trigger or one that always fires, as in Reshuffle. All else is an UnsupportedGraph
before anything has run. State lives in memory: who needs it after a crash replays the journal.
"""

from __future__ import annotations

import collections
import itertools
import logging
import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import apache_beam as beam
from apache_beam import coders
from apache_beam.internal import pickler
from apache_beam.metrics.execution import MetricResult, MetricsContainer
from apache_beam.metrics.metric import MetricResults
from apache_beam.pipeline import AppliedPTransform, PipelineVisitor
from apache_beam.runners import common
from apache_beam.runners.runner import PipelineResult, PipelineRunner, PipelineState
from apache_beam.runners.worker import statesampler
from apache_beam.transforms import core, sideinputs, userstate
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.trigger import AccumulationMode, AfterCount, Always, DefaultTrigger, Repeatedly
from apache_beam.transforms.window import GlobalWindows, TimestampCombiner
from apache_beam.typehints import typehints
from apache_beam.utils.timestamp import MIN_TIMESTAMP, Timestamp
from apache_beam.utils.windowed_value import PANE_INFO_UNKNOWN, PaneInfo, PaneInfoTiming, WindowedValue

from pipelines.runners.inprocess.state import CELLS, MAX_US, Agenda, State

MIN_US: int = MIN_TIMESTAMP.micros
SLEEP_SECONDS = 0.02  # at most, before looking again whether to stop
BUNDLE_SECONDS = 1.0  # after so long an unbounded source that goes on emitting is interrupted
SIDE_INPUT_WINDOWS = 64  # so many windows' views of a side input are kept
STOP_SECONDS = 2.0  # the same, once the run is to stop
STEP_NOTE = "while running the step "

Receive = Callable[[WindowedValue], None]


class UnsupportedGraph(NotImplementedError):
    """A graph with a part that this engine does not run."""

    def __init__(self, label: str, what: str) -> None:
        super().__init__(f"{label}: the in-process engine does not {what}")


class LocalRunner(PipelineRunner):  # type: ignore[misc]
    """Runs a pipeline in this process and thread, and returns when it has ended or `stop` was called."""

    def __init__(self) -> None:
        self.stopped = False  # not an Event: a signal handler may run while its own thread holds an Event's lock

    def stop(self) -> None:
        """End the run (or the next one) after the round under way; what waits for a watermark or clock is left.

        May be called by another thread, a signal handler or a step.
        """
        self.stopped = True

    def run_pipeline(self, pipeline: beam.Pipeline, options: Any) -> LocalResult:
        """Run to the end; an exception of a step ends the run and is raised as it is, with the step in a note."""
        run = _Run(self, pipeline)
        try:
            run.run()
        finally:
            self.stopped = False
        return LocalResult(run.metrics)


class LocalResult(PipelineResult):  # type: ignore[misc]
    """A run that has ended."""

    def __init__(self, metrics: MetricResults) -> None:
        super().__init__(PipelineState.DONE)
        self._metrics = metrics

    def wait_until_finish(self, duration: int | None = None) -> str:
        """DONE, at once."""
        return str(self._state)

    def metrics(self) -> MetricResults:
        """The metrics of all steps: counters, distributions, gauges, sets."""
        return self._metrics


class _Metrics(MetricResults):  # type: ignore[misc]
    """Metrics by step; while a run lasts, what Beam's Metrics report to in its thread."""

    def __init__(self) -> None:
        self.steps: list[MetricsContainer] = []
        self.metrics_container = MetricsContainer("")  # of the step that is being called

    def update_metric(self, name: Any, value: Any) -> None:
        self.metrics_container.get_metric_cell(name).update(value)

    def current_state(self) -> _Metrics:
        return self

    def query(self, filter: Any = None) -> dict[str, list[MetricResult]]:
        kinds = (self.COUNTERS, self.DISTRIBUTIONS, self.GAUGES, self.STRINGSETS, self.BOUNDED_TRIES)
        found: dict[str, list[MetricResult]] = {kind: [] for kind in kinds}
        for kind, step in itertools.product(kinds, self.steps):
            for key, data in getattr(step.get_cumulative(), kind).items():
                value = data.get_result() if hasattr(data, "get_result") else data
                found[kind] += [MetricResult(key, value, value)] if self.matches(filter, key) else []
        return found


def _passed(time_us: int, watermark_us: int) -> bool:
    """Whether all elements up to and at a time are there: a watermark promises that none before it will come."""
    return time_us < watermark_us or watermark_us >= MAX_US


class _Receiver(common.Receiver):  # type: ignore[misc]
    """Hands what is emitted on one output to that output's consumers."""

    def __init__(self, consumers: list[Receive]) -> None:
        self.consumers = consumers

    def receive(self, windowed_value: WindowedValue) -> None:
        for consume in self.consumers:
            consume(windowed_value)


class _Node:
    """One primitive transform. As it is, a Flatten."""

    def __init__(self, applied: AppliedPTransform, run: _Run) -> None:
        self.label = applied.full_label
        self.input_watermark = self.output_watermark = MIN_US
        self._run = run
        self._producers = [run.producers[source] for source in applied.inputs if source in run.producers]
        self.emit: Receive = _Receiver(run.consumers[next(iter(applied.outputs.values()), None)]).receive

    def receive(self, element: WindowedValue) -> None:
        self.emit(element)

    def take_turn(self) -> bool:
        """Do all that can be done now and move the output watermark on; whether anything was done."""
        self.input_watermark = min([node.output_watermark for node in self._producers], default=MAX_US)
        worked = self.work()
        self.output_watermark = max(self.output_watermark, min(self.input_watermark, self.hold()))
        return worked

    def work(self) -> bool:
        """Do what input watermark and clock allow now, and finish the bundle; whether there was anything to do."""
        return False

    def hold(self) -> int:
        """The time that the output watermark may not pass yet, whatever the input's."""
        return MAX_US


class _Impulse(_Node):
    _fired = False

    def work(self) -> bool:
        if not self._fired:
            self._fired = True
            self.emit(GlobalWindows.windowed_value(b""))
            return True
        return False


class _GroupByKey(_Node):
    """Groups by key and window: when the watermark passes a window's end, or each element at once."""

    def __init__(self, applied: AppliedPTransform, run: _Run) -> None:
        super().__init__(applied, run)
        windowing = _check_windowing(applied)
        trigger = windowing.triggerfn
        self._at_once = isinstance(trigger, Always) or trigger == Repeatedly(AfterCount(1))
        if not self._at_once and not isinstance(trigger, DefaultTrigger):
            raise UnsupportedGraph(self.label, f"run the trigger {trigger}")
        if windowing.accumulation_mode != AccumulationMode.DISCARDING and (self._at_once or windowing.allowed_lateness):
            raise UnsupportedGraph(self.label, "accumulate what a trigger has fired already")
        self._encode_key = _key_coder(applied).get_impl().encode
        self._times = TimestampCombiner.get_impl(windowing.timestamp_combiner, windowing.windowfn)
        self._lateness = windowing.allowed_lateness.micros
        self._is_global = isinstance(windowing.windowfn, GlobalWindows)
        on_time = PaneInfo(True, self._is_global, PaneInfoTiming.ON_TIME, 0, 0)
        self._pane = PANE_INFO_UNKNOWN if self._lateness else on_time
        self._windows: dict[Any, dict[bytes, list[Any]]] = {}  # each group is a key, its output time and values
        self._ends = Agenda()
        self._hold = MAX_US

    def receive(self, element: WindowedValue) -> None:
        key, value = element.value
        for window in element.windows:
            if window not in self._windows and not (self._at_once and self._is_global):
                end = window.max_timestamp().micros
                if _passed(end + self._lateness, self.input_watermark):
                    continue  # later than allowed
                if not self._at_once:
                    self._windows[window] = {}
                    self._ends.put(window, end)
            output_time = self._times.assign_output_time(window, element.timestamp)
            if self._at_once:
                self.emit(WindowedValue((key, [value]), output_time, (window,)))
                continue
            self._hold = min(self._hold, output_time.micros)
            group = self._windows[window].setdefault(self._encode_key(key), [key, output_time, []])
            group[1] = self._times.combine(group[1], output_time)
            group[2].append(value)

    def work(self) -> bool:
        fired = False
        while (end := self._ends.take(lambda end_us: _passed(end_us, self.input_watermark))) is not None:
            fired = True
            for key, output_time, values in self._windows.pop(end.place).values():
                self.emit(WindowedValue((key, values), output_time, (end.place,), self._pane))
        if fired:
            times = (group[1].micros for groups in self._windows.values() for group in groups.values())
            self._hold = min(times, default=MAX_US)
        return fired

    def hold(self) -> int:
        return self._hold


class _ParDo(_Node):
    def __init__(self, applied: AppliedPTransform, run: _Run) -> None:
        super().__init__(applied, run)
        do = applied.transform
        self._fn, *self._static = pickler.loads(pickler.dumps((do.fn, do.args, do.kwargs)))  # each run has its own
        if self._fn._process_yields_batches or not self._fn._process_defined:
            raise UnsupportedGraph(self.label, "run DoFns over Beam's own batches")
        self._windowing = next(iter(applied.outputs.values()), applied.inputs[0]).windowing
        outputs = {tag: _Receiver(run.consumers[output]) for tag, output in applied.outputs.items()}
        self._receivers = collections.defaultdict(lambda: _Receiver([]), outputs)  # what nobody asked for is dropped
        self._views = list(applied.side_inputs)
        if not all(view.pvalue.is_bounded for view in self._views):
            raise UnsupportedGraph(self.label, "run unbounded side inputs")
        self._side_nodes = [run.producers[view.pvalue] for view in self._views]
        self._metrics = MetricsContainer(self.label)
        run.metrics.steps.append(self._metrics)
        self._user_state: State | None = None
        self._waiting: list[WindowedValue] = []  # for the side inputs
        self._runner: Any = None
        self._open = False

    def start(self) -> None:
        if not self._views:
            self._make_runner()

    def _make_runner(self) -> None:
        sides = [_SideInput(type(view), view._view_options(), self._run.kept[view.pvalue]) for view in self._views]
        rest = (*self._static, sides, self._windowing, self._receivers)
        runner = common.DoFnRunner(self._fn, *rest, user_state_context=self._user_state)
        self.call(runner.setup)
        self._runner = runner

    def call(self, method: Callable[..., Any], *args: Any) -> Any:
        """Call a method of the DoFn's; its metrics are this step's, and its exceptions name the step."""
        metrics = self._run.metrics
        outer, metrics.metrics_container = metrics.metrics_container, self._metrics
        try:
            return method(*args)
        except BaseException as error:
            if not any(note.startswith(STEP_NOTE) for note in getattr(error, "__notes__", ())):
                error.add_note(f"{STEP_NOTE}{self.label}")
            raise
        finally:
            metrics.metrics_container = outer

    def receive(self, element: WindowedValue) -> None:
        if self._runner is None:
            self._waiting.append(element)
        else:
            self.accept(element)

    def accept(self, element: WindowedValue) -> None:
        """Take an element now that the side inputs are there."""
        if not self._open:
            self.open_bundle()
        self.call(self._runner.process, element)

    def open_bundle(self) -> None:
        if not self._open:
            self._open = True
            self.call(self._runner.start)

    def work(self) -> bool:
        if self._runner is None:
            if any(node.output_watermark < MAX_US for node in self._side_nodes):
                return False
            self._make_runner()
            waiting, self._waiting = self._waiting, []
            reached, self.input_watermark = self.input_watermark, MIN_US  # none of them was late when it came
            for element in waiting:
                self.accept(element)
            self.input_watermark = reached
        worked = self.process_due()
        if self._open:
            self._open = False
            self.call(self._runner.finish)
        return worked

    def process_due(self) -> bool:
        """Do what there is to do beside the elements received; whether there was anything."""
        return False

    def hold(self) -> int:
        return MIN_US if self._runner is None else MAX_US

    def rest_seconds(self) -> float:
        """How long there will be nothing to do by the clock."""
        return math.inf

    def finalize(self) -> None:
        finalizer = self._runner.bundle_finalizer_param if self._runner is not None else None
        if finalizer is not None and finalizer.has_callbacks():
            self.call(finalizer.finalize_bundle)  # logs what a callback raises and goes on
            finalizer.reset()

    def teardown(self) -> None:
        if self._runner is not None:
            self.call(self._runner.teardown)


class _SideInput(sideinputs.SideInputMap):  # type: ignore[misc]
    """A side input whose views by ever new windows do not pile up."""

    def __getitem__(self, window: Any) -> Any:
        if len(self._cache) > SIDE_INPUT_WINDOWS:
            self._cache.clear()
        return super().__getitem__(window)


class _Splittable(_ParDo):
    """An element waits as a residual; each turn goes on with those that are due."""

    def __init__(self, applied: AppliedPTransform, run: _Run) -> None:
        super().__init__(applied, run)
        self._residuals: list[tuple[float, int, WindowedValue]] = []  # when by the clock, watermark, what
        self._interrupt_at = 0.0
        self._signature = common.DoFnSignature(self._fn)  # it takes a millisecond to make one
        if self._signature.is_unbounded_per_element():
            for receiver in self._receivers.values():
                receiver.consumers.append(self._interrupt)

    def accept(self, element: WindowedValue) -> None:
        self.call(self._begin, element)

    def _begin(self, element: WindowedValue) -> None:
        restriction = self._signature.get_restriction_provider().initial_restriction(element.value)
        estimator = self._signature.get_watermark_estimator_provider()
        state = estimator.initial_estimator_state(element.value, restriction)
        sized = element.with_value(((element.value, (restriction, state)), 0))
        self._residuals.append((0.0, element.timestamp.micros, sized))

    def process_due(self) -> bool:
        now = time.monotonic()
        due = [residual for residual in self._residuals if residual[0] <= now]
        self._residuals = [residual for residual in self._residuals if residual[0] > now]
        for _, _, element in due:
            self.open_bundle()
            self._interrupt_at = math.inf
            self._keep(self.call(self._runner.process_with_sized_restriction, element))
        return bool(due)

    def _keep(self, residuals: Iterable[Any]) -> None:
        for element, watermark, deferred in residuals:
            at = time.monotonic() + deferred.micros / 1e6 if deferred is not None else 0.0
            self._residuals.append((at, (element.timestamp if watermark is None else watermark).micros, element))

    def _interrupt(self, _: WindowedValue) -> None:
        """Split off what is not claimed yet of an element that has gone on for long since it first emitted.

        What was emitted before a split is ahead of the watermark, and stays in the steps that wait for it: so a source
        that ends its rounds itself is let do so, also when the run is to stop.
        """
        now = time.monotonic()
        if self._interrupt_at == math.inf:
            self._interrupt_at = now + BUNDLE_SECONDS
        if self._run.runner.stopped:
            self._interrupt_at = min(self._interrupt_at, now + STOP_SECONDS)
        if now >= self._interrupt_at:
            self._interrupt_at = now + BUNDLE_SECONDS
            split = self._runner.try_split(0.0)
            self._keep(split[1] if split is not None else ())

    def hold(self) -> int:
        return min([super().hold(), *(watermark for _, watermark, _ in self._residuals)])

    def rest_seconds(self) -> float:
        return min((at for at, _, _ in self._residuals), default=math.inf) - time.monotonic()


class _Stateful(_ParDo):
    """Has state and timers by key and window; late elements are dropped, as their window's state is gone."""

    def __init__(self, applied: AppliedPTransform, run: _Run) -> None:
        super().__init__(applied, run)
        windowing = _check_windowing(applied)
        self._lateness = windowing.allowed_lateness.micros
        self._is_global = isinstance(windowing.windowfn, GlobalWindows)
        states, timers = userstate.get_dofn_specs(self._fn)
        for spec in states:
            if type(spec) not in CELLS:
                raise UnsupportedGraph(self.label, f"keep a {type(spec).__name__}")
        self._timers = {spec.name: spec for spec in timers}
        self._state = self._user_state = State(_key_coder(applied))

    def accept(self, element: WindowedValue) -> None:
        if not self._is_global:
            over = self.input_watermark
            windows = [w for w in element.windows if not _passed(w.max_timestamp().micros + self._lateness, over)]
            if not windows:
                return
            element = WindowedValue(element.value, element.timestamp, windows, element.pane_info)
        super().accept(element)

    def process_due(self) -> bool:
        now_us = round(time.time() * 1_000_000)
        fired = self._fire(TimeDomain.REAL_TIME, lambda time_us: time_us <= now_us)
        fired |= self._fire(TimeDomain.WATERMARK, lambda time_us: _passed(time_us, self.input_watermark))
        if not self._is_global:
            watermark = min(self.input_watermark, self.hold())  # so that a window outlives the timers set in it
            self._state.forget(lambda end_us: _passed(end_us + self._lateness, watermark))
        return fired

    def _fire(self, domain: str, is_due: Callable[[int], bool]) -> bool:
        fired = False
        while (timer := self._state.agendas[domain].take(is_due)) is not None:
            fired = True
            self._state.clear_timer(domain, timer.place)
            self.open_bundle()
            name, _, window, tag = timer.place
            at = Timestamp(micros=timer.time_us)
            fire = self._runner.process_user_timer
            self.call(fire, self._timers[name], timer.key, window, at, PANE_INFO_UNKNOWN, tag)
        return fired

    def hold(self) -> int:
        return min(super().hold(), self._state.hold())

    def rest_seconds(self) -> float:
        first = self._state.agendas[TimeDomain.REAL_TIME].first()
        return math.inf if first is None else first.time_us / 1e6 - time.time()


class _Run:
    """One execution of one pipeline."""

    def __init__(self, runner: LocalRunner, pipeline: beam.Pipeline) -> None:
        self.runner = runner
        self.metrics = _Metrics()
        self.producers: dict[Any, _Node] = {}
        self.consumers: dict[Any, list[Receive]] = collections.defaultdict(list)
        self.kept: dict[Any, list[WindowedValue]] = {}  # of PCollections that are side inputs
        steps = _Steps()
        pipeline.visit(steps)
        self._nodes = [self._add(applied) for applied in steps.found]
        self._pardos = [node for node in self._nodes if isinstance(node, _ParDo)]

    def _add(self, applied: AppliedPTransform) -> _Node:
        node = _make_node(applied, self)
        self.producers.update(dict.fromkeys(applied.outputs.values(), node))
        for source in applied.inputs:
            self.consumers[source].append(node.receive)
        for view in applied.side_inputs:
            if view.pvalue not in self.kept:
                self.kept[view.pvalue] = []
                self.consumers[view.pvalue].append(self.kept[view.pvalue].append)
        return node

    def run(self) -> None:
        """Rounds until all watermarks are at the end of time, or the runner is stopped."""
        tracker = statesampler.get_current_tracker()
        statesampler.set_current_tracker(self.metrics)
        try:
            for pardo in self._pardos:
                pardo.start()
            while not self.runner.stopped:
                worked = [node.take_turn() for node in self._nodes]
                for pardo in self._pardos:
                    pardo.finalize()
                if all(node.output_watermark >= MAX_US for node in self._nodes):
                    break
                if not any(worked):
                    self._rest()
        finally:
            for pardo in self._pardos:
                try:
                    pardo.teardown()
                except Exception:  # the other steps are to be torn down too, and what ended the run is to be seen
                    logging.getLogger(__name__).exception("%s could not be torn down", pardo.label)
            statesampler.set_current_tracker(tracker)

    def _rest(self) -> None:
        seconds = min((pardo.rest_seconds() for pardo in self._pardos), default=math.inf)
        if seconds == math.inf:
            raise RuntimeError("the graph waits for a watermark that nothing moves on; this is a bug of the engine")
        wake = time.monotonic() + seconds
        while not self.runner.stopped and (left := wake - time.monotonic()) > 0:
            time.sleep(min(left, SLEEP_SECONDS))


class _Steps(PipelineVisitor):  # type: ignore[misc]
    """Finds the primitive transforms, in topological order."""

    def __init__(self) -> None:
        self.found: list[AppliedPTransform] = []

    def visit_transform(self, applied: AppliedPTransform) -> None:
        self.found.append(applied)


def _make_node(applied: AppliedPTransform, run: _Run) -> _Node:
    transform = applied.transform
    for kind, node in ((core.Impulse, _Impulse), (core.GroupByKey, _GroupByKey), (core.Flatten, _Node)):
        if isinstance(transform, kind):
            return node(applied, run)
    if not isinstance(transform, core.ParDo):
        raise UnsupportedGraph(applied.full_label, f"run {transform!r}")
    if isinstance(transform.fn, core.CallableWrapperDoFn):
        return _ParDo(applied, run)
    signature = common.DoFnSignature(transform.fn)
    if signature.is_stateful_dofn():
        return _Stateful(applied, run)
    return (_Splittable if signature.is_splittable_dofn() else _ParDo)(applied, run)


def _check_windowing(applied: AppliedPTransform) -> Any:
    windowing = applied.inputs[0].windowing
    if windowing.windowfn.is_merging():
        raise UnsupportedGraph(applied.full_label, "merge windows")
    return windowing


def _key_coder(applied: AppliedPTransform) -> Any:
    pairs = coders.registry.get_coder(typehints.coerce_to_kv_type(applied.inputs[0].element_type, applied.full_label))
    return pairs.key_coder().as_deterministic_coder(applied.full_label)
