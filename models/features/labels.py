"""Rolling features over labels that come as records of their own, later than their events.

Seen from an event at time t, a window of length w and delay d holds the label of an event of time e, known at
time k, iff max(e + d, k) <= t < e + d + w: it enters when both its delay has passed and it is known, and leaves
with its event. So a label known within the delay counts as if it stood in its event's column.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from models.features.windows import Events, Float64, History, Int64, RollingKernel, Run, append_run
from models.order import order_by
from models.project.sections import RollingFeature

# The column that tells a batch of labels from one of events: when each label was known.

_VALUE, _KNOWN = "value", "known"
_FOREVER = 1 << 62


@dataclasses.dataclass(frozen=True, eq=False)
class Labels:
    """Labels, one an event: entity codes int64[n], `time` of their events and `known` of themselves int64[n] in
    microseconds, values float64[n], none of them NaN.
    """

    entity: Int64
    time: Int64
    known: Int64
    value: Float64

    def __len__(self) -> int:
        return len(self.time)


@dataclasses.dataclass(frozen=True)
class LabelledKernel(RollingKernel):
    """A rolling kernel whose features over the field `label` read labels in place of the events' column.

    `rate` divides by all events of the window, `mean` by those with a label. `learn` before `advance`: the labels
    known up to the latest of the events must be there. An event more than `lateness_us` older than the newest of
    earlier calls sees the labels as an event just that much older does.
    """

    label: str = ""

    def __post_init__(self) -> None:
        """ValueError for a feature that labels can't have."""
        for f in self._of_labels:
            if f.aggregate not in ("sum", "mean", "rate") or f.delay_us <= 0:
                raise ValueError(f"{f.name}: over labels there are sum, mean and rate, with a delay")

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of events whose values the windows read: not the label."""
        return tuple(name for name in super().fields if name != self.label)

    @property
    def label_horizon_us(self) -> int:
        """How long after its event a label that becomes known changes no window any more, in microseconds."""
        return max(delay + window for delay, window in self._spans)

    def learn(self, history: History, labels: Labels) -> History:
        """The history that knows `labels`, of which no event may have two."""
        if not len(labels):
            return history
        passed = self._passed(history) if history.runs else -_FOREVER
        spans = []
        before = history.labels or ((),) * len(self._spans)
        for runs, ((delay, window), with_zeros) in zip(before, self._spans.items(), strict=True):
            changes = _changes(labels, delay, window, with_zeros)
            spans.append(runs if changes is None else append_run(runs, changes, passed))
        return dataclasses.replace(history, labels=tuple(spans))

    def advance(self, history: History, events: Events) -> tuple[list[Int64 | Float64], History]:
        """Features of `events` in their order (counts int64[n], others float64[n]), and the next history."""
        if not len(events):
            return super().advance(history, events)
        columns, after = self._of_events.advance(history, events)
        return self._with_labels(columns, history, events), after

    def features_of(self, history: History, events: Events) -> list[Int64 | Float64]:
        """Features of events where what comes after them does not matter; see `RollingKernel.features_of`."""
        columns = self._of_events.features_of(history, events)
        return self._with_labels(columns, history, events) if len(events) else columns

    def answer(self, history: History, asked: Events) -> list[Int64 | Float64]:
        """Features as of the times of `asked`, which are no events; see `RollingKernel.answer`."""
        columns = self._of_events.answer(history, asked)
        return self._with_labels(columns, history, asked) if len(asked) else columns

    def _with_labels(self, columns: list[Int64 | Float64], history: History, events: Events) -> list[Int64 | Float64]:
        """The features of events with those over labels in place of the counts of events."""
        at = Run(events.entity, events.time, {})
        passed = self._passed(history) if history.runs else at.first
        runs = dict(zip(self._spans, history.labels, strict=False))
        for place, f in enumerate(self.features):
            if f.field == self.label:
                known, total = self._in_window(runs.get((f.delay_us, f.window_us), ()), at, passed)
                count = columns[place] if f.aggregate == "rate" else known
                divisor = 10 ** self.decimals.get(self.label, 0) * (1 if f.aggregate == "sum" else count)
                column = np.full(len(events), f.empty)
                columns[place] = np.divide(total, divisor, out=column, where=count > 0)
        return columns

    def _in_window(self, runs: tuple[Run, ...], at: Run, passed: int) -> tuple[Int64, Int64]:
        """How many labels the window holds at each event, and their sum: what will leave less what will enter.

        Changes up to an event's time make no difference to it, so those that have passed may be thrown out.
        """
        known, total = np.zeros(len(at), np.int64), np.zeros(len(at), np.int64)
        for run in runs:
            until, end = run.rows_until(at, [0, -_FOREVER], passed)
            decimals = self.decimals.get(self.label, 0)
            known += run.sum_until(_KNOWN, 0, end) - run.sum_until(_KNOWN, 0, until)
            total += run.sum_until(_VALUE, decimals, end) - run.sum_until(_VALUE, decimals, until)
        return known, total

    def _passed(self, history: History) -> int:
        """The time up to which changes of windows are over for all events to come."""
        return max(run.last for run in history.runs) - self.lateness_us

    @functools.cached_property
    def _of_labels(self) -> tuple[RollingFeature, ...]:
        return tuple(f for f in self.features if f.field == self.label)

    @functools.cached_property
    def _of_events(self) -> RollingKernel:
        """The same windows with the number of events in place of each feature over labels."""
        features = (
            dataclasses.replace(f, aggregate="count", field=None) if f.field == self.label else f for f in self.features
        )
        return RollingKernel(tuple(features), self.decimals, self.lateness_us)

    @functools.cached_property
    def _spans(self) -> dict[tuple[int, int], bool]:
        """Delay and length of each window over labels → whether a label of 0 makes a difference there."""
        spans: dict[tuple[int, int], bool] = {}
        for f in self._of_labels:
            span = (f.delay_us, f.window_us)
            spans[span] = spans.get(span, False) or f.aggregate != "rate"
        return spans


def _changes(labels: Labels, delay_us: int, window_us: int, with_zeros: bool) -> Run | None:
    """What each label adds to a window's future, sorted by time: its value where it leaves, less it where it enters."""
    enter = np.maximum(labels.time + delay_us, labels.known)
    leave = labels.time + (delay_us + window_us)
    rows = np.flatnonzero((enter < leave) & (with_zeros | (labels.value != 0)))
    if not len(rows):
        return None
    entity = np.tile(labels.entity[rows], 2)
    time = np.concatenate([leave[rows], enter[rows]])
    known = np.repeat([1.0, -1.0], len(rows))
    order = order_by(entity, time)
    values = {_VALUE: known * np.tile(labels.value[rows], 2), _KNOWN: known}
    return Run(entity[order], time[order], {name: numbers[order] for name, numbers in values.items()})
