"""Distances are TFDV's where TFDV has them, and chance is bounded."""

import numpy as np
import pytest
from tensorflow_metadata.proto.v0 import anomalies_pb2, schema_pb2, statistics_pb2

from models.quality import backend
from models.quality.distances import (
    chance_of_infinity_norm,
    chance_of_jensen_shannon,
    chance_of_share,
    chance_of_stability_index,
    infinity_norm,
    jensen_shannon,
    stability_index,
)

pytestmark = pytest.mark.both_sets


def random_counts(bins, seed):
    random = np.random.default_rng(seed)
    return random.multinomial(1000, random.dirichlet(np.ones(bins))).astype(float)


def tfdv(one, other, measure):
    """What TFDV's validator measures between two columns of these counts."""
    schema = schema_pb2.Schema()
    feature = schema.feature.add(name="x", type=schema_pb2.FLOAT if measure == "JENSEN" else schema_pb2.BYTES)
    if measure == "JENSEN":
        feature.drift_comparator.jensen_shannon_divergence.threshold = 1e-9
    else:
        feature.drift_comparator.infinity_norm.threshold = 1e-9
    datasets = []
    for counts in (one, other):
        dataset = statistics_pb2.DatasetFeatureStatistics(num_examples=int(counts.sum()))
        said = dataset.features.add()
        said.path.step.append("x")
        if measure == "JENSEN":
            said.type = statistics_pb2.FeatureNameStatistics.FLOAT
            common = said.num_stats.common_stats
            histogram = said.num_stats.histograms.add()
            for place, count in enumerate(counts):
                histogram.buckets.add(low_value=place, high_value=place + 1, sample_count=count)
        else:
            said.type = statistics_pb2.FeatureNameStatistics.STRING
            common = said.string_stats.common_stats
            for place, count in enumerate(counts):
                said.string_stats.rank_histogram.buckets.add(label=f"v{place}", sample_count=count)
        common.num_non_missing = common.tot_num_values = int(counts.sum())
        common.min_num_values = common.max_num_values = 1
        datasets.append(dataset.SerializeToString())
    validate = backend._load().validation.ValidateFeatureStatistics
    answer = validate(datasets[0], schema.SerializeToString(), b"", datasets[1], b"", b"", b"", b"", False)
    (info,) = anomalies_pb2.Anomalies.FromString(answer).drift_skew_info
    return info.drift_measurements[0].value


@pytest.mark.parametrize("seed", range(8))
def test_the_distances_are_tfdvs(seed):
    one, other = random_counts(10, seed), random_counts(10, seed + 100)
    assert jensen_shannon(one, other) == pytest.approx(tfdv(one, other, "JENSEN"), abs=1e-6)
    assert infinity_norm(one, other) == pytest.approx(tfdv(one, other, "INFINITY"), abs=1e-6)


def test_by_hand():
    one, other = np.array([50.0, 50.0]), np.array([100.0, 0.0])
    assert infinity_norm(one, other) == 0.5
    assert jensen_shannon(one, other) == pytest.approx((0.5 * np.log2(0.5 / 0.75) + 0.5 + np.log2(1 / 0.75)) / 2)
    assert jensen_shannon(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == 1.0
    p, q = np.array([60.5, 40.5]) / 101, np.array([40.5, 60.5]) / 101
    assert stability_index(np.array([60.0, 40.0, 0.0]), np.array([40.0, 60.0, 0.0])) == pytest.approx(
        ((p - q) * np.log(p / q)).sum()
    )
    for distance in (jensen_shannon, infinity_norm, stability_index):
        assert distance(one, one) == 0


@pytest.mark.parametrize(
    ("distance", "chance"),
    [
        (jensen_shannon, chance_of_jensen_shannon),
        (infinity_norm, chance_of_infinity_norm),
        (stability_index, chance_of_stability_index),
    ],
)
@pytest.mark.parametrize("shares", [[0.1] * 10, [0.9, 0.05, 0.02, 0.01, 0.01, 0.005, 0.003, 0.001, 0.0005, 0.0005]])
@pytest.mark.parametrize(("rows", "other_rows"), [(50, 50), (500, 10_000), (3000, 400)])
def test_chance_is_bounded(distance, chance, shares, rows, other_rows):
    """Of samples of one distribution, about a share of alpha at most is beyond what chance gives."""
    beyond = share_beyond(distance, chance, shares, rows, other_rows, alpha=0.02)
    assert beyond <= 0.02 * 1.25 + 0.006  # a quarter more of few rows, and two standard errors of the share itself


@pytest.mark.parametrize(
    ("distance", "chance"),
    [(jensen_shannon, chance_of_jensen_shannon), (stability_index, chance_of_stability_index)],
)
def test_chance_is_not_taken_to_be_more_than_it_is(distance, chance):
    assert share_beyond(distance, chance, [0.1] * 10, 3000, 5000, alpha=0.02) >= 0.02 - 0.006


def share_beyond(distance, chance, shares, rows, other_rows, alpha):
    random, tries, beyond = np.random.default_rng(1), 2000, 0
    for _ in range(tries):
        one = random.multinomial(rows, shares).astype(float)
        other = random.multinomial(other_rows, shares).astype(float)
        beyond += distance(one, other) > chance(one, other, alpha)
    return beyond / tries


def test_the_bounds_shrink_with_rows():
    for rows in (100, 10_000):
        counts = np.full(10, rows / 10)
        assert chance_of_share(rows, rows, 1e-4) == pytest.approx(np.sqrt(np.log(2e4) / rows))
        williams = 1 + 3 * 99 / (6 * 2 * rows * 9)
        quantile = 33.7199  # of chi-square with 9 degrees of freedom, from a table
        expected = quantile * williams * 2 / rows / (8 * np.log(2))
        assert chance_of_jensen_shannon(counts, counts, 1e-4) == pytest.approx(expected, rel=1e-5)
    assert chance_of_jensen_shannon(np.array([5.0]), np.array([7.0]), 0.01) == 0  # one bin can't move


def test_a_bound_has_six_digits():
    """So the last bits of the quantile, which are the processor's, reach no record."""
    bound = chance_of_stability_index(random_counts(10, 1), random_counts(10, 2), 1e-4)
    assert bound == float(f"{bound:.6g}")
