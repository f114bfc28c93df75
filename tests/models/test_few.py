"""Few events at a time, by what is kept of runs of many rows, get the bits that many at once get."""

import itertools
import random

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest

from models.features.aggregates import code_name
from models.features.few import FEW
from models.features.windows import Events, History, RollingKernel, Run
from models.project.sections import RollingFeature

pytestmark = [pytest.mark.both_sets, pytest.mark.core_set]

WANTED = [
    ("count", None, 1),
    ("min", "x", 1),
    ("max", "x", 1),
    ("first", "x", 1),
    ("last", "x", 1),
    ("last", "x", 3),
    ("last", "y", 2),
    ("since_last", None, 1),
    ("distinct", "kind", 1),
    ("sum", "y", 1),
]
WINDOWS = [(7, 0, True), (40, 0, False), (200, 0, True), (60, 15, True)]


def kernel_of(windows):
    features = [
        RollingFeature(f"{name} {column} {rank} {window}", "e", name, column, *window, -7.0, rank=rank)
        for window in windows
        for name, column, rank in WANTED
        if not (window[1] and name == "since_last")
    ]
    return RollingKernel(tuple(features), {}, 1 << 40)


KERNEL = kernel_of(WINDOWS)
VALUES = [np.nan, 0.0, -0.0, 1.0, -2.0, 3.0, 1e9]


def make(seed, number):
    chosen = random.Random(seed)
    times = np.sort(np.array([chosen.randrange(250) for _ in range(number)], np.int64))
    values = {name: np.array([chosen.choice(VALUES) for _ in range(number)]) for name in "xy"}
    values[code_name("kind")] = np.array([chosen.choice([-1, 0, 1, 2, 3, 9, 40]) for _ in range(number)])
    entity = np.array([chosen.choice([5, 5, 5, 8]) for _ in range(number)], np.int64)
    return Events(entity, times, pa.array(range(number)), values)


def some(events, rows):
    rows = np.asarray(rows, np.int64)
    return Events(
        events.entity[rows],
        events.time[rows],
        events.ids.take(pa.array(rows)),
        {name: values[rows] for name, values in events.values.items()},
    )


def run_of(events):
    order = np.lexsort((events.time, events.entity))
    return Run.of(events, order)


def bits(columns):
    return [np.asarray(column, np.float64).tobytes() for column in columns]


@pytest.fixture(params=[(1 << 30, 1), (4, 2), (16, 1)], ids=["nothing kept", "small blocks", "blocks"])
def sizes(request, monkeypatch):
    many, part = request.param
    monkeypatch.setattr("models.features.few._BLOCK", 4)
    monkeypatch.setattr("models.features.few._MANY", many)
    monkeypatch.setattr("models.features.few._PART", 8 * part)


@hypothesis.settings(
    deadline=None, max_examples=60, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
@hypothesis.given(st.integers(0, 10**6), st.integers(1, 4))
def test_few_events_get_the_bits_of_many(sizes, seed, runs):
    chosen = random.Random(seed)
    events = make(seed, 120)
    whole, _ = KERNEL.advance(History(), events)
    # The past stands in runs that follow one another in time, and some of the events are asked for.
    at = chosen.randrange(40, 110)
    asked = [row for row in range(at, 120) if events.time[row] != events.time[at - 1]][: chosen.randrange(1, FEW + 1)]
    if not asked:
        return
    past = list(range(asked[0]))
    cuts = [0, *sorted(chosen.sample(range(1, len(past)), runs - 1)), len(past)]
    history = History(tuple(run_of(some(events, past[a:b])) for a, b in itertools.pairwise(cuts)))
    for _ in range(2):  # what is kept serves again
        found = KERNEL.features_of(history, some(events, asked))
        assert bits(found) == bits([column[asked] for column in whole])


def test_what_is_kept_is_read_and_not_each_row(monkeypatch):
    number, chosen, kernel = 50_000, np.random.default_rng(0), kernel_of([(40_000, 0, True), (1 << 40, 0, True)])
    values = {name: chosen.integers(0, 99, number).astype(float) for name in "xy"}
    values[code_name("kind")] = chosen.integers(0, 300, number)
    times = np.arange(number, dtype=np.int64)
    history = History((run_of(Events(np.zeros(number, np.int64), times, pa.array(times), values)),))
    one = Events(times[:1], np.array([number]), pa.array([number]), {name: v[:1] for name, v in values.items()})
    first = kernel.features_of(history, one)
    seen, unique = [], np.unique
    monkeypatch.setattr(np, "unique", lambda values, **more: seen.append(len(values)) or unique(values, **more))
    assert bits(kernel.features_of(history, one)) == bits(first)
    assert sum(seen) < 2_000
    for run in history.runs:  # nothing is read of the rows themselves but at the windows' edges
        run.values["x"][8_000:9_000] = 1e9
    (most,) = (
        v
        for f, v in zip(kernel.features, kernel.features_of(history, one), strict=True)
        if f.name == "max x 1 (1099511627776, 0, True)"
    )
    assert most[0] < 99
