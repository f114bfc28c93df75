"""Lanes of the in-process engine: what works side by side, and what stays as it is in one thread."""

from __future__ import annotations

import collections
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.coders import VarIntCoder
from apache_beam.metrics import Metrics
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions
from apache_beam.pvalue import AsList
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, TimerSpec, on_timer
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import Timestamp
from apache_beam.utils.windowed_value import WindowedValue

from pipelines.runners import Job, make_pipeline, profile_of
from pipelines.runners.inprocess.engine import InProcessRunner
from pipelines.runners.inprocess.lanes import lane_here
from pipelines.runners.profile import RunnerError, cores

# What DoFns share with the tests: only functions and classes of this module refer to them, and are pickled by name.
SEEN: list[Any] = []
CALLS: list[Any] = []
MEET: dict[str, threading.Barrier] = {}
SECONDS = 60  # that a lane waits for another: far more than it takes
WORKERS = (1, 2, 4)


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    SEEN.clear()
    CALLS.clear()
    MEET["two"] = threading.Barrier(2)
    yield
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith("headrace-lane")]
    assert not left, "a run has ended, and its threads have not"


def run(graph: Callable[[beam.Pipeline], Any], workers: int, runner: InProcessRunner | None = None) -> Any:
    options = PipelineOptions([f"--direct_num_workers={workers}"])
    pipeline = beam.Pipeline(runner=runner or InProcessRunner(), options=options)
    graph(pipeline)
    return pipeline.run()


def meet(element: Any) -> Any:
    """Go on only once another lane is here, too."""
    MEET["two"].wait(SECONDS)
    SEEN.append(threading.get_ident())
    return element


def test_what_was_reshuffled_goes_on_side_by_side() -> None:
    run(lambda p: p | beam.Create([1, 2]) | beam.Reshuffle() | beam.Map(meet), 2)
    assert len(set(SEEN)) == 2


def test_groups_go_on_side_by_side() -> None:
    run(lambda p: p | beam.Create(range(8)) | beam.Map(meet), 2)
    assert len(set(SEEN)) == 2


def take_down(element: Any) -> Any:
    SEEN.append(element)
    return element


def call(what: Any) -> None:
    CALLS.append(what)


INSIDE: collections.Counter[Any] = collections.Counter()  # of keys and instances, how often they are worked on now
LANES: collections.defaultdict[int, set[int]] = collections.defaultdict(set)  # of each key


class Exclusive(beam.DoFn):
    """Keys and instances that are in two threads at once are told of."""

    BAG = BagStateSpec("bag", VarIntCoder())
    END = TimerSpec("end", TimeDomain.WATERMARK)

    def process(
        self, element: tuple[int, int], bag: Any = beam.DoFn.StateParam(BAG), end: Any = beam.DoFn.TimerParam(END)
    ) -> None:
        key, value = element
        with self._alone(key):
            bag.add(value)
            end.set(Timestamp(value))

    @on_timer(END)
    def emit(self, key: int = beam.DoFn.KeyParam, bag: Any = beam.DoFn.StateParam(BAG)) -> Iterator[Any]:
        with self._alone(key):
            if key < 2:
                meet(key)  # the timers of these keys fire side by side
            yield key, sorted(bag.read())

    def _alone(self, key: int) -> Any:
        return _Alone(self, key)


class _Alone:
    def __init__(self, fn: Exclusive, key: int) -> None:
        self._places = [("key", key), ("instance", id(fn))]
        LANES[key].add(lane_here().number)

    def __enter__(self) -> None:
        INSIDE.update(self._places)
        CALLS.extend(place for place in self._places if INSIDE[place] > 1)

    def __exit__(self, *_: object) -> None:
        INSIDE.subtract(self._places)


def test_keys_are_worked_on_side_by_side_and_each_in_one_lane() -> None:
    INSIDE.clear()
    LANES.clear()
    pairs = [(key, value) for value in range(50) for key in range(8)]
    run(lambda p: p | beam.Create(pairs) | beam.ParDo(Exclusive()) | beam.Map(call), 2)
    assert sorted(CALLS) == [(key, list(range(50))) for key in range(8)]
    assert [LANES[key] for key in range(8)] == [{0}, {1}] * 4


def slow_at_first(number: int) -> int:
    threading.Event().wait(0.002 * (20 - number) if number < 20 else 0)
    return number


class Tens(beam.DoFn):
    """Emits with timers, by key."""

    BAG = BagStateSpec("bag", VarIntCoder())
    END = TimerSpec("end", TimeDomain.WATERMARK)

    def process(
        self,
        element: tuple[int, int],
        bag: Any = beam.DoFn.StateParam(BAG),
        end: Any = beam.DoFn.TimerParam(END),
    ) -> None:
        bag.add(element[1])
        end.set(Timestamp(element[1]))

    @on_timer(END)
    def emit(self, key: int = beam.DoFn.KeyParam, bag: Any = beam.DoFn.StateParam(BAG)) -> Iterator[Any]:
        yield from ((key, slow_at_first(value)) for value in bag.read())


def test_what_is_shared_is_in_the_order_of_one_lane() -> None:
    """Of a group's values and of a side input, though the first lanes are the slowest."""

    def graph(p: beam.Pipeline) -> None:
        numbers = p | beam.Create(range(40)) | beam.Map(slow_at_first)
        grouped = numbers | "one key" >> beam.Map(lambda n: (0, n)) | beam.GroupByKey() | beam.MapTuple(_listed)
        timed = numbers | "by tens" >> beam.Map(lambda n: (n // 10, n)) | beam.ParDo(Tens())
        sides = (AsList(numbers), AsList(timed))
        grouped | "side" >> beam.Map(_take_down_all, *sides)

    for workers in WORKERS:
        run(graph, workers)
    numbers = list(range(40))
    expected = ((0, numbers), numbers, [(n // 10, n) for n in numbers])
    assert len(SEEN) == len(WORKERS)
    assert all(found == expected for found in SEEN)


def _take_down_all(*values: Any) -> None:
    SEEN.append(values)


def _listed(key: int, numbers: Any) -> tuple[int, list[int]]:
    return key, list(numbers)


def meet_first(number: int) -> int:
    return meet(number) if number < 2 else number


class Counting(beam.DoFn):
    """Takes down its life, and counts with all kinds of metrics."""

    def setup(self) -> None:
        CALLS.append("setup")

    def process(self, element: int, finalizer: Any = beam.DoFn.BundleFinalizerParam) -> Iterator[int]:
        finalizer.register(functools.partial(call, "finalized"))
        for _ in range(100):
            Metrics.counter("test", "calls").inc()
        Metrics.distribution("test", "sizes").update(element)
        Metrics.string_set("test", "names").add(str(element))
        yield element

    def finish_bundle(self) -> Iterator[WindowedValue]:
        CALLS.append("finished")
        return iter(())

    def teardown(self) -> None:
        CALLS.append("teardown")


@pytest.mark.parametrize("workers", WORKERS)
def test_metrics_are_exact_and_each_instance_lives_once(workers: int) -> None:
    def graph(p: beam.Pipeline) -> None:
        elements = p | beam.Create(range(500))
        if workers > 1:
            elements = elements | beam.Map(meet_first)
        elements | "counting" >> beam.ParDo(Counting())

    found = run(graph, workers).metrics().query()
    (counter,) = [each for each in found["counters"] if each.key.metric.name == "calls"]
    assert counter.committed == 50_000
    (sizes,) = [each.committed for each in found["distributions"] if each.key.metric.name == "sizes"]
    assert (sizes.count, sizes.sum, sizes.min, sizes.max) == (500, 124_750, 0, 499)
    (names,) = [each.committed for each in found["string_sets"]]
    assert len(names) == 500
    times = collections.Counter(CALLS)
    assert times["finalized"] == 500
    assert 1 <= times["setup"] == times["finished"] == times["teardown"] <= workers
    assert CALLS.index("finalized") > max(place for place, call in enumerate(CALLS) if call == "finished")


class Failing(Counting):
    def __init__(self, error: type[BaseException]) -> None:
        self._error = error

    def process(self, element: int, finalizer: Any = beam.DoFn.BundleFinalizerParam) -> Iterator[int]:
        finalizer.register(functools.partial(call, "finalized"))
        MEET["two"].wait(SECONDS)  # each of two lanes is at its first element
        if element == 1:
            raise self._error("one is refused")
        yield element


@pytest.mark.parametrize("error", [LookupError, KeyboardInterrupt, SystemExit])
def test_what_a_lane_raises_ends_the_run_as_it_is(error: type[BaseException]) -> None:
    def graph(p: beam.Pipeline) -> None:
        p | beam.Create(range(2)) | "failing step" >> beam.ParDo(Failing(error))

    with pytest.raises(error, match="one is refused") as raised:
        run(graph, 2)
    assert any("failing step" in note for note in raised.value.__notes__)
    times = collections.Counter(CALLS)
    assert times["setup"] == times["teardown"] == 2
    assert not times["finalized"]
    assert not times["finished"]


def fail_at_one(element: int) -> None:
    CALLS.append(element)
    if element < 2:
        MEET["two"].wait(SECONDS)
    if element == 1:
        raise LookupError("one is refused")
    threading.Event().wait(0.01)


def test_a_failure_stops_the_other_lanes_after_the_element_they_are_at() -> None:
    with pytest.raises(LookupError):
        run(lambda p: p | beam.Create(range(10_000)) | beam.Map(fail_at_one), 2)
    assert len(CALLS) < 5_000


STOP: dict[str, Callable[[], None]] = {}


def stop_at_100(element: int) -> Any:
    if element == 100:
        STOP["run"]()
    CALLS.append(element)
    return element, element


@pytest.mark.parametrize("workers", WORKERS)
def test_stop_amid_work_ends_the_run_after_the_round(workers: int) -> None:
    runner = InProcessRunner()

    STOP["run"] = runner.stop
    run(
        lambda p: p | beam.Create(range(200)) | beam.Map(stop_at_100) | beam.GroupByKey() | beam.Map(take_down),
        workers,
        runner,
    )
    assert sorted(CALLS) == list(range(200))
    assert sorted(SEEN) == [(n, [n]) for n in range(200)]
    assert not runner.stopped


def test_timestamps_and_watermarks_are_those_of_one_lane() -> None:
    """A chain of stateful steps in lanes: none sees late data, and each key's are in the order of their times."""

    def graph(p: beam.Pipeline) -> None:
        pairs = [(number % 5, number) for number in range(100)]
        elements = p | beam.Create(pairs) | beam.Map(lambda pair: TimestampedValue(pair, pair[1]))
        elements = elements | "first" >> beam.ParDo(Tens())
        elements | "second" >> beam.ParDo(Tens()) | beam.Map(take_down)

    for workers in WORKERS:
        SEEN.clear()
        run(graph, workers)
        assert sorted(SEEN) == sorted((number % 5, number) for number in range(100))
        by_key = [[n for key, n in SEEN if key == each] for each in range(5)]
        assert by_key == [sorted(numbers) for numbers in by_key]


def test_workers_are_one_a_processor_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    profile = profile_of("DirectRunner")
    assert profile.workers([], False) == profile.workers(["--direct_num_workers", "0"], False) == cores()
    assert profile.workers(["--direct_num_workers=3"], False) == 3
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {4, 7}, raising=False)
    assert profile.workers([], False) == 2
    for wrong in ("-1", "two", ""):
        with pytest.raises(RunnerError, match="direct_num_workers"):
            make_pipeline("DirectRunner", [f"--direct_num_workers={wrong}"])
    assert profile_of("FnApiRunner").workers(["--direct_num_workers=3"], False) == 1


@pytest.mark.parametrize(("args", "lanes"), [([], 1), (["--direct_num_workers=0"], 2), (["--direct_num_workers=3"], 3)])
def test_a_stream_has_one_worker_unless_told_otherwise(
    args: list[str], lanes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {4, 7}, raising=False)
    assert profile_of("DirectRunner").workers(args, True) == lanes
    pipeline = make_pipeline("DirectRunner", args, Job(streams=True))
    assert pipeline.options.view_as(DirectOptions).direct_num_workers == lanes


def together(pair: tuple[int, int]) -> tuple[None, int]:
    return None, slow_at_first(pair[1])


def test_what_a_lane_emits_is_delivered_by_one_without_work_in_the_same_order() -> None:
    pairs = [(1, value) for value in range(40)]
    for workers in WORKERS:
        CALLS.clear()
        run(
            lambda p: (
                p | beam.Create(pairs) | beam.ParDo(Tens()) | beam.Map(together) | beam.GroupByKey() | beam.Map(call)
            ),
            workers,
        )
        assert [(None, list(range(40)))] == CALLS
    run(lambda p: p | beam.Create(pairs[:2]) | beam.ParDo(Tens()) | beam.Map(meet), 2)
    assert len(set(SEEN)) == 2


def refuse(pair: tuple[int, int]) -> None:
    if pair[1] == 7:
        raise ValueError("seven")


@pytest.mark.parametrize("workers", WORKERS)
def test_what_fails_where_it_was_handed_to_ends_the_run(workers: int) -> None:
    with pytest.raises(ValueError, match="seven"):
        run(lambda p: p | beam.Create([(1, n) for n in range(20)]) | beam.ParDo(Tens()) | beam.Map(refuse), workers)
