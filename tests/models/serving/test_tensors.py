"""Tensors of any shape and kind: rows of the model's features, or an error that says what is wrong."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.serving.requests import RequestError
from models.serving.tensors import read_rows

NAMES = ("a", "b")
SIZES = st.sampled_from([1, 2, 3, 1.5, 0, -1, 1e300, True, None, "1", float("nan")])
NUMBERS = st.sampled_from([1, 0.5, None, True, float("nan"), float("inf"), 1e300, 10**400, "1", [], {}])
DATA = st.recursive(NUMBERS, lambda inner: st.lists(inner, max_size=4), max_leaves=8)
TENSORS = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["a", "b", "features", None, 1, "\ud800", ["a"], {}]),
        "datatype": st.sampled_from(["FP32", "INT64", "BYTES", None, ["FP32"], {}]),
        "shape": st.lists(SIZES, max_size=3) | SIZES,
        "data": DATA,
    },
)
BODIES = st.fixed_dictionaries({"inputs": st.lists(TENSORS | DATA, max_size=3) | DATA}, optional={"id": DATA})


@settings(deadline=None)
@given(BODIES | DATA)
def test_a_body_of_any_kind_is_rows_or_an_error(body):
    try:
        rows, _ = read_rows(json.dumps(body).encode(), NAMES, 3)
    except RequestError:
        return
    assert rows.dtype == np.float32
    assert rows.ndim == 2
    assert 1 <= len(rows) <= 3
    assert rows.shape[1] == len(NAMES)


@pytest.mark.parametrize("shape", [[1.5, 2], [True, 2], [1, 2.5], ["1", 2], [float("nan"), 2]])
def test_sizes_that_are_no_whole_numbers_are_refused(shape):
    tensor = {"name": "features", "datatype": "FP32", "data": [1, 2, 3]}
    with pytest.raises(RequestError, match="its shape is one or two whole numbers"):
        read_rows(json.dumps({"inputs": [{**tensor, "shape": shape}]}).encode(), NAMES, 3)


@pytest.mark.parametrize("data", [[1, 2, 3, 4], [[1, 2], [3, 4]], [[[1], [2]], [3, [4]]], [1, [2, 3], 4]])
def test_data_may_be_nested(data):
    tensor = {"name": "features", "datatype": "FP32", "shape": [2, 2], "data": data}
    rows, _ = read_rows(json.dumps({"inputs": [tensor]}).encode(), NAMES, 3)
    assert rows.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("more", [[[]] * 500_000, [[[]]] * 3, [[[]] * 500_000], [1] * 500_000])
def test_data_of_other_sizes_are_refused(more):
    tensor = {"name": "features", "datatype": "FP32", "shape": [1, 2], "data": [1, *more]}
    with pytest.raises(RequestError, match="are not of the shape"):
        read_rows(json.dumps({"inputs": [tensor]}).encode(), NAMES, 3)


def test_more_tensors_than_there_can_be_are_refused():
    with pytest.raises(RequestError, match="one tensor of each feature"):
        read_rows(b'{"inputs": [' + b"{}," * 1000 + b"{}]}", NAMES, 3)
