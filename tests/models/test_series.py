"""Windows against those of the same hour and weekday before: false alarms as declared, and drifts that are slow."""

import dataclasses
import json
import math

import numpy as np
import pytest
from tensorflow_metadata.proto.v0 import statistics_pb2

from models.quality.judge import Memory, judge
from models.quality.records import Distribution, WindowStatistics
from models.quality.series import SLACK, Past, Point, chance_of_deviation, points_of, sum_limit
from models.record import SCORE
from tests.kit.declared import assert_fault
from tests.kit.quality_rows import DECLARATIONS, HOUR, SCHEMA, START, small_project
from tests.kit.support import ROOT

pytestmark = pytest.mark.slow

PLACES, SEASONS, RUN_LENGTH, RATE = 6, 8, 500, 0.01
_NOTHING = statistics_pb2.DatasetFeatureStatisticsList(datasets=[statistics_pb2.DatasetFeatureStatistics()])
SERIES = f"series: {{season: {PLACES}h, seasons: {SEASONS}, deviations: 0.01, run_length: {RUN_LENGTH}}}"
PROJECT = small_project(f"min_rows: 30, sample: 5000, false_alarm_rate: {RATE}, {SERIES}")
NAMES = ["rows", "unseen card", "decision block", "decision approve", "mean score"]
LIMIT = sum_limit(RUN_LENGTH * len(NAMES))


def make_windows(number, seed, first=0, drift=0.0, spoil=None):
    """Windows whose rows, shares and scores follow the hour; `drift` raises the mean score by so much a window."""
    chosen = np.random.default_rng(seed)
    for n in range(first, first + number):
        wave = 0.5 * math.sin(2 * math.pi * n / PLACES)
        rows = int(chosen.poisson(600 * (1 + wave)))
        blocked = int(chosen.binomial(rows, 0.05 * (1 - wave)))
        unseen = int(chosen.binomial(rows, 0.2 + 0.1 * wave))
        mean = 0.3 + 0.1 * wave + drift * n + chosen.normal(0, 0.2 / math.sqrt(rows))
        if spoil and n in spoil:
            rows, blocked, unseen, mean = spoil[n](rows, blocked, unseen, mean)
        yield WindowStatistics(
            window_start_us=START + n * HOUR,
            window_end_us=START + (n + 1) * HOUR,
            rows=rows,
            sampled=rows,
            late=0,
            nulls={},
            decisions={"block": blocked, "approve": rows - blocked},
            unseen={"card": unseen},
            bundles={"bundle": rows},
            distributions={SCORE: Distribution("number", rows, 0, (rows,), (), mean=mean)},
            dataset=_NOTHING.SerializeToString(),
        )


def see_all(windows):
    """Of each window the series that deviate by more than chance, and those whose sum is above its limit."""
    past = Past()
    for window in windows:
        place = window.window_start_us // HOUR % PLACES
        seen = past.see(points_of(window, PROJECT), place, (PLACES, SEASONS), "bundle", LIMIT)
        past = seen.past
        share = RATE / max(len(seen.deviations), 1)
        single = {d.name for d in seen.deviations if abs(d.deviation) > chance_of_deviation(d.errors, share)}
        yield bool(seen.deviations), single, {d.name for d in seen.deviations if d.total > LIMIT}


@pytest.fixture(scope="module")
def quiet():
    """What is seen of 50 seeds of windows without any drift."""
    return [list(see_all(make_windows(300, seed))) for seed in range(50)]


def test_false_alarms_of_windows_are_as_declared(quiet):
    judged = [single for seen in quiet for known, single, _ in seen if known]
    raised = sum(map(bool, judged))
    assert len(judged) > 10_000
    assert raised <= len(judged) * RATE * 1.3
    assert raised >= len(judged) * RATE / 5  # nor is it blind


def test_false_alarms_of_sums_are_as_rare_as_declared(quiet):
    """Of runs of n windows no more begin one than 1 - exp(-n / run length) are to."""
    first = [next((n for n, (_, _, slow) in enumerate(seen) if slow), None) for seen in quiet]
    alarmed = sum(n is not None for n in first)
    expected = len(quiet) * (1 - math.exp(-260 / RUN_LENGTH))
    assert alarmed <= expected + 2 * math.sqrt(expected)


def test_the_run_length_of_sums_is_that_of_normal_steps():
    """Against windows drawn one by one: Siegmund's approximation."""
    chosen, limit = np.random.default_rng(0), sum_limit(300)
    totals, alarms = np.zeros((2000, 2)), 0
    for _ in range(2500):
        step = chosen.normal(size=2000)
        totals = np.maximum(totals + np.column_stack([step, -step]) - SLACK, 0)
        over = (totals > limit).any(axis=1)
        alarms += int(over.sum())
        totals[over] = 0
    assert 2000 * 2500 / alarms == pytest.approx(300, rel=0.1)


def test_a_slow_drift_that_no_window_shows_is_found_by_its_sum():
    """The mean score rises by a fortieth of a window's deviation with each: from window to window nothing is to be seen."""
    slow = 0.2 / math.sqrt(600) / 40
    found, alone = 0, 0
    for seed in range(10):
        seen = list(see_all(make_windows(200, seed, drift=slow)))
        found += any("mean score" in sums for *_, sums in seen)
        alone += sum("mean score" in single for _, single, _ in seen)
    assert found == 10
    assert alone <= 0.02 * 10 * 200


def test_nulls_that_become_more_by_little_are_found_by_their_sum():
    """A column's share of rows without a value creeps from 2 % to 5 % in 200 windows of some 600 rows."""
    project = small_project(f"min_rows: 30, sample: 5000, {SERIES.replace('}', ', nulls: [amount]}')}")
    creeping, steady = (0.02, 0.03 / 200), (0.02, 0.0)

    def found(start, rise, seed):
        chosen, past, names = np.random.default_rng(seed), Past(), set()
        for n, window in enumerate(make_windows(200, seed)):
            nulls = {"amount": int(chosen.binomial(window.rows, start + rise * n))}
            points = points_of(dataclasses.replace(window, nulls=nulls), project)
            seen = past.see(points, n % PLACES, (PLACES, SEASONS), "bundle", sum_limit(RUN_LENGTH * len(points)))
            past = seen.past
            limit = sum_limit(RUN_LENGTH * len(points))
            names |= {each.name for each in seen.deviations if each.total > limit}
        return "null amount" in names

    assert sum(found(*creeping, seed) for seed in range(10)) >= 9
    assert sum(found(*steady, seed) for seed in range(10)) <= 1


def test_the_hour_is_known_and_what_is_not_usual_at_it_is_raised():
    def as_at_noon(rows, blocked, unseen, mean):
        return 900, 45, 180, 0.35

    quiet = list(see_all(make_windows(120, 1)))
    assert not any("rows" in single for _, single, _ in quiet[100:])
    seen = list(see_all(make_windows(120, 1, spoil={112: as_at_noon})))  # where 300 rows are usual
    assert {"rows", "mean score"} <= seen[112][1]
    assert seen[:112] == quiet[:112]


def test_deviations_are_those_of_statsmodels():
    """Medians by place, and statsmodels' median absolute deviation of all comparisons before."""
    told = json.loads((ROOT / "tests" / "kit" / "statsmodels" / "deviations.json").read_text())
    past, compared = Past(), 0
    for n, (value, expected) in enumerate(zip(told["values"], told["deviations"], strict=True)):
        points = [Point("x", value, told["rows"], "mean", False)]
        seen = past.see(points, n % told["places"], (told["places"], 8), "", 10.0)
        past = seen.past
        assert bool(seen.deviations) == (expected is not None)
        if expected is not None:
            assert seen.deviations[0].deviation == pytest.approx(expected, rel=1e-4)  # by 1.4826 of 1.48260222
            compared += 1
    assert compared > 50


def test_another_bundle_has_series_of_its_own():
    windows = list(make_windows(80, 3))
    past = Past()
    for n, window in enumerate(windows):
        bundle = "one" if n < 60 else "two"
        seen = past.see(points_of(window, PROJECT), n % PLACES, (PLACES, SEASONS), bundle, LIMIT)
        past = seen.past
    assert {each.name for each in seen.deviations} == {"rows", "unseen card"}


def test_what_is_known_goes_from_window_to_window_as_json():
    """Verdicts do not depend on where a state was kept."""
    whole, kept, verdicts = Memory(), Memory().to_json(), []
    for window in make_windows(90, 4, spoil={80: lambda rows, blocked, unseen, mean: (rows, rows, unseen, mean)}):
        verdict, whole = judge(window, whole, None, PROJECT)
        other, after = judge(window, Memory.from_json(kept), None, PROJECT)
        kept = after.to_json()
        assert verdict == other
        assert kept == whole.to_json()
        verdicts.append(verdict)
    found = {(finding.feature, finding.kind) for finding in verdicts[80].findings}
    assert ("decision block", "season") in found
    assert any(measure.kind == "slow_drift" for measure in verdicts[80].measures)
    assert "hour and weekday" in next(f.text for f in verdicts[80].findings if f.kind == "season")


def test_without_series_a_memory_is_as_it_was():
    project = small_project("min_rows: 30, sample: 5000")
    (window,) = make_windows(1, 0)
    _, memory = judge(window, Memory(), None, project)
    assert set(json.loads(memory.to_json())) == {"previous", "circuit_open", "good"}
    assert "series" not in project.quality.model_dump(mode="json")


def test_small_windows_are_passed_over():
    project = small_project(f"min_rows: 500, sample: 5000, {SERIES}")
    (window,) = make_windows(1, 0)
    small = Memory(past=Past(bundle="one"))
    verdict, after = judge(window, small, None, small_project(f"min_rows: 5000, sample: 5000, {SERIES}"))
    assert not verdict.judged
    assert after is small
    assert judge(window, Memory(), None, project)[1].past.names == tuple(NAMES)


@pytest.mark.parametrize(
    ("series", "fault"),
    [
        ("season: 90m", "must be a whole number of quality.window, at most 200"),
        ("season: 201h", "must be a whole number of quality.window, at most 200"),
        ("season: 0h", "must be a whole number of quality.window, at most 200"),
        ("seasons: 2", "greater than or equal to 3"),
        ("run_length: 1", "greater than or equal to 50"),
        ("deviations: .inf", "finite number"),
        ("nulls: [nothing]", "nothing is no column that is watched"),
    ],
)
def test_faults(series, fault):
    text = DECLARATIONS + "quality: {window: 1h, series: {season: 6h}}\n"
    schema = SCHEMA.replace(b"SKEW", b"").replace(b"DRIFT", b"").decode()
    assert_fault(text, schema, "season: 6h", series, fault)
