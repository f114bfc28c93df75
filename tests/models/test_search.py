"""The search for rows by entity and time: what was compiled against numpy, and both against the definition."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from models.features import search
from models.features.search import Ordered

pytestmark = [pytest.mark.both_sets, pytest.mark.core_set]

LEAST, MOST = -(2**63), 2**63 - 1
ENTITIES = st.integers(-2, 2) | st.sampled_from([LEAST, LEAST + 1, MOST - 1, MOST])
TIMES = st.integers(-5, 40) | st.integers(-(2**60), 2**60)
ROWS = st.lists(st.tuples(ENTITIES, TIMES), min_size=1, max_size=60)


def ordered(rows):
    entity, time = zip(*rows, strict=True)
    return Ordered(np.array(entity, np.int64), np.array(time, np.int64))


@pytest.fixture(params=["compiled", "numpy"])
def built(request, monkeypatch):
    if request.param == "numpy":
        monkeypatch.setattr(search, "find_rows", None)
    elif search.find_rows is None:
        pytest.skip("there was no compiler when headrace was installed")


@hypothesis.settings(
    deadline=None, max_examples=200, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
@hypothesis.given(ROWS, ROWS, st.lists(st.integers(-9, 30), max_size=3), st.booleans(), TIMES)
def test_rows_are_those_of_the_definition(built, rows, asked, ages, sort, passed):
    rows, asked = sorted(rows), sorted(asked) if sort else asked
    found = ordered(rows).rows_until(ordered(asked), ages, passed)
    for age, of_age in zip(ages, found.tolist(), strict=True):
        for (entity, time), number in zip(asked, of_age, strict=True):
            assert number == sum(row <= (entity, max(time - age, passed)) for row in rows)


def test_rows_far_apart_are_found(built):
    run = ordered([(entity, time) for entity in (0, 7) for time in range(0, 5000, 2)])
    asked = ordered([(0, -1), (0, 0), (0, 4998), (7, 3), (7, 2501), (9, 0), (3, 100), (0, 5000)])
    assert run.rows_until(asked, [0], -1)[0].tolist() == [0, 1, 2500, 2502, 3751, 5000, 2500, 2500]


@pytest.mark.skipif(search.find_rows is None, reason="there was no compiler when headrace was installed")
def test_columns_that_do_not_fit_are_refused():
    long, short, narrow = np.zeros(3, np.int64), np.zeros(2, np.int64), np.zeros(3, np.int8)
    for columns in ([long, short, long, long, long], [long, long, long, short, long], [long, long, long, long, short]):
        with pytest.raises(ValueError, match="of one length"):
            search.find_rows(*columns)
    with pytest.raises(ValueError, match="64 bits"):
        search.find_rows(long, long, narrow, narrow, narrow)
    with pytest.raises(ValueError, match="contiguous"):
        search.find_rows(long, long, np.zeros((3, 2), np.int64)[:, 0], long, long)
