"""Transforms as nodes of a run that hand elements on: what all have, and those that call no DoFn."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from apache_beam import coders
from apache_beam.pipeline import AppliedPTransform
from apache_beam.runners import common
from apache_beam.transforms.trigger import AccumulationMode, AfterCount, Always, DefaultTrigger, Repeatedly
from apache_beam.transforms.window import GlobalWindows, TimestampCombiner
from apache_beam.typehints import typehints
from apache_beam.utils.timestamp import MIN_TIMESTAMP
from apache_beam.utils.windowed_value import PANE_INFO_UNKNOWN, PaneInfo, PaneInfoTiming, WindowedValue

from pipelines.runners.inprocess.lanes import HandOver, Inbox, Lanes
from pipelines.runners.inprocess.on_disk import OnDisk
from pipelines.runners.inprocess.state import MAX_US, Agenda
from transforms.batches import GatherOnDisk

if TYPE_CHECKING:
    from pipelines.runners.inprocess.engine import Run

MIN_US: int = MIN_TIMESTAMP.micros

Receive = Callable[[WindowedValue], None]


class UnsupportedGraph(NotImplementedError):
    """A graph with a part that this engine does not run."""

    def __init__(self, label: str, what: str) -> None:
        super().__init__(f"{label}: the in-process engine does not {what}")


def passed(time_us: int, watermark_us: int) -> bool:
    """Whether all elements up to and at a time are there: a watermark promises that none before it will come."""
    return time_us < watermark_us or watermark_us >= MAX_US


class Receiver(common.Receiver):
    """Hands what is emitted on one output to that output's consumers, or over to other lanes that do so."""

    def __init__(self, consumers: list[Receive]) -> None:
        self.consumers = consumers
        self.handed: HandOver | None = None

    def receive(self, windowed_value: WindowedValue) -> None:
        if self.handed is None:
            self.deliver(windowed_value)
        else:
            self.handed.put(self.deliver, windowed_value)

    def deliver(self, windowed_value: WindowedValue) -> None:
        for consume in self.consumers:
            consume(windowed_value)


class Kept:
    """Elements of a PCollection that is a side input."""

    def __init__(self, lanes: Lanes) -> None:
        self._inbox = Inbox(lanes)
        self.receive: Receive = self._inbox.put

    @functools.cached_property
    def elements(self) -> list[WindowedValue]:
        """All, once no more will come."""
        return self._inbox.take()


class Node:
    """One primitive transform. As it is, a Flatten."""

    def __init__(self, applied: AppliedPTransform, run: Run) -> None:
        self.label = applied.full_label
        self.input_watermark = self.output_watermark = MIN_US
        self._run = run
        self._producers = [run.producers[source] for source in applied.inputs if source in run.producers]
        self.emit: Receive = Receiver(run.consumers[next(iter(applied.outputs.values()), None)]).receive

    def receive(self, element: WindowedValue) -> None:
        self.emit(element)

    def take_turn(self) -> bool:
        """Do all that can be done now and move the output watermark on; whether anything was done."""
        self.gather()
        self.input_watermark = min([node.output_watermark for node in self._producers], default=MAX_US)
        worked = self.work()
        self.output_watermark = max(self.output_watermark, min(self.input_watermark, self.hold()))
        return worked

    def gather(self) -> None:
        """Look at what has come since the turn before, by the input watermark of that turn."""

    def work(self) -> bool:
        """Do what input watermark and clock allow now, and finish the bundle; whether there was anything to do."""
        return False

    def hold(self) -> int:
        """The time that the output watermark may not pass yet, whatever the input's."""
        return MAX_US


class Impulse(Node):
    _fired = False

    def work(self) -> bool:
        if not self._fired:
            self._fired = True
            self.emit(GlobalWindows.windowed_value(b""))
            return True
        return False


class GroupByKey(Node):
    """Groups by key and window: when the watermark passes a window's end, or each element at once."""

    def __init__(self, applied: AppliedPTransform, run: Run) -> None:
        super().__init__(applied, run)
        windowing = check_windowing(applied)
        trigger = windowing.triggerfn
        self._at_once = isinstance(trigger, Always) or trigger == Repeatedly(AfterCount(1))
        if not self._at_once and not isinstance(trigger, DefaultTrigger):
            raise UnsupportedGraph(self.label, f"run the trigger {trigger}")
        if windowing.accumulation_mode != AccumulationMode.DISCARDING and (self._at_once or windowing.allowed_lateness):
            raise UnsupportedGraph(self.label, "accumulate what a trigger has fired already")
        self._encode_key = key_coder(applied).get_impl().encode
        self._times = TimestampCombiner.get_impl(windowing.timestamp_combiner, windowing.windowfn)
        self._lateness = windowing.allowed_lateness.micros
        self._is_global = isinstance(windowing.windowfn, GlobalWindows)
        on_time = PaneInfo(True, self._is_global, PaneInfoTiming.ON_TIME, 0, 0)
        self._pane = PANE_INFO_UNKNOWN if self._lateness else on_time
        self._windows: dict[Any, dict[bytes, list[Any]]] = {}  # each group is a key, its output time and values
        self._ends = Agenda()
        self._hold = MAX_US
        self._inbox = Inbox(run.lanes)
        self._on_disk = OnDisk() if isinstance(applied.transform, GatherOnDisk) else None
        self.receive = self._inbox.put if self._on_disk is None else self._put_on_disk  # type: ignore[method-assign]
        self._due: list[WindowedValue] = []

    def _put_on_disk(self, element: WindowedValue) -> None:
        assert self._on_disk is not None
        key, batch = element.value
        self._inbox.put(element.with_value((key, self._on_disk.put(batch))))

    def gather(self) -> None:
        for element in self._inbox.take():
            self._add(element)

    def _add(self, element: WindowedValue) -> None:
        key, value = element.value
        for window in element.windows:
            if window not in self._windows and not (self._at_once and self._is_global):
                end = window.max_timestamp().micros
                if passed(end + self._lateness, self.input_watermark):
                    continue  # later than allowed
                if not self._at_once:
                    self._windows[window] = {}
                    self._ends.put(window, end)
            output_time = self._times.assign_output_time(window, element.timestamp)
            if self._at_once:
                self._due.append(WindowedValue((key, [value]), output_time, (window,)))
                continue
            self._hold = min(self._hold, output_time.micros)
            group = self._windows[window].setdefault(self._encode_key(key), [key, output_time, []])
            group[1] = self._times.combine(group[1], output_time)
            group[2].append(value)

    def work(self) -> bool:
        fired = False
        while (end := self._ends.take(lambda end_us: passed(end_us, self.input_watermark))) is not None:
            fired = True
            for key, output_time, values in self._windows.pop(end.place).values():
                group = (key, values if self._on_disk is None else self._on_disk.take(values))
                self._due.append(WindowedValue(group, output_time, (end.place,), self._pane))
        if fired:
            times = (group[1].micros for groups in self._windows.values() for group in groups.values())
            self._hold = min(times, default=MAX_US)
        if self._due:
            due, self._due = self._due, []
            self._run.lanes.share([functools.partial(self.emit, group) for group in due])
            return True
        return fired

    def hold(self) -> int:
        return self._hold


class Reshuffle(Node):
    """Hands on what it got, as it is, in its turn: side by side, but to steps that keep it until they have theirs."""

    def __init__(self, applied: AppliedPTransform, run: Run) -> None:
        super().__init__(applied, run)
        self._inbox = Inbox(run.lanes)
        self.receive = self._inbox.put  # type: ignore[method-assign]
        self._consumers = run.consumers[next(iter(applied.outputs.values()))]

    def work(self) -> bool:
        due = self._inbox.take()
        if all(isinstance(getattr(consume, "__self__", None), Inbox) for consume in self._consumers):
            for element in due:
                self.emit(element)
        elif due:
            self._run.lanes.share([functools.partial(self.emit, element) for element in due])
        return bool(due)


def check_windowing(applied: AppliedPTransform) -> Any:
    windowing = applied.inputs[0].windowing
    if windowing.windowfn.is_merging():
        raise UnsupportedGraph(applied.full_label, "merge windows")
    return windowing


def key_coder(applied: AppliedPTransform) -> Any:
    pairs = coders.registry.get_coder(typehints.coerce_to_kv_type(applied.inputs[0].element_type, applied.full_label))
    return pairs.key_coder().as_deterministic_coder(applied.full_label)
