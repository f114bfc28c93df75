"""The in-process engine gives what Beam's own gives, and keeps the promises of event time that Beam's own breaks."""

from __future__ import annotations

import functools
import gc
import signal
import threading
import time
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.coders import VarIntCoder
from apache_beam.io.restriction_trackers import OffsetRange, OffsetRestrictionTracker
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.metrics import Metrics, MetricsFilter
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pvalue import AsDict, AsIter, AsList, AsSingleton, TaggedOutput
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing import test_stream
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms import trigger
from apache_beam.transforms.core import RestrictionProvider, WatermarkEstimatorProvider
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import (
    BagStateSpec,
    CombiningValueStateSpec,
    OrderedListStateSpec,
    ReadModifyWriteStateSpec,
    SetStateSpec,
    TimerSpec,
    on_timer,
)
from apache_beam.transforms.window import (
    FixedWindows,
    GlobalWindow,
    Sessions,
    SlidingWindows,
    TimestampCombiner,
    TimestampedValue,
)
from apache_beam.utils.timestamp import MAX_TIMESTAMP, Duration, Timestamp
from apache_beam.utils.windowed_value import WindowedValue

from pipelines.runners.inprocess.engine import InProcessRunner
from pipelines.runners.inprocess.nodes import UnsupportedGraph
from pipelines.runners.inprocess.state import Agenda

pytestmark = pytest.mark.slow

Graph = Callable[[beam.Pipeline], beam.PCollection]

SEEN: list[Any] = []  # what Collect has received
CALLS: list[str] = []  # what DoFns say of themselves


@pytest.fixture(autouse=True)
def _clean() -> None:
    SEEN.clear()
    CALLS.clear()


def plain(value: Any) -> Any:
    """A value whose parts have an order: of what an engine groups, the order is its own."""
    if isinstance(value, dict):
        return sorted(((plain(k), plain(v)) for k, v in value.items()), key=repr)
    if isinstance(value, tuple):
        return tuple(plain(part) for part in value)
    if hasattr(value, "__iter__") and not isinstance(value, (str, bytes)):
        return sorted((plain(part) for part in value), key=repr)
    return value


class Collect(beam.DoFn):
    """Takes down each element with its time (to the millisecond, as it is between FnApiRunner's stages) and windows."""

    def process(
        self, element: Any, at: Any = beam.DoFn.TimestampParam, window: Any = beam.DoFn.WindowParam
    ) -> Iterator[Any]:
        SEEN.append((plain(element), at.micros // 1000, str(window)))
        yield element


def run(graph: Graph, runner: Any = None, *options: str) -> Any:
    pipeline = beam.Pipeline(runner=runner or InProcessRunner(), options=PipelineOptions(list(options)))
    result = graph(pipeline)
    for number, output in enumerate(result if isinstance(result, (list, tuple)) else [result]):
        if isinstance(output, beam.PCollection):
            output | f"collect {number}" >> beam.ParDo(Collect())
    ended = pipeline.run()
    ended.wait_until_finish()
    return ended


def outcome(graph: Graph, runner: Any, *options: str) -> list[Any]:
    SEEN.clear()
    run(graph, runner, *options)
    return sorted(SEEN, key=repr)


def values() -> list[Any]:
    return [value for value, _, _ in SEEN]


def timed(p: beam.Pipeline, *pairs: tuple[float, Any], label: str = "timed") -> beam.PCollection:
    """Elements with their times in seconds."""
    return (
        p
        | f"{label} create" >> beam.Create(list(pairs))
        | f"{label} stamp" >> beam.Map(lambda pair: TimestampedValue(pair[1], pair[0]))
    )


# --- the same as on FnApiRunner -------------------------------------------------------------------------------------


class EveryParam(beam.DoFn):
    def process(
        self,
        element: Any,
        key: Any = beam.DoFn.KeyParam,
        at: Any = beam.DoFn.TimestampParam,
        window: Any = beam.DoFn.WindowParam,
        pane: Any = beam.DoFn.PaneInfoParam,
        finalizer: Any = beam.DoFn.BundleFinalizerParam,
    ) -> Iterator[Any]:
        finalizer.register(lambda: CALLS.append("finalized"))
        yield (element, key, at.micros // 1000, str(window), str(pane))


class CountBundles(beam.DoFn):
    def setup(self) -> None:
        self.total = 0

    def start_bundle(self) -> None:
        self.bundle = 0

    def process(self, element: int) -> None:
        self.bundle += element

    def finish_bundle(self) -> Iterator[WindowedValue]:
        yield WindowedValue(self.bundle, Timestamp(7), [GlobalWindow()])
        yield TaggedOutput("more", WindowedValue(-self.bundle, Timestamp(8), [GlobalWindow()]))


class Tagger(beam.DoFn):
    def process(self, element: int) -> Iterator[Any]:
        yield element
        yield TaggedOutput("even" if element % 2 == 0 else "odd", element * 10)
        yield TaggedOutput("nobody asks for this", element)


class Accumulate(beam.DoFn):
    """Every kind of state, and an event-time timer that emits all of it."""

    BAG = BagStateSpec("bag", VarIntCoder())
    SET = SetStateSpec("set", VarIntCoder())
    LAST = ReadModifyWriteStateSpec("last", VarIntCoder())
    SUM = CombiningValueStateSpec("sum", sum)
    COUNT = CombiningValueStateSpec("count", beam.combiners.CountCombineFn())
    END = TimerSpec("end", TimeDomain.WATERMARK)

    def process(
        self,
        element: Any,
        window: Any = beam.DoFn.WindowParam,
        bag: Any = beam.DoFn.StateParam(BAG),
        distinct: Any = beam.DoFn.StateParam(SET),
        last: Any = beam.DoFn.StateParam(LAST),
        total: Any = beam.DoFn.StateParam(SUM),
        count: Any = beam.DoFn.StateParam(COUNT),
        end: Any = beam.DoFn.TimerParam(END),
    ) -> Iterator[Any]:
        _, value = element
        yield "before", last.read(), total.read()
        bag.add(value)
        distinct.add(value % 3)
        last.write(value)
        total.add(value)
        count.add(value)
        end.set(min(window.max_timestamp(), Timestamp(1000)))

    @on_timer(END)
    def emit(
        self,
        key: Any = beam.DoFn.KeyParam,
        at: Any = beam.DoFn.TimestampParam,
        window: Any = beam.DoFn.WindowParam,
        bag: Any = beam.DoFn.StateParam(BAG),
        distinct: Any = beam.DoFn.StateParam(SET),
        last: Any = beam.DoFn.StateParam(LAST),
        total: Any = beam.DoFn.StateParam(SUM),
        count: Any = beam.DoFn.StateParam(COUNT),
    ) -> Iterator[Any]:
        state = (list(bag.read()), list(distinct.read()), last.read() is None, total.read(), count.read())
        yield key, at.micros // 1000, str(window), state
        for cell in (bag, distinct, total, count, last):
            cell.clear()
        yield key, "cleared", list(bag.read()), list(distinct.read()), last.read(), total.read()


class CountInWindow(beam.DoFn):
    SUM = CombiningValueStateSpec("sum", sum)

    def process(self, element: Any, total: Any = beam.DoFn.StateParam(SUM)) -> Iterator[int]:
        total.add(1)
        yield total.read()


class DynamicTimers(beam.DoFn):
    """One timer a tag; a timer sets another one, clears one and moves one."""

    TIMER = TimerSpec("timer", TimeDomain.WATERMARK)

    def process(self, element: tuple[str, int], timer: Any = beam.DoFn.TimerParam(TIMER)) -> None:
        for tag in ("a", "b", "gone", "moved"):
            timer.set(Timestamp(element[1] + len(tag)), dynamic_timer_tag=tag)
        timer.clear(dynamic_timer_tag="gone")
        timer.set(Timestamp(element[1] + 50), dynamic_timer_tag="moved")

    @on_timer(TIMER)
    def fire(
        self,
        key: str = beam.DoFn.KeyParam,
        tag: str = beam.DoFn.DynamicTimerTagParam,
        at: Any = beam.DoFn.TimestampParam,
        timer: Any = beam.DoFn.TimerParam(TIMER),
    ) -> Iterator[Any]:
        yield key, tag, at.micros // 1000
        if tag in ("a", "chained"):
            next_tag = {"a": "chained", "chained": "last"}[tag]
            timer.set(at + 20, dynamic_timer_tag=next_tag)


class ClockTimer(beam.DoFn):
    TIMER = TimerSpec("timer", TimeDomain.REAL_TIME)
    BAG = BagStateSpec("bag", VarIntCoder())

    def process(
        self, element: Any, bag: Any = beam.DoFn.StateParam(BAG), timer: Any = beam.DoFn.TimerParam(TIMER)
    ) -> None:
        bag.add(element[1])
        timer.set(Timestamp.now() + 0.05)

    @on_timer(TIMER)
    def fire(self, key: Any = beam.DoFn.KeyParam, bag: Any = beam.DoFn.StateParam(BAG)) -> Iterator[Any]:
        yield WindowedValue((key, sorted(bag.read())), Timestamp(1), [GlobalWindow()])


class Counting(beam.DoFn, RestrictionProvider):
    """Counts up to each element; pauses after every third number."""

    def initial_restriction(self, element: int) -> OffsetRange:
        return OffsetRange(0, element)

    def create_tracker(self, restriction: OffsetRange) -> OffsetRestrictionTracker:
        return OffsetRestrictionTracker(restriction)

    def restriction_size(self, element: int, restriction: OffsetRange) -> int:
        return restriction.size()

    def process(self, element: int, tracker: Any = beam.DoFn.RestrictionParam()) -> Iterator[Any]:
        number = tracker.current_restriction().start
        while tracker.try_claim(number):
            yield element, number
            number += 1
            if number % 3 == 0:
                tracker.defer_remainder(Duration(0.01))
                return


def halves(element: Any, factor: Any, offset: int = 0) -> Any:
    return element * factor + offset


def with_list(element: int, others: list[int], table: dict[str, int]) -> Any:
    return element, sorted(others), table


def in_tens(p: beam.Pipeline) -> beam.PCollection:
    return timed(p, (1, ("a", 1)), (11, ("b", 2)), (12, ("a", 3))) | beam.WindowInto(FixedWindows(10))


def two_of_each(p: beam.Pipeline) -> beam.PCollection:
    numbers = p | beam.Create([1, 2, 3])
    return (numbers, numbers, p | "other" >> beam.Create([9])) | beam.Flatten()


def side_inputs(p: beam.Pipeline) -> beam.PCollection:
    numbers = p | beam.Create([1, 2, 3])
    one = p | "one" >> beam.Create([10])
    none = p | "none" >> beam.Create([], reshuffle=False)
    pairs = p | "pairs" >> beam.Create([("a", 1), ("b", 2)])
    return (
        numbers
        | "factor" >> beam.Map(halves, AsSingleton(one), offset=AsSingleton(none, default_value=5))
        | "lists" >> beam.Map(with_list, AsList(numbers), AsDict(pairs))
        | "iterables" >> beam.Map(lambda element, others: (element, sorted(others)), AsIter(one))
    )


def side_of_itself(p: beam.Pipeline) -> beam.PCollection:
    """A side input that is computed from the main input by way of a grouping."""
    numbers = p | beam.Create([1, 2, 3])
    total = numbers | beam.CombineGlobally(sum)
    return numbers | beam.Map(lambda number, total: number / total, AsSingleton(total))


def windowed_sides(p: beam.Pipeline) -> beam.PCollection:
    main = timed(p, (1, "a"), (11, "b"), (25, "c")) | beam.WindowInto(FixedWindows(10))
    side = timed(p, (2, 5), (3, 6), (12, 7), label="side") | "side window" >> beam.WindowInto(FixedWindows(10))
    return main | beam.Map(lambda element, side: (element, sorted(side)), AsList(side))


def tags(p: beam.Pipeline) -> list[beam.PCollection]:
    outputs = p | beam.Create([1, 2, 3, 4]) | beam.ParDo(Tagger()).with_outputs("even", "odd", main="all")
    return [outputs["all"], outputs.even, outputs["odd"]]


def only_a_tag(p: beam.Pipeline) -> beam.PCollection:
    return (p | beam.Create([1, 2, 3]) | beam.ParDo(Tagger()).with_outputs("even", "odd"))["odd"]


def bundles(p: beam.Pipeline) -> list[beam.PCollection]:
    outputs = p | beam.Create([1, 2, 3], reshuffle=False) | beam.ParDo(CountBundles()).with_outputs("more", main="sums")
    return [outputs["sums"] | beam.CombineGlobally(sum), outputs["more"]]


def windowed_state(p: beam.Pipeline) -> beam.PCollection:
    pairs = timed(p, (1, ("a", 1)), (2, ("a", 2)), (12, ("a", 4)), (3, ("b", 8)))
    return pairs | beam.WindowInto(FixedWindows(10)) | beam.ParDo(Accumulate())


def sliding_state(p: beam.Pipeline) -> beam.PCollection:
    pairs = timed(p, (1, ("a", 1)), (7, ("a", 2)), (12, ("b", 4)))
    return pairs | beam.WindowInto(SlidingWindows(10, 5)) | beam.ParDo(Accumulate())


def empty(p: beam.Pipeline) -> list[beam.PCollection]:
    none = p | beam.Create([], reshuffle=False)
    keyed = none | beam.Map(lambda element: (element, 1)) | beam.GroupByKey()
    return [none, keyed, none | beam.CombineGlobally(sum), none | "later" >> beam.Map(lambda element: element)]


def joined(p: beam.Pipeline) -> beam.PCollection:
    left = p | beam.Create([("a", 1), ("b", 2)])
    right = p | "right" >> beam.Create([("a", "x"), ("a", "y"), ("c", "z")])
    return {"left": left, "right": right} | beam.CoGroupByKey()


def exploded(p: beam.Pipeline) -> beam.PCollection:
    """Elements of several windows through steps that do not look at windows, and a change of windows after a group."""
    return (
        timed(p, (1, 1), (7, 2))
        | beam.WindowInto(SlidingWindows(10, 5))
        | beam.Map(lambda number: ("k", number * 2))
        | beam.FlatMap(lambda pair: [pair, pair])
        | beam.Reshuffle()
        | beam.CombinePerKey(sum)
        | "wider" >> beam.WindowInto(FixedWindows(20))
        | beam.GroupByKey()
    )


def keyed_by(*keys: Any) -> Graph:
    return lambda p: p | beam.Create([(key, 1) for key in keys]) | beam.GroupByKey()


def combined_times(combiner: Any) -> Graph:
    def graph(p: beam.Pipeline) -> beam.PCollection:
        pairs = timed(p, (1, ("a", 1)), (3, ("a", 2)), (2, ("b", 4)), (11, ("b", 5)))
        return pairs | beam.WindowInto(FixedWindows(10), timestamp_combiner=combiner) | beam.GroupByKey()

    return graph


GRAPHS: dict[str, Graph] = {
    "nothing": lambda p: [],
    "create": lambda p: p | beam.Create([1, "two", None, (3,)]),
    "map": lambda p: p | beam.Create(range(5)) | beam.Map(halves, 3, offset=1),
    "flat map": lambda p: p | beam.Create(range(5)) | beam.FlatMap(lambda n: range(n)),
    "flatten twice the same": two_of_each,
    "flatten nothing": lambda p: () | beam.Flatten(pipeline=p),
    "side inputs": side_inputs,
    "side input of itself": side_of_itself,
    "windowed side inputs": windowed_sides,
    "tags": tags,
    "one tag": only_a_tag,
    "group": lambda p: p | beam.Create([("a", 1), ("b", 2), ("a", 3)]) | beam.GroupByKey(),
    "combine by key": lambda p: p | beam.Create([("a", 1), ("b", 2), ("a", 3)]) | beam.CombinePerKey(sum),
    "combine": lambda p: p | beam.Create([1, 2]) | beam.CombineGlobally(beam.combiners.MeanCombineFn()),
    "combine without default": lambda p: (
        p | beam.Create([], reshuffle=False) | beam.CombineGlobally(sum).without_defaults()
    ),
    "reshuffle": lambda p: timed(p, (1, "a"), (2, "b")) | beam.Reshuffle(),
    "windowed reshuffle": lambda p: timed(p, (1, "a"), (2, "b")) | beam.WindowInto(FixedWindows(1)) | beam.Reshuffle(),
    "fixed windows": lambda p: in_tens(p) | beam.GroupByKey(),
    "sliding windows": lambda p: (
        timed(p, (1, ("a", 1)), (7, ("a", 2)))
        | beam.WindowInto(SlidingWindows(10, 5))
        | beam.GroupByKey()
        | beam.ParDo(EveryParam())
    ),
    "windows of elements": exploded,
    "earliest": combined_times(TimestampCombiner.OUTPUT_AT_EARLIEST),
    "latest": combined_times(TimestampCombiner.OUTPUT_AT_LATEST),
    "end of window": combined_times(TimestampCombiner.OUTPUT_AT_EOW),
    "every param": lambda p: in_tens(p) | beam.ParDo(EveryParam()),
    "state": lambda p: timed(p, (1, ("a", 1)), (2, ("b", 2))) | beam.ParDo(Accumulate()),
    "windowed state": windowed_state,
    "state in several windows": sliding_state,
    "dynamic timers": lambda p: timed(p, (1, ("a", 1)), (2, ("b", 100))) | beam.ParDo(DynamicTimers()),
    "clock timers": lambda p: timed(p, (1, ("a", 1)), (1, ("a", 2)), (1, ("b", 3))) | beam.ParDo(ClockTimer()),
    "group into batches": lambda p: (
        p
        | beam.Create([("k", n) for n in range(7)])
        | beam.GroupIntoBatches(3, max_buffering_duration_secs=0)
        | beam.Map(lambda pair: (pair[0], len(list(pair[1]))))
    ),
    "bundles": bundles,
    "empty": empty,
    "join": joined,
    "splittable": lambda p: p | beam.Create([0, 1, 3, 10]) | beam.ParDo(Counting()),
    "splittable and grouped": lambda p: p | beam.Create([4, 5]) | beam.ParDo(Counting()) | beam.GroupByKey(),
    "many keys": keyed_by("a", "b", "a"),
    "tuples as keys": keyed_by(("a", 1), ("a", 2), ("a", 1)),
    "keys that are equal only in Python": keyed_by(1, True, 1.0, "1", b"1", None),
    "not a number as key": keyed_by(float("nan"), float("nan"), 0.5),
    "lists as keys": keyed_by([1, 2], [1], [1, 2]),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_gives_what_fn_api_runner_gives(name: str) -> None:
    expected = outcome(GRAPHS[name], FnApiRunner())
    for workers in (1, 2, 4):
        found = outcome(GRAPHS[name], InProcessRunner(), f"--direct_num_workers={workers}")
        assert repr(found) == repr(expected), f"with {workers} workers"
    assert expected or name in ("nothing", "flatten nothing", "combine without default")


def test_state_is_by_the_encoding_of_keys() -> None:
    """As a group is; within a bundle, FnApiRunner takes these for one key."""
    run(lambda p: p | beam.Create([(key, 1) for key in (1, True, 1.0, 1)]) | beam.ParDo(CountInWindow()))
    assert sorted(value for value, _, _ in SEEN) == [1, 1, 1, 2]


def test_reads_and_writes_files(tmp_path) -> None:
    (tmp_path / "in.txt").write_text("one\ntwo\n")
    with beam.Pipeline(runner=InProcessRunner()) as p:
        p | beam.io.ReadFromText(str(tmp_path / "in.txt")) | beam.io.WriteToText(str(tmp_path / "out"), num_shards=1)
    assert sorted((tmp_path / "out-00000-of-00001").read_text().split()) == ["one", "two"]


def test_beams_own_assertions_and_error_handling_work() -> None:
    with beam.Pipeline(runner=InProcessRunner()) as p:
        good, bad = p | beam.Create([1, 0, 2]) | beam.Map(lambda n: 2 // n).with_exception_handling()
        assert_that(good, equal_to([2, 1]))
        assert_that(bad | beam.Map(lambda failure: failure[0]), equal_to([0]), label="bad")
    with pytest.raises(Exception, match="Failed assert"), beam.Pipeline(runner=InProcessRunner()) as p:
        assert_that(p | beam.Create([1]), equal_to([2]))


def test_a_pipeline_runs_again_and_gives_the_same() -> None:
    pipeline = beam.Pipeline(runner=InProcessRunner())
    kept: list[int] = []  # each run has its own copy
    numbers = pipeline | beam.Create([1, 2])
    numbers | beam.Map(lambda n, kept: kept.append(n) or list(kept), kept) | beam.ParDo(Collect())
    numbers | "key" >> beam.Map(lambda n: ("k", n)) | beam.ParDo(Accumulate()) | "again" >> beam.ParDo(Collect())
    pipeline.run()
    first = list(SEEN)
    SEEN.clear()
    assert pipeline.run().wait_until_finish() == "DONE"
    assert first == SEEN
    assert not kept


def test_a_long_chain_of_steps_is_no_recursion_too_deep() -> None:
    def chain(p: beam.Pipeline) -> beam.PCollection:
        numbers = p | beam.Create([0])
        for step in range(150):
            numbers = numbers | f"add {step}" >> beam.Map(lambda n: n + 1)
        return numbers

    run(chain)
    assert [value for value, _, _ in SEEN] == [150]


# --- life cycle and failures ----------------------------------------------------------------------------------------


class Lifecycle(beam.DoFn):
    """Says what is called; fails in one of its methods."""

    def __init__(self, name: str, fails_in: str = "", error: BaseException | None = None) -> None:
        self._name, self._fails_in, self._error = name, fails_in, error or KeyError("broken")

    def _say(self, what: str) -> None:
        CALLS.append(f"{self._name} {what}")
        if what == self._fails_in:
            raise self._error

    def setup(self) -> None:
        self._say("setup")

    def start_bundle(self) -> None:
        self._say("start")

    def process(self, element: int, finalizer: Any = beam.DoFn.BundleFinalizerParam) -> Iterator[int]:
        finalizer.register(lambda: self._say("finalize"))
        self._say("process")
        yield element
        self._say("after")

    def finish_bundle(self) -> Iterator[WindowedValue]:
        self._say("finish")
        yield WindowedValue(100, Timestamp(0), [GlobalWindow()])

    def teardown(self) -> None:
        self._say("teardown")


def two_steps(**fails: Any) -> Graph:
    return lambda p: (
        p
        | beam.Create([1], reshuffle=False)
        | "first" >> beam.ParDo(Lifecycle("first"))
        | "second" >> beam.ParDo(Lifecycle("second", **fails))
    )


def test_life_cycle_in_order() -> None:
    run(two_steps())
    assert [
        *("first setup", "second setup", "first start", "first process", "second start", "second process"),
        *("second after", "first after", "first finish", "second process", "second after", "second finish"),
        *("first finalize", "second finalize", "second finalize", "first teardown", "second teardown"),
    ] == CALLS
    assert [value for value, _, _ in SEEN] == [1, 100, 100]


@pytest.mark.parametrize("method", ["setup", "start", "process", "after", "finish"])
@pytest.mark.parametrize(
    "error", [KeyError("broken"), OSError(2, "no file"), KeyboardInterrupt(), SystemExit(3)], ids=repr
)
def test_an_exception_ends_the_run_as_it_is(method: str, error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        run(two_steps(fails_in=method, error=error))
    assert caught.value.args == error.args
    assert caught.value.__notes__ == ["while running the step second"]
    assert "first teardown" in CALLS
    assert ("second teardown" in CALLS) == (method != "setup")
    assert not any(call.endswith("finalize") for call in CALLS)
    assert ("second finish" in CALLS) == (method == "finish"), "nothing is committed"


def test_a_finalizer_or_teardown_that_fails_is_logged_and_the_others_are_called(caplog) -> None:
    run(two_steps(fails_in="finalize"))
    assert CALLS.count("second finalize") == 2
    assert "finalization call" in caplog.text
    run(lambda p: two_steps(fails_in="teardown")(p) | "third" >> beam.ParDo(Lifecycle("third")))
    assert "third teardown" in CALLS
    assert "second could not be torn down" in caplog.text


def produce(_: Any) -> Iterator[int]:
    try:
        yield 1
        CALLS.append("went on")
    finally:
        CALLS.append("closed")


def fail(_: int) -> None:
    raise ValueError("no")


def test_a_generator_whose_consumer_fails_goes_on_no_more() -> None:
    try:
        run(lambda p: p | beam.Create([0], reshuffle=False) | beam.FlatMap(produce) | beam.Map(fail))
    except ValueError:
        CALLS.append("raised")
    gc.collect()
    assert sorted(CALLS) == ["closed", "raised"]


class Metered(beam.DoFn):
    def setup(self) -> None:
        Metrics.counter("test", "setups").inc()

    def process(self, element: int) -> Iterator[int]:
        Metrics.counter("test", "before").inc()
        Metrics.distribution("test", "sizes").update(element)
        Metrics.gauge("test", "last").set(7)
        Metrics.string_set("test", "names").add(str(element))
        yield element
        Metrics.counter("test", "after").inc(2)


def test_metrics_are_those_of_fn_api_runner() -> None:
    def graph(p: beam.Pipeline) -> beam.PCollection:
        return p | beam.Create([1, 2, 3]) | "one" >> beam.ParDo(Metered()) | "two" >> beam.ParDo(Metered())

    def counts(runner: Any, query: Any = None) -> list[Any]:
        found = run(graph, runner).metrics().query(query)
        results = [(m.key, getattr(m.committed, "value", m.committed)) for kind in found.values() for m in kind]
        # How often a DoFn is set up is an engine's own affair.
        return sorted((str(key), repr(plain(value))) for key, value in results if key.metric.name != "setups")

    assert counts(InProcessRunner()) == counts(FnApiRunner())
    assert len(counts(InProcessRunner(), MetricsFilter().with_step("two").with_name("after"))) == 1


# --- graphs it refuses ----------------------------------------------------------------------------------------------


class Batches(beam.DoFn):
    def process_batch(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        yield batch

    def get_input_batch_type(self, input_element_type: Any) -> Any:
        return list[int]

    def get_output_batch_type(self, input_element_type: Any) -> Any:
        return list[int]

    def infer_output_type(self, input_type: Any) -> type:
        return int


class Ordered(beam.DoFn):
    LIST = OrderedListStateSpec("list", VarIntCoder())

    def process(self, element: Any, state: Any = beam.DoFn.StateParam(LIST)) -> None:
        pass


def pairs_in(window: Any, **options: Any) -> Graph:
    return lambda p: timed(p, (1, ("a", 1))) | beam.WindowInto(window, **options)


DISCARDING, ACCUMULATING = trigger.AccumulationMode.DISCARDING, trigger.AccumulationMode.ACCUMULATING
EARLY = trigger.AfterWatermark(early=trigger.AfterCount(2))
EACH = trigger.Repeatedly(trigger.AfterCount(1))
TENS = FixedWindows(10)

REFUSED: dict[str, Graph] = {
    "merge windows": lambda p: pairs_in(Sessions(5))(p) | beam.GroupByKey(),
    "merge windows ": lambda p: pairs_in(Sessions(5))(p) | beam.ParDo(Accumulate()),
    "run the trigger": lambda p: pairs_in(TENS, trigger=EARLY, accumulation_mode=DISCARDING)(p) | beam.GroupByKey(),
    "accumulate": lambda p: pairs_in(TENS, trigger=EACH, accumulation_mode=ACCUMULATING)(p) | beam.GroupByKey(),
    "run <TestStream": lambda p: p | test_stream.TestStream(),
    "run DoFns over Beam's own batches": lambda p: p | beam.Create([1]) | beam.ParDo(Batches()),
    "keep a OrderedListStateSpec": lambda p: p | beam.Create([("a", 1)]) | beam.ParDo(Ordered()),
    "run unbounded side inputs": lambda p: (
        p | beam.Create([1]) | beam.Map(lambda n, side: n, AsList(p | "script" >> Play([("end",)])))
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refuses_what_it_does_not_run_before_anything_has_run(what: str) -> None:
    def graph(p: beam.Pipeline) -> beam.PCollection:
        p | "bystander" >> beam.Create([1]) | beam.ParDo(Lifecycle("bystander"))
        return REFUSED[what](p)

    with pytest.raises(UnsupportedGraph, match=what.strip()):
        run(graph)
    assert not CALLS


def test_keys_without_a_deterministic_encoding_are_refused() -> None:
    with pytest.raises(TypeError, match="deterministically"):
        run(lambda p: p | beam.Create([(object(), 1)], reshuffle=False) | beam.GroupByKey())


# --- streams --------------------------------------------------------------------------------------------------------


class Play(beam.PTransform):
    """An unbounded source that plays scripts: ("emit", time, value), ("mark", watermark), ("wait", seconds),
    ("call", name of a hook), ("end",). Every step but "emit" ends a round, and acknowledges by a finalizer."""

    def __init__(self, *scripts: list[Any], defer: float = 0.002) -> None:
        super().__init__()
        self._scripts, self._defer = scripts, defer

    def expand(self, begin: Any) -> beam.PCollection:
        numbers = begin | beam.Create(list(range(len(self._scripts))), reshuffle=False)
        return numbers | beam.ParDo(_Play(self._scripts, self._defer))


class _Script(RestrictionProvider, WatermarkEstimatorProvider):
    def initial_restriction(self, element: Any) -> OffsetRange:
        return OffsetRange(0, 1 << 40)

    def create_tracker(self, restriction: OffsetRange) -> OffsetRestrictionTracker:
        return OffsetRestrictionTracker(restriction)

    def restriction_size(self, element: Any, restriction: OffsetRange) -> int:
        return 1

    def initial_estimator_state(self, element: Any, restriction: OffsetRange) -> Timestamp:
        return Timestamp(0)

    def create_watermark_estimator(self, state: Timestamp) -> ManualWatermarkEstimator:
        return ManualWatermarkEstimator(state)


_SCRIPT = _Script()
HOOKS: dict[str, Callable[[], Any]] = {}  # what a script may call


class _Play(beam.DoFn):
    def __init__(self, scripts: Any, defer: float) -> None:
        self._scripts, self._defer = scripts, defer

    def teardown(self) -> None:
        CALLS.append("source teardown")

    @beam.DoFn.unbounded_per_element()
    def process(
        self,
        element: int,
        finalizer: Any = beam.DoFn.BundleFinalizerParam,
        tracker: Any = beam.DoFn.RestrictionParam(_SCRIPT),
        estimator: Any = beam.DoFn.WatermarkEstimatorParam(_SCRIPT),
    ) -> Iterator[TimestampedValue]:
        script = self._scripts[element]
        position = tracker.current_restriction().start
        while tracker.try_claim(position):
            step, *arguments = script[position] if position < len(script) else ("wait", 0.005)
            position += 1
            if step == "emit":
                yield TimestampedValue(arguments[1], Timestamp(arguments[0]))
                continue
            if step == "mark":
                estimator.set_watermark(Timestamp(arguments[0]))
            elif step == "end":
                estimator.set_watermark(MAX_TIMESTAMP)
            elif step == "call":
                HOOKS[arguments[0]]()
            finalizer.register(functools.partial(CALLS.append, f"ack {element} {position}"))
            tracker.defer_remainder(Duration(arguments[0] if step == "wait" else self._defer))
            return


class Release(beam.DoFn):
    """What rolling windows do: keeps elements until the watermark has passed them, then emits them in order."""

    PENDING = BagStateSpec("pending", VarIntCoder())
    FIRST = ReadModifyWriteStateSpec("first", VarIntCoder())
    TIMER = TimerSpec("release", TimeDomain.WATERMARK)

    def setup(self) -> None:
        self._released = -1

    def process(
        self,
        element: Any,
        at: Timestamp = beam.DoFn.TimestampParam,
        pending: Any = beam.DoFn.StateParam(PENDING),
        first: Any = beam.DoFn.StateParam(FIRST),
        timer: Any = beam.DoFn.TimerParam(TIMER),
    ) -> None:
        if at.micros <= self._released:
            CALLS.append(f"{element} is late")
        pending.add(at.micros)
        if first.read() is None or at.micros < first.read():
            first.write(at.micros)
            timer.set(at)

    @on_timer(TIMER)
    def release(
        self,
        key: Any = beam.DoFn.KeyParam,
        at: Timestamp = beam.DoFn.TimestampParam,
        pending: Any = beam.DoFn.StateParam(PENDING),
        first: Any = beam.DoFn.StateParam(FIRST),
        timer: Any = beam.DoFn.TimerParam(TIMER),
    ) -> Iterator[TimestampedValue]:
        times = sorted(pending.read())
        pending.clear()
        first.clear()
        self._released = max(self._released, at.micros)
        for time_us in times:
            if time_us <= at.micros:
                yield TimestampedValue((key, time_us), Timestamp(micros=time_us))
            else:
                pending.add(time_us)
        later = [time_us for time_us in times if time_us > at.micros]
        if later:
            first.write(later[0])
            timer.set(Timestamp(micros=later[0]))


class Log(beam.DoFn):
    """Takes down elements and their times in seconds, in their order."""

    def __init__(self, *name: str) -> None:
        self._name = name

    def process(self, element: Any, at: Timestamp = beam.DoFn.TimestampParam) -> None:
        SEEN.append((*self._name, element, at.micros / 1e6))


@pytest.fixture(autouse=True)
def _hooks() -> Iterator[None]:
    for name in "ABC":
        HOOKS[name] = functools.partial(SEEN.append, name)
    yield
    HOOKS.clear()


def run_stream(graph: Callable[[beam.Pipeline], Any], runner: InProcessRunner | None = None) -> list[Any]:
    pipeline = beam.Pipeline(runner=runner or InProcessRunner())
    graph(pipeline)
    pipeline.run()
    assert not [call for call in CALLS if "late" in call]
    return SEEN


def release_and_log(elements: beam.PCollection) -> None:
    elements | "release" >> beam.ParDo(Release()) | "log" >> beam.ParDo(Log())


def test_an_event_time_timer_fires_when_the_watermark_has_passed_it() -> None:
    """An element at the watermark's time may still come: a timer at that time waits until it is passed."""
    script = [("emit", 30, ("k", 1)), ("emit", 20, ("l", 2)), ("mark", 19), ("call", "A"), ("mark", 20), ("call", "B")]
    script += [("emit", 20, ("l", 3)), ("mark", 20.000001), ("call", "C"), ("mark", 31), ("end",)]
    seen = run_stream(lambda p: release_and_log(p | Play(script)))
    at_20 = (("l", 20_000_000), 20.0)
    assert seen == ["A", "B", at_20, at_20, "C", (("k", 30_000_000), 30.0)]


def test_timers_fire_in_order_of_their_times_across_keys() -> None:
    script = [("emit", time, (f"k{time % 3}", time)) for time in (50, 10, 40, 20, 30, 25)]
    script += [("mark", 45), ("call", "A"), ("end",)]
    seen = run_stream(lambda p: release_and_log(p | Play(script)))
    assert [s if isinstance(s, str) else s[1] for s in seen] == [10, 20, 25, 30, 40, "A", 50]


def test_a_chain_of_stateful_steps_never_sees_late_data() -> None:
    """Three steps that each hold elements until the watermark has passed them, over two disordered keys."""
    script: list[Any] = []
    for second in range(1, 120):
        script.append(("emit", second + (second * 7) % 5, ("k" if second % 2 else "l", second)))
        script.append(("mark", second))

    def graph(p: beam.Pipeline) -> None:
        elements = p | Play([*script, ("end",)], defer=0)
        for number in range(3):
            released = elements | f"release {number}" >> beam.ParDo(Release())
            elements = released | f"again {number}" >> beam.Reshuffle()
        elements | beam.ParDo(Log())

    times = [second for _, second in run_stream(graph)]
    assert len(times) == 119
    assert times == sorted(times)


def test_elements_reach_the_end_in_the_round_they_are_emitted_in() -> None:
    script = [("emit", 1, ("k", 1)), ("mark", 1), ("call", "A"), ("emit", 12, ("k", 2)), ("mark", 11), ("call", "B")]

    def graph(p: beam.Pipeline) -> None:
        elements = p | Play([*script, ("end",)])
        elements | beam.Reshuffle() | "straight" >> beam.ParDo(Log("straight"))
        grouped = elements | beam.WindowInto(TENS) | beam.GroupByKey() | beam.MapTuple(lambda k, v: (k, list(v)))
        grouped | "grouped" >> beam.ParDo(Log("grouped"))
        elements | beam.Map(lambda pair: 2) | beam.ParDo(Counting()) | "counted" >> beam.ParDo(Log("counted"))

    seen = run_stream(graph)
    first, second = seen[: seen.index("A")], seen[seen.index("A") + 1 : seen.index("B")]
    assert sorted(first) == [("counted", (2, 0), 1.0), ("counted", (2, 1), 1.0), ("straight", ("k", 1), 1.0)]
    assert ("grouped", ("k", [1]), 9.999999) in second
    assert ("straight", ("k", 2), 12.0) in second


def test_a_group_holds_the_watermark_at_its_output_time() -> None:
    """The element itself does not go on before its group, which will be of the same time."""
    script = [("emit", 1, ("k", 1)), ("mark", 8), ("call", "A"), ("mark", 12), ("call", "B"), ("end",)]

    def graph(p: beam.Pipeline) -> None:
        window = beam.WindowInto(TENS, timestamp_combiner=TimestampCombiner.OUTPUT_AT_EARLIEST)
        elements = p | Play(script) | window
        release_and_log((elements, elements | beam.GroupByKey()) | beam.Flatten())

    assert [s if isinstance(s, str) else s[1] for s in run_stream(graph)] == ["A", 1, 1, "B"]


class EmitsLast(beam.DoFn):
    """Keeps a bundle's elements and emits them at its end, with their own times."""

    def start_bundle(self) -> None:
        self._kept: list[Any] = []

    def process(self, element: Any, at: Timestamp = beam.DoFn.TimestampParam) -> None:
        self._kept.append(WindowedValue(element, at, [GlobalWindow()]))

    def finish_bundle(self) -> list[WindowedValue]:
        return self._kept


def test_the_watermark_waits_for_what_finish_bundle_emits() -> None:
    script = [("emit", 5, ("k", 1)), ("mark", 100), ("emit", 105, ("k", 2)), ("mark", 200), ("end",)]
    seen = run_stream(
        lambda p: release_and_log(p | Play(script) | beam.ParDo(EmitsLast()) | "more" >> beam.ParDo(EmitsLast()))
    )
    assert [second for _, second in seen] == [5, 105]


def test_side_inputs_wait_until_they_are_complete() -> None:
    script = [("emit", 1, 1), ("mark", 1), ("emit", 2, 2), ("mark", 2), ("wait", 0.1), ("emit", 3, 3), ("end",)]

    def graph(p: beam.Pipeline) -> None:
        side = p | beam.Create([4]) | beam.ParDo(Counting())  # 0, 1, 2, a rest, 3
        total = side | beam.MapTuple(lambda _, n: n) | beam.CombineGlobally(sum)
        added = p | Play(script, defer=0) | beam.Map(lambda n, total: ("k", n + total), AsSingleton(total))
        added | beam.ParDo(Log("added"))
        release_and_log(added)

    seen = run_stream(graph)
    assert [s[1:] for s in seen if s[0] == "added"] == [(("k", 7), 1.0), (("k", 8), 2.0), (("k", 9), 3.0)]
    assert len(seen) == 6


class Committing(beam.DoFn):
    def start_bundle(self) -> None:
        self._elements = 0

    def process(self, element: Any) -> None:
        self._elements += 1

    def finish_bundle(self) -> None:
        CALLS.append(f"committed {self._elements}")


def test_each_finalizer_is_called_once_after_all_bundles_of_its_round() -> None:
    one = [("emit", 1, 1), ("mark", 1), ("emit", 2, 2), ("mark", 2), ("end",)]
    other = [("emit", 1, 1), ("wait", 0.02), ("emit", 3, 1), ("end",)]
    run_stream(lambda p: p | Play(one, other) | beam.ParDo(Committing()))
    assert CALLS[:3] == ["committed 2", "ack 0 2", "ack 1 2"]
    acks = [call for call in CALLS if call.startswith("ack")]
    assert {"ack 0 2", "ack 0 4", "ack 0 5", "ack 1 2", "ack 1 4"} <= set(acks)
    assert len(acks) == len(set(acks))
    emitted = {"ack 0 2", "ack 0 4", "ack 1 2", "ack 1 4"}  # one element before each
    committed = acknowledged = 0
    for call in CALLS:
        committed += int(call.split()[1]) if call.startswith("committed") else 0
        acknowledged += call in emitted
        assert acknowledged <= committed


@pytest.mark.parametrize("seed", range(5))
def test_a_stream_gives_what_batch_gives(seed: int) -> None:
    """Whatever the order that the watermark allows for, and the rounds that it is cut into."""
    random = Random(seed)
    elements = [(random.randrange(100), (random.choice("kl"), number)) for number in range(80)]
    script: list[Any] = []
    least = 100
    for second, pair in sorted(elements, key=lambda element: element[0] + random.randrange(20), reverse=True):
        least = min(least, second)
        script.append(("emit", second, pair))
        if random.random() < 0.3:
            script.append(("mark", least))  # a promise about what comes after
    script.reverse()

    def graph(source: beam.PTransform) -> Callable[[beam.Pipeline], None]:
        def build(p: beam.Pipeline) -> None:
            pairs = p | source
            for name, window in (("tens", TENS), ("sliding", SlidingWindows(15, 5))):
                grouped = pairs | f"in {name}" >> beam.WindowInto(window) | f"group {name}" >> beam.GroupByKey()
                grouped | f"list {name}" >> beam.Map(plain) | f"log {name}" >> beam.ParDo(Log(name))
            release_and_log(pairs)

        return build

    streamed = list(run_stream(graph(Play([*script, ("end",)], defer=0))))
    SEEN.clear()
    in_batch = run_stream(graph(Batch(elements)))
    assert sorted(streamed, key=repr) == sorted(in_batch, key=repr)


class Batch(beam.PTransform):
    def __init__(self, elements: list[Any]) -> None:
        super().__init__()
        self._elements = elements

    def expand(self, begin: Any) -> beam.PCollection:
        return timed(begin.pipeline, *self._elements)


def test_two_sources_each_hold_the_watermark() -> None:
    fast = [("emit", 5, ("k", 1)), ("mark", 1000), ("end",)]
    slow = [("mark", 3), ("wait", 0.02), ("call", "A"), ("emit", 4, ("k", 2)), ("mark", 6), ("call", "B"), ("end",)]
    seen = run_stream(lambda p: release_and_log((p | "fast" >> Play(fast), p | "slow" >> Play(slow)) | beam.Flatten()))
    assert [s if isinstance(s, str) else s[1] for s in seen] == ["A", 4.0, 5.0, "B"]


def test_a_source_at_the_end_of_time_ends_the_run() -> None:
    """Even if it goes on deferring, without delay and for ever, after its end."""
    script = [("emit", 5, ("k", 1)), ("end",), *[("call", "A")] * 1000]
    seen = run_stream(lambda p: release_and_log(p | Play(script, defer=0)))
    assert seen == [(("k", 5_000_000), 5.0)]
    assert CALLS[-1] == "source teardown"


def test_late_elements_are_dropped_or_grouped_as_lateness_allows() -> None:
    script = [("emit", 1, ("k", 1)), ("mark", 12), ("emit", 2, ("k", 2)), ("mark", 18), ("emit", 3, ("k", 3)), ("end",)]

    def graph(p: beam.Pipeline) -> None:
        elements = p | Play(script)
        for lateness in (0, 5):
            windowed = elements | f"window {lateness}" >> beam.WindowInto(TENS, allowed_lateness=lateness)
            listed = windowed | f"group {lateness}" >> beam.GroupByKey() | f"list {lateness}" >> beam.Map(plain)
            listed | f"log {lateness}" >> beam.ParDo(Log(f"group {lateness}"))
            counted = windowed | f"count {lateness}" >> beam.ParDo(CountInWindow())
            counted | f"log count {lateness}" >> beam.ParDo(Log(f"count {lateness}"))

    seen = run_stream(graph)

    def of(name: str) -> list[Any]:
        return [element for step, element, _ in seen if step == name]

    assert of("group 0") == [("k", [1])]
    assert of("group 5") == [("k", [1]), ("k", [2])]
    assert of("count 0") == [1]
    assert of("count 5") == [1, 2]


class CountBeside(CountInWindow):
    def process(self, element: Any, side: Any, total: Any = beam.DoFn.StateParam(CountInWindow.SUM)) -> Iterator[int]:
        total.add(side)
        yield total.read()


def test_what_waits_for_a_side_input_does_not_become_late() -> None:
    script = [("emit", 1, ("k", 1)), ("mark", 50), ("emit", 2, ("k", 1)), ("wait", 0.05), ("end",)]

    def graph(p: beam.Pipeline) -> None:
        resting = p | beam.Create([4]) | beam.ParDo(Counting()) | beam.combiners.Count.Globally()
        windowed = p | Play(script, defer=0) | beam.WindowInto(TENS)
        windowed | beam.ParDo(CountBeside(), AsSingleton(resting)) | beam.ParDo(Log())

    assert [count for count, _ in run_stream(graph)] == [4, 8]


def test_timers_by_the_clock_hold_the_watermark_and_fire_on_time() -> None:
    script = [("emit", 5, ("k", 1)), ("mark", 100), ("call", "A"), ("wait", 0.3), ("call", "B"), ("end",)]
    seen = run_stream(lambda p: p | Play(script) | beam.ParDo(ClockTimer()) | beam.ParDo(Log()))
    assert seen == ["A", (("k", [1]), 1.0), "B"]


# --- stopping and resting -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["thread", "signal", "step", "before"])
def test_stop_ends_the_run_after_the_round_and_fires_no_timer(by: str) -> None:
    runner = InProcessRunner()

    def stop(*_: Any) -> None:
        runner.stop()

    HOOKS["A"] = {
        "thread": lambda: threading.Timer(0.1, stop).start(),
        "signal": lambda: signal.setitimer(signal.ITIMER_REAL, 0.1),
        "step": stop,
        "before": stop,
    }[by]
    if by == "before":
        stop()

    def graph(p: beam.Pipeline) -> None:
        elements = p | Play([("emit", 5, 5), ("mark", 3), ("emit", 6, 6), ("call", "A"), ("wait", 1000)])
        elements = elements | beam.ParDo(Lifecycle("step")) | beam.Filter(lambda n: n != 100)
        release_and_log(elements | beam.Map(lambda n: ("k", n)))

    old = signal.signal(signal.SIGALRM, stop)
    seen = run_stream(graph, runner)
    signal.signal(signal.SIGALRM, old)
    rounds = 0 if by == "before" else 2
    for what in ("start", "process", "finish", "finalize"):
        assert CALLS.count(f"step {what}") == rounds, "what is under way is finished"
    assert CALLS[-2:] == ["source teardown", "step teardown"]
    assert not seen, "but not what waits for times 5 and 6"
    assert not runner.stopped, "the next run is to run"


def test_an_interrupt_while_resting_tears_down() -> None:
    HOOKS["A"] = lambda: signal.setitimer(signal.ITIMER_REAL, 0.1)
    old = signal.signal(signal.SIGALRM, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt):
        run_stream(lambda p: p | Play([("call", "A"), ("wait", 1000)]) | beam.ParDo(Lifecycle("step")))
    signal.signal(signal.SIGALRM, old)
    assert CALLS[-2:] == ["source teardown", "step teardown"]


class Ceaseless(beam.DoFn):
    """Goes on emitting as long as it can claim."""

    @beam.DoFn.unbounded_per_element()
    def process(
        self,
        element: int,
        finalizer: Any = beam.DoFn.BundleFinalizerParam,
        tracker: Any = beam.DoFn.RestrictionParam(_SCRIPT),
        estimator: Any = beam.DoFn.WatermarkEstimatorParam(_SCRIPT),
    ) -> Iterator[TimestampedValue]:
        finalizer.register(functools.partial(CALLS.append, "ack"))
        position = tracker.current_restriction().start
        if not position:
            HOOKS["start"]()
        while tracker.try_claim(position):
            yield TimestampedValue(("k", position), Timestamp(position))
            position += 1
            estimator.set_watermark(Timestamp(position))
            time.sleep(0.001)


@pytest.mark.parametrize(("seconds", "rounds"), [(0.02, range(6, 20)), (60, range(1, 2))])
def test_a_source_that_never_pauses_is_interrupted(seconds: float, rounds: range, monkeypatch) -> None:
    """Its bundles end, the watermark moves, finalizers are called, and stop is heard."""
    monkeypatch.setattr("pipelines.runners.inprocess.pardo.BUNDLE_SECONDS", seconds)
    runner = InProcessRunner()
    HOOKS["start"] = lambda: threading.Timer(0.3, runner.stop).start()
    seen = run_stream(lambda p: release_and_log(p | beam.Create([0]) | beam.ParDo(Ceaseless())), runner)
    assert [second for _, second in seen] == list(range(len(seen)))
    assert len(seen) > 50
    assert CALLS.count("ack") in rounds


class Rounds(beam.DoFn):
    """Emits two elements a round, and moves the watermark past them at the round's end."""

    @beam.DoFn.unbounded_per_element()
    def process(
        self,
        element: int,
        finalizer: Any = beam.DoFn.BundleFinalizerParam,
        tracker: Any = beam.DoFn.RestrictionParam(_SCRIPT),
        estimator: Any = beam.DoFn.WatermarkEstimatorParam(_SCRIPT),
    ) -> Iterator[TimestampedValue]:
        number = tracker.current_restriction().start
        if tracker.try_claim(number):
            finalizer.register(functools.partial(CALLS.append, "ack"))
            if number == 3:
                HOOKS["A"]()
            yield TimestampedValue(("k", 2 * number), Timestamp(2 * number))
            yield TimestampedValue(("k", 2 * number + 1), Timestamp(2 * number + 1))
            estimator.set_watermark(Timestamp(2 * number + 2))
            tracker.defer_remainder()


def test_a_round_under_way_when_the_run_is_to_stop_is_finished_with_its_watermark() -> None:
    """What was acknowledged has come out: it is not left waiting for a watermark that a split took away."""
    runner = InProcessRunner()
    HOOKS["A"] = runner.stop
    seen = run_stream(lambda p: release_and_log(p | beam.Create([0]) | beam.ParDo(Rounds())), runner)
    assert CALLS.count("ack") == 4
    assert [second for _, second in seen] == list(range(8))


def test_resting_takes_no_time_of_the_processor() -> None:
    marks: list[tuple[float, float]] = []
    HOOKS["A"] = lambda: marks.append((time.monotonic(), time.process_time()))
    script = [("emit", 9, ("k", 1)), ("call", "A"), *[("wait", 0.1)] * 10, ("call", "A"), ("end",)]

    def graph(p: beam.Pipeline) -> None:
        elements = p | Play(script)
        for number in range(40):
            elements = elements | f"step {number}" >> beam.Map(lambda element: element)
        release_and_log(elements)

    run_stream(graph)
    seconds, busy = (after - before for before, after in zip(*marks, strict=True))
    assert 1.0 <= seconds < 3.0, "delays are respected"
    assert busy < 0.1 * seconds


# --- what grows, and what it costs ----------------------------------------------------------------------------------


class OnceAKey(beam.DoFn):
    """Sets, moves and clears timers and state of ever new keys."""

    MARK = ReadModifyWriteStateSpec("mark", VarIntCoder())
    BAG = BagStateSpec("bag", VarIntCoder())
    SUM = CombiningValueStateSpec("sum", sum)
    FORGET = TimerSpec("forget", TimeDomain.WATERMARK)

    def process(
        self,
        element: tuple[int, int],
        mark: Any = beam.DoFn.StateParam(MARK),
        bag: Any = beam.DoFn.StateParam(BAG),
        total: Any = beam.DoFn.StateParam(SUM),
        at: Timestamp = beam.DoFn.TimestampParam,
        forget: Any = beam.DoFn.TimerParam(FORGET),
    ) -> None:
        bag.read()
        total.read()
        mark.write(1)
        for seconds in range(3):
            forget.set(at + seconds)

    @on_timer(FORGET)
    def forget(self, mark: Any = beam.DoFn.StateParam(MARK)) -> None:
        mark.clear()


def test_nothing_is_kept_of_keys_windows_and_timers_that_are_over() -> None:
    script: list[Any] = []
    for second in range(400):
        script += [*(("emit", second, (second * 10 + n, n)) for n in range(10)), ("mark", second)]
        script += [("call", "count")] if second in (100, 399) else []
    counts: list[int] = []
    HOOKS["count"] = lambda: counts.append(len(gc.get_objects()))

    def graph(p: beam.Pipeline) -> None:
        side = p | beam.Create([1])
        elements = p | Play([*script, ("end",)], defer=0)
        elements | "global" >> beam.ParDo(OnceAKey())
        windowed = elements | beam.WindowInto(SlidingWindows(4, 2))
        windowed | "windowed" >> beam.ParDo(OnceAKey())
        windowed | "never cleared" >> beam.ParDo(CountInWindow())
        windowed | beam.GroupByKey()
        windowed | beam.Map(lambda element, side, window=beam.DoFn.WindowParam: None, AsList(side))

    run_stream(graph)
    assert counts[1] - counts[0] < 200, "3,000 more keys and 150 more windows have come and gone"


def test_timers_that_are_moved_again_and_again_take_no_room() -> None:
    agenda = Agenda()
    for number in range(100_000):
        agenda.put(f"place {number % 50}", number)
    assert len(agenda._heap) <= 200
    assert agenda.first().time_us == 99_950


class ManyTimers(beam.DoFn):
    TIMER = TimerSpec("timer", TimeDomain.WATERMARK)

    def process(self, element: tuple[int, int], timer: Any = beam.DoFn.TimerParam(TIMER)) -> None:
        timer.set(Timestamp(10_000 + element[0]))

    @on_timer(TIMER)
    def fire(self, key: int = beam.DoFn.KeyParam) -> Iterator[int]:
        yield key


def test_a_round_costs_no_more_with_20_000_timers() -> None:
    marks: list[float] = []
    HOOKS["A"] = lambda: marks.append(time.process_time())
    script = [("emit", 1, (n, n)) for n in range(20_000)]
    script += [("mark", 0), ("call", "A"), *[("mark", second) for second in range(1, 1001)], ("call", "A"), ("end",)]
    seen = run_stream(lambda p: p | Play(script, defer=0) | beam.ParDo(ManyTimers()) | beam.ParDo(Log()))
    assert [key for key, _ in seen] == list(range(20_000))
    assert (marks[1] - marks[0]) / 1000 < 0.0005


def test_a_round_of_forty_steps_takes_less_than_half_a_millisecond() -> None:
    """Without what the DoFns do, that is; there is no element in most rounds."""
    marks: list[float] = []
    HOOKS["A"] = lambda: marks.append(time.process_time())
    script = [("call", "A"), *[("mark", second) for second in range(2000)], ("call", "A"), ("end",)]

    def graph(p: beam.Pipeline) -> None:
        elements = p | Play(script, defer=0)
        for number in range(32):
            elements = elements | f"step {number}" >> beam.Map(lambda element: element)
        for number in range(4):
            elements = elements | f"stateful {number}" >> beam.ParDo(Release())

    run_stream(graph)
    assert (marks[1] - marks[0]) / 2000 < 0.0005
