"""Error budgets of a run that goes on: how fast they burn, over the windows of models.objectives, and who is told.

A watch looks at counters now and then. By what they have grown over a window, as far as it has been watched, it says
which budgets burn too fast; that is a verdict like one on a window of score rows, so that incidents, cool-downs and
their ends are those of models.quality.incidents. All here is by the clock, and no result of a run depends on it.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from models.objectives import BURNS, Burn, Ratio
from models.quality.records import Finding, Verdict

KEPT_APART_S = 15.0  # between looks that are kept


class Count(NamedTuple):
    """What of an objective was bad, and of how many."""

    bad: int = 0
    total: int = 0

    def since(self, before: Count) -> Count:
        """What came since; of counters that have begun anew, all."""
        anew = self.total < before.total or self.bad < before.bad
        return self if anew else Count(self.bad - before.bad, self.total - before.total)


@dataclasses.dataclass(frozen=True)
class _Look:
    clock_s: float
    counts: Mapping[str, Count]  # sums since the watch began, whatever began anew meanwhile


class BudgetWatch:
    """What budgets of a project do, by the looks of the longest window."""

    def __init__(self, period_us: int, minimums: Mapping[str, int]) -> None:
        """`period_us` is over so long a budget is to last; `minimums` are by objective: with fewer, nothing is said."""
        self._period_us, self._minimums = period_us, minimums
        self._looks: list[_Look] = []
        self._last: dict[str, Count] = {}
        self._sums: dict[str, Count] = {}

    def look(self, clock_s: float, ratios: Iterable[Ratio]) -> Verdict:
        """Take what objectives are found to be at a time of the clock, seconds since 1970 UTC, and judge it."""
        found = {ratio.name: ratio for ratio in ratios}
        for name, ratio in found.items():
            now = Count(ratio.bad, ratio.total)
            # What was counted before the first look is nobody's to judge.
            came = now.since(self._last.get(name, now))
            before = self._sums.get(name, Count())
            self._sums[name] = Count(before.bad + came.bad, before.total + came.total)
            self._last[name] = now
        if not self._looks or clock_s - self._looks[-1].clock_s >= KEPT_APART_S:
            self._looks.append(_Look(clock_s, dict(self._sums)))
        del self._looks[: self._place(clock_s - max(burn.long_s for burn in BURNS))]
        findings = tuple(finding for name in sorted(found) for finding in self._judge(found[name], clock_s))
        start_us, end_us = (int(at * 1e6) for at in (self._looks[-1].clock_s, clock_s))
        return Verdict.make(
            window_start_us=start_us,
            window_end_us=end_us,
            rows=sum(self._sums[name].total for name in found),
            status="alarm" if findings else "ok",
            judged=True,
            circuit_open=False,
            bundle_id="",
            findings=findings,
            measures=(),
            counters={},
        )

    def _judge(self, ratio: Ratio, clock_s: float) -> Iterator[Finding]:
        """The fastest burn that an alert is for, if there is one."""
        for burn in BURNS:
            long, short = (self._over(ratio.name, clock_s, seconds) for seconds in (burn.long_s, burn.short_s))
            limit = burn.rate(self._period_us)
            rates = [dataclasses.replace(ratio, bad=each.bad, total=each.total).burn or 0.0 for each in (long, short)]
            if long.total >= max(self._minimums.get(ratio.name, 1), 1) and min(rates) > limit:
                yield Finding(
                    ratio.name, "budget", "alarm", round(rates[0], 6), limit, _text(ratio, burn, long, rates[0])
                )
                return

    def _over(self, name: str, clock_s: float, seconds: float) -> Count:
        """What came within so many seconds, or since the first look."""
        start = self._looks[self._place(clock_s - seconds)]
        return self._sums[name].since(start.counts.get(name, Count()))

    def _place(self, clock_s: float) -> int:
        """That of the last look at or before a time, or of the first."""
        return max(bisect.bisect_right(self._looks, clock_s, key=lambda look: look.clock_s) - 1, 0)


def _text(ratio: Ratio, burn: Burn, long: Count, rate: float) -> str:
    return (
        f"{burn.severity}: the error budget burns {rate:.1f} times too fast over {burn.long_s // 3600} h: "
        f"{long.bad:,} of {long.total:,} are not {ratio.text}, and {100 * (1 - ratio.target):g} % may be"
    )
