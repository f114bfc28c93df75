"""What a run's score rows say, read a column at a time: shares and quantiles over time, distributions, latency."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from models.project.declarations import Project
from models.quality.records import Distribution
from models.record import BUNDLE_ID, DECISION, INGESTED_AT, PREDICTED, PUBLISHED_AT, SCORE, SCORED_AT, TIMESTAMP
from pipelines.report.quality import Floats, Spread, Times
from pipelines.results import RunError, paths_of
from pipelines.sinks.listed import SCORES

MAX_BUCKETS = 60
BINS = 20
QUANTILES = (0.5, 0.9, 0.99)
LATENCY_QUANTILES = (0.5, 0.9, 0.99, 0.999, 1.0)
STEPS = ((PUBLISHED_AT, INGESTED_AT), (INGESTED_AT, SCORED_AT), (PUBLISHED_AT, SCORED_AT))
_BUCKETS_US = tuple(seconds * 1_000_000 for seconds in (1, 10, 60, 600, 3600, 6 * 3600, 86400, 7 * 86400, 28 * 86400))


@dataclasses.dataclass(frozen=True)
class Series:
    """The scored events in equal steps of event time, `size_us` each; NaN where there are none."""

    size_us: int
    starts: Times
    rows: Floats
    decisions: dict[str, Floats]  # share of the events
    scores: dict[float, Floats]  # by quantile


@dataclasses.dataclass(frozen=True)
class Latency:
    """Quantiles of the time between two moments of an event, in milliseconds."""

    start: str
    end: str
    rows: int
    quantiles_ms: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Scores:
    """A run's score rows, of which single columns are read as they are needed."""

    paths: tuple[str, ...]
    rows: int
    names: frozenset[str]

    @staticmethod
    def open(run: str) -> Scores | None:
        """The score rows in a run's folder, if there are any; RunError if they can't be read."""
        paths = tuple(paths_of(run, SCORES))
        if not paths:
            return None
        try:
            heads = [pq.ParquetFile(path) for path in paths]
        except (pa.ArrowInvalid, OSError) as error:
            raise RunError(f"{run}: its scores can't be read: {error}") from None
        names = frozenset.intersection(*(frozenset(head.schema_arrow.names) for head in heads))
        return Scores(paths, sum(head.metadata.num_rows for head in heads), names)

    def column(self, name: str, kind: pa.DataType | None = None) -> pa.Array:
        """A column of all rows, file by file, as it is or of a type; RunError if a file has none or it can't be so."""
        if name not in self.names:
            raise RunError(f"{self.paths[0]}, or another file of the scores, has no column {name}")
        try:
            tables = [pq.read_table(path, columns=[name], partitioning=None) for path in self.paths]
            values = pa.concat_tables(tables, promote_options="default").column(name).combine_chunks()
            return values if kind is None else values.cast(kind)
        except (pa.ArrowException, OSError) as error:
            raise RunError(f"the column {name} of the scores can't be read: {' '.join(str(error).split())}") from None

    def bundles(self) -> tuple[str, ...]:
        """The ids of the bundles that scored, in order."""
        if BUNDLE_ID not in self.names:
            return ()
        return tuple(sorted(str(v) for v in self.column(BUNDLE_ID).unique().to_pylist()))

    def times(self, name: str) -> npt.NDArray[np.int64]:
        """A column of event times in microseconds since 1970 UTC; RunError if there is none."""
        return np.asarray(self.column(name, TIMESTAMP).cast(pa.int64()).to_numpy(zero_copy_only=False))

    def period(self, name: str) -> tuple[np.datetime64, np.datetime64] | None:
        """The first and the last event time."""
        times = self.times(name)
        if not len(times):
            return None
        return np.datetime64(int(times.min()), "us"), np.datetime64(int(times.max()), "us")

    def numbers(self, name: str) -> Floats:
        """A column of numbers, null as NaN."""
        return np.asarray(self.column(name, pa.float64()).to_numpy(zero_copy_only=False))

    def series(self, project: Project) -> Series | None:
        """See `make_series`; None without a row."""
        if not self.rows:
            return None
        actions: pa.Array | None = self.column(DECISION) if DECISION in self.names else None
        declared = list(dict.fromkeys(band.action for band in project.decisions))
        return make_series(self.times(project.event.time), self.numbers(SCORE), actions, declared)

    def spreads(self, project: Project) -> tuple[Spread, ...]:
        """What the model says and its inputs, see `bin_numbers`; there is nothing to compare them with."""
        names = [n for n in dict.fromkeys([*project.said_columns, *project.model.inputs]) if n in self.names]
        texts = {*project.categories, PREDICTED}
        binned = {
            n: count_texts(self.column(n, pa.string())) if n in texts else bin_numbers(self.numbers(n)) for n in names
        }
        return tuple(Spread(name, found, None) for name, found in binned.items()) if self.rows else ()

    def latencies(self) -> tuple[Latency, ...]:
        """Quantiles of the time from step to step, where rows carry the times of a stream."""
        found = []
        for start, end in STEPS:
            if start in self.names and end in self.names:
                took = (self.numbers_of_times(end) - self.numbers_of_times(start)) / 1000
                took = took[~np.isnan(took)]
                if len(took):
                    quantiles = tuple(np.quantile(took, LATENCY_QUANTILES, method="inverted_cdf").tolist())
                    found.append(Latency(start, end, len(took), quantiles))
        return tuple(found)

    def numbers_of_times(self, name: str) -> Floats:
        """A column of times in microseconds, null as NaN; exact, as they are below 2**53."""
        micros = self.column(name, TIMESTAMP).cast(pa.int64())
        return np.asarray(micros.cast(pa.float64()).to_numpy(zero_copy_only=False))

    def count(self, name: str) -> int:
        """How many rows are marked in a column of true and false, 0 without the column."""
        return int(pc.sum(self.column(name)).as_py() or 0) if name in self.names else 0


def choose_step(times: npt.NDArray[np.int64]) -> int:
    """The shortest of _BUCKETS_US that cuts the times into at most MAX_BUCKETS steps, or else the longest."""
    first, last = int(times.min()), int(times.max())
    return next((s for s in _BUCKETS_US if last // s - first // s < MAX_BUCKETS), _BUCKETS_US[-1])


def make_series(
    times: npt.NDArray[np.int64], scores: Floats, actions: pa.Array | None, declared: Sequence[str]
) -> Series:
    """Shares of decisions and quantiles of scores in equal steps, see `choose_step`, in whatever order rows are."""
    first, size = int(times.min()), choose_step(times)
    steps = times // size - first // size
    length = int(steps.max()) + 1
    rows = np.bincount(steps, minlength=length).astype(float)
    rows[rows == 0] = np.nan
    shares: dict[str, Floats] = {}
    if actions is not None:
        encoded = actions.cast(pa.string()).dictionary_encode()
        names = encoded.dictionary.to_pylist()
        codes = encoded.indices.fill_null(len(names)).to_numpy(zero_copy_only=False)
        for action in [*declared, *sorted(set(names) - set(declared))]:
            chosen = steps[codes == names.index(action)] if action in names else steps[:0]
            shares[action] = np.bincount(chosen, minlength=length) / rows
    order = np.lexsort((scores, steps))
    ranked, bounds = scores[order], np.searchsorted(steps[order], np.arange(length + 1))
    counts = np.diff(bounds)
    quantiles = {}
    for q in QUANTILES:
        places = bounds[:-1] + np.maximum(np.ceil(q * counts).astype(np.int64) - 1, 0)
        quantiles[q] = np.where(counts > 0, ranked[np.minimum(places, len(ranked) - 1)], np.nan)
    starts = ((first // size + np.arange(length)) * size).astype("M8[us]")
    return Series(size, starts, rows, shares, quantiles)


def count_texts(values: pa.Array) -> Distribution:
    """A column of texts by its BINS most frequent values."""
    counted = pc.value_counts(values.drop_null())
    found = zip(counted.field("values").to_pylist(), counted.field("counts").to_pylist(), strict=True)
    ranked = sorted(found, key=lambda item: (-item[1], item[0]))
    most, rows = sorted(ranked[:BINS]), len(values) - values.null_count
    names, counts = [name for name, _ in most], [count for _, count in most]
    other = rows - sum(counts)
    return Distribution("text", rows, values.null_count, tuple(counts), values=tuple(names), other=other)


def bin_numbers(values: Floats) -> Distribution:
    """A column in up to BINS bins of one width, the outer ones for all that is beyond; whole numbers in whole steps."""
    known = values[~np.isnan(values)]
    if not len(known):
        return Distribution("number", 0, len(values), (0,))
    low, high = np.quantile(known, [0.005, 0.995], method="inverted_cdf")
    if np.array_equal(known, np.rint(known)) and high - low < 2**52:
        step = max(1.0, np.ceil((high - low + 1) / BINS))
        cuts = np.arange(low, high, step) + step - 0.5
        cuts = cuts[cuts < high]
    else:
        cuts = np.unique(np.linspace(low, high, BINS + 1)[1:-1])
    counts = np.bincount(np.searchsorted(cuts, known, side="left"), minlength=len(cuts) + 1)
    return Distribution(
        "number",
        len(known),
        len(values) - len(known),
        tuple(counts.tolist()),
        tuple(cuts.tolist()),
        minimum=float(known.min()),
        maximum=float(known.max()),
    )
