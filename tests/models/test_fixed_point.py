"""Numbers in units of their last place: those that Python's decimal numbers give."""

import decimal

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from models.fixed_point import has_more_places, to_units


def exactly(value, places):
    return decimal.Decimal(repr(value)).scaleb(places).quantize(decimal.Decimal(1), decimal.ROUND_HALF_EVEN)


@hypothesis.settings(max_examples=1000)
@hypothesis.given(
    st.integers(0, 6),
    st.lists(
        st.tuples(st.integers(-(10**9), 10**9), st.integers(0, 8)).map(lambda pair: pair[0] / 10 ** pair[1])
        | st.floats(-1e6, 1e6)
    ),
)
def test_a_value_is_the_decimal_number_that_its_text_says(places, values):
    with decimal.localcontext() as context:
        context.prec = 400
        wanted = [exactly(value, places) for value in values]
        more = [decimal.Decimal(repr(v)).scaleb(places) != w for v, w in zip(values, wanted, strict=True)]
    assert to_units(np.array(values), places).tolist() == [float(unit) for unit in wanted]
    assert has_more_places(np.array(values), places).tolist() == more


@pytest.mark.parametrize(
    ("value", "units"), [(10.505, 1050), (10.515, 1052), (10.525, 1052), (10.535, 1054), (1.005, 100), (-10.535, -1054)]
)
def test_half_a_unit_goes_to_the_even_one(value, units):
    assert to_units(np.array([value]), 2).tolist() == [units]


def test_what_is_missing_stays_so():
    assert np.isnan(to_units(np.array([np.nan, 1.0]), 2)).tolist() == [True, False]
    assert has_more_places(np.array([np.nan, 0.125]), 2).tolist() == [False, True]
