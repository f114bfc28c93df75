"""A body's events: split byte for byte, and each held to the contract as if it had come alone."""

import json
import time
import timeit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.batches import column
from models.codecs import is_deep
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


WRONG = st.sampled_from(
    [b"", b"{", b"null", b'{"id":1,"id":1,"at":1}', b'{"id":NaN}', b'"\xff"', b'{"name":"\\ud800"}']
)
FIELDS = st.dictionaries(st.sampled_from(["id", "at", "name", "", "__event_time", "\0"]), VALUES, max_size=5)
RECORDS_OF_ANY_KIND = st.lists(
    WRONG | st.binary(max_size=30) | FIELDS.map(lambda fields: json.dumps(fields).encode()), min_size=1, max_size=6
)


@settings(deadline=None)
@given(RECORDS_OF_ANY_KIND)
def test_whatever_an_event_is_it_is_taken_or_refused_with_reasons(payloads):
    taken = take_in(payloads, RECORDS)
    assert sorted([*taken.places.tolist(), *taken.refused]) == list(range(len(payloads)))
    assert taken.batch.num_rows == len(taken.places)
    assert all(json.loads(refusal.reasons) for refusal in taken.refused.values())
    json.dumps([json.loads(refusal.reasons) for refusal in taken.refused.values()], ensure_ascii=False).encode()


@settings(deadline=None)
@given(VALUES, st.integers(0, 120), st.sampled_from(["[", '{"a":', '{"[\\"[{":']))
def test_depth_is_that_of_objects_and_lists(value, levels, opening):
    def depth(found):
        inner = found.values() if isinstance(found, dict) else found if isinstance(found, list) else None
        return 0 if inner is None else 1 + max(map(depth, inner), default=0)

    text = opening * levels + json.dumps(value) + ("]" if opening == "[" else "}") * levels
    assert is_deep(text.encode()) == (levels + depth(value) > 100)


def test_a_text_that_has_no_end_is_looked_at_once():
    """Eight times the bytes are eight times the work; from each quote to the end it would be 64 times."""

    def seconds(quotes):
        body = b"[" * 101 + b'"' + b'\\"' * quotes
        return min(timeit.repeat(lambda: is_deep(body), timer=time.process_time, number=3, repeat=3))

    assert seconds(24_000) < 25 * seconds(3_000)
