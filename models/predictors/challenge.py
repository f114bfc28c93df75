"""Whether a challenger is better than the champion, by the same events, as the gate of `retrain` declares."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from models.predictors.evaluation import Evaluation
from models.project.retraining import Gate

_LESS_IS_BETTER = re.compile("log_loss|calibration_error|mae|rmse|pinball_.*")


@dataclass(frozen=True)
class Compared:
    """A figure of both on all rows, whose slice and value are "", or on those of a slice's value.

    `gain` is by how much the challenger is better, None where there is no figure; `needed` what it must be at least.
    """

    slice: str
    value: str
    rows: int
    champion: float | None
    challenger: float | None
    gain: float | None
    needed: float
    passed: bool


def compare(gate: Gate, champion: Evaluation, challenger: Evaluation) -> Iterator[Compared]:
    """All rows first, then each value of each slice that a loss is declared for.

    On all rows the challenger must be better, and by the margin; a slice's value without a figure is no objection.
    """
    before, after = (each.overall.figures().get(gate.metric) for each in (champion, challenger))
    gained = _gain(gate.metric, before, after)
    passed = gained is not None and gained > 0 and gained >= gate.margin
    yield Compared("", "", challenger.overall.rows, before, after, gained, gate.margin, passed)
    for name, values in challenger.slices.items():
        loss = gate.slices.get(name, gate.loss)
        if loss is None:
            continue
        for value, measured in values.items():
            before, after = champion.slices[name][value].figures().get(gate.metric), measured.figures().get(gate.metric)
            gained = _gain(gate.metric, before, after)
            yield Compared(name, value, measured.rows, before, after, gained, -loss, gained is None or gained >= -loss)


def has_fallen(metric: str, before: float, now: float, fall: float) -> bool:
    """Whether a figure is worse than it was by more than `fall`."""
    gained = _gain(metric, before, now)
    return gained is not None and gained < -fall


def gain_of(metric: str, before: float, after: float) -> float:
    """By how much a figure is better after than before."""
    return before - after if _LESS_IS_BETTER.fullmatch(metric) else after - before


def _gain(metric: str, before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else gain_of(metric, before, after)
