"""Rolling features at times that are no events': against their definition, and against those of the events there."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest

from models.features.windows import Events, History, RollingKernel
from tests.kit.window_oracle import as_of_definition
from tests.kit.window_rows import DECIMALS, HOUR, START, features, rows, same_bits, to_events

pytestmark = [pytest.mark.both_sets, pytest.mark.core_set, pytest.mark.slow]

# Also of an entity without events, and before and after all of them.
asked = st.lists(
    st.fixed_dictionaries(
        {
            "entity": st.integers(0, 3),
            "time": st.integers(-40, 100).map(lambda hours: START + hours * HOUR)
            | st.integers(-1, 4).map(lambda n: START + n),
        }
    ),
    max_size=15,
)


def times_of(found):
    entity, time = (np.array([row[name] for row in found], np.int64) for name in ("entity", "time"))
    return Events(entity, time, pa.nulls(len(found)), {})


def known(kernel, calls):
    history, codes = History(), {}
    for call in calls:
        _, history = kernel.advance(history, to_events(call, codes))
    return history


@hypothesis.settings(deadline=None, max_examples=500)
@hypothesis.given(features(), rows, asked, st.integers(0, 60), st.randoms(use_true_random=False))
def test_equals_the_definition_whatever_the_order_and_the_calls(declared, found, spine, hours, random):
    kernel = RollingKernel(declared, DECIMALS, lateness_us=1000 * HOUR)
    shuffled = random.sample(found, len(found))
    calls = [[row for row in shuffled if (row["time"] < START + hours * HOUR) is early] for early in (True, False)]
    columns = kernel.answer(known(kernel, calls), times_of(spine))
    expected = as_of_definition(declared, spine, found, DECIMALS)
    for number, column in enumerate(columns):
        assert column.dtype == (np.int64 if declared[number].is_count else np.float64)
        assert same_bits(column, [values[number] for values in expected]), declared[number]


@hypothesis.settings(deadline=None, max_examples=300)
@hypothesis.given(features(), rows)
def test_at_the_time_of_an_event_they_are_the_events_own(declared, found):
    """If it is the only one of its entity and time: the id tells the order of such, and a time asked for has none."""
    only = list({(row["entity"], row["time"]): row for row in found}.values())
    kernel = RollingKernel(declared, DECIMALS, lateness_us=1000 * HOUR)
    columns, history = kernel.advance(History(), to_events(only, {}))
    answers = kernel.answer(history, times_of(only))
    assert all(same_bits(column, answer) for column, answer in zip(columns, answers, strict=True))


@hypothesis.settings(deadline=None, max_examples=300)
@hypothesis.given(features(), rows, rows, asked.filter(len))
def test_what_comes_later_changes_no_bit(declared, found, others, spine):
    kernel = RollingKernel(declared, DECIMALS, 1000 * HOUR)
    moment = max(row["time"] for row in spine)
    poisoned = [row for row in found if row["time"] <= moment] + [
        {**row, "id": 1000 + row["id"], "time": max(row["time"], moment + 1)} for row in others
    ]
    before, after = (kernel.answer(known(kernel, [each]), times_of(spine)) for each in (found, poisoned))
    assert all(same_bits(one, other) for one, other in zip(before, after, strict=True))
