"""How one column of a sample is spread: its Distribution, and the same as TensorFlow Metadata's statistics.

The numbers are those that TFDV's generators give for the sample, or exact where those are approximate (median,
histograms); they are computed here because TFDV takes 0.15 s a window and TensorFlow with it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tensorflow_metadata.proto.v0 import statistics_pb2

from models.quality.records import Distribution

BINS = 10
TOP_VALUES = 100

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
    distributions: dict[str, Distribution] = {}
    for name, column in sample.items():
        feature = dataset.features.add()
        feature.path.step.append(name)
        if name in texts:
            distributions[name] = _describe_texts(column, feature)
        else:
            cuts = known[name].cuts if name in known else ()
            distributions[name] = _describe_numbers(column, feature, np.array(cuts, np.float64))
    return distributions, statistics.SerializeToString(deterministic=True)


def quantile_cuts(values: _Numbers) -> _Numbers:
    """Bounds of bins for sorted, finite values: just below the least, the inner deciles, the largest; each once."""
    if not len(values):
        return np.empty(0)
    places = np.maximum(np.ceil(np.arange(1, BINS) * len(values) / BINS).astype(np.int64) - 1, 0)
    below = np.nextafter(values[0], -np.inf)
    return np.asarray(np.unique(np.concatenate([[below], values[places], values[-1:]])))


def _describe_numbers(column: pa.Array, feature: Any, cuts: _Numbers) -> Distribution:
    values = np.asarray(column.to_numpy(zero_copy_only=False), np.float64)
    rows = len(values)
    values = np.sort(values[np.isfinite(values)])
    feature.type = _NAMED.FLOAT if pa.types.is_floating(column.type) else _NAMED.INT
    number = feature.num_stats
    _common(number.common_stats, len(values), rows)
    if not len(values):
        return Distribution("number", 0, rows, tuple([0] * (len(cuts) + 1)), tuple(cuts.tolist()))
    least, largest = float(values[0]), float(values[-1])
    mean, deviation = float(values.mean()), float(values.std())
    median = float(values[len(values) // 2])
    zeros = int(np.searchsorted(values, 0.0, side="right") - np.searchsorted(values, 0.0, side="left"))
    number.mean, number.std_dev, number.num_zeros = mean, deviation, zeros
    number.min, number.median, number.max = least, median, largest
    _histogram(number.histograms.add(), np.linspace(least, largest, BINS + 1) if largest > least else None, values)
    places = np.round(np.arange(BINS + 1) * (len(values) - 1) / BINS).astype(np.int64)
    quantiles = number.histograms.add(type=statistics_pb2.Histogram.QUANTILES)
    for low, high in zip(values[places[:-1]].tolist(), values[places[1:]].tolist(), strict=True):
        quantiles.buckets.add(low_value=low, high_value=high, sample_count=len(values) / BINS)
    if not len(cuts):
        cuts = quantile_cuts(values)
    edges = np.concatenate([[0], np.searchsorted(values, cuts, side="right"), [len(values)]])
    return Distribution(
        kind="number",
        rows=len(values),
        missing=rows - len(values),
        counts=tuple(np.diff(edges).tolist()),
        cuts=tuple(cuts.tolist()),
        minimum=least,
        maximum=largest,
        mean=mean,
        deviation=deviation,
    )


def _histogram(histogram: Any, edges: _Numbers | None, values: _Numbers) -> None:
    """Buckets of equal width; one bucket where all values are equal."""
    if edges is None:
        edges, counts = values[:1].repeat(2), np.array([len(values)])
    else:
        places = np.searchsorted(values, edges[1:-1], side="left")
        counts = np.diff(np.concatenate([[0], places, [len(values)]]))
    for low, high, count in zip(edges[:-1].tolist(), edges[1:].tolist(), counts.tolist(), strict=True):
        histogram.buckets.add(low_value=low, high_value=high, sample_count=count)


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
