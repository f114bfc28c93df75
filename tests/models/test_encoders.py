"""Codes of inputs that are but names: against the plainest Python, in any order, and through the bundle's file."""

import fractions

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings

from models.predictors.encoders import EncoderError, Encoders, encode_in_order, learn_table, learn_values
from models.project.learned import Category

pytestmark = [pytest.mark.both_sets, pytest.mark.core_set]

texts = st.lists(st.sampled_from([None, "a", "b", "c", "", "ä", "[<]", "%5B"]), min_size=1, max_size=40)


def encoder_of(values, **declared):
    return learn_values("x", pa.array(values, pa.string()), Category(**declared))


def test_known_unknown_and_missing_are_three_things():
    values = pa.array(["b", "new", None, "a"])
    known = ["b", "b", "a", None]
    plain, rare = encoder_of(known), encoder_of([*known, "c"], most=2)
    np.testing.assert_array_equal(plain.encode(values), np.float32([[1], [np.nan], [np.nan], [0]]))
    np.testing.assert_array_equal(rare.encode(values), np.float32([[1], [2], [np.nan], [0]]))
    hot, rare = encoder_of(known, encoding="one_hot"), encoder_of([*known, "c"], most=2, encoding="one_hot")
    assert hot.columns == ("x=a", "x=b")
    assert rare.columns == ("x=a", "x=b", "x is unknown")
    np.testing.assert_array_equal(hot.encode(values), np.float32([[0, 1], [0, 0], [np.nan] * 2, [1, 0]]))
    np.testing.assert_array_equal(rare.encode(values), np.float32([[0, 1, 0], [0, 0, 1], [np.nan] * 3, [1, 0, 0]]))
    batch = pa.RecordBatch.from_arrays([values], names=["x"])
    assert Encoders({"x": plain}).find_unknown(batch)["x"].tolist() == [False, True, False, False]
    assert Encoders({"x": plain}).find_unknown(batch.slice(2)) == {}


@settings(deadline=None)
@given(texts, st.integers(1, 4), st.integers(1, 3), st.randoms())
def test_the_most_frequent_are_known_whatever_the_order(values, most, at_least, random):
    counts = {v: values.count(v) for v in values if v is not None and values.count(v) >= at_least}
    wanted = sorted(sorted(counts, key=lambda v: (-counts[v], v.encode()))[:most], key=str.encode)
    shuffled = random.sample(values, len(values))
    for some in (values, shuffled):
        found = encoder_of(some, most=most, at_least=at_least)
        assert found.values.to_pylist() == wanted
        assert found.learned_unknown == (set(wanted) != set(values) - {None})
        assert len(set(found.columns)) == len(found.columns)


def test_too_many_values_are_refused_with_what_to_do():
    values = [str(n) for n in range(201)]
    with pytest.raises(
        EncoderError, match=r"x has 201 values .* more than the 200 of one_hot: declare model.categories"
    ):
        encoder_of(values, encoding="one_hot")
    assert len(encoder_of(values, encoding="one_hot", most=200).values) == 200


def test_whole_numbers_are_values_too():
    found = learn_values("x", pa.array([5, 7, 7, None]), Category())
    np.testing.assert_array_equal(found.encode(pa.array([7, -1, 5, None, 2])).ravel(), [1, np.nan, 0, np.nan, np.nan])


events = st.lists(
    st.tuples(st.integers(0, 12), st.sampled_from([None, "a", "b", "c"]), st.integers(-3, 3)), min_size=1, max_size=25
)


def mean_by_definition(value, seen, smoothing, scale):
    own = [label for other, label in seen if other == value]
    if not seen:
        return None
    total = fractions.Fraction(sum(label for _, label in seen), len(seen))
    return float((sum(own) + smoothing * total) / (len(own) + smoothing) / scale)


@settings(deadline=None)
@given(events, st.integers(0, 5), st.integers(1, 20), st.sampled_from([1, 100]), st.randoms())
def test_target_encoding_sees_only_labels_that_were_known(rows, delay, smoothing, scale, random):
    category = Category(encoding="target", smoothing=smoothing)
    order = random.sample(range(len(rows)), len(rows))
    found = {}
    for some in (range(len(rows)), order):
        times, values, labels = (np.array([rows[i][k] for i in some]) for k in range(3))
        values = pa.array(values.tolist(), pa.string())
        encoder = learn_values("x", values, category)
        codes = encode_in_order(encoder, values, times, labels[:, None], delay, scale, category)
        table = learn_table(encoder, values, labels[:, None], scale, category, ()).table
        found[some[0]] = codes[np.argsort(list(some))], table
    for codes, table in found.values():
        np.testing.assert_array_equal(codes, next(iter(found.values()))[0])
        np.testing.assert_array_equal(table, next(iter(found.values()))[1])
        for (time, value, _), code in zip(rows, codes[:, 0], strict=True):
            seen = [(v, y) for t, v, y in rows if t <= time - max(delay, 1)]
            wanted = mean_by_definition(value, seen, smoothing, scale)
            assert np.isnan(code) if wanted is None else code == np.float32(wanted)
        known = sorted({v for _, v, _ in rows if v is not None})
        every = [(v, y) for _, v, y in rows]
        wanted = [mean_by_definition(v, every, smoothing, scale) for v in [*known, "unknown", None]]
        np.testing.assert_array_equal(table[:, 0], np.float32(wanted))


def test_several_outputs_have_a_column_each():
    values, labels = pa.array(["a", "b", "a"]), np.array([[1, 0], [0, 1], [1, 0]])
    category = Category(encoding="target", smoothing=1)
    encoder = learn_table(learn_values("x", values, category), values, labels, 1, category, ("yes", "no"))
    assert encoder.columns == ("x of yes", "x of no")
    wanted = np.float32([[8 / 9, 1 / 9], [1 / 3, 2 / 3], [2 / 3, 1 / 3], [2 / 3, 1 / 3]])
    np.testing.assert_array_equal(encoder.encode(pa.array(["a", "b", "c", None])), wanted)


def made():
    values, labels = pa.array(["a", "[ü", None]), np.array([[1], [0], [0]])
    category = Category(encoding="target")
    numbers = learn_values("n", pa.array([3, 1, 1]), Category(encoding="one_hot", most=1))
    target = learn_table(learn_values("t", values, category), values, labels, 1, category, ())
    return Encoders({"n": numbers, "s": learn_values("s", values, Category()), "t": target})


def test_encoders_go_to_bytes_and_back():
    encoders = made()
    again = Encoders.from_bytes(encoders.to_bytes())
    assert again.to_bytes() == encoders.to_bytes()
    inputs = ["n", "amount", "t", "s"]
    assert again.feature_names(inputs) == ("n=1", "n is unknown", "amount", "t", "s")
    assert again.feature_types(inputs) == ["q", "q", "q", "q", "c"]
    assert Encoders().feature_types(inputs) is None
    for name, values in (("n", pa.array([1, 3, 9])), ("s", pa.array(["a", "x"])), ("t", pa.array(["a", "x", None]))):
        one, two = encoders.by_name[name].encode(values), again.by_name[name].encode(values)
        assert one.dtype == np.float32
        assert one.tobytes() == two.tobytes()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"format":2,"encoders":[]}',
        b'{"format":1,"encoders":[{"name":"x"}]}',
        made().to_bytes().replace(b'"splits"', b'"other"'),
        made().to_bytes().replace(b'"[\\u00fc"', b"null"),
        made().to_bytes().replace(b'"table":[[', b'"table":[[0.5],['),
    ],
)
def test_what_is_no_encoders_is_refused(content):
    with pytest.raises(EncoderError):
        Encoders.from_bytes(content)
