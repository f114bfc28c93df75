"""The in-process engine: runs a Beam graph, bounded or unbounded, in threads of this process.

Beam's own in-process engines don't run a stream right (docs/engine.md says how). Here an element is handed from
step to step by a plain call, without being encoded, and a run is made of rounds. In a round each step takes one
turn, in topological order: it learns how far its input's watermark has come, emits if it is a source, fires the
timers that are due, finishes its bundle and moves its output's watermark on. Then all finalizers are called.
Within a turn, groups and the keys of a stateful step are worked on side by side (lanes.py), each with the steps after
it up to the next that groups or has state: turns follow one another, so watermarks are what they are in one thread.
Beam's own DoFnRunner calls the DoFns, so that their parameters mean what they mean everywhere.

It runs Impulse, ParDo with bounded side inputs, tags, state, timers and finalizers, splittable DoFns, Flatten,
GroupByKey with the default trigger or one that always fires, and Reshuffle, which groups nothing here. All else is an
UnsupportedGraph before anything has run. State lives in memory: who needs it after a crash replays the journal.
"""

from __future__ import annotations

import collections
import itertools
import math
import time
from typing import Any

import apache_beam as beam
from apache_beam.metrics.metric import MetricResults
from apache_beam.options.pipeline_options import DirectOptions
from apache_beam.pipeline import AppliedPTransform, PipelineVisitor
from apache_beam.runners import common
from apache_beam.runners.runner import PipelineResult, PipelineRunner, PipelineState
from apache_beam.transforms import core, util

from pipelines.runners.inprocess.lanes import Lanes
from pipelines.runners.inprocess.metrics import RunMetrics
from pipelines.runners.inprocess.nodes import GroupByKey, Impulse, Kept, Node, Receive, Reshuffle, UnsupportedGraph
from pipelines.runners.inprocess.pardo import RunParDo, RunSplittable
from pipelines.runners.inprocess.state import MAX_US
from pipelines.runners.inprocess.stateful import RunStateful
from pipelines.runners.profile import cores

SLEEP_SECONDS = 0.02  # at most, before looking again whether to stop


class InProcessRunner(PipelineRunner):
    """Runs a pipeline in this process, and returns when it has ended or `stop` was called.

    Beam's option --direct_num_workers says how many threads work: 1 by default, 0 for one a processor.
    """

    def __init__(self) -> None:
        self.stopped = False  # not an Event: a signal handler may run while its own thread holds an Event's lock
        self.metrics: MetricResults | None = None  # of the run under way, or the last one

    def stop(self) -> None:
        """End the run (or the next one) after the round under way; what waits for a watermark or clock is left.

        May be called by another thread, a signal handler or a step.
        """
        self.stopped = True

    def run_pipeline(self, pipeline: beam.Pipeline, options: Any) -> InProcessResult:
        """Run to the end; an exception of a step ends the run and is raised as it is, with the step in a note."""
        workers = options.view_as(DirectOptions).direct_num_workers
        if workers < 0:
            raise ValueError(f"--direct_num_workers={workers}: at least 1 is needed, or 0 for one a processor")
        run = Run(self, pipeline, workers or cores())
        self.metrics = run.metrics
        try:
            run.run()
        finally:
            self.stopped = False
        return InProcessResult(run.metrics)


class InProcessResult(PipelineResult):
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


class Run:
    """One execution of one pipeline."""

    def __init__(self, runner: InProcessRunner, pipeline: beam.Pipeline, workers: int) -> None:
        self.runner = runner
        self.lanes = Lanes(workers)
        self.metrics = RunMetrics()
        self.producers: dict[Any, Node] = {}
        self.consumers: dict[Any, list[Receive]] = collections.defaultdict(list)
        self.kept: dict[Any, Kept] = {}  # of PCollections that are side inputs
        steps = _Steps()
        pipeline.visit(steps)
        self._nodes = [self._add(applied) for applied in steps.found]
        self._pardos = [node for node in self._nodes if isinstance(node, RunParDo)]

    def _add(self, applied: AppliedPTransform) -> Node:
        node = _make_node(applied, self)
        self.producers.update(dict.fromkeys(applied.outputs.values(), node))
        for source in applied.inputs:
            self.consumers[source].append(node.receive)
        for view in applied.side_inputs:
            if view.pvalue not in self.kept:
                self.kept[view.pvalue] = Kept(self.lanes)
                self.consumers[view.pvalue].append(self.kept[view.pvalue].receive)
        return node

    def run(self) -> None:
        """Rounds until all watermarks are at the end of time, or the runner is stopped."""
        with self.lanes.all[0].entered():
            try:
                self._rounds()
            finally:
                for pardo in self._pardos:
                    pardo.teardown()
                self.lanes.close()

    def _rounds(self) -> None:
        turns = itertools.count()
        for pardo in self._pardos:
            pardo.start()
        while not self.runner.stopped:
            worked = False
            for node in self._nodes:
                self.lanes.begin_turn(next(turns))
                worked |= node.take_turn()
            for pardo in self._pardos:
                pardo.finalize()
            if all(node.output_watermark >= MAX_US for node in self._nodes):
                break
            if not worked:
                self._rest()

    def _rest(self) -> None:
        seconds = min((pardo.rest_seconds() for pardo in self._pardos), default=math.inf)
        if seconds == math.inf:
            raise RuntimeError("the graph waits for a watermark that nothing moves on; this is a bug of the engine")
        wake = time.monotonic() + seconds
        while not self.runner.stopped and (left := wake - time.monotonic()) > 0:
            time.sleep(min(left, SLEEP_SECONDS))


class _Steps(PipelineVisitor):
    """Finds the primitive transforms, and Reshuffles as if they were some, in topological order."""

    def __init__(self) -> None:
        self.found: list[AppliedPTransform] = []
        self._whole: AppliedPTransform | None = None  # whose parts are not looked at

    def enter_composite_transform(self, applied: AppliedPTransform) -> None:
        if self._whole is None and isinstance(applied.transform, util.Reshuffle):
            self._whole = applied
            self.found.append(applied)

    def leave_composite_transform(self, applied: AppliedPTransform) -> None:
        if self._whole is applied:
            self._whole = None

    def visit_transform(self, applied: AppliedPTransform) -> None:
        if self._whole is None:
            self.found.append(applied)


def _make_node(applied: AppliedPTransform, run: Run) -> Node:
    transform = applied.transform
    kinds = ((core.Impulse, Impulse), (core.GroupByKey, GroupByKey), (core.Flatten, Node), (util.Reshuffle, Reshuffle))
    for kind, node in kinds:
        if isinstance(transform, kind):
            return node(applied, run)
    if not isinstance(transform, core.ParDo):
        raise UnsupportedGraph(applied.full_label, f"run {transform!r}")
    if isinstance(transform.fn, core.CallableWrapperDoFn):
        return RunParDo(applied, run)
    signature = common.DoFnSignature(transform.fn)
    if signature.is_stateful_dofn():
        return RunStateful(applied, run)
    return (RunSplittable if signature.is_splittable_dofn() else RunParDo)(applied, run)
