"""A body's events: split byte for byte, and each held to the contract as if it had come alone."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.batches import column
from models.serving.requests import RequestError, split_events, take_in
from tests.kit.declared import declared

SCHEMA = """
feature { name: "id" type: INT presence { min_fraction: 1.0 } }
feature { name: "at" type: INT presence { min_fraction: 1.0 } time_domain { integer_format: UNIX_SECONDS } }
feature { name: "name" type: BYTES }
"""
TEXT = """
name: shops
schema: schema.pbtxt
event: {id: id, time: at}
where: id != 13
"""
RECORDS = declared(TEXT, SCHEMA).event_type
SPACE = st.text(" \t\r\n", max_size=3)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(st.tuples(SPACE, VALUES, SPACE), min_size=1, max_size=5), SPACE)
def test_a_list_is_split_into_the_very_texts_of_its_elements(parts, around):
    texts = [json.dumps(value) for _, value, _ in parts]
    body = around + "[" + ",".join(f"{a}{text}{b}" for (a, _, b), text in zip(parts, texts, strict=True)) + "]" + around
    assert split_events(body.encode(), 5) == ([text.encode() for text in texts], True)


@given(st.binary(max_size=40))
def test_whatever_comes_is_one_event_a_list_or_refused(body):
    try:
        payloads, is_list = split_events(body, 3)
    except RequestError:
        assert body.lstrip(b" \t\r\n").startswith(b"[")
    else:
        assert is_list or payloads == [body]


def test_numbers_stay_as_they_are_written():
    body = b'[{"a": 1.10}, {"a": 1e400, "a": -0}, {"a": 123456789012345678901234567890}, NaN]'
    assert split_events(body, 9)[0] == [
        b'{"a": 1.10}',
        b'{"a": 1e400, "a": -0}',
        b'{"a": 123456789012345678901234567890}',
        b"NaN",
    ]


@pytest.mark.parametrize(
    "body", ["[]", "[1 2]", "[1,]", "[,1]", "[1", "[", '["a]', "[1]]", "[1,2,3,4]", "[tru]", "[-]"]
)
def test_a_list_that_is_none_is_refused(body):
    with pytest.raises(RequestError):
        split_events(body.encode(), 3)


def test_events_of_a_list_are_what_each_is_alone():
    payloads = [
        b'{"id": 1, "at": 5, "name": "a"}',
        b'{"id": 2}',
        b"{",
        b'{"id": 13, "at": 1}',
        b'{"id": 1, "at": 4}',
        b'{"id": 3, "at": 6}',
        b'{"id": 3, "at": 6}',
    ]
    taken = take_in(payloads, RECORDS)
    assert column(taken.batch, "id").to_pylist() == [1, 3]
    assert taken.places.tolist() == [4, 5]  # of two with one id the earlier, of one time the first
    assert {place: refusal.step for place, refusal in taken.refused.items()} == {
        0: "Deduplicate",
        1: "Validate",
        2: "Decode",
        3: "Filter",
        6: "Deduplicate",
    }
    for place in (1, 2, 3):
        assert take_in([payloads[place]], RECORDS).refused == {0: taken.refused[place]}
