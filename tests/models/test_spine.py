"""What a spine with some columns can have of a project, and its rows as they are asked."""

import pyarrow as pa
import pytest

from models.features.spine import SpineError, find_answerable, to_asked
from models.record import ASKED, EVENT_TIME, MARKS
from tests.kit.declared import declared

pytestmark = [pytest.mark.both_sets, pytest.mark.core_set]

SCHEMA = """
feature { name: "id" type: INT presence { min_fraction: 1.0 } }
feature { name: "at" type: INT presence { min_fraction: 1.0 } time_domain { integer_format: UNIX_SECONDS } }
feature { name: "card" type: BYTES presence { min_fraction: 1.0 } }
feature { name: "shop" type: INT presence { min_fraction: 1.0 } }
feature { name: "amount" type: FLOAT }
"""
PROJECT = declared(
    """
name: shops
schema: schema.pbtxt
event: {id: id, time: at}
derive: {bank: "lower(card)", whole: "hash()"}
entities: {card: card, shop: shop, bank: bank}
fixed_point: {amount: 2}
tables: {shops: {entity: shop, time: since, fields: {town: text, size: int}}}
features:
  row: {big: amount > 10, usual: amount / mean, large: size > 2, share: there * 2, odd: whole == 'x'}
  rolling:
    - {entity: card, windows: {D: 1d}, features: {mean: mean(amount)}}
    - {entity: [bank, shop], windows: {D: 1d}, features: {there: count}}
output: [town]
""",
    SCHEMA,
)


@pytest.mark.parametrize(
    ("given", "names", "own", "lacking"),
    [
        (
            ("at", "card"),
            ("mean",),
            ("at", "card"),
            {"big": "amount", "usual": "amount", "large": "shop", "share": "shop", "odd": "whole", "there": "shop"},
        ),
        (
            ("at", "shop", "amount"),
            ("town", "big", "large"),
            ("at", "shop", "amount"),
            {"usual": "card", "share": "card", "odd": "whole", "mean": "card", "there": "card"},
        ),
        (
            ("at", "shop", "bank", "note"),
            ("town", "large", "share", "there"),
            ("at", "shop", "bank"),
            {"big": "amount", "usual": "amount card", "odd": "whole", "mean": "card"},
        ),
        (
            ("whole", "amount", "card", "at", "shop"),
            ("town", "big", "usual", "large", "share", "odd", "mean", "there"),
            ("at", "card", "shop", "amount", "bank", "whole"),
            {},
        ),
    ],
)
def test_what_can_be_had_and_what_is_lacking(given, names, own, lacking):
    found = find_answerable(PROJECT, given)
    assert found.names == names
    assert found.own == own
    assert {name: " ".join(missing) for name, missing in found.lacking.items()} == lacking
    assert found.tables == (("shops",) if "shop" in given else ())


def test_rows_are_numbered_and_of_the_fields_types():
    spine = pa.table(
        {"note": ["x", "y"], "at": pa.array([7, 8], pa.int32()), "card": ["Anna", None], "shop": [1.0, 2.0]}
    )
    rows = to_asked(spine, find_answerable(PROJECT, spine.schema.names))
    assert rows.schema.names == ["card", "shop", "bank", EVENT_TIME, MARKS, ASKED]
    assert rows["bank"].to_pylist() == ["anna", None]
    assert rows["shop"].to_pylist() == [1, 2]
    assert rows[EVENT_TIME].cast(pa.int64()).to_pylist() == [7_000_000, 8_000_000]
    assert rows[ASKED].to_pylist() == [0, 1]


def test_the_first_row_that_cant_be_read_is_named():
    spine = pa.table({"at": [1, 2, None, 4], "card": list("abcd"), "shop": pa.array([1.0, 0.5, 2.0, None])})
    with pytest.raises(
        SpineError,
        match="2 of 4 rows of the spine can't be read; the first is row 1, counted from 0: shop: not a 64-bit",
    ):
        to_asked(spine, find_answerable(PROJECT, spine.schema.names))
