"""Nodes that call a DoFn: by elements and bundles, with bounded side inputs, or by parts of an element."""

from __future__ import annotations

import collections
import logging
import math
import sys
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from apache_beam.internal import pickler
from apache_beam.metrics.execution import MetricsContainer
from apache_beam.pipeline import AppliedPTransform
from apache_beam.runners import common
from apache_beam.transforms import sideinputs
from apache_beam.utils.windowed_value import WindowedValue

from pipelines.runners.inprocess.lanes import Inbox, lane_here
from pipelines.runners.inprocess.nodes import MIN_US, Node, Receiver, UnsupportedGraph
from pipelines.runners.inprocess.state import MAX_US, State

if TYPE_CHECKING:
    from pipelines.runners.inprocess.engine import Run

BUNDLE_SECONDS = 1.0  # after so long an unbounded source that goes on emitting is interrupted
SIDE_INPUT_WINDOWS = 64  # so many windows' views of a side input are kept
STOP_SECONDS = 2.0  # the same as BUNDLE_SECONDS, once the run is to stop
STEP_NOTE = "while running the step "


class Instance:
    """A step's DoFn as one lane has it, its bundle, and what it counts."""

    def __init__(self, label: str, metrics: MetricsContainer, runner: common.DoFnRunner) -> None:
        self.runner = runner
        self._label = label
        self._metrics = metrics
        self.is_open = False

    def call(self, method: Callable[..., Any], *args: Any) -> Any:
        """Call a method of the DoFn's; its metrics are this step's, and its exceptions name the step."""
        lane = lane_here()
        outer, lane.metrics_container = lane.metrics_container, self._metrics
        try:
            return method(*args)
        except BaseException as error:
            if not any(note.startswith(STEP_NOTE) for note in getattr(error, "__notes__", ())):
                error.add_note(f"{STEP_NOTE}{self._label}")
            raise
        finally:
            lane.metrics_container = outer

    def in_bundle(self) -> Instance:
        """This, with a bundle that is started if there is none."""
        if not self.is_open:
            self.is_open = True
            self.call(self.runner.start)
        return self

    def finish(self) -> None:
        """Finish the bundle."""
        self.is_open = False
        self.call(self.runner.finish)

    @property
    def has_finalizers(self) -> bool:
        """Whether there are callbacks of finished bundles."""
        finalizer = self.runner.bundle_finalizer_param
        return finalizer is not None and bool(finalizer.has_callbacks())

    def finalize(self) -> None:
        """Call them, once."""
        finalizer = self.runner.bundle_finalizer_param
        self.call(finalizer.finalize_bundle)  # logs what a callback raises and goes on
        finalizer.reset()

    def teardown(self) -> None:
        try:
            self.call(self.runner.teardown)
        except Exception:  # the other steps are to be torn down too, and what ended the run is to be seen
            logging.getLogger(__name__).exception("%s could not be torn down", self._label)


class RunParDo(Node):
    def __init__(self, applied: AppliedPTransform, run: Run) -> None:
        super().__init__(applied, run)
        do = applied.transform
        # Each lane of each run has its own. By zlib, as bzip2 takes three times as long.
        self._pickled = pickler.dumps((do.fn, do.args, do.kwargs), use_zlib=True)
        self._fn = self._load()[0]
        if self._fn._process_yields_batches or not self._fn._process_defined:
            raise UnsupportedGraph(self.label, "run DoFns over Beam's own batches")
        self._windowing = next(iter(applied.outputs.values()), applied.inputs[0]).windowing
        outputs = {tag: Receiver(run.consumers[output]) for tag, output in applied.outputs.items()}
        self._receivers = collections.defaultdict(lambda: Receiver([]), outputs)  # what nobody asked for is dropped
        self._views = list(applied.side_inputs)
        if not all(view.pvalue.is_bounded for view in self._views):
            raise UnsupportedGraph(self.label, "run unbounded side inputs")
        self._side_nodes = [run.producers[view.pvalue] for view in self._views]
        self._ready = False
        self._waiting = Inbox(run.lanes)  # for the side inputs
        self._instances: list[Instance | None] = [None for _ in run.lanes.all]

    def start(self) -> None:
        """Set up an instance, if it need not wait for side inputs; other lanes have theirs when they need it."""
        if not self._views:
            self._ready = True
            self.instance()

    def instance(self) -> Instance:
        """That of the lane that this thread works in."""
        number = lane_here().number
        found = self._instances[number]
        return self._make_instance(number) if found is None else found

    def _make_instance(self, number: int) -> Instance:
        fn, *static = self._run.lanes.alone(self._load)
        sides = [SideInput(type(v), v._view_options(), self._run.kept[v.pvalue].elements) for v in self._views]
        rest = (*static, sides, self._windowing, self._receivers)
        runner = common.DoFnRunner(fn, *rest, user_state_context=self.state_of(number))
        metrics = MetricsContainer(self.label)
        self._run.metrics.containers.append(metrics)
        instance = Instance(self.label, metrics, runner)
        instance.call(runner.setup)
        self._instances[number] = instance
        return instance

    def _load(self) -> Any:
        return pickler.loads(self._pickled, use_zlib=True)

    def state_of(self, number: int) -> State | None:
        """The state of the keys of a lane."""
        return None

    def receive(self, element: WindowedValue) -> None:
        if self._ready:
            self.accept(element)
        else:
            self._waiting.put(element)

    def accept(self, element: WindowedValue) -> None:
        """Take an element now that the side inputs are there."""
        instance = self.instance().in_bundle()
        instance.call(instance.runner.process, element)

    def work(self) -> bool:
        if not self._ready:
            if any(node.output_watermark < MAX_US for node in self._side_nodes):
                return False
            self._ready = True
            self.instance()
            for element in self._waiting.take():
                self.accept(element)
        worked = self.process_due()
        self._each(Instance.finish, lambda instance: instance.is_open)
        return worked

    def process_due(self) -> bool:
        """Do what there is to do beside the elements received; whether there was anything."""
        return False

    def hold(self) -> int:
        return MAX_US if self._ready else MIN_US

    def rest_seconds(self) -> float:
        """How long there will be nothing to do by the clock."""
        return math.inf

    def finalize(self) -> None:
        self._each(Instance.finalize, lambda instance: instance.has_finalizers)

    def teardown(self) -> None:
        self._each(Instance.teardown, lambda instance: True)

    def _each(self, method: Callable[[Instance], None], is_due: Callable[[Instance], bool]) -> None:
        """Call a method of the lanes' instances for which it is due, one after another."""
        for lane, instance in zip(self._run.lanes.all, self._instances, strict=True):
            if instance is not None and is_due(instance):
                with lane.entered():
                    lane.place = (*lane.place[:1], sys.maxsize, lane.number)
                    method(instance)


class SideInput(sideinputs.SideInputMap):
    """A side input whose views by ever new windows do not pile up."""

    def __getitem__(self, window: Any) -> Any:
        if len(self._cache) > SIDE_INPUT_WINDOWS:
            self._cache.clear()
        return super().__getitem__(window)


class RunSplittable(RunParDo):
    """An element waits as a residual; each turn goes on with those that are due."""

    def __init__(self, applied: AppliedPTransform, run: Run) -> None:
        super().__init__(applied, run)
        self._residuals: list[tuple[float, int, WindowedValue]] = []  # when by the clock, watermark, what
        self._interrupt_at = 0.0
        self._signature = common.DoFnSignature(self._fn)  # it takes a millisecond to make one
        if self._signature.is_unbounded_per_element():
            for receiver in self._receivers.values():
                receiver.consumers.append(self._interrupt)

    def receive(self, element: WindowedValue) -> None:
        self._waiting.put(element)

    def _begin(self, element: WindowedValue) -> None:
        restriction = self._signature.get_restriction_provider().initial_restriction(element.value)
        estimator = self._signature.get_watermark_estimator_provider()
        state = estimator.initial_estimator_state(element.value, restriction)
        sized = element.with_value(((element.value, (restriction, state)), 0))
        self._residuals.append((0.0, element.timestamp.micros, sized))

    def process_due(self) -> bool:
        for element in self._waiting.take():
            self.instance().call(self._begin, element)
        now = time.monotonic()
        due = [residual for residual in self._residuals if residual[0] <= now]
        self._residuals = [residual for residual in self._residuals if residual[0] > now]
        for _, _, element in due:
            self._interrupt_at = math.inf
            instance = self.instance().in_bundle()
            self._keep(instance.call(instance.runner.process_with_sized_restriction, element))
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
            split = self.instance().runner.try_split(0.0)
            self._keep(split[1] if split is not None else ())

    def hold(self) -> int:
        return min([super().hold(), *(watermark for _, watermark, _ in self._residuals)])

    def rest_seconds(self) -> float:
        return min((at for at, _, _ in self._residuals), default=math.inf) - time.monotonic()
