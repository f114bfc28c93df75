"""Nodes that call a DoFn: by elements and bundles, with bounded side inputs, or by parts of an element."""

from __future__ import annotations

import collections
import math
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from apache_beam.internal import pickler
from apache_beam.metrics.execution import MetricsContainer
from apache_beam.pipeline import AppliedPTransform
from apache_beam.runners import common
from apache_beam.transforms import sideinputs
from apache_beam.utils.windowed_value import WindowedValue

from pipelines.runners.inprocess.nodes import MIN_US, Node, Receiver, UnsupportedGraph
from pipelines.runners.inprocess.state import MAX_US, State

if TYPE_CHECKING:
    from pipelines.runners.inprocess.engine import Run

BUNDLE_SECONDS = 1.0  # after so long an unbounded source that goes on emitting is interrupted
SIDE_INPUT_WINDOWS = 64  # so many windows' views of a side input are kept
STOP_SECONDS = 2.0  # the same as BUNDLE_SECONDS, once the run is to stop
STEP_NOTE = "while running the step "


class RunParDo(Node):
    def __init__(self, applied: AppliedPTransform, run: Run) -> None:
        super().__init__(applied, run)
        do = applied.transform
        self._fn, *self._static = pickler.loads(pickler.dumps((do.fn, do.args, do.kwargs)))  # each run has its own
        if self._fn._process_yields_batches or not self._fn._process_defined:
            raise UnsupportedGraph(self.label, "run DoFns over Beam's own batches")
        self._windowing = next(iter(applied.outputs.values()), applied.inputs[0]).windowing
        outputs = {tag: Receiver(run.consumers[output]) for tag, output in applied.outputs.items()}
        self._receivers = collections.defaultdict(lambda: Receiver([]), outputs)  # what nobody asked for is dropped
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
        sides = [SideInput(type(view), view._view_options(), self._run.kept[view.pvalue]) for view in self._views]
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
