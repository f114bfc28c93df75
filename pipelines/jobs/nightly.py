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
from pipelines.jobs.score import RunResult, score_files
from pipelines.results import RunError, read_spans


@dataclasses.dataclass(frozen=True)
class Night:
    """A day, or hour, that was scored, or what was in the way."""

    name: str
    result: RunResult | None
    error: HeadraceError | None = None


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


def run_nights(spec: RunSpec, missing: list[Span], bundle: Bundle | None, scorer: Scorer | None) -> Iterator[Night]:
    """Score each; one that can't be scored does not keep those after it from it."""
    for span in missing:
        start, stop = span.facts()
        name = name_of(span, spec.project.partitions)
        try:
            result = score_files(dataclasses.replace(spec, score_from=start, score_to=stop), bundle, scorer)
            yield Night(name, result)
        except HeadraceError as error:
            yield Night(name, None, error)


def name_of(span: Span, partitions: Partitions) -> str:
    """A day, or hour, or the first and the last of several, as people read them."""
    assert span.start_us is not None
    assert span.stop_us is not None
    ends = dict.fromkeys([span.start_us, partitions.start_us(span.stop_us - 1)])
    return " to ".join(" ".join(part.split("=")[1] for part in partitions.name(us).split("/")) for us in ends)


def _covers(span: Span, start_us: int, stop_us: int) -> bool:
    return (span.start_us is None or span.start_us <= start_us) and (span.stop_us is None or stop_us <= span.stop_us)
