"""How one column of a sample is spread: its Distribution, and the same as TensorFlow Metadata's statistics.

The numbers are those that TFDV's generators give for the sample, or exact where those are approximate (median,
histograms); they are computed here because TFDV takes 0.15 s a window and TensorFlow with it.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tensorflow_metadata.proto.v0 import statistics_pb2

from models.quality.records import Distribution

BINS = 10
TOP_VALUES = 100
# So many values of several columns are described at once: with more, memory grows and no time is saved.
MATRIX_VALUES = 1 << 16

_Numbers = np.ndarray[Any, np.dtype[np.float64]]
_NAMED = statistics_pb2.FeatureNameStatistics


def describe(
    sample: Mapping[str, pa.Array], texts: frozenset[str], known: Mapping[str, Distribution]
) -> tuple[dict[str, Distribution], bytes]:
    """The distribution of each column, and a serialized DatasetFeatureStatisticsList of one dataset of them all.

    `texts` are columns of texts or of numbers that are but names. `known` has the cuts that columns of numbers are
    to be cut at; others are cut at their own quantiles. The order of the rows does not matter: what is summed is
    sorted before.
    """
    statistics = statistics_pb2.DatasetFeatureStatisticsList()
    dataset = statistics.datasets.add(num_examples=len(next(iter(sample.values()), ())))
    features = {name: dataset.features.add(path={"step": [name]}) for name in sample}
    numbers = {name: column for name, column in sample.items() if name not in texts}
    found = _describe_numbers(numbers, features, known)
    found |= {name: _describe_texts(sample[name], features[name]) for name in sample if name in texts}
    return {name: found[name] for name in sample}, statistics.SerializeToString(deterministic=True)


def quantile_cuts(values: _Numbers) -> _Numbers:
    """Bounds of bins for sorted, finite values: just below the least, the inner deciles, the largest; each once."""
    if not len(values):
        return np.empty(0)
    places = np.maximum(np.ceil(np.arange(1, BINS) * len(values) / BINS).astype(np.int64) - 1, 0)
    below = np.nextafter(values[0], -np.inf)
    return np.asarray(np.unique(np.concatenate([[below], values[places], values[-1:]])))


def _describe_numbers(
    columns: Mapping[str, pa.Array], features: Mapping[str, Any], known: Mapping[str, Distribution]
) -> dict[str, Distribution]:
    """Columns with as many values, without the missing ones, are described together."""
    distributions: dict[str, Distribution] = {}
    alike: dict[int, dict[str, _Numbers]] = {}
    rows = len(next(iter(columns.values()), ()))
    for name, column in columns.items():
        values = np.asarray(column.to_numpy(zero_copy_only=False), np.float64)
        values = values[np.isfinite(values)]
        features[name].type = _NAMED.FLOAT if pa.types.is_floating(column.type) else _NAMED.INT
        _common(features[name].num_stats.common_stats, len(values), rows)
        group = alike.setdefault(len(values), {})
        group[name] = values
        if (len(group) + 1) * len(values) > MATRIX_VALUES:
            distributions |= _describe_alike(alike.pop(len(values)), features, known, rows)
    for group in alike.values():
        distributions |= _describe_alike(group, features, known, rows)
    return distributions


def _describe_alike(
    group: Mapping[str, _Numbers], features: Mapping[str, Any], known: Mapping[str, Distribution], rows: int
) -> dict[str, Distribution]:
    """Columns of as many finite values each, of a sample of so many rows, as the rows of one matrix."""
    values = np.stack(list(group.values()))
    values.sort(axis=1)
    size = values.shape[1]
    known_cuts = {name: known[name].cuts if name in known else () for name in group}
    if not size:
        return {
            name: Distribution("number", 0, rows, (0,) * (len(cuts) + 1), cuts) for name, cuts in known_cuts.items()
        }
    steps = (values[:, -1:] - values[:, :1]) / BINS
    edges = np.arange(BINS + 1.0) * steps + values[:, :1]
    edges[:, -1] = values[:, -1]
    places = np.round(np.arange(BINS + 1) * (size - 1) / BINS).astype(np.int64)
    figures = values.mean(axis=1), values.std(axis=1), np.count_nonzero(values == 0, axis=1), values[:, size // 2]
    means, deviations, zeros, medians, quantiles = (figure.tolist() for figure in (*figures, values[:, places]))
    distributions: dict[str, Distribution] = {}
    for place, (name, cuts) in enumerate(known_cuts.items()):
        column, number = values[place], features[name].num_stats
        least, largest = float(column[0]), float(column[-1])
        number.mean, number.std_dev, number.num_zeros = means[place], deviations[place], zeros[place]
        number.min, number.median, number.max = least, medians[place], largest
        if largest > least:
            counts = _counts(column, edges[place, 1:-1], "left")
            _histogram(number.histograms.add(), edges[place].tolist(), counts)
        else:  # one bucket where all values are equal
            _histogram(number.histograms.add(), [least, least], [size])
        kind = statistics_pb2.Histogram.QUANTILES
        _histogram(number.histograms.add(type=kind), quantiles[place], [size / BINS] * BINS)
        bounds = np.array(cuts, np.float64) if cuts else quantile_cuts(column)
        distributions[name] = Distribution(
            kind="number",
            rows=size,
            missing=rows - size,
            counts=tuple(_counts(column, bounds, "right")),
            cuts=tuple(bounds.tolist()),
            minimum=least,
            maximum=largest,
            mean=means[place],
            deviation=deviations[place],
        )
    return distributions


def _counts(values: _Numbers, bounds: _Numbers, side: Literal["left", "right"]) -> list[int]:
    """How many of sorted values are in each bin; `side` is that of the bound where values equal to it are not."""
    places = values.searchsorted(bounds, side).tolist()
    return [stop - start for start, stop in itertools.pairwise([0, *places, len(values)])]


def _histogram(histogram: Any, edges: Sequence[float], counts: Sequence[float]) -> None:
    """Buckets between one edge and the next."""
    add = histogram.buckets.add
    for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
        add(low_value=low, high_value=high, sample_count=count)


def _describe_texts(column: pa.Array, feature: Any) -> Distribution:
    texts = column.cast(pa.string())
    there = texts.drop_null()
    counted = pc.value_counts(there)
    values = counted.field("values").to_pylist()
    counts = counted.field("counts").to_pylist()
    ranked = sorted(zip(values, counts, strict=True), key=lambda item: (-item[1], item[0]))
    text = feature.string_stats
    feature.type = _NAMED.INT if pa.types.is_integer(column.type) else _NAMED.STRING
    _common(text.common_stats, len(there), len(texts))
    text.unique = len(ranked)
    if ranked:
        text.avg_length = sum(len(value.encode()) * count for value, count in ranked) / len(there)
    for value, count in ranked[:10]:
        text.top_values.add(value=value, frequency=count)
    for rank, (value, count) in enumerate(ranked[:1000]):
        text.rank_histogram.buckets.add(low_rank=rank, high_rank=rank, label=value, sample_count=count)
    top = sorted(ranked[:TOP_VALUES])
    return Distribution(
        kind="text",
        rows=len(there),
        missing=len(texts) - len(there),
        counts=tuple(count for _, count in top),
        values=tuple(value for value, _ in top),
        other=len(there) - sum(count for _, count in top),
    )


def _common(common: Any, there: int, rows: int) -> None:
    common.num_non_missing, common.num_missing = there, rows - there
    if there:
        common.min_num_values = common.max_num_values = 1
        common.avg_num_values, common.tot_num_values = 1.0, there
        common.num_values_histogram.CopyFrom(_one_value_a_row(there))


@functools.lru_cache(maxsize=64)
def _one_value_a_row(rows: int) -> Any:
    histogram = statistics_pb2.Histogram(type=statistics_pb2.Histogram.QUANTILES)
    for _ in range(BINS):
        histogram.buckets.add(low_value=1, high_value=1, sample_count=rows / BINS)
    return histogram
