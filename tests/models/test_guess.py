"""What is guessed of columns, and what can't be."""

import random

import pyarrow as pa
import pytest

from models.schemas.guess import GuessError, Roles, guess_project

ROWS = 400


def columns(**more):
    drawn = random.Random(4)
    found = {
        "opened": [1_600_000_000 + n * 7200 for n in range(ROWS)],
        "shop": [drawn.randrange(9) for _ in range(ROWS)],
        "channel": [drawn.choice(["chat", "mail"]) for _ in range(ROWS)],
        "text": [f"ticket {n}" for n in range(ROWS)],
        "half": [drawn.randrange(9) / 2 for _ in range(ROWS)],
        "is_spam": [n % 3 == 0 for n in range(ROWS)],
        **more,
    }
    return {name: pa.array(values) for name, values in found.items()}


def guess(told, **more):
    return guess_project("tickets", columns(**more), Roles(**told), {})


def test_all_that_is_guessed_is_said():
    found = guess({"time": "opened"})
    assert found.declarations["event"] == {"id": "event_id", "time": "opened"}
    assert found.declarations["derive"] == {"event_id": "hash()"}
    assert found.declarations["entities"] == {"shop": "shop"}
    assert found.declarations["label"]["field"] == "is_spam"
    assert found.declarations["model"]["inputs"][:2] == ["half", "channel"]
    for said in (
        "event.id: event_id, a hash",
        "label.field: is_spam",
        "entities.shop: shop, whose 9 values",
        "training: ",
    ):
        assert any(note.startswith(said) for note in found.notes)


def test_the_same_rows_in_another_order_give_the_same():
    before = columns()
    order = pa.array(random.Random(1).sample(range(ROWS), ROWS))
    shuffled = {name: column.take(order) for name, column in before.items()}
    told = Roles(time="opened")
    assert guess_project("t", shuffled, told, {}) == guess_project("t", before, told, {})


def test_a_field_that_is_late_is_read_by_nothing():
    found = guess_project("t", columns(), Roles(time="opened"), {"half": "it shows"}).declarations
    delay = found["label"]["delay"]
    assert found["available"] == {"half": f"after {delay}"}
    assert "half" not in str(found["model"]) + str(found["features"])


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"time": "when"}, "there is no field 'when' in the data; it has opened, shop"),
        ({"time": "channel"}, "channel is no time of every row: ISO 8601, such as .*; it has '"),
        ({}, "no field is a time of every row"),
        ({"time": "opened", "label": "text"}, "text can't be the label: it is a text of more than 50 values"),
        ({"time": "opened", "id": "half"}, "half can't be the id"),
        ({"time": "opened", "entities": ("half",)}, "half can't be an entity"),
    ],
)
def test_what_cannot_be_is_said(told, said):
    with pytest.raises(GuessError, match=said):
        guess(told)


def test_a_single_day_is_too_short_to_train_on():
    with pytest.raises(GuessError, match="all events are of one day"):
        guess({"time": "opened"}, opened=[1_600_000_000 + n for n in range(ROWS)])
