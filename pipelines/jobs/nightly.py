"""`headrace nightly`: score each day, or hour, that is missing in a sink, one from the state of the other."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator

from models.errors import HeadraceError
from models.partitions import Partitions, Span
from models.predictors.booster import Scorer
from models.predictors.bundle import Bundle
from pipelines.config import RunSpec
from pipelines.jobs.released import Released
from pipelines.jobs.retrain import Retrainer, Retraining
from pipelines.jobs.score import RunResult, score_files
from pipelines.results import RunError, read_spans


@dataclasses.dataclass(frozen=True)
class Night:
    """A day, or hour, that was scored, or a training after it, or what was in the way of either."""

    name: str
    result: RunResult | None = None
    error: HeadraceError | None = None
    retraining: Retraining | None = None


def find_missing(spec: RunSpec, first_us: int | None, until_us: int | None) -> list[Span]:
    """The days, or hours, from a time until before another of which the sink has not all, in their order.

    Days that the sink has, but that were scored without the one before them, are of that one's span: their windows of
    quality lacked it. The first is that of the sink's first run, if not given; the last is the one before now.
    RunError if the sink has no run either.
    """
    partitions = spec.project.partitions
    done = read_spans(spec.sink)
    if first_us is None:
        starts = [span.start_us for span in done if span.start_us is not None]
        if not starts:
            raise RunError(f"{spec.sink}: has no day yet: say with --from which is the first that is to be scored")
        first_us = min(starts)
    until_us = partitions.start_us(time.time_ns() // 1000) if until_us is None else until_us
    found, start_us = [], partitions.start_us(first_us)
    while start_us < until_us:
        stop_us = partitions.next_us(start_us)
        if not any(_covers(span, start_us, stop_us) for span in done):
            found += [Span(start_us, stop_us)] if stop_us <= until_us else []
        elif found:
            found[-1] = Span(found[-1].start_us, stop_us)
        start_us = stop_us
    return found


def run_nights(
    spec: RunSpec,
    missing: list[Span],
    bundle: Bundle | None,
    scorer: Scorer | None,
    retrainer: Retrainer | None = None,
    released: Released | None = None,
) -> Iterator[Night]:
    """Score each, and train anew where that is due; one that can't be done does not keep those after it from it.

    A bundle that is promoted is that of the nights after it; where a log of releases is followed, it says which is.
    """
    for span in (None, *missing):  # a training of the day before may have been cut off
        until_us = span.stop_us if span else _done_until(spec, missing)
        if span is not None:
            night = _score(spec, span, bundle, scorer, released)
            yield night
            if night.error:
                continue
        if retrainer is None or until_us is None:
            continue
        for night in _retrain(spec, until_us, retrainer):
            yield night
            if night.retraining and night.retraining.promoted and released is None:
                bundle = retrainer.champion()
                scorer = Scorer.from_bundle(bundle, nthread=spec.threads_of_call)


def _score(spec: RunSpec, span: Span, bundle: Bundle | None, scorer: Scorer | None, released: Released | None) -> Night:
    start, stop = span.facts()
    name = name_of(span, spec.project.partitions)
    try:
        told = dataclasses.replace(spec, score_from=start, score_to=stop)
        return Night(name, score_files(told, bundle, scorer, released))
    except HeadraceError as error:
        return Night(name, error=error)


def _retrain(spec: RunSpec, until_us: int, retrainer: Retrainer) -> Iterator[Night]:
    partitions = spec.project.partitions
    name = name_of(Span(partitions.start_us(until_us - 1), until_us), partitions)
    try:
        if retraining := retrainer.run(until_us):
            yield Night(name, retraining=retraining)
    except HeadraceError as error:
        yield Night(name, error=error)


def _done_until(spec: RunSpec, missing: list[Span]) -> int | None:
    """The end of the last day that the sink has of those before the first that is missing."""
    stops = [span.stop_us for span in read_spans(spec.sink) if span.stop_us is not None]
    first_us = missing[0].start_us if missing else None
    return max((stop for stop in stops if first_us is None or stop <= first_us), default=None)


def name_of(span: Span, partitions: Partitions) -> str:
    """A day, or hour, or the first and the last of several, as people read them."""
    assert span.start_us is not None
    assert span.stop_us is not None
    ends = dict.fromkeys([span.start_us, partitions.start_us(span.stop_us - 1)])
    return " to ".join(" ".join(part.split("=")[1] for part in partitions.name(us).split("/")) for us in ends)


def _covers(span: Span, start_us: int, stop_us: int) -> bool:
    return (span.start_us is None or span.start_us <= start_us) and (span.stop_us is None or stop_us <= span.stop_us)
