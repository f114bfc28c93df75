"""The order of rows by whole numbers, against numpy's own."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest

from models import order
from models.order import order_by, sort_order

pytestmark = [pytest.mark.both_sets, pytest.mark.core_set]

LEAST, MOST = -(2**63), 2**63 - 1
NUMBERS = (
    st.integers(0, 3),
    st.integers(-70_000, 70_000),
    st.integers(2**40, 2**40 + 2**48 - 1),  # as wide as is sorted by digits
    st.sampled_from([0, 2**16 - 1, 2**16, 2**32 - 1, 2**32, 2**48 - 1]),
    st.sampled_from([LEAST, LEAST + 1, -1, 0, 1, MOST - 1, MOST]),
    st.sampled_from([LEAST, LEAST + 2**48 - 1, LEAST + 5]),
    st.sampled_from([MOST, MOST - 2**48 + 1, MOST - 5]),
)


@hypothesis.given(st.data())
def test_rows_are_in_the_order_of_their_keys(data):
    rows = data.draw(st.integers(0, 60))
    kinds = data.draw(st.lists(st.sampled_from(NUMBERS), min_size=1, max_size=3))
    keys = [np.array(data.draw(st.lists(kind, min_size=rows, max_size=rows)), np.int64) for kind in kinds]
    if data.draw(st.booleans()):
        keys[-1].sort()
    before = [key.copy() for key in keys]
    found = {few: _order_by(few, keys) for few in (0, 1000)}
    assert found[0] == found[1000] == np.lexsort(keys[::-1]).tolist()
    assert all((key == as_it_was).all() for key, as_it_was in zip(keys, before, strict=True))


def _order_by(few, keys):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "_FEW", few)
        return order_by(*keys).tolist()


@pytest.mark.parametrize("kind", [np.int16, np.int32, np.int64])
def test_keys_of_many_rows(kind):
    rng = np.random.default_rng(1)
    few, many = rng.integers(0, 7, 5000).astype(kind), rng.integers(-20_000, 20_000, 5000).astype(kind)
    for keys in ([few, many], [many, few], [few], [np.sort(many), many]):
        assert (order_by(*keys) == np.lexsort(keys[::-1])).all()


@hypothesis.given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.text("aÉ😀\uffff", max_size=2))))
def test_ties_are_ordered_by_id(found):
    texts = pa.array([text for _, _, text in found], pa.string())
    keys = [np.array([row[n] for row in found], np.int64) for n in (0, 1)]
    assert sort_order(texts, *keys).tolist() == sorted(range(len(found)), key=found.__getitem__)
    # utf8 and Python order texts alike, by code point
