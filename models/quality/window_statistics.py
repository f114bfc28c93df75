"""A window from its parts: counters of all rows and a sample, added up in any order, and its statistics from them."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from models.errors import HeadraceError
from models.project.declarations import Project
from models.quality.backend import parse_schema
from models.quality.circuit import Circuit, circuit_at
from models.quality.distributions import describe
from models.quality.expectations import Calibrations, Estimates, estimate_rows, no_calibration
from models.quality.judge import Memory, judge
from models.quality.records import Distribution, Verdict, WindowStatistics
from models.quality.sampling import BUNDLE, merge, settle
from models.record import BUNDLE_ID, PREDICTED

BASELINE_FORMAT = 1
BASELINE_ROWS = 100_000  # a baseline's sample is larger than a window's, so that it adds little to chance
MAX_BASELINE_BYTES = 4 << 20


class BaselineError(HeadraceError, ValueError):
    """A baseline that can't be made or read; the message says why."""


@dataclasses.dataclass(frozen=True)
class Part:
    """Some rows of one window.

    `counters` has `rows` and null.COLUMN, decision.ACTION, unseen.ENTITY, bundle.ID, since.TIME; `sample` is of
    models.quality.sampling, its other columns those that are watched, and what the model says.
    """

    counters: Mapping[str, int]
    sample: pa.RecordBatch


def add_parts(parts: Sequence[Part], size: int) -> Part:
    """One part of the rows of all; the order of `parts` does not matter but for the order of the sample's rows."""
    counters: dict[str, int] = {}
    for part in parts:
        for name, count in part.counters.items():
            counters[name] = counters.get(name, 0) + count
    return Part(counters, merge([part.sample for part in parts], size))


def window_statistics(
    part: Part,
    start_us: int,
    end_us: int,
    late: int,
    size: int,
    texts: frozenset[str],
    known: Mapping[str, Distribution],
    estimates: Estimates | None = None,
) -> WindowStatistics:
    """The statistics of a whole window; `texts` and `known` as in models.quality.distributions.describe."""
    sample = settle(part.sample, size)
    watched = {name: values for name, values in zip(sample.schema.names, sample.columns, strict=True)
               if not name.startswith("__")}  # fmt: skip
    distributions, dataset = describe(watched, texts, known)
    return WindowStatistics(
        window_start_us=start_us,
        window_end_us=end_us,
        rows=part.counters.get("rows", 0),
        sampled=sample.num_rows,
        late=late,
        nulls=_of(part.counters, "null"),
        decisions=_of(part.counters, "decision"),
        unseen=_of(part.counters, "unseen"),
        bundles=_of(part.counters, "bundle"),
        distributions=distributions,
        dataset=dataset,
        estimates=estimates or {},
    )


def _of(counters: Mapping[str, int], kind: str) -> dict[str, int]:
    return {name[len(kind) + 1 :]: counters[name] for name in sorted(counters) if name.startswith(f"{kind}.")}


@dataclasses.dataclass(frozen=True)
class WindowJudge:
    """Takes the windows of a project one after another, in the order of their ends."""

    project: Project
    baseline: WindowStatistics | None = None
    calibrations: Calibrations = no_calibration  # of the bundles that score, for estimates
    noted: tuple[Circuit, ...] = ()  # changes of the circuit breaker in an earlier run, in the order of their times

    def advance(self, part: Part, end_us: int, late: int, memory: Memory) -> tuple[WindowStatistics, Verdict, Memory]:
        """The statistics of the window that ends at `end_us`, the verdict on it, and what the next one is told."""
        quality = self.project.quality
        assert quality is not None
        reference = self.baseline or memory.previous
        known = reference.distributions if reference else {}
        part = Part(part.counters, settle(part.sample, quality.sample))
        estimates = self._estimate(part.sample)
        start_us = end_us - quality.window
        statistics = window_statistics(part, start_us, end_us, late, quality.sample, self._texts, known, estimates)
        if memory.circuit is None:
            memory = dataclasses.replace(memory, circuit=circuit_at(self.noted, start_us))
        since_us = [int(text) for text in _of(part.counters, "since")]
        verdict, after = judge(statistics, memory, self.baseline, self.project, since_us)
        return statistics, verdict, after

    @functools.cached_property
    def _texts(self) -> frozenset[str]:
        return text_columns(self.project)

    def _estimate(self, sample: pa.RecordBatch) -> Estimates:
        if BUNDLE not in sample.schema.names:
            return {}
        names = [BUNDLE_ID if name == BUNDLE else name for name in sample.schema.names]
        return estimate_rows(sample.rename_columns(names), self.project, self.calibrations)


def text_columns(project: Project) -> frozenset[str]:
    """The watched columns that hold texts, or numbers that are but names (`is_categorical`, or coded as such)."""
    categorical = {f.name for f in parse_schema(project.contract.text).feature if f.int_domain.is_categorical}
    fields = project.contract.fields
    texts = {name for name, field in fields.items() if field.kind == "string" or name in categorical}
    texts |= {*project.categories, PREDICTED}
    return frozenset(texts.intersection([*project.watched_columns, *project.said_columns]))


def baseline_of(parts: Iterable[Part], start_us: int, end_us: int, project: Project) -> bytes:
    """A baseline file: the statistics of all rows; BaselineError if there is none, or it is too large."""
    parts = list(parts)
    if not parts:
        raise BaselineError("there are no rows to make a baseline of")
    whole = add_parts(parts, BASELINE_ROWS)
    statistics = window_statistics(whole, start_us, end_us, 0, BASELINE_ROWS, text_columns(project), {})
    content = json.dumps({"format": BASELINE_FORMAT, "statistics": statistics.to_json()}).encode() + b"\n"
    if len(content) > MAX_BASELINE_BYTES:
        raise BaselineError(f"the baseline has {len(content)} bytes, at most {MAX_BASELINE_BYTES} are allowed")
    return content


def read_baseline(content: bytes, project: Project) -> WindowStatistics:
    """The statistics of a baseline file; BaselineError if it is none, or not of this project's columns."""
    if len(content) > MAX_BASELINE_BYTES:
        raise BaselineError(f"is larger than {MAX_BASELINE_BYTES} bytes")
    try:
        data: Any = json.loads(content)
        if data["format"] != BASELINE_FORMAT:
            raise BaselineError(f"is not of format {BASELINE_FORMAT}")
        statistics = WindowStatistics.from_json(data["statistics"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise BaselineError(f"is not a baseline: {type(error).__name__}: {error}") from error
    missing = {*project.watched_columns, *project.said_columns} - set(statistics.distributions)
    if missing:
        raise BaselineError(f"has no column {', '.join(sorted(missing))}: make it anew with `headrace baseline`")
    return statistics
